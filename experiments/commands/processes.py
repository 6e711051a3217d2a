"""The options of commands that several processes may run together."""

import contextlib
from dataclasses import dataclass


@dataclass(frozen=True)
class Processes:
    """Where a process finds the others; without options it looks in its environment (`stgt_jax.distributed`)."""

    coordinator: str = ""  # HOST:PORT of process 0, a port that is free there
    num_processes: int | None = None  # number of processes
    process_id: int | None = None  # of this process, from 0
    heartbeat_timeout: int = 60  # seconds after which a silent process counts as lost, and the others end

    def joined(self) -> contextlib.AbstractContextManager[None]:
        """Joins the others; see `stgt_jax.distributed.joined`."""
        from stgt_jax.distributed import joined

        return joined(self.coordinator, self.num_processes, self.process_id, heartbeat_timeout=self.heartbeat_timeout)
