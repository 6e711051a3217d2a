"""The weights that training starts from: where each part comes from, and what is refused."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from models_for_tests import write_random_run
from safetensors.numpy import load_file, save_file
from small import small_model

from stgt_jax.config import MeshConfig, ModelConfig, WeightsConfig
from stgt_jax.convert.own import under_reference_names
from stgt_jax.convert.stored_tensor import held
from stgt_jax.errors import STGTError
from stgt_jax.mesh import make_mesh
from stgt_jax.models.stgt import STGT, init_params
from stgt_jax.run_folder import write_run
from stgt_jax.sharding import param_shardings
from stgt_jax.train.checkpoint import has_checkpoint, load_params
from stgt_jax.train.weights import check_weights, initial_params

pytestmark = pytest.mark.slow
ENCODER = small_model(depth=2, dtype="bfloat16", freeze=True)  # whose run the encoder comes from
MODEL = dataclasses.replace(ENCODER, embed_dim=8)
SEED = 5


@pytest.fixture(scope="module")
def mesh() -> jax.sharding.Mesh:
    return make_mesh(MeshConfig(data=1, fsdp=2), jax.devices()[:2])


@pytest.fixture(scope="module")
def encoder_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_run(tmp_path_factory.mktemp("encoder"), ENCODER)


def with_vision(**changes: Any) -> ModelConfig:
    return dataclasses.replace(MODEL, vision=dataclasses.replace(MODEL.vision, **changes))


def assert_equal(tree: Any, expected: Any) -> None:
    assert jax.tree.structure(tree) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, tree, expected)


def test_vision_weights_replace_the_encoder_of_a_model_with_other_parts(
    encoder_run: Path, mesh: jax.sharding.Mesh
) -> None:
    params = initial_params(WeightsConfig(vision=str(encoder_run)), MODEL, SEED, mesh)[0]
    random = jax.jit(lambda: init_params(STGT(MODEL), jax.random.key(SEED)))()
    assert_equal(params, random | {"vision": load_params(encoder_run, ENCODER)["vision"]})
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"float32"}
    jax.tree.map(lambda x, layout: x.sharding == layout or pytest.fail("layout"), params, param_shardings(params, mesh))


def test_vision_weights_replace_those_of_the_initial_weights(
    encoder_run: Path, mesh: jax.sharding.Mesh, tmp_path: Path
) -> None:
    first = write_random_run(tmp_path / "first", MODEL, seed=1)
    expected = load_params(first, MODEL) | {"vision": load_params(encoder_run, ENCODER)["vision"]}
    exported = tmp_path / "exported"
    write_run(exported, {"model": ENCODER})
    flat = flatten_dict(load_params(encoder_run, ENCODER), sep="/")
    save_file({name: np.asarray(leaf) for name, leaf in flat.items()}, exported / "weights.safetensors")
    for folder in (encoder_run / "checkpoints" / "0", exported):
        params = initial_params(WeightsConfig(str(first), str(folder)), MODEL, SEED, mesh)[0]
        assert_equal(params, expected)


def test_encoder_may_have_other_open_blocks(encoder_run: Path, mesh: jax.sharding.Mesh, tmp_path: Path) -> None:
    opened = with_vision(open_blocks=1)
    params = initial_params(WeightsConfig(vision=str(encoder_run)), opened, SEED, mesh)[0]["vision"]
    blocks = load_params(encoder_run, ENCODER)["vision"]["blocks"]
    assert_equal(params["blocks"], jax.tree.map(lambda x: x[:1], blocks))
    assert_equal(params["open_blocks"], jax.tree.map(lambda x: x[1:], blocks))

    folder = write_random_run(tmp_path, opened)
    params = initial_params(WeightsConfig(vision=str(folder)), MODEL, SEED, mesh)[0]["vision"]
    saved = load_params(folder, opened)["vision"]
    joined = jax.tree.map(lambda *two: np.concatenate(two), saved["blocks"], saved.pop("open_blocks"))
    assert_equal(params, saved | {"blocks": joined})


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [({"num_heads": 2}, "model.vision.num_heads was 4, now 2"), ({"mlp_dim": 128}, "model.vision.mlp_dim was 64, now")],
)
def test_encoder_of_another_model_is_refused(
    encoder_run: Path, mesh: jax.sharding.Mesh, changes: dict[str, int], complaint: str
) -> None:
    with pytest.raises(STGTError, match=complaint) as error:
        initial_params(WeightsConfig(vision=str(encoder_run)), with_vision(**changes), SEED, mesh)
    assert str(encoder_run) in str(error.value) and "\n" not in str(error.value)


def test_first_parameter_of_another_shape_is_named(mesh: jax.sharding.Mesh, tmp_path: Path) -> None:
    folder, wider = write_random_run(tmp_path, ENCODER), with_vision(mlp_dim=128)
    write_run(folder, {"model": wider})  # a config.json that is not that of the weights
    complaint = r"vision/blocks/mlp/\w+/\w+ is shape \(2, .*\) there and of shape \(2, .*\) in this model"
    with pytest.raises(STGTError, match=complaint):
        initial_params(WeightsConfig(vision=str(folder)), wider, SEED, mesh)


def test_folder_without_a_checkpoint_is_named(mesh: jax.sharding.Mesh, tmp_path: Path) -> None:
    assert not has_checkpoint(tmp_path / "nowhere")
    for name in ("initial", "vision", "qformer"):
        with pytest.raises(STGTError, match="nowhere': no such folder; give that of a run"):
            initial_params(WeightsConfig(**{name: str(tmp_path / "nowhere")}), MODEL, SEED, mesh)


def test_run_that_needs_weights_is_refused_without_them() -> None:
    with pytest.raises(STGTError, match=r"vision\.freeze=true would keep .* --weights\.vision DIR"):
        check_weights(WeightsConfig(), MODEL, needs_initial=False)
    for weights in (WeightsConfig(), WeightsConfig(vision="encoder")):
        with pytest.raises(STGTError, match=r"--weights\.initial DIR"):
            check_weights(weights, MODEL, needs_initial=True)
    check_weights(WeightsConfig(vision="encoder"), MODEL, needs_initial=False)
    check_weights(WeightsConfig(initial="first"), MODEL, needs_initial=True)
    check_weights(WeightsConfig(), with_vision(freeze=False), needs_initial=False)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights of a whole model as other projects have them: EVA's file, and BLIP-2's."""
    folder = tmp_path_factory.mktemp("files")
    flat = flatten_dict(load_params(write_random_run(folder / "run", MODEL, seed=3), MODEL), sep="/")
    tensors = under_reference_names("run", MODEL, {name: held(np.asarray(leaf)) for name, leaf in flat.items()})
    arrays = {name: np.array(tensor.read(), order="C") for name, tensor in tensors.items()}
    vision = {name.removeprefix("visual_encoder."): x for name, x in arrays.items() if name.startswith("visual_")}
    save_file(vision, folder / "eva.safetensors")
    save_file({name: x for name, x in arrays.items() if not name.startswith("visual_")}, folder / "blip2.safetensors")
    return folder


def test_files_of_other_projects_start_a_model_and_are_reported(files: Path, mesh: jax.sharding.Mesh) -> None:
    weights = WeightsConfig(vision=str(files / "eva.safetensors"), qformer=str(files / "blip2.safetensors"))
    params, origins = initial_params(weights, MODEL, SEED, mesh)
    assert_equal(params, load_params(files / "run", MODEL))
    jax.tree.map(lambda x, layout: x.sharding == layout or pytest.fail("layout"), params, param_shardings(params, mesh))
    assert origins["vision"] == weights.vision
    assert origins["itm_head"] == origins["qformer"] == weights.qformer
    (report,) = origins[f"report of {weights.qformer}"]["sources"]
    assert report["kind"] == "BLIP-2" and "query_tokens" in report["taken"]


def test_what_a_file_lacks_is_drawn_as_that_of_a_new_model(
    files: Path, mesh: jax.sharding.Mesh, tmp_path: Path
) -> None:
    held_back = {name: x for name, x in load_file(files / "blip2.safetensors").items() if name != "temp"}
    save_file({name: x for name, x in held_back.items() if "itm" not in name}, tmp_path / "blip2.safetensors")
    weights = WeightsConfig(qformer=str(tmp_path / "blip2.safetensors"))
    with pytest.raises(STGTError, match="--init-missing 'itm_head,temperature'"):
        initial_params(weights, MODEL, SEED, mesh)
    told = dataclasses.replace(weights, init_missing=("itm_head", "temperature"))
    random = jax.jit(lambda: init_params(STGT(MODEL), jax.random.key(SEED)))()
    assert_equal(initial_params(told, MODEL, SEED, mesh)[0]["itm_head"], random["itm_head"])
    eva = WeightsConfig(vision=str(files / "eva.safetensors"))
    with pytest.raises(STGTError, match=r"for which the model has no place, .* is the model of another depth\?"):
        initial_params(eva, with_vision(depth=1), SEED, mesh)
    other = dataclasses.replace(MODEL, embed_dim=4)
    with pytest.raises(STGTError, match=r"vision_proj\.weight has the shape \(8, \d+\), and .* needs"):
        initial_params(told, other, SEED, mesh)
