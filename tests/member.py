"""One process of a run that only adds numbers, step after step: `member.py COORDINATOR NUM_PROCESSES ID [EVENT]`.

EVENT is what befalls this process: at step 3 it is `killed`, or `mistaken` (an error of its own), or it is too
`impatient` to wait long for the others.
"""

import os
import signal
import sys

import jax
import jax.numpy as jnp
import numpy as np

from stgt_jax import distributed
from stgt_jax.config import MeshConfig
from stgt_jax.errors import STGTError
from stgt_jax.mesh import make_mesh
from stgt_jax.sharding import batch_sharding, replicated

HEARTBEAT = 4
PATIENCE = 2


def add(event: str) -> None:
    mesh = make_mesh(MeshConfig())
    rows = np.ones((jax.local_device_count(), 2), np.float32)
    total = jax.jit(jnp.sum, out_shardings=replicated(mesh))
    for step in range(10**9):
        float(total(jax.make_array_from_process_local_data(batch_sharding(mesh), rows)))
        print(step, flush=True)
        if step == 3 and event == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if step == 3 and event == "mistaken":
            raise STGTError("this process alone has a mistake")


if __name__ == "__main__":
    coordinator, num_processes, process_id, event = *sys.argv[1:4], (sys.argv[4:] or [""])[0]
    if event == "impatient":
        distributed.JOIN_TIMEOUT = PATIENCE
    try:
        with (
            distributed.joined(coordinator, int(num_processes), int(process_id), heartbeat_timeout=HEARTBEAT),
            distributed.ending_with_its_peers(),
        ):
            add(event)
    except STGTError as error:
        sys.exit(f"stgt: error: {error}")
