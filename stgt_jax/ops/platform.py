"""The platform for which a program is traced. The choice of kernels depends on it."""

import jax

_MIN_COMPUTE_CAPABILITY = 8.0  # what Triton and cuDNN's fused attention need


def target_platform() -> str:
    """The platform of the mesh in use, else of the default device: "cpu", "tpu", "gpu" (NVIDIA) or "rocm" (AMD).

    The devices of the mesh need not exist: a program can be compiled for a machine elsewhere.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device or _default_device()
    platform = device if isinstance(device, str) else device.platform
    if platform in ("gpu", "cuda", "rocm"):
        return "rocm" if "AMD" in getattr(device, "device_kind", "") or platform == "rocm" else "gpu"
    return platform


def unfit_gpu() -> str:
    """Why the NVIDIA GPU in use cannot run the fused kernels; empty where it can.

    Also empty for other platforms, and for a GPU that is compiled for but is not in this machine.
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
