"""The tests run on a CPU that poses as 8 devices, and compile each program once."""

import jax_set_up  # noqa: F401  (before anything that imports jax)
from shared_train_step import share_train_step

share_train_step()
