"""Named recipes: every one fits together, and the paper's sizes hold without computing anything."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipeline.config import DataConfig
from experiments.recipe_fields import replace_fields
from experiments.recipes import RECIPES, get_recipe
from stgt_jax.errors import STGTError
from stgt_jax.models.stgt import STGT, param_shapes
from stgt_jax.train.objective import stgt_losses


def batch_of(recipe, batch_size: int, text_length: int) -> dict[str, jax.ShapeDtypeStruct]:
    size = recipe.model.vision.image_size
    video = (batch_size, recipe.model.num_frames, size, size, 3)
    text = (batch_size, text_length)
    return {
        "video": jax.ShapeDtypeStruct(video, jnp.uint8),
        "input_ids": jax.ShapeDtypeStruct(text, jnp.int32),
        "attention_mask": jax.ShapeDtypeStruct(text, jnp.int32),
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in RECIPES if not name.startswith("finetune_")] + ["finetune_msrvtt"])
def test_recipe_has_shapes_that_work_through_the_losses(name):  # those of fine-tuning have one model
    recipe = get_recipe(name)
    model = STGT(recipe.model)
    params = param_shapes(model)
    total, metrics = jax.eval_shape(
        lambda params, batch, rng: stgt_losses(model, params, batch, rng, recipe.train.loss, train=True),
        params,
        batch_of(recipe, batch_size=4, text_length=32),
        jax.eval_shape(lambda: jax.random.key(0)),
    )
    assert total.shape == () and total.dtype == jnp.float32
    assert {"loss_contrastive", "loss_vtm", "loss_vtg"} <= set(metrics)


def test_paper_recipe_has_the_published_sizes():
    recipe = get_recipe("paper_stage1")
    params = param_shapes(STGT(recipe.model))
    count = {name: sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree)) for name, tree in params.items()}
    assert 0.98e9 < count["vision"] < 1.02e9  # EVA ViT-g without its last block: 986 million
    assert 180e6 < count["qformer"] < 195e6  # BLIP-2's: 188 million with embeddings
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))

    out = jax.eval_shape(
        lambda params, video: STGT(recipe.model).apply({"params": params}, video, method="encode_video"),
        params,
        batch_of(recipe, batch_size=2, text_length=32)["video"],
    )
    assert out["vit_tokens"].shape == (2, 8, 257, 1408)
    assert out["graph_tokens"].shape == (2, 264, 1408)
    assert out["video_embed"].shape == (2, 32, 256)


def test_clip_longer_than_the_time_table_is_one_option():
    recipe = replace_fields(get_recipe("paper_stage1"), {"model.num_frames": 12})
    params = param_shapes(STGT(recipe.model))
    out = jax.eval_shape(
        lambda params, video: STGT(recipe.model).apply({"params": params}, video, method="encode_video"),
        params,
        batch_of(recipe, batch_size=2, text_length=32)["video"],
    )
    assert params["graph"]["time_embed"].shape == (8, 1408)
    assert out["graph_tokens"].shape == (2, 12 * 33, 1408)


def test_paper_recipes_follow_the_published_training():
    first, second = get_recipe("paper_stage1"), get_recipe("paper_stage2")
    optimizer = first.train.optimizer
    assert (optimizer.peak_learning_rate, optimizer.end_learning_rate, optimizer.warmup_start_learning_rate) == (
        1e-4, 1e-5, 1e-6,
    )  # fmt: skip
    assert (optimizer.warmup_steps, optimizer.beta2, optimizer.weight_decay) == (5000, 0.98, 0.05)
    assert optimizer.clip_norm == 0.0
    assert (first.model.graph.sim_threshold, first.model.graph.time_embed_std) == (0.1, 0.02)
    assert (first.data.train_frame_sampling, first.data.crop_scale, first.data.flip) == ("headtail", (0.5, 1.0), True)
    assert first.train.batch_size == 2048 and first.model.dtype == "bfloat16" and first.model.vision.freeze
    assert (first.train.loss.contrastive, second.train.loss.contrastive) == ("vtc", "csal")
    assert first.model == second.model and first.data == second.data


@pytest.mark.parametrize("stage1", [name for name in RECIPES if name.endswith("_stage1")])
def test_second_stage_takes_the_weights_of_the_first(stage1):
    first, second = get_recipe(stage1), get_recipe(stage1.replace("1", "2"))
    assert first.model == second.model
    assert second.needs_initial_weights and not first.needs_initial_weights


def test_unknown_recipe_names_the_nearest():
    with pytest.raises(STGTError, match="unknown recipe 'moving_shapes_stage3'; did you mean 'moving_shapes_stage"):
        get_recipe("moving_shapes_stage3")


def test_recipe_changed_by_options_is_another_recipe_not_the_same():
    recipe = get_recipe("moving_shapes_stage1")
    assert replace_fields(recipe, {"data.shards": "x"}).data == dataclasses.replace(recipe.data, shards="x")
    assert recipe.data.shards == DataConfig().shards
