"""A tensor in a file of weights: its name, shape and dtype are known, and its numbers are read when they are needed."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that has not been read yet."""

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]
    read_row: Callable[[int], np.ndarray] | None = None  # one row of the first axis, where the file can give it alone

    def row(self, index: int) -> "StoredTensor":
        """One row along the first axis."""
        read_row = self.read_row or (lambda i: self.read()[i])
        return StoredTensor(self.shape[1:], self.dtype, lambda: read_row(index))

    def third(self, index: int) -> "StoredTensor":
        """One of three equal parts along the first axis."""
        size = self.shape[0] // 3
        return StoredTensor((size, *self.shape[1:]), self.dtype, lambda: self.read()[index * size : (index + 1) * size])

    def mapped(self, function: Callable[[np.ndarray], np.ndarray], shape: tuple[int, ...]) -> "StoredTensor":
        """The tensor after `function`, which gives it the shape `shape`."""
        return StoredTensor(shape, self.dtype, lambda: function(self.read()))


def held(array: np.ndarray) -> StoredTensor:
    """Returns an array in memory as a stored tensor."""
    return StoredTensor(array.shape, array.dtype, lambda: array, lambda index: array[index])
