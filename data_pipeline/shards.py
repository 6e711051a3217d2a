"""The shard set on disk: a TFDS ArrayRecord data set per split, and random access to its records.

A shard set is a folder with `vocab.txt` and a folder for each split (`train/`, `test/`, ...). A split's folder holds
the ArrayRecord files, the metadata of TFDS, and `manifest.json`. The manifest has the settings of the build, a hash of
all records, and the size of every file, so a missing or truncated file is found on opening and not in the middle of an
epoch. A shard set is written to a local folder. It is read from there or, after copying, from Google Cloud Storage.
"""

import dataclasses
import hashlib
import itertools
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from data_pipeline.errors import DataError
from stgt_jax.checks import in_bucket

VOCAB_NAME = "vocab.txt"
MANIFEST_NAME = "manifest.json"
_NAME, _VERSION = "video_captions", "1.0.0"
_SHARD_BYTES = 128 << 20
_WRITE_BATCH = 16  # records handed to TFDS at a time: it rewrites its metadata at each call


@dataclasses.dataclass(frozen=True)
class ShardSettings:
    """What all records of a split have in common; their token ids belong to the vocabulary with this hash."""

    num_kept_frames: int
    resize: int
    max_text_length: int
    vocab_sha256: str


def hash_file(path: str | Path) -> str:
    """Returns the SHA-256 of a file, in hexadecimal."""
    return hashlib.sha256(epath.Path(path).read_bytes()).hexdigest()


def _features(settings: ShardSettings) -> tfds.features.FeaturesDict:
    """The fields of `ShardSource`. Frames are stored as plain bytes: ArrayRecord compresses them, faster than zlib."""
    tokens = tfds.features.Tensor(shape=(settings.max_text_length,), dtype=np.int32)
    return tfds.features.FeaturesDict(
        {
            "video": tfds.features.Tensor(
                shape=(settings.num_kept_frames, None, None, 3), dtype=np.uint8, encoding="bytes"
            ),
            "video_id": tfds.features.Text(),
            "caption": tfds.features.Text(),
            "group": tfds.features.Text(),
            "input_ids": tokens,
            "attention_mask": tokens,
        }
    )


def write_split(folder: Path, split: str, examples: Iterable[dict[str, Any]], settings: ShardSettings) -> int:
    """Writes `examples`, with the fields of `ShardSource`, to ArrayRecord files in `folder`; returns their number.

    The order is kept, and only a few records are in memory at a time. (TFDS's `GeneratorBasedBuilder` would shuffle all
    records in memory, and needs TensorFlow for more than 1 GB; `SequentialWriter` does not.)
    """
    identity = tfds.core.DatasetIdentity(_NAME, tfds.core.Version(_VERSION), str(folder), module_name=__name__)
    info = tfds.core.DatasetInfo(builder=identity, features=_features(settings), disable_shuffling=True)
    examples = iter(examples)
    first = next(examples, None)
    if first is None:
        return 0
    writer = tfds.core.SequentialWriter(
        info, max_examples_per_shard=max(1, _SHARD_BYTES // first["video"].nbytes), file_format="array_record"
    )
    writer.initialize_splits([split])
    num_written, digest, examples = 0, hashlib.sha256(), itertools.chain([first], examples)
    while batch := list(itertools.islice(examples, _WRITE_BATCH)):
        writer.add_examples({split: batch})
        num_written += len(batch)
        for value in (value for example in batch for value in example.values()):
            digest.update(value.encode() if isinstance(value, str) else value)
    writer.close_all()
    manifest = {
        "num_records": num_written,
        "records_sha256": digest.hexdigest(),
        "settings": dataclasses.asdict(settings),
        "files": {path.name: path.stat().st_size for path in sorted(folder.glob("*.array_record*"))},
    }
    (folder / MANIFEST_NAME).write_text(json.dumps(manifest, indent=2) + "\n")
    return num_written


def list_splits(shards: str | os.PathLike[str]) -> list[str]:
    """Returns the splits of the shard set in the folder `shards`; none if there is no such folder."""
    folder = epath.Path(shards)
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    # A hidden folder is an unfinished build.
    return sorted(name for name in names if not name.startswith(".") and (folder / name / MANIFEST_NAME).exists())


def _check_split(shards: epath.Path, split: str) -> dict[str, Any]:
    """Returns the split's manifest after checking its files and that it belongs to the shard set's vocabulary."""
    if in_bucket(shards) and not os.fspath(shards).startswith("gs://"):
        raise DataError(
            f"shard set '{shards}': ArrayRecord reads only local folders and gs://; mount that bucket as a folder, or"
            " copy the shard set"
        )
    known = list_splits(shards)
    if not known:
        raise DataError(f"no shard set in '{shards}': build one with `stgt data build`")
    if split not in known:
        raise DataError(f"no split '{split}' in shard set '{shards}'; known: {', '.join(known)}")
    folder, rebuild = shards / split, f"rebuild split '{split}'"
    try:
        manifest = json.loads((folder / MANIFEST_NAME).read_text())
        settings, files = ShardSettings(**manifest["settings"]), manifest["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"shard set file '{folder / MANIFEST_NAME}' cannot be read: {rebuild}") from error
    present = {
        path.name for path in folder.iterdir()
    }  # one listing, as asking for each file in a bucket would take long
    for name, size in files.items():
        path = folder / name
        if name not in present:
            raise DataError(f"missing shard file '{path}': {rebuild}")
        # Objects in a bucket are never truncated. epath's stat() fails for an owner without a name.
        if not in_bucket(path) and (found := os.path.getsize(path)) != size:
            raise DataError(f"truncated shard file '{path}': {found} bytes, not {size}; {rebuild}")
    if not (shards / VOCAB_NAME).is_file():
        raise DataError(f"missing vocabulary '{shards / VOCAB_NAME}': rebuild the shard set")
    if hash_file(shards / VOCAB_NAME) != settings.vocab_sha256:
        raise DataError(f"split '{split}' was not tokenised with '{shards / VOCAB_NAME}' as it is now: {rebuild}")
    return manifest


class ShardSource:
    """Random access to the records of a split, in the order of the caption file. Pickling keeps only the paths.

    `source[i]` is a dict: video uint8 [K, h, w, 3] (read-only), video_id str, caption str, group str,
    input_ids int32 [S], attention_mask int32 [S]. `source.settings` says what K, S and the short side are;
    `source.manifest_sha256` is the same for two splits only if their records are the same.
    """

    def __init__(self, shards: str | os.PathLike[str], split: str) -> None:
        self.shards, self.split = epath.Path(shards), split
        manifest = _check_split(self.shards, split)
        self.settings = ShardSettings(**manifest["settings"])
        self._folder = self.shards / split
        self.manifest_sha256 = hash_file(self._folder / MANIFEST_NAME)
        try:
            # Absolute, since TFDS takes a relative "~" for the home folder.
            builder = tfds.builder_from_directory(self._folder if in_bucket(shards) else self._folder.absolute())
            self._records, self._info = builder.as_data_source(split), builder.info.splits[split]
            num_records = len(self._records)
        except Exception as error:  # TFDS and ArrayRecord raise many types
            raise DataError(f"shard set '{self._folder}' cannot be opened: {_one_line(error)}") from error
        if num_records != manifest["num_records"]:
            raise DataError(f"shard set '{self._folder}' has {num_records} records, not {manifest['num_records']}")

    @property
    def vocab(self) -> bytes:
        """The content of the shard set's vocabulary file."""
        return (self.shards / VOCAB_NAME).read_bytes()

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        try:
            record = self._records[index]
        except Exception as error:  # a corrupt block is only noticed when it is read
            shard = np.searchsorted(np.cumsum(self._info.shard_lengths), index, side="right")
            path = self._info.filepaths[shard]
            raise DataError(f"record {index} in '{path}' cannot be read: {_one_line(error)}") from error
        return record | {name: record[name].decode() for name in ("video_id", "caption", "group")}

    def __reduce__(self) -> tuple[type["ShardSource"], tuple[epath.Path, str]]:
        return ShardSource, (self.shards, self.split)

    def __repr__(self) -> str:
        return f"ShardSource(shards={str(self.shards)!r}, split={self.split!r}, num_records={len(self)})"


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def open_shards(shards: str | os.PathLike[str], split: str) -> ShardSource:
    """Opens one split of a shard set.

    Raises:
      DataError: no shard set there, no such split, a missing or truncated file, another vocabulary, or a place that
        ArrayRecord cannot read.
    """
    return ShardSource(shards, split)
