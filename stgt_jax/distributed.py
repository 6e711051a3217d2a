"""Several processes as one run: how they find each other, and how they end when one of them is gone.

JAX runs one program on all of them, each with its own devices, and meets in every collective: none can go on without
the others. So a process that ends in any way ends the others, within the heartbeat timeout, and all are started again.
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

JOIN_TIMEOUT = 300  # seconds in which all processes must have come
LOST = (
    "another process of this run has ended or cannot be reached; start all of them again with --resume,"
    " the run goes on from its newest checkpoint"
)
# What JAX, gloo and NCCL write of a collective whose other end is gone.
_TELLS_OF_A_LOST_PEER = re.compile(r"gloo|nccl|UNAVAILABLE|DEADLINE_EXCEEDED|CANCELLED|ABORTED|coordination", re.I)


@contextlib.contextmanager
def joined(
    coordinator: str = "",
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    heartbeat_timeout: int,
) -> Iterator[None]:
    """Makes this process one of those of a run, before anything else asks JAX for its devices.

    Without arguments it joins where the environment tells of several processes: tasks of one `srun` or of Open MPI's
    `mpirun` (JAX then gives each the GPU of its local rank alone; JAX_LOCAL_DEVICE_IDS=0,1,... gives it others), hosts
    of a Cloud TPU slice or of several, by GKE's variables or the metadata of the TPU machine. Else it stays alone.

    Args:
      coordinator: HOST:PORT of process 0, as the others reach it; the port must be free there.
      num_processes: of the run.
      process_id: of this process, from 0.
      heartbeat_timeout: seconds after which a silent process counts as lost. When one ends or is killed, each of the
        others ends with status 1 and a line that says so (`LOST`), at most this and a few seconds later.

    Raises:
      STGTError: arguments that are incomplete or impossible, or processes that cannot be found. When they do not all
        come within `JOIN_TIMEOUT` seconds the process ends, with a line that says so.
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
        # At exit JAX waits for the others, which may have no reason to come. It then aborts this process and them; what
        # went wrong here has been said by then.
        _say_on_abort("")
        raise


@contextlib.contextmanager
def ending_with_its_peers() -> Iterator[None]:
    """Ends this process, with status 1 and `LOST`, where what is raised inside tells of another process that is gone.

    At once: whatever else wants to finish, a checkpoint being written or JAX itself, would wait for the lost one.
    """
    try:
        yield
    except Exception as error:
        if jax.process_count() == 1 or isinstance(error, STGTError) or not _TELLS_OF_A_LOST_PEER.search(str(error)):
            raise
        _end(f"{LOST} ({str(error).splitlines()[0][:200]})")


def _checked(coordinator: str, num_processes: int | None, process_id: int | None) -> bool:
    """Whether the three are given; raises STGTError where only some are, or they cannot be."""
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
    """What in the environment tells of several processes; empty where nothing does. Asks nobody over the network."""
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS", os.environ.get("SLURM_NTASKS", ""))
    # Without a step it is the batch script itself, of which there is one, whatever number of tasks it may start.
    if _above_one(tasks) and "SLURM_PROCID" in os.environ and "SLURM_STEP_NODELIST" in os.environ:
        return "SLURM"
    if _above_one(os.environ.get("OMPI_COMM_WORLD_SIZE", "")):
        return "Open MPI"
    hosts = os.environ.get("TPU_PROCESS_ADDRESSES", os.environ.get("TPU_WORKER_HOSTNAMES", ""))
    if "," in hosts or os.environ.get("MEGASCALE_COORDINATOR_ADDRESS"):
        return "TPU variables"
    # JAX chooses the platform tpu by itself only where it sees chips. How many hosts their slice has is known to the
    # metadata server alone, unless GKE's variables have named the one.
    platforms = jax.config.jax_platforms or ""  # type: ignore[attr-defined]
    chips = "tpu" in platforms and "TPU_SKIP_MDS_QUERY" not in os.environ
    return "TPU metadata" if chips and not hosts else ""


def _above_one(number: str) -> bool:
    return number.isdecimal() and int(number) > 1


def _join(coordinator: str, num_processes: int | None, process_id: int | None, heartbeat_timeout: int) -> None:
    launcher = _launcher() if not coordinator else ""
    found = f"as told by {launcher}" if launcher else f"--num-processes {num_processes} at --coordinator {coordinator}"
    mend = "start all of them, and see that process 0 can be reached at its address and port"
    _say_on_abort(f"the processes of this run ({found}) did not all come within {JOIN_TIMEOUT} s; {mend}")
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
        jax.process_count()  # meets the others once: each tells of its devices
    except Exception as error:
        reason = next(iter(str(error).splitlines()), "")[:200]
        mend = f"{mend}, or give --coordinator, --num-processes and --process-id" if launcher else mend
        raise STGTError(f"cannot join the processes of this run ({found}): {reason}; {mend}") from error
    _say_on_abort(LOST)


_on_abort: Any = None  # the C function in use, which must outlive this module's functions


def _say_on_abort(message: str) -> None:
    """From now on SIGABRT ends this process with status 1 and, if not empty, this line.

    JAX ends a process that has lost another by abort(), from a thread of its own, after many lines of log. There Python
    has no say: a handler set with the module signal runs after the signal, and abort() never returns. Set again, it
    comes before those that a TPU's runtime may have set meanwhile.
    """
    global _on_abort
    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)
    _on_abort = handler(lambda number: _end(message))
    libc = ctypes.CDLL(None)
    libc.signal.argtypes, libc.signal.restype = (ctypes.c_int, handler), ctypes.c_void_p
    libc.signal(signal.SIGABRT, _on_abort)


def _end(message: str) -> NoReturn:
    """Leaves without JAX's own way out, which waits for processes that will not come."""
    if message:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        os.write(2, f"\nstgt: error: {message}\n".encode())  # a progress bar may stand in the line
    os._exit(1)
