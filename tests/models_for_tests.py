"""A model that tests can run in seconds on one CPU core, and a run's folder with its random weights."""

from pathlib import Path

import jax
import numpy as np

from stgt_jax.config import GraphConfig, MeshConfig, ModelConfig, QFormerConfig, TrainConfig, VisionConfig
from stgt_jax.mesh import make_mesh
from stgt_jax.models.stgt import STGT, param_shapes
from stgt_jax.run_folder import write_run
from stgt_jax.train.checkpoint import Checkpoints
from stgt_jax.train.state import init_state


def tiny() -> ModelConfig:
    """4 frames of 4 x 4 patches, two layers of width 32."""
    return ModelConfig(
        num_frames=4,
        vision=VisionConfig(image_size=32, patch_size=8, width=32, depth=2, num_heads=4, mlp_dim=64),
        graph=GraphConfig(num_heads=4, time_embed_rows=4),
        qformer=QFormerConfig(vocab_size=64, max_text_length=16, width=32, depth=2, num_heads=4, mlp_dim=64,
                              num_queries=4, sep_token_id=3),
        embed_dim=16,
    )  # fmt: skip


def write_random_run(folder: Path, model: ModelConfig, seed: int = 0) -> Path:
    """Writes config.json and the checkpoint of step 0 of a run with random weights; returns its folder.

    The weights are NumPy's: the program that makes the model's own takes seconds to compile.
    """
    rng, shapes = np.random.default_rng(seed), param_shapes(STGT(model))
    params = jax.tree.map(lambda leaf: rng.normal(0, 0.2, leaf.shape).astype(leaf.dtype), shapes)
    state = init_state(STGT(model), TrainConfig(num_steps=10_000), make_mesh(MeshConfig(), jax.devices()[:1]), params)
    write_run(folder, {"model": model})
    checkpoints = Checkpoints(folder)
    checkpoints.save(0, state, {})
    checkpoints.close()
    return folder
