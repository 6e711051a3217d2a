"""The platform that what is traced now will run on: it decides between kernels."""

import jax


def target_platform() -> str:
    """That of the mesh in use, which may be compiled for without being there; else that of this process' devices.

    "cpu", "tpu" or "gpu".
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    platform = jax.default_backend() if device is None else device.platform
    return "gpu" if platform in ("cuda", "rocm") else platform
