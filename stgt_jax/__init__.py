"""STGT, Video-Language Alignment via Spatio-Temporal Graph Transformer (arXiv 2407.11677), in JAX and Flax.

    import stgt_jax as stgt

    model = stgt.load("moving_shapes")  # or the folder of a run

`Model` has all methods. They raise `STGTError` for a mistake that the caller can correct. Importing this package alone
is cheap: JAX is imported with the first of these names that is used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stgt_jax.api import Model, load
    from stgt_jax.errors import STGTError

__all__ = ["Model", "STGTError", "load"]

_MODULES = {"Model": "stgt_jax.api", "STGTError": "stgt_jax.errors", "load": "stgt_jax.api"}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return list(__all__)
