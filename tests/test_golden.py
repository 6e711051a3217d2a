"""Parity with the original: outputs, losses and gradients of every golden file (docs/model.md section 7)."""

import ast
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stgt_jax.config import LossConfig, ModelConfig
from stgt_jax.convert.assemble import assemble
from stgt_jax.convert.options import Conversion
from stgt_jax.convert.reference import to_reference
from stgt_jax.convert.source import Source
from stgt_jax.convert.stored_tensor import held
from stgt_jax.models.stgt import STGT
from stgt_jax.ops.graph_attention import adjacency
from stgt_jax.train.objective import stgt_losses

GOLDEN_DIR = Path(os.environ.get("STGT_GOLDEN_DIR", Path(__file__).parent / "golden"))
FORWARD_TOLERANCE = 2e-5  # of the largest magnitude
LOSS_TOLERANCE = 1e-5  # relative
GRADIENT_TOLERANCE = 1e-4  # relative, 2-norm per parameter
NOISE = 1e-6  # 2-norm of a gradient that is 0 but for rounding; those of the weights are around 0.1


class Golden:
    """One file: the reference's numbers, and ours from the same weights and inputs."""

    def __init__(self, path: Path) -> None:
        self.file = dict(np.load(path))
        meta = ast.literal_eval(str(self.file["meta/config"]))
        weights = {name[6:]: held(x) for name, x in self.file.items() if name.startswith("param/")}
        weights = {name: x for name, x in weights.items() if "predictions.decoder" not in name}  # tied
        options = Conversion(
            vision_heads=meta["vheads"],
            graph_heads=meta["gheads"],
            qformer_heads=meta["qheads"],
            sim_threshold=meta["sim_th"],
        )
        source = Source(str(path), "STGT", weights, {name: name for name in weights}, {})
        assembly = assemble([source], options=options)
        self.config: ModelConfig = assembly.config
        self.loss_config = LossConfig(contrastive="csal" if meta["simloss"] else "vtc")
        self.num_frames = meta["T"]
        self.params = assembly.tree()
        self.out, self.metrics, self.grads = self._run()

    def _run(self):
        model = STGT(self.config)
        batch = {
            "video": jnp.asarray(self.file["input/video"].transpose(0, 2, 3, 4, 1)),
            "input_ids": jnp.asarray(self.file["input/input_ids"]),
            "attention_mask": jnp.asarray(self.file["input/attention_mask"]),
        }
        negatives = (self.file["input/neg_video_for_text"], self.file["input/neg_text_for_video"])

        def loss(params):
            rng = jax.random.key(0)
            return stgt_losses(model, params, batch, rng, self.loss_config, train=False, negatives=negatives)

        @jax.jit
        def run(params):
            (_, metrics), grads = jax.value_and_grad(loss, has_aux=True)(params)
            out = model.apply({"params": params}, batch["video"], batch["input_ids"], batch["attention_mask"])
            return out, metrics, grads

        out, metrics, grads = run(self.params)
        return out, metrics, to_reference(grads, self.config)


def golden_files() -> list[Path]:
    files = sorted(GOLDEN_DIR.glob("*.npz"))
    assert files, f"no *.npz in {GOLDEN_DIR}; set STGT_GOLDEN_DIR to a folder of golden files"
    return files


FIRST, *OTHERS = golden_files()


@pytest.fixture(
    scope="module",
    params=[FIRST, *(pytest.param(path, marks=pytest.mark.slow) for path in OTHERS)],
    ids=[path.stem for path in (FIRST, *OTHERS)],
)
def golden(request: pytest.FixtureRequest) -> Golden:
    return Golden(request.param)


def assert_forward_close(ours, theirs) -> None:
    assert ours.shape == theirs.shape
    assert np.abs(np.asarray(ours) - theirs).max() <= FORWARD_TOLERANCE * np.abs(theirs).max()


@pytest.mark.parametrize(
    ("key", "reference_key"),
    [
        ("vit_tokens", "vit_tokens"),
        ("graph_tokens", "graph_tokens"),
        ("query_states", "query_states"),
        ("text_state", "text_state"),
    ],
)
def test_states_equal_the_reference(golden: Golden, key: str, reference_key: str) -> None:
    assert_forward_close(golden.out[key], golden.file[f"output/{reference_key}"])


def test_graph_of_the_first_block_equals_the_reference(golden: Golden) -> None:
    if "output/adjacency_block0" not in golden.file:
        assert golden.num_frames == 1  # the image files hold no graph
        return
    nodes = golden.file["input/local_tokens_block0"]
    assert_forward_close(golden.out["local_tokens"][0], nodes)
    weights = adjacency(nodes, num_frames=golden.num_frames, sim_threshold=golden.config.graph.sim_threshold)
    assert_forward_close(weights, golden.file["output/adjacency_block0"])
    assert_forward_close(golden.out["graph_attention"][0], golden.file["output/graph_attention_block0"])


def test_matching_probability_equals_the_reference(golden: Golden) -> None:
    probability = jax.nn.softmax(golden.out["match_logits"])[:, 1]
    assert_forward_close(probability, golden.file["output/itm_prob"])


@pytest.mark.parametrize(
    ("key", "reference_key"),
    [
        ("loss_contrastive", "loss_itc"),
        ("loss_vtm", "loss_itm"),
        ("loss_vtg", "loss_lm"),
        ("loss", "loss"),
    ],
)
def test_losses_equal_the_reference(golden: Golden, key: str, reference_key: str) -> None:
    np.testing.assert_allclose(golden.metrics[key], golden.file[f"output/{reference_key}"], rtol=LOSS_TOLERANCE)


def test_every_gradient_equals_the_reference(golden: Golden) -> None:
    expected = {name[5:]: x for name, x in golden.file.items() if name.startswith("grad/")}
    assert expected.keys() <= golden.grads.keys()
    # A key bias shifts all scores of a query alike, so its true gradient is 0 and both sides hold rounding noise alone.
    zero = {name for name in expected if name.endswith("self.key.bias")}
    assert all(np.linalg.norm(golden.grads[name]) < NOISE for name in zero)
    errors = {
        name: np.linalg.norm(golden.grads[name] - expected[name]) / np.linalg.norm(expected[name])
        for name in expected.keys() - zero
    }
    assert not {name: error for name, error in errors.items() if not error <= GRADIENT_TOLERANCE}


def test_weights_survive_the_way_there_and_back(golden: Golden) -> None:
    back = to_reference(golden.params, golden.config)
    for name, array in back.items():
        np.testing.assert_array_equal(array, golden.file[f"param/{name}"])
