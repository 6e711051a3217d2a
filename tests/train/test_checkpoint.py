"""Checkpoints: what is kept, what comes back, and what is said of those that cannot be used."""

import gc
import itertools
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from damage import cut, flip
from small import small_model, small_training

from stgt_jax.config import MeshConfig
from stgt_jax.errors import STGTError, StorageError
from stgt_jax.mesh import make_mesh
from stgt_jax.models.stgt import STGT
from stgt_jax.train import saved_arrays
from stgt_jax.train.checkpoint import Checkpoints, load_params
from stgt_jax.train.state import TrainState, abstract_state, init_state, merge_params

MODEL, CONFIG = small_model(freeze=True, dtype="bfloat16"), small_training()  # its frozen matrices are in 16 bits


def one_device() -> jax.sharding.Mesh:
    return make_mesh(MeshConfig(), jax.devices()[:1])


@pytest.fixture(scope="module")
def state() -> TrainState:
    state = init_state(STGT(MODEL), CONFIG, one_device())
    return state.replace(step=state.step + 2, opt_state=jax.tree.map(lambda leaf: leaf + 3, state.opt_state))


@pytest.fixture(scope="module")
def run_folder(state: TrainState, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with checkpoints of steps 1 and 2."""
    folder = tmp_path_factory.mktemp("run")
    checkpoints = Checkpoints(folder)
    checkpoints.save(1, state, {"place": 1})
    checkpoints.save(2, state, b"\x00place\xff")
    checkpoints.close()
    return folder


@pytest.fixture
def damaged_folder(run_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run_folder, tmp_path / "run"))


def assert_equal(tree: Any, expected: Any) -> None:
    assert jax.tree.structure(tree) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, tree, expected)


def one_line(error: pytest.ExceptionInfo) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def test_restores_state_and_loader_exactly(run_folder: Path, state: TrainState) -> None:
    checkpoints = Checkpoints(run_folder)
    restored, loader_state = checkpoints.restore(abstract_state(STGT(MODEL), CONFIG, one_device()), MODEL)
    checkpoints.close()
    assert_equal(restored, state)
    assert loader_state == b"\x00place\xff"


def test_restores_onto_another_mesh(run_folder: Path, state: TrainState) -> None:
    template = abstract_state(STGT(MODEL), CONFIG, make_mesh(MeshConfig(data=2, fsdp=2, tensor=2)))
    checkpoints = Checkpoints(run_folder)
    restored, _ = checkpoints.restore(template, MODEL)
    checkpoints.close()
    assert_equal(restored, state)
    jax.tree.map(lambda leaf, wanted: leaf.sharding == wanted.sharding or pytest.fail("layout"), restored, template)


def test_keeps_the_best_and_the_last(tmp_path: Path) -> None:
    state = TrainState(step=jnp.int32(0), params={"kernel": jnp.ones(3)}, frozen={}, opt_state=())
    checkpoints = Checkpoints(tmp_path, keep_last=1, keep_best=2)
    for step, recall in ((1, 10.0), (2, 30.0), (3, None), (4, 20.0), (5, None), (6, None)):
        checkpoints.save(step, state, {}, {} if recall is None else {"t2v_r1": recall})
    checkpoints.wait()
    assert (checkpoints.best_step, checkpoints.latest_step) == (2, 6)
    checkpoints.close()
    assert sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir()) == [2, 4, 6]


def test_loads_parameters_of_a_run_or_of_one_checkpoint(run_folder: Path, state: TrainState) -> None:
    expected = merge_params(state.params, state.frozen)
    assert_equal(load_params(run_folder, MODEL), expected)
    mesh = make_mesh(MeshConfig())
    params = load_params(run_folder / "checkpoints" / "1", MODEL, mesh)
    assert_equal(params, expected)
    assert {leaf.sharding.mesh for leaf in jax.tree.leaves(params)} == {mesh}


def test_parameters_do_not_depend_on_what_was_frozen(run_folder: Path, state: TrainState) -> None:
    params = load_params(run_folder, small_model())
    assert_equal(params, merge_params(state.params, state.frozen))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}


def test_checkpoint_of_another_size_names_parameter_shapes_and_config(run_folder: Path) -> None:
    with pytest.raises(STGTError, match="another model size") as error:
        load_params(run_folder, small_model(mlp_dim=128))
    message = one_line(error)
    assert "vision/blocks/mlp/down/bias" not in message and "vision/blocks/mlp/down/kernel" in message
    assert "(1, 64, 32)" in message and "(1, 128, 32)" in message
    assert str(run_folder / "config.json") in message


def test_checkpoint_without_a_part_of_the_model_says_what_is_missing(run_folder: Path) -> None:
    with pytest.raises(STGTError, match=r"graph/\S+ is missing there"):
        load_params(run_folder, small_model(graph="full"))


def test_state_of_other_frozen_parts_is_an_error(run_folder: Path) -> None:
    model = small_model()
    checkpoints = Checkpoints(run_folder)
    with pytest.raises(STGTError, match=r"--weights\.initial"):
        checkpoints.restore(abstract_state(STGT(model), CONFIG, one_device()), model)
    checkpoints.close()


def test_missing_folder_and_folder_without_checkpoints(tmp_path: Path) -> None:
    with pytest.raises(STGTError, match="no such folder; give that of a run"):
        load_params(tmp_path / "nowhere", MODEL)
    with pytest.raises(STGTError, match="has no checkpoints; give the folder of a run"):
        load_params(tmp_path, MODEL)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("file", ["largest", "_METADATA", "manifest.ocdbt"])
def test_truncated_checkpoint_is_named(damaged_folder: Path, file: str) -> None:
    params = damaged_folder / "checkpoints" / "2" / "params"
    files = [f for f in params.rglob("*") if f.is_file()]
    victim = max(files, key=lambda f: f.stat().st_size) if file == "largest" else params / file
    victim.write_bytes(victim.read_bytes()[: victim.stat().st_size // 2])
    with pytest.raises(STGTError, match="incomplete or damaged") as error:
        load_params(damaged_folder, MODEL)
    assert str(params) in one_line(error)
    del error
    gc.collect()  # the reads that the storage library gave up complain now, not in a later test


def test_one_wrong_bit_is_noticed(damaged_folder: Path, state: TrainState) -> None:
    params = damaged_folder / "checkpoints" / "2" / "params"
    victim = max((f for f in params.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)
    content, noticed = victim.read_bytes(), 0
    for position in (len(content) // 4, len(content) // 2, len(content) * 3 // 4):
        damaged = bytearray(content)
        damaged[position] ^= 1
        victim.write_bytes(damaged)
        try:
            loaded = load_params(damaged_folder, MODEL)
        except STGTError as error:
            noticed += "not those that were saved" in str(error) or "incomplete or damaged" in str(error)
        else:  # a bit of the compression that says nothing: one in a hundred or two
            assert_equal(loaded, merge_params(state.params, state.frozen))
    assert noticed >= 2


def test_checkpoint_that_cannot_be_found_again_is_noticed_before_the_next(tmp_path: Path) -> None:
    state = TrainState(step=jnp.int32(0), params={"kernel": jnp.ones(3)}, frozen={}, opt_state=())
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state, {})
    checkpoints.wait()
    checkpoints.save(2, state, {})
    params = tmp_path / "checkpoints" / "2" / "params"
    while not params.exists():  # it is written in the background
        time.sleep(0.01)
    (params / "manifest.ocdbt").unlink()
    with pytest.raises(STGTError, match="step 2 was written, but cannot be read back") as error:
        checkpoints.save(3, state, {})
    assert str(params) in one_line(error)
    checkpoints.close()


def test_folders_may_have_any_name(tmp_path: Path) -> None:
    state = TrainState(step=jnp.int32(0), params={"kernel": jnp.ones(3)}, frozen={}, opt_state=())
    folder = tmp_path / "a[1] *?" / "run"
    checkpoints = Checkpoints(folder)
    checkpoints.save(1, state, {"place": 1})
    checkpoints.wait()
    assert_equal(checkpoints.restore(state, MODEL), (state, {"place": 1}))
    checkpoints.close()


def of_step_2(folder: Path, pattern: str) -> Path:
    """The largest file of checkpoint 2 whose path matches."""
    return max((folder / "checkpoints" / "2").glob(pattern), key=lambda file: file.stat().st_size)


def empty(file: Path) -> None:
    file.write_bytes(b"")


FILES = ("params/d/*", "optimizer/d/*", "params/manifest.ocdbt", "optimizer/_METADATA", "params/_sharding",
         "params/array_metadatas/*", "loader/metadata", "checksums/metadata")  # fmt: skip
DAMAGE = [*itertools.product((cut, flip, empty, Path.unlink), FILES[:4]), *itertools.product((cut, flip), FILES[4:])]


@pytest.mark.parametrize(("damage", "pattern"), DAMAGE, ids=lambda x: getattr(x, "__name__", x))
def test_damaged_newest_checkpoint_is_set_aside_for_the_one_before(
    damaged_folder: Path, state: TrainState, damage: Callable[[Path], None], pattern: str,
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture,
) -> None:  # fmt: skip
    damage(of_step_2(damaged_folder, pattern))
    checkpoints = Checkpoints(damaged_folder)
    restored, loader_state = checkpoints.restore(abstract_state(STGT(MODEL), CONFIG, one_device()), MODEL)
    assert checkpoints.latest_step == 1
    checkpoints.close()
    assert_equal(restored, state)
    assert loader_state == {"place": 1}
    aside = damaged_folder / "damaged_checkpoints" / "2"
    assert aside.is_dir()
    (warning,) = [record.message for record in caplog.records if record.name.startswith("stgt_jax")]
    assert f"it is now {aside}, and the run continues from step 1" in warning
    assert f"{damaged_folder}/checkpoints/2" in warning
    assert "\n" not in warning
    assert "Event loop" not in capfd.readouterr().err


def test_checkpoint_that_cannot_be_reached_does_not_count_as_damaged(
    damaged_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise ValueError("UNAVAILABLE: Error reading: HTTP 503")

    before = sorted(damaged_folder.rglob("*"))
    monkeypatch.setattr(saved_arrays, "in_time", refuse)
    with pytest.raises(StorageError, match=r"cannot be reached \(ValueError: UNAVAILABLE"):
        Checkpoints(damaged_folder).restore(abstract_state(STGT(MODEL), CONFIG, one_device()), MODEL)
    assert sorted(damaged_folder.rglob("*")) == before


def test_damage_that_takes_nothing_from_the_state_does_no_harm(damaged_folder: Path, state: TrainState) -> None:
    for name in ("_CHECKPOINT_METADATA", "commit_success.txt"):
        for file in (damaged_folder / "checkpoints" / "2").rglob(name):
            file.unlink()
    checkpoints = Checkpoints(damaged_folder)
    restored, loader_state = checkpoints.restore(abstract_state(STGT(MODEL), CONFIG, one_device()), MODEL)
    checkpoints.close()
    assert_equal(restored, state)
    assert loader_state == b"\x00place\xff"


def test_checkpoint_whose_scores_are_damaged_counts_as_not_validated(tmp_path: Path) -> None:
    state = TrainState(step=jnp.int32(0), params={"kernel": jnp.ones(3)}, frozen={}, opt_state=())
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state, {}, {"t2v_r1": 1.0})
    checkpoints.save(2, state, {}, {"t2v_r1": 2.0})
    checkpoints.close()
    cut(of_step_2(tmp_path, "metrics/metrics"))
    checkpoints = Checkpoints(tmp_path)
    assert (checkpoints.best_step, checkpoints.latest_step) == (1, 2)
    checkpoints.close()


def test_only_damaged_checkpoints_are_an_error_that_names_them_and_they_stay(damaged_folder: Path) -> None:
    for step in ("1", "2"):
        shutil.rmtree(damaged_folder / "checkpoints" / step / "optimizer")
    checkpoints = Checkpoints(damaged_folder)
    with pytest.raises(STGTError, match="holds no whole checkpoint; start the run again in another --workdir") as error:
        checkpoints.restore(abstract_state(STGT(MODEL), CONFIG, one_device()), MODEL)
    checkpoints.close()
    for step in ("1", "2"):
        assert str(damaged_folder / "checkpoints" / step / "optimizer") in one_line(error)
        assert (damaged_folder / "checkpoints" / step).is_dir()


def test_damaged_checkpoints_of_one_step_are_all_kept(damaged_folder: Path, state: TrainState) -> None:
    for _ in range(2):
        shutil.rmtree(damaged_folder / "checkpoints" / "2" / "loader")
        checkpoints = Checkpoints(damaged_folder)
        checkpoints.restore(abstract_state(STGT(MODEL), CONFIG, one_device()), MODEL)
        checkpoints.save(2, state, {})
        checkpoints.close()
    assert {path.name for path in (damaged_folder / "damaged_checkpoints").iterdir()} == {"2", "2.1"}
