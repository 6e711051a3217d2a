"""A model of this project as a source of weights for another one, and the weights of a model under other names."""

from collections.abc import Mapping, Sequence

import numpy as np

from stgt_jax.config import ModelConfig
from stgt_jax.convert.reference import Leaf, leaves
from stgt_jax.convert.source import Source
from stgt_jax.convert.stored_tensor import StoredTensor
from stgt_jax.errors import STGTError


def own_source(path: str, config: ModelConfig, parameters: Mapping[str, StoredTensor]) -> Source:
    """Returns a model of this project as a source.

    Args:
      path: its folder, for messages.
      config: of the model.
      parameters: by their paths in the tree, such as "vision/patch_embed/kernel".

    Raises:
      STGTError: a parameter is missing.
    """
    tensors = under_reference_names(path, config, parameters)
    settings = {
        "num_frames": config.num_frames,
        "vision_heads": config.vision.num_heads,
        "graph_heads": config.graph.num_heads,
        "qformer_heads": config.qformer.num_heads,
        "sim_threshold": config.graph.sim_threshold,
        "vision_norm_epsilon": config.vision.norm_epsilon,
        "ln_vision_epsilon": config.ln_vision_epsilon,
        "qformer_norm_epsilon": config.qformer.norm_epsilon,
        "cross_attention_freq": config.qformer.cross_attention_freq,
        "graph_variant": config.graph.variant,
    }
    names = {name: " ".join(dict.fromkeys(leaf.path for leaf in of_name)) for name, of_name in _by_name(config).items()}
    left_out = dict.fromkeys(
        without_reference_name(config, parameters), "the head for questions, whose answers are fixed"
    )
    return Source(path, "stgt_jax", tensors, names, left_out, settings)


def without_reference_name(config: ModelConfig, parameters: Mapping[str, StoredTensor]) -> list[str]:
    """Returns the paths of the parameters that the reference has no name for: those of the head for questions."""
    return sorted(parameters.keys() - {leaf.path for leaf in leaves(config)})


def under_reference_names(
    path: str, config: ModelConfig, parameters: Mapping[str, StoredTensor]
) -> dict[str, StoredTensor]:
    """Returns a model's parameters, which are given by their paths, by the reference's names."""
    for leaf in leaves(config):
        if leaf.path not in parameters:
            raise STGTError(f"'{path}' lacks {leaf.path}, which its config.json asks for; export the model again")
    return {name: _joined(of_name, parameters) for name, of_name in _by_name(config).items()}


def _by_name(config: ModelConfig) -> dict[str, list[Leaf]]:
    by_name: dict[str, list[Leaf]] = {}
    for leaf in leaves(config):
        by_name.setdefault(leaf.name, []).append(leaf)
    return by_name


def _joined(of_name: Sequence[Leaf], parameters: Mapping[str, StoredTensor]) -> StoredTensor:
    """The reference's tensor that some of our leaves make: one, or three thirds."""
    parts = [_part(leaf, parameters[leaf.path]) for leaf in of_name]
    first = parts[0]
    if len(parts) == 1:
        return first
    shape = (len(parts) * first.shape[0], *first.shape[1:])
    return StoredTensor(shape, first.dtype, lambda: np.concatenate([part.read() for part in parts]))


def _part(leaf: Leaf, parameter: StoredTensor) -> StoredTensor:
    stored = parameter if leaf.layer is None else parameter.row(leaf.layer)
    shape = leaf.layout_back(np.broadcast_to(np.zeros((), np.float32), stored.shape)).shape
    return stored.mapped(leaf.layout_back, shape)
