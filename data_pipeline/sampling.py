"""Which T of a clip's n frames a model sees (docs/model.md section 6).

Training draws "headtail" frames anew every epoch; evaluation takes uniform ones, or, as a control, the uniform ones
out of order. A clip shorter than T repeats its last frame.
"""

import numpy as np


def uniform_frames(num_available: int, num_frames: int) -> np.ndarray:
    """Returns the frame indices floor(i * n / T), int64 [T]; of a clip of n < T frames all, the last one repeated."""
    if num_available < num_frames:
        return np.minimum(np.arange(num_frames), num_available - 1)
    return np.arange(num_frames) * num_available // num_frames


def headtail_frames(rng: np.random.Generator, num_available: int, num_frames: int) -> np.ndarray:
    """Returns sorted random frame indices, int64 [T]: T/2 of the clip's first half and T/2 of its second.

    An odd T takes its extra frame from the first half, which holds the middle frame of an odd n; T = 1 is one frame of
    the whole clip. A clip of n < T frames gives them all, the last one repeated.
    """
    if num_available < num_frames:
        return uniform_frames(num_available, num_frames)
    if num_frames == 1:
        return rng.integers(num_available, size=1)
    middle = (num_available + 1) // 2
    head = rng.choice(middle, size=(num_frames + 1) // 2, replace=False)
    tail = rng.choice(np.arange(middle, num_available), size=num_frames // 2, replace=False)
    return np.sort(np.concatenate([head, tail]))


def train_frames(rng: np.random.Generator, sampling: str, num_available: int, num_frames: int) -> np.ndarray:
    """Returns the frame indices of a training clip, int64 [T], by the configured sampling."""
    if sampling == "headtail":
        return headtail_frames(rng, num_available, num_frames)
    return uniform_frames(num_available, num_frames)


def wrong_time_order(rng: np.random.Generator, num_frames: int) -> np.ndarray:
    """Returns a permutation of T frames, int64 [T], that destroys their time order.

    Never the identity (for T > 1), and never the plain reversal (for T > 2): a clip played backwards still has smooth
    motion, and may even match another caption of the gallery.
    """
    order = np.arange(num_frames)
    if num_frames == 1:
        return order
    while True:
        shuffled = rng.permutation(num_frames)
        reversal = num_frames > 2 and np.array_equal(shuffled, order[::-1])
        if not (reversal or np.array_equal(shuffled, order)):
            return shuffled
