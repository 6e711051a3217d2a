"""The precision of matrix products: float32 is multiplied as float32.

By default TPUs multiply float32 numbers by their first 8 bits, and NVIDIA GPUs by their first 11 (TF32).
"""

from typing import Any

import jax
import jax.numpy as jnp


def precision_of(dtype: Any) -> jax.lax.Precision:
    """The precision with which arrays of a dtype are multiplied."""
    return jax.lax.Precision.HIGHEST if jnp.dtype(dtype) == jnp.float32 else jax.lax.Precision.DEFAULT
