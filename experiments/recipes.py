"""Recipes: everything that defines a training run, as one frozen dataclass with a name.

A recipe holds the options of the model, the loader and the training of one stage. `get_recipe` finds a recipe by name.
The command line changes single fields (`experiments.recipe_fields`).
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from data_pipeline.config import DataConfig
from experiments.recipe_fields import replace_fields
from stgt_jax.checks import did_you_mean
from stgt_jax.config import (
    GraphConfig,
    LossConfig,
    MeshConfig,
    ModelConfig,
    OptimizerConfig,
    QFormerConfig,
    TrainConfig,
    VisionConfig,
    WeightsConfig,
    vit_g,
)
from stgt_jax.errors import STGTError


@dataclass(frozen=True)
class Recipe:
    """One stage of training."""

    model: ModelConfig
    data: DataConfig
    train: TrainConfig
    weights: WeightsConfig = field(default_factory=WeightsConfig)
    needs_initial_weights: bool = False  # refuse to start from random weights; a second stage does
    vocab_from_data: bool = False  # take qformer.vocab_size and sep_token_id from the shards; otherwise they must agree


def moving_shapes_stage1() -> Recipe:
    """The demo's first stage: a small model, trained as a whole with VTC + VTM + VTG on the built-in clips."""
    return Recipe(
        model=ModelConfig(
            num_frames=6,
            vision=VisionConfig(image_size=64, patch_size=16, width=96, depth=2, num_heads=4, mlp_dim=384),
            # Most of a clip is a still background: with a lower threshold every patch is linked to every other.
            # The time rows are as large as the ViT's tokens, which no norm follows: smaller rows would be lost in them.
            graph=GraphConfig(num_heads=4, time_embed_rows=6, time_embed_std=2.0, sim_threshold=0.8, dropout=0.0),
            qformer=QFormerConfig(max_text_length=32, width=96, depth=2, num_heads=4, mlp_dim=384, num_queries=8,
                                  dropout=0.0, sep_token_id=3),
            embed_dim=64,
            scan_layers=False,
        ),
        data=DataConfig(crop_scale=(0.8, 1.0), flip=False),
        train=TrainConfig(
            num_steps=1100,
            batch_size=48,
            log_every=25,
            eval_every=550,
            checkpoint_every=275,
            optimizer=OptimizerConfig(peak_learning_rate=8e-4, warmup_steps=50, clip_norm=1.0),
        ),
        vocab_from_data=True,
    )  # fmt: skip


def moving_shapes_stage2() -> Recipe:
    """The demo's second stage: CSAL replaces VTC, starting from the weights of the first stage."""
    recipe = moving_shapes_stage1()
    train = dataclasses.replace(
        recipe.train,
        num_steps=300,
        eval_every=150,
        loss=LossConfig(contrastive="csal"),
        optimizer=OptimizerConfig(peak_learning_rate=2e-4, warmup_steps=25, clip_norm=1.0),
    )
    return dataclasses.replace(recipe, train=train, needs_initial_weights=True)


def paper_stage1() -> Recipe:
    """The published first stage: frozen ViT-g/14, 8 frames of 224 pixels, VTC + VTM + VTG.

    The sizes of the model, the losses, AdamW's beta2 and weight decay, and the absence of gradient clipping are the
    paper's. It does not publish its pre-training schedule or batch size. The schedule is that of BLIP-2's first stage:
    peak learning rate 1e-4, end 1e-5, start of the warm-up 1e-6, 5000 warm-up steps, and captions of 32 tokens (the
    default of `stgt data build`). The batch of 2048 clips and the 50,000 steps, about ten passes over 10 million clips,
    are this project's choice. The frozen encoder needs its weights: `weights.vision`.
    """
    return Recipe(
        model=vit_g(),
        data=DataConfig(num_workers=8),
        train=TrainConfig(
            num_steps=50_000,
            batch_size=2048,
            optimizer=OptimizerConfig(
                peak_learning_rate=1e-4, end_learning_rate=1e-5, warmup_start_learning_rate=1e-6, warmup_steps=5000
            ),
            mesh=MeshConfig(fsdp="auto", sequence="auto"),
        ),
    )


def paper_stage2() -> Recipe:
    """The published second stage: CSAL replaces VTC, starting from the weights of the first stage.

    Its schedule and batch size are not published either; they are those of `paper_stage1`.
    """
    recipe = paper_stage1()
    train = dataclasses.replace(recipe.train, loss=LossConfig(contrastive="csal"))
    return dataclasses.replace(recipe, train=train, needs_initial_weights=True)


RECIPES: dict[str, Callable[[], Recipe]] = {
    recipe.__name__: recipe for recipe in (moving_shapes_stage1, moving_shapes_stage2, paper_stage1, paper_stage2)
}


def get_recipe(name: str, fields: Mapping[str, Any] | None = None) -> Recipe:
    """Returns the recipe with this name, with other values in `fields`, given by their full names.

    Raises:
      STGTError: there is none, and the message names the closest; or the recipe refuses a value.
    """
    if name not in RECIPES:
        raise STGTError(f"unknown recipe '{name}'{did_you_mean(name, RECIPES)}")
    return replace_fields(RECIPES[name](), fields or {})
