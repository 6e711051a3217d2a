"""Who holds the folder of a run: one process at a time, and no dead one."""

import subprocess
import sys
from pathlib import Path

import pytest
from processes import ROOT, environment

from stgt_jax.errors import STGTError
from stgt_jax.train.run_lock import LOCK_NAME, locked

HOLD = """
import sys, time
from stgt_jax.train.run_lock import locked
with locked(sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path: Path):
    """A process that holds the folder."""
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    process = subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_folder_is_free_as_soon_as_its_process_is_killed(holder: subprocess.Popen, tmp_path: Path) -> None:
    with pytest.raises(STGTError, match=rf"in progress there \(process {holder.pid} on .*, since "), locked(tmp_path):
        pass
    holder.kill()
    holder.wait()
    with locked(tmp_path):
        assert (tmp_path / LOCK_NAME).exists()


def test_folder_is_free_again_after_an_error_inside(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), locked(tmp_path / "run"):
        raise KeyboardInterrupt
    with locked(tmp_path / "run"), pytest.raises(STGTError, match="in progress"), locked(tmp_path / "run"):
        pass


def test_workdir_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for workdir in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(STGTError, match="cannot be written to") as error, locked(workdir):
            pass
        assert str(workdir) in str(error.value)
