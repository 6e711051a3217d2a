"""Chooses the file of a split where a data set does not say how its files are named."""

import re
from pathlib import Path

from data_pipeline.errors import DataError

_NAMES = {"train": "train|training", "val": "val|valid|validate|validation", "test": "test|testing", "dev": "dev"}
_NO_ROWS = "ans2label"  # in the name of LAVIS's lists of answers


def select_file(annotations: Path, split: str, suffixes: tuple[str, ...] = (".json", ".jsonl")) -> Path:
    """Returns the file itself, or that in the folder which has the split in its name, or the only one if it has none.

    Raises:
      DataError: there is none, or several.
    """
    if annotations.is_file():
        return annotations
    if not annotations.is_dir():
        raise DataError(f"no file or folder '{annotations}'; --annotations names one")
    paths = sorted(path for path in annotations.iterdir() if path.suffix in suffixes and _NO_ROWS not in path.name)
    named = [path for path in paths if _has_word(path, _NAMES.get(split, re.escape(split.lower())))]
    unnamed = [path for path in paths if not _has_word(path, "|".join(_NAMES.values()))]
    found = named or (unnamed if len(paths) == 1 else [])
    if len(found) == 1:
        return found[0]
    listed = ", ".join(path.name for path in found or paths) or f"no {' or '.join(suffixes)} file"
    raise DataError(f"'{annotations}' has {listed}: which one is split '{split}'? give it as --annotations FILE")


def _has_word(path: Path, words: str) -> bool:
    return re.search(rf"(?<![a-z])({words})(?![a-z])", path.stem.lower()) is not None
