from collections.abc import Callable
from pathlib import Path

import pytest
from clips import write_clip, write_sound


@pytest.fixture
def make_clip(tmp_path: Path) -> Callable[..., Path]:
    """`make_clip(name, num_frames, ...)` writes a clip into the test's folder."""
    return lambda name="clip.mp4", num_frames=24, **options: write_clip(tmp_path / name, num_frames, **options)


@pytest.fixture
def make_sound(tmp_path: Path) -> Callable[..., Path]:
    """`make_sound(name)` writes an audio-only file into the test's folder."""
    return lambda name="sound.mp4": write_sound(tmp_path / name)
