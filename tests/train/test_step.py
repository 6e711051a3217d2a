"""One optimizer step: what it trains, what it leaves alone, and that devices and accumulation do not change it."""

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small import leaves_by_name, make_batch, small_model, small_training

from stgt_jax.config import LossConfig, MeshConfig, ModelConfig, TrainConfig
from stgt_jax.errors import STGTError
from stgt_jax.mesh import make_mesh
from stgt_jax.models.stgt import STGT
from stgt_jax.sharding import MIN_SHARDED_SIZE, shard_batch
from stgt_jax.train.objective import stgt_losses
from stgt_jax.train.optimizer import make_optimizer
from stgt_jax.train.state import abstract_state, init_state, merge_params, split_params
from stgt_jax.train.step import make_train_step

pytestmark = pytest.mark.slow
PLAIN = small_model(dropout=0.0, graph="full")


def one_device() -> jax.sharding.Mesh:
    return make_mesh(MeshConfig(), jax.devices()[:1])


def run(model: ModelConfig, config: TrainConfig, mesh: jax.sharding.Mesh, steps: int = 2) -> tuple[Any, Any, list]:
    """Returns the states before and after some steps, on the host, and their metrics."""
    step, state = make_train_step(STGT(model), config, mesh), init_state(STGT(model), config, mesh)
    before, metrics = jax.device_get(state), []
    for seed in range(steps):
        state, values = step(state, shard_batch(make_batch(seed), mesh))
        metrics.append(jax.device_get(values))
    return before, state, metrics


@pytest.fixture(scope="module")
def plain_run() -> tuple[Any, Any, list]:
    return run(PLAIN, small_training(), one_device())


def test_step_updates_every_parameter_and_reports(plain_run: tuple[Any, Any, list]) -> None:
    before, after, metrics = plain_run
    assert int(after.step) == 2
    before, after = leaves_by_name(before.params), leaves_by_name(after.params)
    assert not {name for name in before if np.array_equal(before[name], after[name])}
    assert set(metrics[0]) >= {"loss", "loss_contrastive", "loss_vtm", "loss_vtg", "learning_rate", "grad_norm"}
    np.testing.assert_allclose(metrics[0]["learning_rate"], 1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    "axes",
    [MeshConfig(data=8), MeshConfig(data=2, fsdp=2, tensor=2), MeshConfig(data=1, fsdp=2, sequence=4)],
)
def test_many_devices_compute_what_one_does(plain_run: tuple[Any, Any, list], axes: MeshConfig) -> None:
    _, expected, expected_metrics = plain_run
    _, state, metrics = run(PLAIN, small_training(), make_mesh(axes))
    for values, wanted in zip(metrics, expected_metrics, strict=True):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), values, wanted)
    after, wanted = leaves_by_name(state.params), leaves_by_name(expected.params)
    for name in wanted:
        # The softmax does not see the bias of the keys: its gradient is rounding noise, which Adam scales up.
        atol = 1e-3 if name.endswith("attention/key/bias") else 1e-5
        np.testing.assert_allclose(after[name], wanted[name], rtol=1e-5, atol=atol, err_msg=name)
    if axes.tensor > 1:  # a parameter and its moments lie in the same four parts
        kernel = ("vision", "blocks", "mlp", "up", "kernel")
        layouts = [leaf.sharding.spec for path, leaf in jax.tree_util.tree_leaves_with_path(state)
                   if jax.tree_util.keystr(path, simple=True, separator="/").endswith("/".join(kernel))]  # fmt: skip
        assert layouts == [jax.sharding.PartitionSpec(None, "fsdp", "tensor")] * 3


def test_accumulation_is_the_mean_over_microbatches() -> None:
    model, config, mesh = (
        STGT(small_model(dropout=0.0, freeze=True)),
        small_training(accumulation_steps=2),
        one_device(),
    )
    before, after, (metrics,) = run(model.config, config, mesh, steps=1)

    @jax.jit
    def gradients(params: Any, batch: Any, key: jax.Array) -> Any:
        def loss(trainable: Any) -> Any:
            return stgt_losses(model, merge_params(trainable, before.frozen), batch, key, config.loss, train=True)

        return jax.value_and_grad(loss, has_aux=True)(params)

    key = jax.random.fold_in(jax.random.key(config.seed), 0)
    halves = [{name: array[i::2] for name, array in make_batch(0).items()} for i in range(2)]
    results = [gradients(before.params, half, jax.random.fold_in(key, i)) for i, half in enumerate(halves)]
    np.testing.assert_allclose(metrics["loss"], np.mean([value for (value, _), _ in results]), rtol=1e-5)

    mean = jax.tree.map(lambda a, b: (a + b) / 2, *[g for _, g in results])
    np.testing.assert_allclose(metrics["grad_norm"], optax.tree.norm(mean), rtol=1e-5)
    optimizer = make_optimizer(config.optimizer, config.num_steps)
    _, opt_state = optimizer.update(mean, optimizer.init(before.params), before.params)
    # The first moments are the gradients but for a factor.
    wanted, moments = leaves_by_name(opt_state), leaves_by_name(after.opt_state)
    for name in wanted:
        np.testing.assert_allclose(moments[name], wanted[name], rtol=1e-3, atol=1e-6, err_msg=name)


def test_questions_train_alike_on_many_devices() -> None:
    model = dataclasses.replace(small_model(dropout=0.0, graph="none"), num_answers=5)
    config = dataclasses.replace(
        small_training(accumulation_steps=2), loss=LossConfig(objective="answering"), best_metric="answer_accuracy"
    )
    batch = make_batch(0)
    batch |= {"answer": (np.arange(len(batch["input_ids"])) % 5).astype(np.int32)}
    results = []
    for mesh in (one_device(), make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))):
        step, state = make_train_step(STGT(model), config, mesh), init_state(STGT(model), config, mesh)
        state, metrics = step(state, shard_batch(batch, mesh))
        results.append((leaves_by_name(state.params), metrics))
    (wanted, wanted_metrics), (after, metrics) = results
    assert set(metrics) == {"loss", "accuracy_answer", "listed", "learning_rate", "grad_norm"}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), metrics, wanted_metrics)
    for name in wanted:
        np.testing.assert_allclose(after[name], wanted[name], rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.fixture(scope="module")
def half_frozen_run() -> tuple[Any, Any, list]:
    model = small_model(dropout=0.0, dtype="bfloat16", depth=2, freeze=True, open_blocks=1)
    return run(model, small_training(), one_device())


def test_bfloat16_trains_float32_parameters_and_keeps_frozen_matrices_as_it_computes(
    half_frozen_run: tuple[Any, Any, list],
) -> None:
    _, after, metrics = half_frozen_run
    assert np.isfinite(metrics[-1]["loss"])
    assert {leaf.dtype for leaf in jax.tree.leaves(after.params)} == {jnp.dtype("float32")}
    of_frozen = {name.endswith("/kernel"): array.dtype for name, array in leaves_by_name(after.frozen).items()}
    assert of_frozen == {True: jnp.dtype("bfloat16"), False: jnp.dtype("float32")}


def test_frozen_parameters_have_no_optimizer_state_and_stay_while_open_blocks_train(
    half_frozen_run: tuple[Any, Any, list],
) -> None:
    before, after, _ = half_frozen_run
    assert {name.split("/")[1] for name in leaves_by_name(before.params) if name.startswith("vision/")} == {
        "open_blocks"
    }
    frozen = leaves_by_name(before.frozen)
    assert "vision/pos_embed" in frozen and "vision/blocks/mlp/up/kernel" in frozen
    assert not [n for n in leaves_by_name(before.opt_state) if any(n.endswith(f"u/{name}") for name in frozen)]
    for name, array in leaves_by_name(after.frozen).items():
        np.testing.assert_array_equal(array, frozen[name], err_msg=name)
    kernel = "vision/open_blocks/mlp/up/kernel"
    assert not np.array_equal(leaves_by_name(after.params)[kernel], leaves_by_name(before.params)[kernel])


def test_split_and_merge_are_inverse(plain_run: tuple[Any, Any, list]) -> None:
    before, _, _ = plain_run
    params = merge_params(before.params, before.frozen)
    trainable, frozen = split_params(params, PLAIN)
    assert leaves_by_name(trainable).keys() == leaves_by_name(before.params).keys()
    assert list(leaves_by_name(frozen)) == ["graph/pos_2d_embed"]


def test_given_parameters_are_copied_not_consumed() -> None:
    model, config, mesh = STGT(small_model()), small_training(), one_device()
    first = init_state(model, config, mesh)
    params = merge_params(first.params, first.frozen)
    state = init_state(model, config, mesh, params)
    jax.tree.map(np.testing.assert_array_equal, merge_params(state.params, state.frozen), params)
    jax.jit(lambda s: jax.tree.map(jnp.zeros_like, s), donate_argnums=0)(state)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(params))


@pytest.fixture(scope="module")
def cube() -> tuple[Any, jax.stages.Compiled]:
    """The state's shapes and the compiled step on 2 x 2 x 2 devices, of which 4 have clips of their own."""
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    state = abstract_state(STGT(PLAIN), small_training(), mesh)
    step = make_train_step(STGT(PLAIN), small_training(), mesh)
    return state, step.lower(state, shard_batch(make_batch(0), mesh)).compile()


def test_compiled_step_holds_no_large_parameter_whole(cube: tuple[Any, jax.stages.Compiled]) -> None:
    state, compiled = cube
    ((inputs, _), _), (outputs, _) = compiled.input_shardings, compiled.output_shardings
    whole = []
    for (path, leaf), before, after in zip(
        jax.tree_util.tree_leaves_with_path(state), jax.tree.leaves(inputs), jax.tree.leaves(outputs), strict=True
    ):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        assert before.is_equivalent_to(after, leaf.ndim), name
        if before.is_fully_replicated and leaf.size >= MIN_SHARDED_SIZE * (leaf.shape[0] if leaf.ndim > 2 else 1):
            whole.append(name)
    assert not whole


def test_compiled_step_holds_no_activation_of_all_clips(cube: tuple[Any, jax.stages.Compiled]) -> None:
    program = cube[1].as_text()
    arrays = {tuple(map(int, dims.split(","))) for dims in re.findall(r"f32\[([\d,]+)\]", program)}
    of_graph_tokens = {dims[0] for dims in arrays if dims[1:] == (36, 32)}  # M tokens of width D
    assert max(of_graph_tokens) == 6  # a device's two clips, three times each; all together are 24
    of_frames = {dims[0] for dims in arrays if dims[1:] in ((4, 17, 32), (4, 16, 32))}
    assert max(of_frames) == 2


def test_graph_attention_knows_the_mesh() -> None:
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    step = make_train_step(STGT(PLAIN), small_training(), mesh)
    program = step.trace(abstract_state(STGT(PLAIN), small_training(), mesh), shard_batch(make_batch(0), mesh)).jaxpr
    assert "f32[2,4,16,2,8]" in str(program)  # a device's 2 of 8 clips and 2 of 4 heads


def test_frames_that_do_not_divide_over_the_devices_are_an_error() -> None:
    with pytest.raises(STGTError, match=r"num_frames=4 does not divide by the 8 devices"):
        make_train_step(STGT(PLAIN), small_training(), make_mesh(MeshConfig(data=1, sequence=8)))


def test_batch_that_does_not_divide_over_the_devices_is_an_error() -> None:
    with pytest.raises(STGTError, match=r"batch_size=8 does not divide by .*=2 x 8 devices"):
        make_train_step(STGT(PLAIN), small_training(accumulation_steps=2), make_mesh(MeshConfig()))
