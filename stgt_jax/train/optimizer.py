"""AdamW with linear warm-up and cosine decay (docs/model.md section 6.2)."""

from typing import Any

import jax
import optax

from stgt_jax.config import OptimizerConfig

# By name, not by rank: the parameters of repeated blocks are stacked, so that their biases have two dimensions.
NO_DECAY = ("bias", "scale", "lm_bias", "temperature")


def make_schedule(config: OptimizerConfig, num_steps: int) -> optax.Schedule:
    """The learning rate of each step: linear up to the peak, then along a cosine to the end rate at `num_steps`."""
    return optax.warmup_cosine_decay_schedule(
        init_value=config.warmup_start_learning_rate,
        peak_value=config.peak_learning_rate,
        warmup_steps=config.warmup_steps,
        decay_steps=num_steps,
        end_value=config.end_learning_rate,
    )


def decay_mask(params: Any) -> Any:
    """True for every parameter with weight decay: matrices, embedding tables and learned tokens."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key not in NO_DECAY, params)


def make_optimizer(config: OptimizerConfig, num_steps: int) -> optax.GradientTransformation:
    """AdamW, after clipping of the gradient's global norm where `clip_norm` is not 0."""
    adamw = optax.adamw(
        make_schedule(config, num_steps),
        b1=config.beta1,
        b2=config.beta2,
        eps=1e-8,
        weight_decay=config.weight_decay,
        mask=decay_mask,
    )
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), adamw) if config.clip_norm > 0 else adamw
