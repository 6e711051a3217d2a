"""The TPU kernels, compiled by the TPU's own compiler for slices that libtpu describes and that need not be there."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from experiments.perf.compile.topology import find_topology
from stgt_jax.ops.attention import attention
from stgt_jax.ops.graph_attention import graph_attention, pallas_tpu

pytestmark = pytest.mark.slow
FULL = PATCHES, HEADS, HEAD_DIM = 256, 16, 88
SLICES = ("v5e:2x2", "v5p:2x2x1", "v6e:2x2")


@pytest.fixture(scope="module", params=SLICES)
def mesh(request: pytest.FixtureRequest) -> Mesh:
    pytest.importorskip("libtpu", reason="libtpu has no wheel for this platform")
    devices = find_topology(request.param).devices
    return Mesh(np.array(devices).reshape(2, -1), ("data", "sequence"), axis_types=(AxisType.Auto,) * 2)


def compile_step(mesh: Mesh, num_frames: int, spec: P, dtype, dropout_rate: float = 0.0, sizes=FULL):
    """Forward and backward, two clips."""
    patches, heads, head_dim = sizes
    array = jax.ShapeDtypeStruct((2, num_frames * patches, heads * head_dim), dtype, sharding=NamedSharding(mesh, spec))

    def step(query, key, value, nodes, d_out):
        def attend(*arrays):
            query, key, value = (x.reshape(*x.shape[:2], heads, head_dim) for x in arrays)
            rng = jax.random.key(0)
            out = graph_attention(query, key, value, nodes, num_frames=num_frames, sim_threshold=0.1,
                                  dropout_rate=dropout_rate, dropout_rng=rng if dropout_rate else None)  # fmt: skip
            return out.reshape(d_out.shape)

        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            out, pull_back = jax.vjp(attend, query, key, value)
            return out, pull_back(d_out)

    layout = NamedSharding(mesh, spec)
    return jax.jit(step, in_shardings=layout, out_shardings=layout).lower(*[array] * 5).compile()


def test_compiles_at_full_width_and_is_chosen_by_itself(mesh: Mesh) -> None:
    text = compile_step(mesh, num_frames=8, spec=P("data"), dtype=jnp.bfloat16, dropout_rate=0.1).as_text()
    assert text.count("tpu_custom_call") == 2  # forward and backward
    assert "while(" not in text  # `banded` would loop over frames


def test_frames_split_over_devices_send_neighbours_only(mesh: Mesh) -> None:
    text = compile_step(mesh, num_frames=8, spec=P("data", "sequence"), dtype=jnp.bfloat16).as_text()
    assert text.count("tpu_custom_call") == 2
    assert "collective-permute" in text and "all-gather" not in text and "all-to-all" not in text


@pytest.mark.parametrize(("num_frames", "sizes"), [(6, (16, 4, 24)), (1, (49, 2, 64))])
def test_small_and_odd_sizes_compile_in_float32_and_take_the_kernel(mesh: Mesh, num_frames: int, sizes) -> None:
    compiled = compile_step(mesh, num_frames, P("data"), jnp.float32, dropout_rate=0.1, sizes=sizes)
    assert compiled.as_text().count("tpu_custom_call") == 2


def test_attention_within_frames_compiles_at_full_width(mesh: Mesh) -> None:
    layout = NamedSharding(mesh, P("data"))
    array = jax.ShapeDtypeStruct((4, 2, 1 + PATCHES, HEADS * HEAD_DIM), jnp.bfloat16, sharding=layout)

    def step(query, key, value, d_out):
        def attend(*arrays):
            heads = (x.reshape(*x.shape[:3], HEADS, HEAD_DIM) for x in arrays)
            return attention(*heads).reshape(d_out.shape)

        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            out, pull_back = jax.vjp(attend, query, key, value)
            return out, pull_back(d_out)

    compiled = jax.jit(step, in_shardings=layout, out_shardings=layout).lower(*[array] * 4).compile()
    assert compiled.as_text().count("tpu_custom_call") == 2


def target(device_kind: str):
    device = AbstractDevice(device_kind=device_kind, num_cores=1, platform="tpu")
    return jax.sharding.use_abstract_mesh(AbstractMesh((), (), abstract_device=device))


def test_what_does_not_fit_is_named() -> None:
    query = jax.ShapeDtypeStruct((1, 8, PATCHES, HEADS, HEAD_DIM), jnp.bfloat16)
    with target("TPU v5 lite"):
        assert pallas_tpu.unfit(query) == ""
        assert "float16" in pallas_tpu.unfit(query.update(dtype=jnp.float16))
        assert "MiB of vector memory" in pallas_tpu.unfit(query.update(shape=(1, 8, 1024, HEADS, HEAD_DIM)))
    with target("TPU v4"):
        assert "MiB of vector memory" in pallas_tpu.unfit(query)
