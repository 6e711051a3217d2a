"""Several processes as one run: how they find each other, and how they end when one of them is lost.

JAX runs the same program in all processes, each with its own devices. They exchange data in collectives, so none can
continue without the others. When a process ends for any reason, the others therefore end within the heartbeat timeout,
and all must be started again.
"""

import contextlib
import ctypes
import os
import re
import signal
import sys
from collections.abc import Iterator
from typing import Any, NoReturn

import jax

from stgt_jax.errors import Preempted, STGTError

JOIN_TIMEOUT = 300  # seconds in which all processes must have joined
LOST = (
    "another process of this run has ended or cannot be reached; start all of them again with --resume,"
    " the run continues from its newest checkpoint"
)
# What JAX, gloo and NCCL write when a collective fails because another process is gone.
_PEER_IS_LOST = re.compile(r"gloo|nccl|UNAVAILABLE|DEADLINE_EXCEEDED|CANCELLED|ABORTED|coordination", re.I)


@contextlib.contextmanager
def joined(
    coordinator: str = "",
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    heartbeat_timeout: int,
) -> Iterator[None]:
    """Makes this process part of a run of several. Enter it before anything else asks JAX for its devices.

    Without arguments it looks for several processes in the environment: tasks of one `srun` or of Open MPI's `mpirun`,
    or hosts of one or more Cloud TPU slices (by GKE's variables or the metadata of the TPU machine). If it finds none,
    the process runs alone. Under `srun` and `mpirun` JAX gives each process only the GPU of its local rank;
    JAX_LOCAL_DEVICE_IDS=0,1,... gives it others.

    Args:
      coordinator: HOST:PORT of process 0, as the others reach it; the port must be free there.
      num_processes: the number of processes of the run.
      process_id: the number of this process, from 0.
      heartbeat_timeout: seconds without a sign of life after which a process counts as lost. The others then end within
        this time and a few seconds, with status 1 and the line `LOST`.

    Raises:
      STGTError: the arguments are incomplete or impossible, or the other processes cannot be found. If they do not all
        join within `JOIN_TIMEOUT` seconds, the process ends with a line that says so.
    """
    given = _checked(coordinator, num_processes, process_id)
    if heartbeat_timeout < 1:
        raise STGTError(f"--heartbeat-timeout {heartbeat_timeout} must be at least 1 second")
    if not (given or _launcher()):
        yield
        return
    _join(coordinator, num_processes, process_id, heartbeat_timeout)
    try:
        yield
    except Preempted:
        raise
    except BaseException:
        # At exit JAX waits for the other processes, which may take long, and then aborts all of them. This process
        # has reported its own error by then.
        _print_on_abort("")
        raise


@contextlib.contextmanager
def ending_with_its_peers() -> Iterator[None]:
    """Ends this process, with status 1 and the line `LOST`, on an error that says that another process is gone.

    It ends at once: a checkpoint being written, or JAX's own exit, would wait for the lost process.
    """
    try:
        yield
    except Exception as error:
        if jax.process_count() == 1 or isinstance(error, STGTError) or not _PEER_IS_LOST.search(str(error)):
            raise
        _end(f"{LOST} ({str(error).splitlines()[0][:200]})")


def _checked(coordinator: str, num_processes: int | None, process_id: int | None) -> bool:
    """Whether the three options are given; raises STGTError where only some are, or where they are impossible."""
    missing = [
        name
        for name, value in (
            ("--coordinator", coordinator or None),
            ("--num-processes", num_processes),
            ("--process-id", process_id),
        )
        if value is None
    ]
    if len(missing) == 3:
        return False
    if missing or num_processes is None or process_id is None:
        raise STGTError(
            f"{' and '.join(missing)} missing; give --coordinator HOST:PORT --num-processes N --process-id I together"
        )
    host, _, port = coordinator.rpartition(":")
    if not (host and port.isdecimal() and 0 < int(port) < 2**16):
        raise STGTError(
            f"--coordinator {coordinator} is not HOST:PORT; give the address of process 0, as 10.0.0.1:1234"
        )
    if num_processes < 1:
        raise STGTError(f"--num-processes {num_processes} must be at least 1")
    if not 0 <= process_id < num_processes:
        raise STGTError(f"--process-id {process_id} must lie in 0..{num_processes - 1}, as --num-processes says")
    return True


def _launcher() -> str:
    """What in the environment says that there are several processes; empty where nothing does. Uses no network."""
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS", os.environ.get("SLURM_NTASKS", ""))
    # Without a step this is the batch script itself, a single process, however many tasks it may start.
    if _above_one(tasks) and "SLURM_PROCID" in os.environ and "SLURM_STEP_NODELIST" in os.environ:
        return "SLURM"
    if _above_one(os.environ.get("OMPI_COMM_WORLD_SIZE", "")):
        return "Open MPI"
    hosts = os.environ.get("TPU_PROCESS_ADDRESSES", os.environ.get("TPU_WORKER_HOSTNAMES", ""))
    if "," in hosts or os.environ.get("MEGASCALE_COORDINATOR_ADDRESS"):
        return "TPU variables"
    # JAX chooses the platform tpu only where it sees chips. The number of hosts of their slice is known to the metadata
    # server only, unless GKE's variables have named this host as the only one.
    platforms = jax.config.jax_platforms or ""  # type: ignore[attr-defined]
    chips = "tpu" in platforms and "TPU_SKIP_MDS_QUERY" not in os.environ
    return "TPU metadata" if chips and not hosts else ""


def _above_one(number: str) -> bool:
    return number.isdecimal() and int(number) > 1


def _join(coordinator: str, num_processes: int | None, process_id: int | None, heartbeat_timeout: int) -> None:
    launcher = _launcher() if not coordinator else ""
    found = f"found by {launcher}" if launcher else f"--num-processes {num_processes} at --coordinator {coordinator}"
    remedy = "start all of them, and check that process 0 can be reached at its address and port"
    _print_on_abort(f"the processes of this run ({found}) did not all join within {JOIN_TIMEOUT} s; {remedy}")
    try:
        jax.distributed.initialize(
            coordinator or None,
            num_processes,
            process_id,
            cluster_detection_method="deactivate" if coordinator else None,
            initialization_timeout=JOIN_TIMEOUT,
            heartbeat_timeout_seconds=heartbeat_timeout,
            shutdown_timeout_seconds=heartbeat_timeout,
        )
        jax.process_count()  # the first exchange: each process tells the others its devices
    except Exception as error:
        reason = next(iter(str(error).splitlines()), "")[:200]
        remedy = f"{remedy}, or give --coordinator, --num-processes and --process-id" if launcher else remedy
        raise STGTError(f"cannot join the processes of this run ({found}): {reason}; {remedy}") from error
    _print_on_abort(LOST)


_on_abort: Any = None  # the C function in use; this reference keeps it alive


def _print_on_abort(message: str) -> None:
    """From now on SIGABRT ends this process with status 1 and prints `message`, if it is not empty.

    When another process is lost, JAX calls abort() from a thread of its own, after many lines of log. A handler of the
    module `signal` would not run: Python calls it after the C handler returns, and abort() never does. Call this again
    after joining, as a TPU's runtime may have set a handler of its own.
    """
    global _on_abort
    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)
    _on_abort = handler(lambda number: _end(message))
    libc = ctypes.CDLL(None)
    libc.signal.argtypes, libc.signal.restype = (ctypes.c_int, handler), ctypes.c_void_p
    libc.signal(signal.SIGABRT, _on_abort)


def _end(message: str) -> NoReturn:
    """Ends the process without JAX's own exit, which would wait for processes that never come."""
    if message:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        # What threads of JAX log from now on would otherwise come after the line, or into it.
        log = os.dup(2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        os.write(log, f"\nstgt: error: {message}\n".encode())  # a progress bar may be on the line
    os._exit(1)
