"""The hidden folder in which a split is built, and how it takes its place when it is done."""

import contextlib
import fcntl
import logging
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

from etils import epath

from data_pipeline.errors import DataError
from data_pipeline.processes import hold_signals
from data_pipeline.shard_build import REPORTS, read_reports, report_path
from data_pipeline.shards import MANIFEST_NAME, VOCAB_NAME
from data_pipeline.storage import move_files
from stgt_jax.checks import in_bucket
from stgt_jax.signal_handlers import handling

_log = logging.getLogger("stgt_jax")
_DISK_IS_FULL = ("No space left on device", "Disk quota exceeded", "File too large")
_HINT = "; the same command goes on with the shards that are finished"


@contextlib.contextmanager
def stopping_in_good_order() -> Iterator[None]:
    """Makes SIGTERM and SIGHUP end the build as an exception does, so that its workers end and files are whole."""
    with handling((signal.SIGTERM, signal.SIGHUP), lambda number, _: sys.exit(128 + number)):
        yield


@contextlib.contextmanager
def incomplete_folder(out: Path | epath.Path, split: str) -> Iterator[Path | epath.Path]:
    """Yields a hidden folder to build in. At the end it becomes `out/split`.

    After an error it is deleted, but for finished shards, with which the next build of the same rows goes on.
    """
    try:
        with _in_bucket(epath.Path(out), split) if in_bucket(out) else _on_disk(Path(out), split) as folder:
            yield folder
    except DataError:
        raise
    except Exception as error:  # TFDS and ArrayRecord raise other types for a full disk
        full = next((reason for reason in _DISK_IS_FULL if reason in str(error)), None)
        if full or isinstance(error, OSError):
            what = full or getattr(error, "strerror", None) or error
            hint = _HINT if (out / f".{split}.incomplete").exists() else ""
            raise DataError(f"cannot write shard set '{out}': {what}{hint}") from error
        raise


@contextlib.contextmanager
def _on_disk(out: Path, split: str) -> Iterator[Path]:
    folder, replaced, is_new = out / f".{split}.incomplete", out / f".{split}.replaced", not out.exists()
    lock = _claim(folder)
    try:
        yield folder
        if (out / split).exists():
            shutil.rmtree(replaced, ignore_errors=True)  # of a build that was stopped
        with hold_signals():  # a stop leaves the old split or the new one
            if (out / split).exists():
                (out / split).rename(replaced)
            folder.rename(out / split)
            os.replace(out / split / VOCAB_NAME, out / VOCAB_NAME)
        shutil.rmtree(replaced, ignore_errors=True)
    finally:
        if replaced.exists() and not (out / split).exists():
            replaced.rename(out / split)
        if not any(folder.glob(REPORTS)):
            shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)
        if is_new:
            with contextlib.suppress(OSError):
                out.rmdir()  # only if empty


@contextlib.contextmanager
def _in_bucket(out: epath.Path, split: str) -> Iterator[epath.Path]:
    """As `_on_disk`. A bucket cannot rename a folder: its files move one by one.

    The old manifest goes first and the new one comes last, and without a manifest there is no split.
    """
    folder = out / f".{split}.incomplete"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield folder
        names = {path.name for path in folder.iterdir()} - {VOCAB_NAME, MANIFEST_NAME}
        (out / split / MANIFEST_NAME).unlink(missing_ok=True)
        if (out / split).exists():
            (out / split).rmtree()
        move_files({folder / name: out / split / name for name in names})
        move_files({folder / VOCAB_NAME: out / VOCAB_NAME})
        move_files({folder / MANIFEST_NAME: out / split / MANIFEST_NAME})
    finally:
        with contextlib.suppress(FileNotFoundError):  # without a file there is no folder
            if not any(path.match(REPORTS) for path in folder.iterdir()):
                folder.rmtree()


def _claim(folder: Path) -> int:
    """Makes a folder for this process alone; returns the descriptor of its lock."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise DataError(f"another process is building in '{folder}'; wait for it, or choose another folder") from None
    except OSError:
        pass  # a file system without locks, where two builds do not notice each other
    return lock


def keep_finished_shards(folder: Path | epath.Path, num_shards: int, plan_sha256: str) -> list[int]:
    """Removes all that an earlier build left but the shards that it finished by the same plan; returns the others."""
    reports = enumerate(read_reports(folder, num_shards, plan_sha256))
    finished = {number: report for number, report in reports if report}
    kept = {VOCAB_NAME, *(report_path(folder, number).name for number in finished)}
    kept |= {report.written.file for report in finished.values() if report.written}
    for path in folder.iterdir():
        if path.name not in kept:
            epath.Path(path).rmtree() if path.is_dir() else path.unlink()
    if finished:
        _log.info("an earlier build finished %d of %d shards; going on", len(finished), num_shards)
    return [number for number in range(num_shards) if number not in finished]
