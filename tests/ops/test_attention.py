"""Attention's fused kernels against XLA's, the TPU's interpreted; and which sequences take a kernel at all."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from stgt_jax.ops import attention as module
from stgt_jax.ops import attention_gpu, attention_tpu
from stgt_jax.ops.attention import attention


def make_arrays(length: int, head_dim: int, dtype=jnp.float32) -> list[jax.Array]:
    """Query, key, value and the gradient of the output."""
    keys = jax.random.split(jax.random.key(0), 4)
    return [jax.random.normal(key, (4, 2, length, 2, head_dim)).astype(dtype) for key in keys]


xla_attention = jax.vmap(jax.nn.dot_product_attention)


def with_gradients(attend, query, key, value, d_out):
    out, pull_back = jax.vjp(attend, query, key, value)
    return out, pull_back(d_out)


@pytest.mark.parametrize(("length", "head_dim"), [(17, 4), (130, 88)])
def test_kernel_equals_xla_with_gradients(length: int, head_dim: int) -> None:
    arrays = make_arrays(length, head_dim)
    fused = with_gradients(attention_tpu.attention, *arrays)
    chex.assert_trees_all_close(fused, with_gradients(xla_attention, *arrays), rtol=1e-5, atol=1e-5)


def test_kernel_in_bfloat16_stays_near_float32() -> None:
    exact = with_gradients(xla_attention, *make_arrays(20, 8))
    rounded = with_gradients(attention_tpu.attention, *make_arrays(20, 8, jnp.bfloat16))
    for x, wanted in zip(jax.tree.leaves(rounded), jax.tree.leaves(exact), strict=True):
        chex.assert_type(x, jnp.bfloat16)
        assert np.linalg.norm(x.astype(jnp.float32) - wanted) <= 2**-5 * np.linalg.norm(wanted)


def test_kernel_is_split_over_a_mesh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "target_platform", lambda: "tpu")
    arrays = make_arrays(130, 8)
    mesh = jax.make_mesh((2, 2, 2), ("data", "sequence", "tensor"), axis_types=(AxisType.Auto,) * 3)
    with jax.set_mesh(mesh):
        split = jax.jit(lambda *x: with_gradients(attention, *x))(*arrays)
        program = str(jax.make_jaxpr(attention)(*arrays[:3]))
    assert "f32[2,1,130,1,8]" in program  # half of clips, frames and heads
    chex.assert_trees_all_close(split, with_gradients(xla_attention, *arrays), rtol=1e-5, atol=1e-5)


def test_frames_with_a_mask_or_with_others_are_refused() -> None:
    query, key, value, _ = make_arrays(130, 8)
    for others, mask in (((key, value), jnp.ones((1, 1, 130, 130), bool)), ((key[:, :, :7], value[:, :, :7]), None)):
        with pytest.raises(ValueError, match="frames take no mask"):
            attention(query, *others, mask=mask)


def kernels_in(platform: str, kind: str, *shape: int) -> int:
    query = jax.ShapeDtypeStruct(shape, jnp.bfloat16)
    device = AbstractDevice(device_kind=kind, num_cores=1, platform=platform)
    with jax.sharding.use_abstract_mesh(AbstractMesh((), (), abstract_device=device)):
        return str(jax.make_jaxpr(lambda *x: attention(*x))(query, query, query)).count("pallas_call")


def test_frames_take_the_kernel_on_tpus_and_nothing_else_does() -> None:
    assert kernels_in("tpu", "TPU v5 lite", 1, 2, 257, 2, 88) == 1
    assert kernels_in("tpu", "TPU v5 lite", 1, 2, 32, 2, 88) == 0
    assert kernels_in("tpu", "TPU v5 lite", 1, 257, 2, 88) == 0  # no frames
    assert kernels_in("cpu", "cpu", 1, 2, 257, 2, 88) == 0


@pytest.mark.parametrize("length", [17, 130])
def test_odd_and_even_frames_have_cudnn_gradients(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is handed to the library is XLA's to compute here; it must be even where there is a gradient."""
    lengths, library = [], jax.nn.dot_product_attention

    def spy(query, *arrays, **options):
        lengths.append(query.shape[1])
        return library(query, *arrays, **options)

    monkeypatch.setattr(jax.nn, "dot_product_attention", spy)
    arrays = make_arrays(length, 8)
    out = attention_gpu.attention(*arrays[:3])
    with_backward = with_gradients(attention_gpu.attention, *arrays)
    assert lengths == [length, length + length % 2]
    exact = with_gradients(jax.vmap(library), *arrays)
    chex.assert_trees_all_close((out, with_backward), (exact[0], exact), rtol=1e-5, atol=1e-5)


def test_cudnn_takes_16_bits_and_heads_of_multiples_of_8_on_ampere(
    gpu_of, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "target_platform", lambda: "gpu")
    module._warn.cache_clear()

    def takes(length: int, head_dim: int, dtype=jnp.bfloat16) -> bool:
        query = jax.ShapeDtypeStruct((1, 2, length, 2, head_dim), dtype)
        return "custom_vjp_call" in str(jax.make_jaxpr(lambda *x: attention(*x))(query, query, query))

    gpu_of("8.0")
    assert takes(257, 88) and not takes(32, 88)
    assert not takes(257, 88, jnp.float32) and not takes(257, 90) and not takes(257, 136)
    gpu_of("7.5")
    assert not takes(257, 88)
    assert "compute capability 8.0 (Ampere) or newer, not of 7.5" in caplog.text
