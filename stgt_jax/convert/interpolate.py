"""Position embeddings for another grid of patches."""

import math

import numpy as np

_A = -0.75  # of the cubic kernel: PyTorch's; OpenCV has the same, JAX and Pillow have -0.5


def resample_positions(table: np.ndarray, grid: int) -> np.ndarray:
    """Position embeddings [..., 1 + G*G, D] for another grid: [..., 1 + grid*grid, D], float32.

    Bicubic, as `torch.nn.functional.interpolate(mode="bicubic", align_corners=False)`, by which the original does it.
    The first row, of the token for the whole frame, stays.
    """
    old = math.isqrt(table.shape[-2] - 1)
    table = np.asarray(table, np.float32)
    if old == grid:
        return table
    patches = table[..., 1:, :].reshape(*table.shape[:-2], old, old, -1)
    weights = _weights(old, grid)
    resampled = np.einsum("yj,xi,...jid->...yxd", weights, weights, patches, optimize=True)
    resampled = resampled.reshape(*table.shape[:-2], grid * grid, -1)
    return np.concatenate([table[..., :1, :], resampled.astype(np.float32)], axis=-2)


def _weights(old: int, new: int) -> np.ndarray:
    """The share of each of `old` values in each of `new`: [new, old]; beyond the ends stands the last value."""
    weights = np.zeros((new, old))
    for row, centre in enumerate((np.arange(new) + 0.5) * old / new - 0.5):
        first = math.floor(centre)
        for index in range(first - 1, first + 3):
            weights[row, min(max(index, 0), old - 1)] += _cubic(abs(centre - index))
    return weights


def _cubic(x: float) -> float:
    if x <= 1:
        return (_A + 2) * x**3 - (_A + 3) * x**2 + 1
    return _A * x**3 - 5 * _A * x**2 + 8 * _A * x - 4 * _A if x < 2 else 0.0
