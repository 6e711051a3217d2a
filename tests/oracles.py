"""Other implementations to compare with, which `make test` installs apart: torch, transformers and coco-caption."""

import importlib.util
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(sys.prefix) / "oracles"))
needs_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="requirements-oracles.txt")
needs_transformers = pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None, reason="requirements-oracles.txt"
)
needs_coco_caption = pytest.mark.skipif(
    importlib.util.find_spec("pycocoevalcap") is None, reason="requirements-oracles.txt"
)
