"""Graph attention split over clips, frames and heads on 8 devices equals that of one, whatever the implementation."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from stgt_jax.errors import STGTError
from stgt_jax.ops.graph_attention import graph_attention

pytestmark = pytest.mark.slow
FRAMES, PATCHES, HEADS, HEAD_DIM = 8, 3, 2, 4
MESHES = {"frames": (1, 8, 1), "clips, frames and heads": (2, 2, 2), "two frames a device": (2, 4, 1)}


def make_mesh(shape: tuple[int, int, int]) -> Mesh:
    return jax.make_mesh(shape, ("data", "sequence", "tensor"), axis_types=(AxisType.Auto,) * 3)


@functools.cache
def make_arrays(batch: int = 2) -> tuple[jax.Array, ...]:
    keys = jax.random.split(jax.random.key(0), 5)
    shape = (batch, FRAMES * PATCHES, HEADS, HEAD_DIM)
    query, key, value, d_out = (jax.random.normal(k, shape) for k in keys[:4])
    return query, key, value, jax.random.normal(keys[4], (*shape[:2], 6)), d_out


def step(implementation, query, key, value, nodes, d_out):
    """Output and gradients."""

    def attend(*arrays):
        return graph_attention(*arrays, nodes, num_frames=FRAMES, sim_threshold=0.1, dropout_rate=0.3,
                               dropout_rng=jax.random.key(1), implementation=implementation)  # fmt: skip

    out, pull_back = jax.vjp(attend, query, key, value)
    return out, pull_back(d_out)


def compile_on(mesh: Mesh, implementation: str, arrays: tuple[jax.Array, ...]):
    layout = NamedSharding(mesh, P("data", "sequence") if "data" in mesh.shape else P(None, "sequence"))
    with jax.set_mesh(mesh):
        jitted = jax.jit(functools.partial(step, implementation), in_shardings=layout, out_shardings=layout)
        return jitted.lower(*arrays).compile(), layout


@pytest.mark.parametrize(
    ("shape", "implementation"),
    [(shape, "banded") for shape in MESHES.values()] + [((2, 2, 2), "pallas_tpu"), ((2, 2, 2), "pallas_gpu")],
)
def test_equals_one_device_with_gradients(shape, implementation: str) -> None:
    compiled, layout = compile_on(make_mesh(shape), implementation, make_arrays())
    split = compiled(*jax.device_put(make_arrays(), layout))
    whole = jax.jit(functools.partial(step, "banded"))(*make_arrays())
    chex.assert_trees_all_close(split, whole, rtol=1e-5, atol=1e-5)


def test_only_neighbouring_frames_travel() -> None:
    mesh = jax.make_mesh((8,), ("sequence",), axis_types=(AxisType.Auto,))
    compiled, _ = compile_on(mesh, "banded", make_arrays())
    assert "collective-permute" in compiled.as_text()
    assert "all-gather" not in compiled.as_text() and "all-reduce" not in compiled.as_text()


def test_every_device_attends_for_its_own_part() -> None:
    with jax.set_mesh(make_mesh((2, 2, 2))):
        program = str(jax.make_jaxpr(functools.partial(step, "banded"))(*make_arrays()))
    assert f"f32[1,{FRAMES // 2},{PATCHES},{HEADS // 2},{HEAD_DIM}]" in program  # half of clips, frames and heads


def test_explicit_axes_are_refused_by_name() -> None:
    with (
        jax.set_mesh(jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))),
        pytest.raises(STGTError, match=r"Explicit axes .*'data'"),
    ):
        jax.eval_shape(functools.partial(step, "banded"), *make_arrays())


def test_what_the_axes_do_not_divide_stays_whole() -> None:
    arrays = tuple(x[:1] for x in make_arrays())  # one clip for two devices
    with jax.set_mesh(make_mesh((2, 4, 1))):
        split = jax.jit(functools.partial(step, "banded"))(*arrays)
    chex.assert_trees_all_close(split, step("dense", *arrays), rtol=1e-5, atol=1e-5)


def test_dropout_differs_between_devices() -> None:
    compiled, layout = compile_on(make_mesh((2, 4, 1)), "banded", make_arrays())
    twice = tuple(jnp.concatenate([x[:1], x[:1]]) for x in make_arrays())  # the same clip on both
    out, _ = compiled(*jax.device_put(twice, layout))
    assert np.abs(out[0] - out[1]).max() > 1e-3
