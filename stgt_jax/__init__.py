"""STGT, Video-Language Alignment via Spatio-Temporal Graph Transformer (arXiv 2407.11677), in JAX and Flax.

    import stgt_jax as stgt

    model = stgt.load("moving_shapes")  # or the folder of a run

`Model` describes the methods, and `index` makes a folder of videos searchable. They raise `STGTError` for a mistake
that the caller can correct. `make_moving_shapes` writes video clips to try them on. Importing this package alone is
cheap: JAX is imported with the first name used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stgt_jax.api import GenerationConfig, Model, STGTError, load, make_moving_shapes, push_to_hub
    from stgt_jax.search import index, load_index

_MODULES = {"index": "stgt_jax.search", "load_index": "stgt_jax.search"}  # the others are in stgt_jax.api
__all__ = ["GenerationConfig", "Model", "STGTError", "index", "load", "load_index", "make_moving_shapes", "push_to_hub"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(importlib.import_module(_MODULES.get(name, "stgt_jax.api")), name)


def __dir__() -> list[str]:
    return list(__all__)
