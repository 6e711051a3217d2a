"""What the TPU kernels share: tile sizes, a float32 matrix product, and the limits of vector memory."""

import jax
import jax.numpy as jnp
from jax.experimental.pallas import tpu as pltpu

from stgt_jax.ops.platform import target_platform
from stgt_jax.ops.precision import precision_of

LANES, SUBLANES = 128, 16  # of a bfloat16 tile
_VMEM_SHARE = 0.9  # of the vector memory, which a kernel may plan to use


def unfit(query: jax.Array, vmem_bytes: int) -> str:
    """Why a kernel cannot run on the device in use; empty where it can.

    Args:
      query: its main input; only the dtype matters.
      vmem_bytes: the vector memory that the kernel needs.
    """
    if query.dtype not in (jnp.float32, jnp.bfloat16):
        return f"takes float32 or bfloat16, not {query.dtype}"
    if target_platform() != "tpu":  # elsewhere the kernel is interpreted, in ordinary memory
        return ""
    limit = int(_VMEM_SHARE * pltpu.get_tpu_info().vmem_capacity_bytes)
    if vmem_bytes <= limit:
        return ""
    return f"needs {vmem_bytes >> 20} MiB of vector memory for frames of this size, but may use {limit >> 20}"


def vmem_limit(vmem_bytes: int) -> int:
    """The limit to set in the compiler for a kernel that plans to use `vmem_bytes`."""
    return int(vmem_bytes / _VMEM_SHARE)


def product(left: jax.Array, right: jax.Array, contracted: tuple[int, int]) -> jax.Array:
    """Matrix product over one dimension of each, summed in float32; float32 inputs are multiplied in full precision."""
    dims = (((contracted[0],), (contracted[1],)), ((), ()))
    precision = precision_of(left.dtype)
    return jax.lax.dot_general(left, right, dims, precision=precision, preferred_element_type=jnp.float32)


def round_up(size: int, multiple: int) -> int:
    """The smallest multiple that is not less than `size`."""
    return -(-size // multiple) * multiple
