"""Recipes: everything a training run is, as one frozen dataclass, under a name.

A recipe joins the model, the loader and the training of one stage, and refuses what does not fit together. `get_recipe`
finds one by name; options of the command line change single fields (`experiments.options`).
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

from data_pipeline.config import DataConfig
from stgt_jax.config import (
    GraphConfig,
    LossConfig,
    MeshConfig,
    ModelConfig,
    OptimizerConfig,
    QFormerConfig,
    TrainConfig,
    VisionConfig,
    vit_g,
)
from stgt_jax.errors import STGTError, nearest


@dataclass(frozen=True)
class Recipe:
    """One stage of training, whole."""

    model: ModelConfig
    data: DataConfig
    train: TrainConfig
    vocab_from_data: bool = False  # qformer.vocab_size becomes that of the shard set; else the two must agree

    def __post_init__(self) -> None:
        for ours, theirs in (
            ("model.graph.num_frames", "data.num_frames"),
            ("model.vision.image_size", "data.image_size"),
        ):
            _, section, field = ours.split(".")
            wanted = getattr(getattr(self.model, section), field)
            given = getattr(self.data, field)
            if wanted != given:
                raise STGTError(f"{ours}={wanted} differs from {theirs}={given}; give both options the same value")


def moving_shapes_stage1() -> Recipe:
    """The demo's first stage: a small model, all of it trained, VTC + VTM + VTG on the embedded clips."""
    return Recipe(
        model=ModelConfig(
            vision=VisionConfig(image_size=64, patch_size=16, width=96, depth=2, num_heads=4, mlp_dim=384),
            # Most of a clip is a background that stays: a lower threshold joins everything to everything.
            graph=GraphConfig(num_heads=4, num_frames=6, sim_threshold=0.8, dropout=0.0),
            qformer=QFormerConfig(max_text_length=32, width=96, depth=2, num_heads=4, mlp_dim=384, num_queries=8,
                                  dropout=0.0, sep_token_id=3),
            embed_dim=64,
            scan_layers=False,
        ),
        data=DataConfig(num_frames=6, image_size=64, crop_scale=(0.8, 1.0), flip=False),
        train=TrainConfig(
            num_steps=1100,
            batch_size=48,
            log_every=25,
            eval_every=550,
            checkpoint_every=275,
            optimizer=OptimizerConfig(peak_learning_rate=8e-4, warmup_steps=50),
        ),
        vocab_from_data=True,
    )  # fmt: skip


def moving_shapes_stage2() -> Recipe:
    """The demo's second stage: CSAL in VTC's place, from the first stage's weights (train.initial_weights)."""
    recipe = moving_shapes_stage1()
    train = dataclasses.replace(
        recipe.train,
        num_steps=300,
        eval_every=150,
        loss=LossConfig(contrastive="csal"),
        optimizer=OptimizerConfig(peak_learning_rate=2e-4, warmup_steps=25),
    )
    return dataclasses.replace(recipe, train=train)


def paper_stage1() -> Recipe:
    """The published first stage: frozen ViT-g/14, 8 frames of 224 pixels, VTC + VTM + VTG, batch 2048."""
    return Recipe(
        model=vit_g(),
        data=DataConfig(num_frames=8, image_size=224, num_workers=8),
        # OptimizerConfig's defaults are the paper's; the length, which is not published, is ten passes over 10M clips.
        train=TrainConfig(
            num_steps=50_000,
            batch_size=2048,
            optimizer=OptimizerConfig(),
            mesh=MeshConfig(fsdp="auto", sequence="auto"),
        ),
    )


def paper_stage2() -> Recipe:
    """The published second stage: CSAL in VTC's place, from the first stage's weights (train.initial_weights)."""
    recipe = paper_stage1()
    return dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, loss=LossConfig(contrastive="csal")))


RECIPES: dict[str, Callable[[], Recipe]] = {
    recipe.__name__: recipe for recipe in (moving_shapes_stage1, moving_shapes_stage2, paper_stage1, paper_stage2)
}


def get_recipe(name: str) -> Recipe:
    """Returns the recipe of that name.

    Raises:
      STGTError: there is none; names the closest.
    """
    if name not in RECIPES:
        raise STGTError(f"unknown recipe '{name}'{nearest(name, RECIPES)}")
    return RECIPES[name]()
