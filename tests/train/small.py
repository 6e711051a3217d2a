"""A model and a data iterator small enough to train in tests."""

import dataclasses
import os
import signal
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from models_for_tests import tiny

from stgt_jax.config import ModelConfig, OptimizerConfig, TrainConfig

BATCH, TEXT = 8, 12


def small_model(*, dropout: float = 0.1, graph: str = "none", dtype: str = "float32", **vision: Any) -> ModelConfig:
    """One block of everything; without the graph, which the other tests cover, it compiles much faster."""
    config = tiny()
    return dataclasses.replace(
        config,
        vision=dataclasses.replace(config.vision, **({"depth": 1} | vision)),
        graph=dataclasses.replace(config.graph, variant=graph, dropout=dropout),
        qformer=dataclasses.replace(config.qformer, depth=1, dropout=dropout),
        dtype=dtype,
    )


def small_training(**options: Any) -> TrainConfig:
    """A few steps at a learning rate that moves the weights visibly."""
    optimizer = OptimizerConfig(peak_learning_rate=1e-3, warmup_steps=2, clip_norm=1.0)
    return TrainConfig(**({"num_steps": 6, "batch_size": BATCH, "optimizer": optimizer} | options))


def make_batch(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    length = rng.integers(4, TEXT + 1, (BATCH, 1))
    attention_mask = (np.arange(TEXT) < length).astype(np.int32)
    return {
        "video": rng.integers(0, 256, (BATCH, 4, 32, 32, 3), dtype=np.uint8),
        "input_ids": rng.integers(5, 60, (BATCH, TEXT), dtype=np.int32) * attention_mask,
        "attention_mask": attention_mask,
    }


class Batches:
    """Batch n is that of seed n, for ever. The video is of floats, so that one can be a NaN without a new compilation.

    `poisoned` is the step (from 1) whose video has a NaN, `dies_at` the one whose batch never comes, `stops_at` the one
    with whose batch a signal comes, by default SIGTERM.
    """

    num_held_batches = fewest_held_batches = 1

    def __init__(
        self, *, poisoned: int = 0, dies_at: int = 0, stops_at: int = 0, signal_number: int = signal.SIGTERM
    ) -> None:
        self.taken, self.poisoned, self.dies_at, self.stops_at = 0, poisoned, dies_at, stops_at
        self.signal_number = signal_number

    def __next__(self) -> dict[str, np.ndarray]:
        self.taken += 1
        if self.taken == self.dies_at:
            raise KeyboardInterrupt
        if self.taken == self.stops_at:
            os.kill(os.getpid(), self.signal_number)
        batch = make_batch(self.taken)
        batch["video"] = batch["video"].astype(np.float32) / 255
        if self.taken == self.poisoned:
            batch["video"][3, 2, 5, 5, 1] = np.nan
        return batch

    def origin(self) -> Callable[[], dict[str, int]]:
        number = self.taken
        return lambda: {"batch": number}

    def batch_shapes(self) -> dict[str, tuple[tuple[int, ...], Any]]:
        shapes = {name: (array.shape, array.dtype) for name, array in make_batch(0).items()}
        return shapes | {"video": (shapes["video"][0], np.float32)}

    def get_state(self) -> bytes:
        return str(self.taken).encode()

    def set_state(self, state: bytes) -> None:
        self.taken = int(state)


def leaves_by_name(tree: Any) -> dict[str, np.ndarray]:
    """Arrays by their path, such as "graph/time_embed"."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf) for path, leaf in leaves}
