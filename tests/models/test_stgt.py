"""The model as a whole: what its options must not change, what training switches on, images and captions."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from models_for_tests import tiny

from stgt_jax.config import LossConfig, ModelConfig
from stgt_jax.models.graph_transformer import GraphBlock, condense, sincos_2d
from stgt_jax.models.layers import ResidualAttentionBlock
from stgt_jax.models.stgt import STGT, normalize_frames, param_shapes
from stgt_jax.train.objective import stgt_losses

pytestmark = pytest.mark.slow


def deep(**changes) -> ModelConfig:
    """A tiny model with every block repeated."""
    config = tiny()
    return dataclasses.replace(
        config,
        graph=dataclasses.replace(config.graph, num_layers=2),
        qformer=dataclasses.replace(config.qformer, depth=3),  # a group of two, and a tail
        **changes,
    )


def make_batch(num_frames: int = 4, batch: int = 3) -> dict:
    rng = np.random.default_rng(0)
    mask = np.ones((batch, 8), np.int32)
    mask[1, 5:] = 0
    return {
        "video": jnp.asarray(rng.integers(0, 256, (batch, num_frames, 32, 32, 3), np.uint8)),
        "input_ids": jnp.asarray(rng.integers(5, 60, (batch, 8), np.int32) * mask),
        "attention_mask": jnp.asarray(mask),
    }


@functools.cache
def make_params(config: ModelConfig):
    """Random parameters. Options that change no shape, such as the graph's variant, can share those of `tiny()`."""
    return jax.jit(lambda: STGT(config).init(jax.random.key(0), **make_batch())["params"])()


@functools.partial(jax.jit, static_argnames="config")
def run(config: ModelConfig, params, batch) -> dict:
    return STGT(config).apply({"params": params}, **batch)


def losses_and_grads(config: ModelConfig):
    def loss(params):
        return stgt_losses(STGT(config), params, make_batch(), jax.random.key(0), LossConfig(), train=False)

    return jax.jit(jax.value_and_grad(loss, has_aux=True))(make_params(deep()))


@pytest.fixture(scope="module")
def plain_losses_and_grads():
    return losses_and_grads(deep())


@pytest.mark.parametrize("changes", [{"scan_layers": False}, {"remat": True}, {"scan_layers": False, "remat": True}])
def test_scan_and_remat_leave_losses_and_gradients_unchanged(plain_losses_and_grads, changes: dict) -> None:
    chex.assert_trees_all_equal_shapes(param_shapes(STGT(deep())), param_shapes(STGT(deep(**changes))))
    (losses, gradients), (expected_losses, expected) = losses_and_grads(deep(**changes)), plain_losses_and_grads
    chex.assert_trees_all_close(losses, expected_losses, rtol=1e-5)

    def assert_close(name, gradient, wanted):
        # docs/model.md section 7: relative to the norm of each parameter; that of the key biases is zero
        assert jnp.linalg.norm(gradient - wanted) <= 1e-4 * jnp.linalg.norm(wanted) + 1e-6, jax.tree_util.keystr(name)

    jax.tree_util.tree_map_with_path(assert_close, gradients, expected)


def test_shapes_and_norms() -> None:
    config = tiny()
    out = run(config, make_params(config), make_batch())
    grid, patches = 4, 16
    chex.assert_shape(out["vit_tokens"], (3, 4, 1 + patches, 32))
    chex.assert_shape(out["graph_tokens"], (3, 4 * (1 + 2 * grid), 32))
    chex.assert_shape([out["local_tokens"], out["graph_attention"]], (1, 3, 4 * patches, 32))
    chex.assert_shape(out["video_embed"], (3, 4, 16))
    chex.assert_shape(out["text_embed"], (3, 16))
    chex.assert_shape(out["match_logits"], (3, 2))
    chex.assert_shape(out["decode_logits"], (3, 8, 64))
    chex.assert_trees_all_close(jnp.linalg.norm(out["video_embed"], axis=-1), jnp.ones((3, 4)), atol=1e-5)
    chex.assert_trees_all_close(jnp.linalg.norm(out["text_embed"], axis=-1), jnp.ones(3), atol=1e-5)


def test_image_passes_through_the_same_functions() -> None:
    config = tiny()
    out = run(config, make_params(config), make_batch(num_frames=1))
    chex.assert_shape(out["graph_tokens"], (3, 17, 32))  # an image keeps all its tokens
    chex.assert_tree_all_finite(out)


@pytest.mark.parametrize("num_frames", [2, 7])
def test_clips_of_another_length_than_the_time_embedding(num_frames: int) -> None:
    config = tiny()
    out = run(config, make_params(config), make_batch(num_frames))
    chex.assert_shape(out["graph_tokens"], (3, num_frames * 9, 32))
    chex.assert_tree_all_finite(out)


def test_bfloat16_computes_near_float32_with_float32_parameters() -> None:
    config = dataclasses.replace(tiny(), dtype="bfloat16")
    assert {leaf.dtype.name for leaf in jax.tree.leaves(param_shapes(STGT(config)))} == {"float32"}
    params = make_params(tiny())
    rounded, exact = run(config, params, make_batch()), run(tiny(), params, make_batch())
    chex.assert_type(rounded["vit_tokens"], jnp.bfloat16)
    for name in ("video_embed", "text_embed", "match_logits"):
        chex.assert_type(rounded[name], jnp.float32)
        np.testing.assert_allclose(rounded[name], exact[name], atol=0.1)


def test_padding_changes_no_score() -> None:
    config, batch = tiny(), make_batch()
    before = run(config, make_params(config), batch)
    other = {**batch, "input_ids": jnp.where(batch["attention_mask"] == 0, 7, batch["input_ids"])}
    after = run(config, make_params(config), other)
    for name in ("text_embed", "match_logits"):
        np.testing.assert_allclose(before[name], after[name], atol=1e-6)
    kept = np.asarray(batch["attention_mask"], bool)
    np.testing.assert_allclose(before["decode_logits"][kept], after["decode_logits"][kept], atol=1e-5)


def test_generation_sees_no_later_word_and_matching_does() -> None:
    config, batch = tiny(), make_batch()
    before = run(config, make_params(config), batch)
    after = run(config, make_params(config), {**batch, "input_ids": batch["input_ids"].at[:, 4].set(6)})
    np.testing.assert_allclose(before["decode_logits"][:, :4], after["decode_logits"][:, :4], atol=1e-5)
    assert np.abs(before["decode_logits"][:, 4] - after["decode_logits"][:, 4]).max() > 1e-3
    assert np.abs(before["match_logits"] - after["match_logits"]).max() > 1e-6


@pytest.mark.parametrize("part", ["graph", "qformer"])
def test_every_kind_of_dropout_acts_in_training_alone_and_follows_its_key(part: str) -> None:
    config = tiny()
    off = {
        "graph": dataclasses.replace(config.graph, dropout=0.0),
        "qformer": dataclasses.replace(config.qformer, dropout=0.0),
    }
    off[part] = dataclasses.replace(off[part], dropout=0.5)
    model = STGT(dataclasses.replace(config, **off))
    video = make_batch(batch=2)["video"]

    @functools.partial(jax.jit, static_argnames="train")
    def embed(key, train):
        rngs = {"dropout": key}
        return model.apply({"params": make_params(tiny())}, video, train=train, method="encode_video", rngs=rngs)[
            "video_embed"
        ]

    first, second = jax.random.key(1), jax.random.key(2)
    chex.assert_trees_all_equal(embed(first, True), embed(first, True))
    assert np.abs(embed(first, True) - embed(second, True)).max() > 1e-4
    chex.assert_trees_all_equal(embed(first, False), embed(second, False))


def test_graph_variants_without_weights_and_without_graph() -> None:
    outs = {}
    for variant in ("full", "unweighted", "none"):
        config = dataclasses.replace(tiny(), graph=dataclasses.replace(tiny().graph, variant=variant))
        outs[variant] = run(config, make_params(tiny()), make_batch())
    assert np.abs(outs["full"]["graph_tokens"] - outs["unweighted"]["graph_tokens"]).max() > 1e-4
    chex.assert_trees_all_close(outs["none"]["graph_tokens"], outs["none"]["vit_tokens"].mean(axis=1), atol=1e-5)
    assert "local_tokens" not in outs["none"]


def test_residual_adds_the_nodes_to_what_graph_attention_makes_of_them() -> None:
    config = tiny().graph
    x = jax.random.normal(jax.random.key(0), (1, 4, 5, 32))
    params = GraphBlock(config, jnp.float32).init(jax.random.key(1), x, None, False)["params"]
    outs = {}
    for residual in (False, True):
        block = GraphBlock(dataclasses.replace(config, residual=residual), jnp.float32)
        outs[residual], parts = block.apply({"params": params}, x, None, False)
    nodes, attended = (parts[name].reshape(1, 4, 4, 32) for name in ("local_tokens", "graph_attention"))
    within = ResidualAttentionBlock(config.num_heads, jnp.float32)
    across = {"params": params["cross_frame_attention"]}
    moved = nn.Dense(32).apply({"params": params["proj"]}, x)[:, :, 0]
    for _ in range(2):
        moved = within.apply(across, moved)
    for residual, local in ((False, attended), (True, nodes + attended)):
        tokens = jnp.concatenate([moved[:, :, None], local], axis=2)
        expected = within.apply({"params": params["within_frame_attention"]}, tokens)
        chex.assert_trees_all_close(outs[residual], expected, atol=1e-5)


def test_only_time_order_tells_the_graph_apart_from_a_mean_over_frames() -> None:
    batch = make_batch()
    reversed_batch = {**batch, "video": batch["video"][:, ::-1]}
    differences = {}
    for variant in ("full", "none"):
        config = dataclasses.replace(tiny(), graph=dataclasses.replace(tiny().graph, variant=variant))
        params = make_params(tiny())
        ordered, backward = (run(config, params, x)["video_embed"] for x in (batch, reversed_batch))
        differences[variant] = np.abs(ordered - backward).max()
    assert differences["none"] < 1e-5 < 1e-3 < differences["full"]


def test_frozen_encoder_with_open_blocks_computes_the_same() -> None:
    params = make_params(tiny())
    blocks = params["vision"]["blocks"]
    split = {
        "blocks": jax.tree.map(lambda x: x[:1], blocks),
        "open_blocks": jax.tree.map(lambda x: x[1:], blocks),
    }
    vision = dataclasses.replace(tiny().vision, freeze=True, open_blocks=1)
    config = dataclasses.replace(tiny(), vision=vision)
    opened = run(config, {**params, "vision": {**params["vision"], **split}}, make_batch())
    chex.assert_trees_all_close(opened["video_embed"], run(tiny(), params, make_batch())["video_embed"], atol=1e-6)


def test_uint8_frames_are_normalised_as_clip_does() -> None:
    frames = jnp.asarray([[[0, 128, 255]]], jnp.uint8)
    expected = (np.array([0, 128, 255]) / 255 - [0.48145466, 0.4578275, 0.40821073]) / [
        0.26862954,
        0.26130258,
        0.27577711,
    ]
    np.testing.assert_allclose(normalize_frames(frames, jnp.float32)[0, 0], expected, rtol=1e-5)


def test_position_table_encodes_columns_then_rows_and_spares_the_global_token() -> None:
    table = sincos_2d(grid=3, width=8)
    chex.assert_shape(table, (10, 8))
    np.testing.assert_array_equal(table[0], 0)
    local = table[1:].reshape(3, 3, 8)
    column = np.array([np.sin(2), np.sin(2 * 0.01), np.cos(2), np.cos(2 * 0.01)])
    row = np.array([np.sin(1), np.sin(0.01), np.cos(1), np.cos(0.01)])
    np.testing.assert_allclose(local[1, 2], np.concatenate([column, row]), rtol=1e-6)


def test_condensed_frames_hold_maxima_per_column_then_per_row() -> None:
    x = np.random.default_rng(0).normal(size=(1, 2, 5, 3)).astype(np.float32)
    out = np.asarray(condense(jnp.asarray(x)))
    chex.assert_shape(out, (1, 10, 3))
    local = x[0, 1, 1:].reshape(2, 2, 3)
    expected = [x[0, 1, 0], *local.max(axis=0), *local.max(axis=1)]
    np.testing.assert_array_equal(out[0, 5:], expected)
