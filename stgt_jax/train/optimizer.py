"""AdamW with linear warm-up and cosine decay (docs/model.md section 6), weight decay on matrices and tables only."""

from typing import Any

import jax
import optax

from stgt_jax.config import OptimizerConfig

# By name, not by rank: the parameters of repeated blocks are stacked, so their biases have two dimensions.
NO_DECAY = ("bias", "scale", "lm_bias", "temperature")


def make_schedule(config: OptimizerConfig, num_steps: int) -> optax.Schedule:
    """Learning rate by step: linear to the peak over the warm-up, then a cosine to the end rate at `num_steps`."""
    return optax.warmup_cosine_decay_schedule(
        init_value=config.warmup_start_learning_rate,
        peak_value=config.peak_learning_rate,
        warmup_steps=config.warmup_steps,
        decay_steps=num_steps,
        end_value=config.end_learning_rate,
    )


def decay_mask(params: Any) -> Any:
    """True for every leaf that weight decay applies to."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key not in NO_DECAY, params)


def make_optimizer(config: OptimizerConfig, num_steps: int) -> optax.GradientTransformation:
    """Gradient clipping by the global norm (none for `clip_norm=0`), then AdamW on the schedule."""
    adamw = optax.adamw(
        make_schedule(config, num_steps),
        b1=config.beta1,
        b2=config.beta2,
        eps=1e-8,
        weight_decay=config.weight_decay,
        mask=decay_mask,
    )
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), adamw) if config.clip_norm > 0 else adamw
