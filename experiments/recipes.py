"""Recipes: all options of the model, the data and the training of one stage, as a frozen dataclass with a name."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from data_pipeline.config import DataConfig
from experiments.recipe_fields import replace_fields
from stgt_jax.checks import did_you_mean
from stgt_jax.config import (
    GenerationConfig,
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
    needs_initial_weights: bool = False  # refuse to start from random weights, as a second stage does
    num_epochs: int = 0  # passes over the data; where it is not 0, it sets num_steps, eval_every and checkpoint_every
    generation: GenerationConfig = field(default_factory=GenerationConfig)  # of the captions of validation
    validation_k_test: int = 1  # candidates of each query that validation re-ranks; 1 is no re-ranking
    needs_validation_split: bool = False  # refuse to choose the best checkpoint on a split called test
    vocab_from_data: bool = False  # take qformer.vocab_size and sep_token_id from the shards instead of comparing them


def moving_shapes_stage1() -> Recipe:
    """The demo's first stage: all of a small model, trained with VTC + VTM + VTG on the built-in clips."""
    return Recipe(
        model=ModelConfig(
            num_frames=6,
            vision=VisionConfig(image_size=64, patch_size=16, width=96, depth=2, num_heads=4, mlp_dim=384),
            # With a lower threshold the patches of the still background would all be connected.
            # The ViT's tokens are not normalised: a time embedding much smaller than they are would have no effect.
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


def crowded_shapes_stage1() -> Recipe:
    """The ablation's first stage: patches of 8 pixels, as small shapes must be followed through the clip."""
    recipe = moving_shapes_stage1()
    vision = dataclasses.replace(recipe.model.vision, patch_size=8)
    graph = dataclasses.replace(recipe.model.graph, time_embed_std=0.3, sim_threshold=0.5)
    optimizer = dataclasses.replace(recipe.train.optimizer, warmup_steps=100)
    return dataclasses.replace(
        recipe,
        model=dataclasses.replace(recipe.model, vision=vision, graph=graph),
        data=dataclasses.replace(recipe.data, num_workers=0),  # the trainings run side by side, each on one core
        train=dataclasses.replace(
            recipe.train, num_steps=1000, eval_every=200, checkpoint_every=100, optimizer=optimizer
        ),
    )


def crowded_shapes_stage2() -> Recipe:
    """The ablation's second stage: CSAL replaces VTC, starting from the weights of the first stage."""
    recipe = crowded_shapes_stage1()
    second = moving_shapes_stage2().train
    train = dataclasses.replace(
        recipe.train, num_steps=300, eval_every=100, loss=second.loss, optimizer=second.optimizer
    )
    return dataclasses.replace(recipe, train=train, needs_initial_weights=True)


def paper_stage1() -> Recipe:
    """The published first stage: frozen ViT-g/14, 8 frames of 224 pixels, VTC + VTM + VTG.

    The sizes of the model, the losses, AdamW's beta2 and weight decay, and the absence of gradient clipping are from
    the paper, which does not publish the schedule or the batch size of its pre-training. The learning rates, the
    warm-up and the captions of 32 tokens (the default of `stgt data build`) are from the first stage of BLIP-2. The
    batch of 2048 clips and the 50,000 steps, about ten epochs of 10 million clips, are this project's choice. The
    frozen encoder needs weights: `weights.vision`. Frames are stretched, cropped and augmented as the original's, and
    captions are cleaned as its.
    """
    return Recipe(
        model=vit_g(),
        data=DataConfig(
            frame_shape="stretch", clean_text="lavis", crop_filter="bicubic", rand_augment=True, num_workers=8
        ),
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

    Its schedule and batch size, which are not published either, are those of `paper_stage1`.
    """
    recipe = paper_stage1()
    train = dataclasses.replace(recipe.train, loss=LossConfig(contrastive="csal"))
    return dataclasses.replace(recipe, train=train, needs_initial_weights=True)


def _finetune(num_epochs: int) -> Recipe:
    """Fine-tuning for retrieval as published, from pre-trained weights.

    CSAL is the contrastive part; there is no warm-up and no clipping of gradients. The best checkpoint has the highest
    mean of text-to-video R@1, 5 and 10 after re-ranking on the validation split. The release names 20 clips for a GPU
    and no number of GPUs: the batch of 160, of eight GPUs, is this project's choice.
    """
    recipe = paper_stage1()
    train = TrainConfig(
        batch_size=160,
        seed=42,
        best_metric="reranked_t2v_mean_recall",
        loss=LossConfig(contrastive="csal"),
        optimizer=OptimizerConfig(peak_learning_rate=2.5e-5, end_learning_rate=1e-6, warmup_steps=0),
        mesh=recipe.train.mesh,
    )
    return dataclasses.replace(
        recipe,
        model=dataclasses.replace(recipe.model, graph=dataclasses.replace(recipe.model.graph, sim_threshold=0.5)),
        data=dataclasses.replace(recipe.data, epoch="captions"),
        train=train,
        num_epochs=num_epochs,
        validation_k_test=32,
        needs_initial_weights=True,
        needs_validation_split=True,
    )


def finetune_msrvtt() -> Recipe:
    """Fine-tuning on MSR-VTT as published; build the shards with --max-text-length 36."""
    return _finetune(num_epochs=9)


def finetune_msvd() -> Recipe:
    """Fine-tuning on MSVD as published; build the shards with --max-text-length 32."""
    return _finetune(num_epochs=12)


def finetune_didemo() -> Recipe:
    """Fine-tuning on DiDeMo as published; build the shards with --max-text-length 55."""
    return _finetune(num_epochs=9)


def finetune_lsmdc() -> Recipe:
    """Fine-tuning on LSMDC as published; build the shards with --max-text-length 32."""
    return _finetune(num_epochs=9)


def finetune_msrvtt_caption() -> Recipe:
    """Fine-tuning for captioning on MSR-VTT: VTG alone; build the shards with --max-text-length 36.

    Validation and the search with 3 beams are as published. The paper names no schedule for captioning: rate, length
    and batch are those of its retrieval on MSR-VTT.
    """
    recipe = _finetune(num_epochs=9)
    train = dataclasses.replace(recipe.train, loss=LossConfig(objective="captioning"), best_metric="cider_d")
    return dataclasses.replace(recipe, train=train, validation_k_test=1)


def _finetune_qa(num_answers: int) -> Recipe:
    """Fine-tuning for video question answering: the answers are classes, the head is new.

    The release has no such class (docs/model.md section 5.4). Rates, weight decay, length and float32 are those of its
    nearest relative, AlproQA; its batch of 24 clips is taken for each of eight GPUs.
    """
    recipe = _finetune(num_epochs=10)
    train = dataclasses.replace(
        recipe.train,
        batch_size=192,
        best_metric="answer_accuracy",
        loss=LossConfig(objective="answering"),
        optimizer=OptimizerConfig(peak_learning_rate=5e-5, end_learning_rate=1e-6, warmup_steps=0, weight_decay=1e-4),
    )
    return dataclasses.replace(
        recipe,
        model=dataclasses.replace(recipe.model, num_frames=16, num_answers=num_answers, dtype="float32"),
        data=dataclasses.replace(recipe.data, epoch="questions", clean_text="stgt"),
        train=train,
        validation_k_test=1,
    )


def finetune_msrvtt_qa() -> Recipe:
    """Fine-tuning on MSRVTT-QA; build the shards with --variant qa --num-kept-frames 16 --clean-text stgt."""
    return _finetune_qa(num_answers=1500)


def finetune_msvd_qa() -> Recipe:
    """Fine-tuning on MSVD-QA; build the shards with --variant qa --num-kept-frames 16 --clean-text stgt."""
    return _finetune_qa(num_answers=2423)


def finetune_moving_shapes_qa() -> Recipe:
    """Fine-tuning of the demo's model on questions about its clips; trains on a CPU in minutes."""
    recipe = moving_shapes_stage1()
    train = dataclasses.replace(
        recipe.train,
        num_steps=1600,
        eval_every=400,
        best_metric="answer_accuracy",
        loss=LossConfig(objective="answering"),
        optimizer=OptimizerConfig(peak_learning_rate=5e-4, warmup_steps=100, clip_norm=1.0),
    )
    return dataclasses.replace(
        recipe,
        model=dataclasses.replace(recipe.model, num_answers=100),
        data=dataclasses.replace(recipe.data, epoch="questions", question_length=24),
        train=train,
        needs_initial_weights=True,
    )


RECIPES: dict[str, Callable[[], Recipe]] = {
    recipe.__name__: recipe
    for recipe in (
        moving_shapes_stage1,
        moving_shapes_stage2,
        crowded_shapes_stage1,
        crowded_shapes_stage2,
        paper_stage1,
        paper_stage2,
        finetune_msrvtt,
        finetune_msvd,
        finetune_didemo,
        finetune_lsmdc,
        finetune_msrvtt_caption,
        finetune_msrvtt_qa,
        finetune_msvd_qa,
        finetune_moving_shapes_qa,
    )
}


def get_recipe(name: str, fields: Mapping[str, Any] | None = None) -> Recipe:
    """Returns a recipe by its name, with new values for `fields`, given as full name -> value.

    Raises:
      STGTError: there is no such recipe, or it refuses a value.
    """
    if name not in RECIPES:
        raise STGTError(f"unknown recipe '{name}'{did_you_mean(name, RECIPES)}")
    return replace_fields(RECIPES[name](), fields or {})
