"""The analytic counts of `stgt_jax.flops` against XLA's own of the compiled parts, and how they grow."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from experiments.perf.bench.parts import PARTS
from stgt_jax.config import GraphConfig, LossConfig, ModelConfig, QFormerConfig, VisionConfig, vit_g
from stgt_jax.flops import graph_attention_flops, model_flops
from stgt_jax.models.stgt import STGT, param_shapes
from stgt_jax.ops.graph_attention import banded, graph_attention
from stgt_jax.ops.graph_attention.implementation import Inputs, Output

# As wide as 10 operations an element (a norm, a softmax) need to be few beside the products; only compiled, never run.
# Nothing is a loop, whose body XLA counts once: scan_layers=False, and at 3 frames one whole window of graph attention.
BATCH, FRAMES, TEXT = 2, 3, 24
CONFIG = ModelConfig(
    vision=VisionConfig(image_size=64, patch_size=8, width=256, depth=2, num_heads=2, mlp_dim=512),
    graph=GraphConfig(num_heads=2, dropout=0.0, implementation="banded"),
    qformer=QFormerConfig(vocab_size=512, max_text_length=32, width=192, depth=3, num_heads=2, mlp_dim=512,
                          num_queries=16, dropout=0.0, sep_token_id=3),
    embed_dim=64,
    scan_layers=False,
)  # fmt: skip


@pytest.fixture(scope="module")
def xla_flops():
    """By part: what XLA counts in the compiled forward pass."""
    model, counts = STGT(CONFIG), {}
    params = param_shapes(model)
    text = jax.ShapeDtypeStruct((BATCH, TEXT), jnp.int32)
    video = jax.ShapeDtypeStruct((BATCH, FRAMES, 64, 64, 3), jnp.uint8)
    arrays = {"video": video, "input_ids": text, "attention_mask": text}
    for part in PARTS:
        inputs = {name: arrays[name] for name in part.reads}

        def forward(params, inputs, part=part):
            return part.run(model, LossConfig(), params, inputs, jax.random.key(0))

        arrays |= jax.eval_shape(forward, params, inputs)
        if part.name != "losses":  # a few small products beneath a softmax over the vocabulary
            counts[part.name] = jax.jit(forward).lower(params, inputs).compile().cost_analysis()["flops"]
    return counts


@pytest.mark.slow
@pytest.mark.parametrize("part", ["vit", "graph", "encode_queries", "encode_text", "match", "decode"])
def test_forward_count_is_xlas_but_for_elementwise_operations(xla_flops, part):
    ours = model_flops(CONFIG, batch=BATCH, frames=FRAMES, text_length=TEXT)[part].forward
    assert 1.0 <= xla_flops[part] / ours <= 1.08


def test_graph_attention_is_counted_on_neighbouring_frames_alone():
    patches, width, heads = 32, 128, 2
    node = jax.ShapeDtypeStruct((1, FRAMES * patches, width), jnp.float32)
    by_head = jax.ShapeDtypeStruct((1, FRAMES * patches, heads, width // heads), jnp.float32)

    def forward(query, key, value, nodes):
        options = {"num_frames": FRAMES, "sim_threshold": 0.1, "implementation": "banded"}
        return graph_attention(query, key, value, nodes, **options)

    def backward(query, key, value, weights, out, log_sum_exp, d_out):
        """Alone: beside the forward pass XLA finds the scores that both compute."""
        inputs = Inputs(query, key, value, weights, jnp.zeros(5, jnp.int32), 0.0)
        return banded.backward(inputs, Output(out, log_sum_exp), d_out)

    by_frame = by_head.update(shape=(1, FRAMES, patches, heads, width // heads))
    weights = jax.ShapeDtypeStruct((1, FRAMES, 3, patches, patches), jnp.float32)
    scalars = jax.ShapeDtypeStruct((1, FRAMES, patches, heads), jnp.float32)
    ours = graph_attention_flops(batch=1, frames=FRAMES, patches=patches, width=width)
    for function, inputs, wanted in (
        (forward, (by_head, by_head, by_head, node), ours.forward),
        (backward, (by_frame, by_frame, by_frame, weights, by_frame, scalars, by_frame), ours.backward),
    ):
        counted = jax.jit(function).lower(*inputs).compile().cost_analysis()["flops"]
        assert 1.0 <= counted / wanted <= 1.08
    longer = graph_attention_flops(batch=1, frames=2 * FRAMES, patches=patches, width=width)
    assert longer.total / ours.total < 2.4  # dense attention would be 4


def test_backward_is_twice_the_forward_where_all_trains():
    flops = model_flops(CONFIG, batch=BATCH, frames=FRAMES, text_length=TEXT)
    for part in flops.keys() - {"graph"}:
        assert flops[part].backward == 2 * flops[part].forward


def test_frozen_vit_has_no_backward_but_that_of_its_open_blocks():
    frozen, depth = vit_g(), vit_g().vision.depth
    opened = dataclasses.replace(frozen, vision=dataclasses.replace(frozen.vision, open_blocks=2))
    sizes = {"batch": 2, "frames": 8, "text_length": 32}
    assert model_flops(frozen, **sizes)["vit"].backward == 0
    vit = model_flops(opened, **sizes)["vit"]
    assert vit.backward == pytest.approx(2 * vit.forward * 2 / depth, rel=0.01)


def test_model_without_graph_module_has_no_graph_flops():
    config = dataclasses.replace(CONFIG, graph=dataclasses.replace(CONFIG.graph, variant="none"))
    assert model_flops(config, batch=BATCH, frames=FRAMES, text_length=TEXT)["graph"].total == 0
