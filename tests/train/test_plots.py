import contextlib
import math
import struct
from pathlib import Path

import pytest
from etils import epath
from tensorboardX.proto.event_pb2 import Event

from stgt_jax.train.plots import Plots


def events(folder: Path) -> list[Event]:
    """What stands in the one event file, without the first entry, which gives the format's version."""
    (file,) = folder.glob("events.out.tfevents.*")
    data, found = file.read_bytes(), []
    while data:
        (length,) = struct.unpack("Q", data[:8])
        found.append(Event.FromString(data[12 : 12 + length]))
        data = data[12 + length + 4 :]
    return found[1:]


def test_points_of_every_curve_are_in_the_file_and_later_steps_are_purged(tmp_path: Path) -> None:
    plots = Plots(epath.Path(tmp_path / "tensorboard"), start=4)
    plots.add(5, {"train/loss": 1.5, "train/accuracy": math.nan})
    plots.close()
    begin, point = events(tmp_path / "tensorboard")
    assert begin.step == 5 and begin.session_log.status == begin.session_log.START
    assert point.step == 5 and [(v.tag, v.simple_value) for v in point.summary.value] == [("train/loss", 1.5)]


def test_full_disk_is_an_error_where_the_point_is_added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Path("/dev/full").open("wb") as full:
        monkeypatch.setattr("tensorboardX.record_writer.open_file", lambda path: full)
        plots = Plots(epath.Path(tmp_path / "tensorboard"), start=0)
        with pytest.raises(OSError, match="No space left on device"):
            plots.add(1, {"train/loss": 1.0})
        with contextlib.suppress(OSError):
            full.close()
