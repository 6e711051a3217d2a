"""The platform that what is traced now will run on: it decides between kernels."""

import jax

_MIN_COMPUTE_CAPABILITY = 8.0  # of Triton and of cuDNN's fused attention


def target_platform() -> str:
    """That of the mesh in use, which may be compiled for without being there; else that of the default device.

    "cpu", "tpu", "gpu" for NVIDIA's, "rocm" for AMD's.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device or _default_device()
    platform = device if isinstance(device, str) else device.platform
    if platform in ("gpu", "cuda", "rocm"):
        return "rocm" if "AMD" in getattr(device, "device_kind", "") or platform == "rocm" else "gpu"
    return platform


def unfit_gpu() -> str:
    """Why no fused kernel can run on the NVIDIA GPU in use.

    Empty where one can, where the target is another platform, and where it is a GPU that this machine does not have.
    """
    if target_platform() != "gpu":
        return ""
    try:
        device, *_ = jax.local_devices(backend="gpu")
    except RuntimeError:
        return ""
    capability = str(device.compute_capability)
    if float(capability) >= _MIN_COMPUTE_CAPABILITY:
        return ""
    return f"needs a GPU of compute capability {_MIN_COMPUTE_CAPABILITY} (Ampere) or newer, not of {capability}"


def _default_device() -> jax.Device | str:
    return jax.config.jax_default_device or jax.devices()[0]  # type: ignore[attr-defined]
