"""Chooses the T frames that the model sees, of a video's n or of the K that are kept of them (docs/model.md section 6).

Training draws other "headtail" frames in every epoch. Evaluation takes uniform frames or, as a control, shuffles them.
A clip of fewer than T frames repeats its last one.
"""

import numpy as np


def uniform_frames(num_available: int, num_frames: int) -> np.ndarray:
    """Returns the frame indices floor(i * n / T), int64 [T]; of n < T frames all, the last one repeated."""
    if num_available < num_frames:
        return np.minimum(np.arange(num_frames), num_available - 1)
    return np.arange(num_frames) * num_available // num_frames


def nearest_frames(frame_numbers: np.ndarray, num_frames: int, num_wanted: int) -> np.ndarray:
    """Returns the positions, int64 [T], of the kept frames nearest to floor(i * n / T) of the video's n frames.

    They are those very frames where K is a multiple of T, or where all frames were kept. Of two that are equally near,
    the earlier one is taken.

    Args:
      frame_numbers: int [K], rising, of the kept frames.
      num_frames: n.
      num_wanted: T.
    """
    wanted = uniform_frames(num_frames, num_wanted)
    return np.abs(frame_numbers[None, :] - wanted[:, None]).argmin(axis=1)


def headtail_frames(rng: np.random.Generator, num_available: int, num_frames: int) -> np.ndarray:
    """Returns sorted random frame indices, int64 [T]: T/2 of the clip's first half and T/2 of its second.

    If T is odd, the extra frame is from the first half; if n is odd, the middle frame belongs to the first half. T = 1
    draws one frame of the whole clip. A clip of n < T frames gives all of them, the last one repeated.
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
    """Returns the frame indices of a training clip, int64 [T]; `sampling` is "headtail" or "uniform"."""
    if sampling == "headtail":
        return headtail_frames(rng, num_available, num_frames)
    return uniform_frames(num_available, num_frames)


def wrong_time_order(rng: np.random.Generator, num_frames: int) -> np.ndarray:
    """Returns a permutation of T frames, int64 [T], that destroys their order.

    It is never the identity (for T > 1) nor the exact reversal (for T > 2): a clip played backwards still moves
    smoothly, and may match the reversed caption.
    """
    order = np.arange(num_frames)
    if num_frames == 1:
        return order
    while True:
        shuffled = rng.permutation(num_frames)
        reversal = num_frames > 2 and np.array_equal(shuffled, order[::-1])
        if not (reversal or np.array_equal(shuffled, order)):
            return shuffled
