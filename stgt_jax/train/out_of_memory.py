"""A device that runs out of memory, said in one line with the phase of training in which it does."""

import contextlib
import re
from collections.abc import Iterator

import jax

from stgt_jax.errors import STGTError

_SIGNS = re.compile(r"RESOURCE_EXHAUSTED|out of memory", re.I)
_SIZE = re.compile(r"allocat\w* (?:request for )?([\d.,]+ ?(?:bytes|[KMGT]i?B)\b)", re.I)
OF_STATE = "take a larger --train.mesh.fsdp, which divides weights and optimizer among more devices"
OF_STEP = "take a larger --train.accumulation_steps, --model.remat true, or more devices with --train.mesh.fsdp"
OF_VALIDATION = "give --train.eval_every 0 and evaluate afterwards, or more devices with --train.mesh.fsdp"


def is_out_of_memory(error: jax.errors.JaxRuntimeError) -> bool:
    """Whether the error says that a device's memory is used up."""
    return bool(_SIGNS.search(str(error)))


@contextlib.contextmanager
def out_of_memory_named(phase: str, mend: str) -> Iterator[None]:
    """Turns the device's error inside into STGTError.

    Args:
      phase: what runs inside, such as "a training step".
      mend: the options that need less memory there.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if not is_out_of_memory(error):
            raise
        found = _SIZE.search(str(error))
        size = f" (it asked for {found[1]} more)" if found else ""
        raise STGTError(f"a device ran out of memory in {phase}{size}; {mend}") from error
