"""Impossible configs are refused by name, with the way out, where they are built."""

import dataclasses

import pytest

from stgt_jax.config import (
    GRAPH_IMPLEMENTATIONS,
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
from stgt_jax.errors import STGTError

MISTAKES = [
    (lambda: VisionConfig(num_heads=15), "vision.num_heads=15 does not divide vision width 1408; use 16, for example"),
    (lambda: VisionConfig(image_size=225), "vision.image_size=225 is not a multiple of vision.patch_size=14; use 224"),
    (lambda: VisionConfig(depth=0), "vision.depth=0 must be greater than 0"),
    (lambda: VisionConfig(freeze=True, open_blocks=39), "vision.open_blocks=39 must lie in [0, vision.depth=39)"),
    (lambda: VisionConfig(open_blocks=2), "vision.open_blocks=2 needs vision.freeze=true"),
    (lambda: GraphConfig(time_embed_rows=0), "graph.time_embed_rows=0 must be greater than 0"),
    (lambda: GraphConfig(sim_threshold=1.5), "graph.sim_threshold=1.5 must lie in [-1, 1]"),
    (lambda: GraphConfig(variant="unweigthed"), "did you mean 'unweighted'?"),
    (lambda: GraphConfig(implementation="band"), "graph.implementation='band' is not a choice; did you mean 'banded'?"),
    (lambda: ModelConfig(graph=GraphConfig(num_heads=12)), "graph.num_heads=12 does not divide graph width 1408"),
    (lambda: GraphConfig(dropout=1.0), "graph.dropout=1.0 must lie in [0, 1)"),
    (lambda: GraphConfig(time_embed_std=-1.0), "graph.time_embed_std=-1.0 must not be negative"),
    (lambda: ModelConfig(num_frames=0), "model.num_frames=0 must be greater than 0"),
    (lambda: QFormerConfig(num_heads=7), "qformer.num_heads=7 does not divide qformer width 768"),
    (lambda: ModelConfig(dtype="bfloat"), "did you mean 'bfloat16'?"),
    (lambda: LossConfig(contrastive="scal"), "did you mean 'csal'?"),
    (lambda: LossConfig(vtg_label_smoothing=1.0), "loss.vtg_label_smoothing=1.0 must lie in [0, 1)"),
    (lambda: OptimizerConfig(peak_learning_rate=0.0), "optimizer.peak_learning_rate=0.0 must be greater than 0"),
    (lambda: MeshConfig(data=0), "every axis must be positive or -1"),
    (lambda: MeshConfig(data=-1, fsdp=-1), "only one axis can be -1"),
    (lambda: MeshConfig(fsdp="atuo"), "mesh.fsdp='atuo' is not a choice; did you mean 'auto'?"),
    (lambda: MeshConfig(data=2, fsdp=-1, sequence="auto"), "where an axis is auto only data can be -1"),
    (lambda: TrainConfig(batch_size=100, accumulation_steps=3), "does not divide train.batch_size=100"),
    (lambda: TrainConfig(batch_size=2, accumulation_steps=2), "need at least 2"),
    (lambda: TrainConfig(num_steps=5000), "optimizer.warmup_steps=5000 must be less than train.num_steps=5000"),
]


@pytest.mark.parametrize(("make", "message"), MISTAKES, ids=[message[:40] for _, message in MISTAKES])
def test_impossible_configs_are_refused_in_one_line(make, message: str) -> None:
    with pytest.raises(STGTError) as error:
        make()
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_configs_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        vit_g().embed_dim = 1


def test_choices_of_an_option_are_those_of_its_annotation() -> None:
    for implementation in GRAPH_IMPLEMENTATIONS:
        GraphConfig(implementation=implementation)
    with pytest.raises(STGTError, match="known: auto, banded, dense, pallas_gpu, pallas_tpu"):
        GraphConfig(implementation="")


def test_the_published_model_has_the_published_sizes() -> None:
    config = vit_g()
    assert (config.vision.width, config.vision.depth, config.vision.num_heads, config.vision.mlp_dim) == (
        1408,
        39,
        16,
        6144,
    )
    assert config.vision.tokens_per_frame == 257
    assert config.vision.freeze
    assert config.qformer.dec_token_id == 30522
