"""One run in a folder at a time: WORKDIR/run.lock names the process that writes there."""

import contextlib
import datetime
import fcntl
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator

import jax
from etils import epath

from stgt_jax.checks import in_bucket
from stgt_jax.errors import STGTError
from stgt_jax.run_folder import PathLike, folder_path

LOCK_NAME = "run.lock"
BEAT_SECONDS = 15.0  # between two signs of life of a run in a bucket
RELEASE_SECONDS = 5.0  # for the lock in a bucket to be removed

_log = logging.getLogger(__name__)


@contextlib.contextmanager
def locked(workdir: PathLike) -> Iterator[None]:
    """Holds a run's folder for this process, and makes the folder if needed; of several processes, process 0 holds it.

    A local folder is held by a lock of the operating system, which ends with its process, however that ends. A bucket
    has no such locks: there a run rewrites the object run.lock every `BEAT_SECONDS`, and another run takes the folder
    if nobody does so for twice as long. Two runs that start in a bucket in the same second do not notice each other.

    Raises:
      STGTError: another process holds the folder, or the folder cannot be written to.
    """
    folder = folder_path(workdir)
    if jax.process_index() != 0:
        yield
        return
    hold = _hold_object if in_bucket(folder) else _hold_file
    try:
        folder.mkdir(parents=True, exist_ok=True)
        release = hold(folder)
    except OSError as error:
        reason = error.strerror or error
        raise STGTError(f"'{workdir}' cannot be written to ({reason}); choose another --workdir") from error
    try:
        yield
    finally:
        release()


def _hold_file(folder: epath.Path) -> Callable[[], None]:
    lock = os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(lock, 1000).decode()
        os.close(lock)
        raise _in_use(folder, holder) from None
    except OSError as error:
        _log.warning("warning: '%s' cannot be locked (%s); start no second run there", folder, error.strerror)
    os.truncate(lock, 0)
    os.write(lock, _sign_of_life(_now()).encode())
    return lambda: os.close(lock)


def _hold_object(folder: epath.Path) -> Callable[[], None]:
    file, since, ended = folder / LOCK_NAME, _now(), threading.Event()
    found = _content(file)
    if found:
        _log.info("'%s' is in use, or was left by a run that died: looking again in %.0f s", file, 2 * BEAT_SECONDS)
        time.sleep(2 * BEAT_SECONDS)
        if _content(file) not in ("", found):
            raise _in_use(folder, found)

    def beat() -> None:
        while not ended.wait(BEAT_SECONDS):
            with contextlib.suppress(Exception):  # of the network: the next one may arrive
                file.write_text(_sign_of_life(since))

    file.write_text(_sign_of_life(since))
    heart = threading.Thread(target=beat, name="run-lock", daemon=True)
    heart.start()

    def remove() -> None:
        heart.join()
        with contextlib.suppress(Exception):  # of the network: what is left there counts as a dead run's
            file.unlink(missing_ok=True)

    def release() -> None:
        ended.set()
        remover = threading.Thread(target=remove, name="run-lock", daemon=True)
        remover.start()
        remover.join(RELEASE_SECONDS)  # storage that does not answer must not keep a run that is done

    return release


def _content(file: epath.Path) -> str:
    try:
        return file.read_text()
    except FileNotFoundError:
        return ""


def _sign_of_life(since: str) -> str:
    return json.dumps({"process": os.getpid(), "host": socket.gethostname(), "since": since, "alive": _now()}) + "\n"


def _now() -> str:
    return datetime.datetime.now().astimezone().isoformat(timespec="milliseconds")


def _in_use(folder: epath.Path, content: str) -> STGTError:
    try:
        holder = json.loads(content)
        who = f"process {holder['process']} on {holder['host']}, since {holder['since']}"
    except (ValueError, KeyError):  # it is just being written
        who = "another process"
    return STGTError(f"'{folder}': a run is in progress there ({who}); wait for it, stop it, or use another --workdir")
