"""The tests run on a CPU that poses as 8 devices, and compile each program once."""

import signal

import jax_set_up  # noqa: F401  (before anything that imports jax)
import pytest
from shared_train_step import share_train_step

share_train_step()
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which nohup lets every program ignore

# Begun first, so that all cores work to the end. Those of commands keep their place: one finds what another compiled.
LONGEST = ("test_gpu_programs.py", "test_compile.py", "test_step.py", "test_stgt.py", "test_golden.py")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the longest files first; `make test` hands files out in this order."""
    place = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(LONGEST)))
