"""Training augmentation as the original's (docs/model.md section 6.3): a bicubic random crop, and RandAugment.

RandAugment changes all frames of a clip by two operations, drawn from ten. Their strength is fixed at 5 of 10, where
brightness and sharpness change nothing.
"""

from collections.abc import Callable

import cv2
import numpy as np

NUM_OPERATIONS = 2
PROBABILITY = 0.99  # of applying an operation that was drawn
SHEAR, TRANSLATION, ROTATION = 0.15, 5, 15.0  # per pixel; pixels; degrees
FILL = (128, 128, 128)  # colour of what comes in from outside the frame

Frame = np.ndarray  # uint8 [h, w, 3]
_LEVELS = np.arange(256)


def crop_bicubic(video: np.ndarray, box: tuple[int, int, int, int], size: int) -> np.ndarray:
    """Returns `box` (left, upper, right, lower; pixels) of every frame: uint8 [T, h, w, 3] -> [T, size, size, 3].

    Bicubic without antialiasing, as `torch.nn.functional.interpolate` does. Values beyond 0 to 255 are clipped.
    """
    left, upper, right, lower = box
    cropped = video[:, upper:lower, left:right]
    return np.stack([cv2.resize(frame, (size, size), interpolation=cv2.INTER_CUBIC) for frame in cropped])


def rand_augment(rng: np.random.Generator, video: np.ndarray) -> np.ndarray:
    """Applies two different random operations to a clip, uint8 [T, h, w, 3]; the sign is drawn for each frame."""
    frames = list(video)
    for name in rng.choice(list(OPERATIONS), NUM_OPERATIONS, replace=False):
        if rng.random() >= PROBABILITY or OPERATIONS[name] is _unchanged:
            continue
        signs = np.where(rng.random(len(video)) < 0.5, -1.0, 1.0)
        frames = [OPERATIONS[name](frame, sign) for frame, sign in zip(frames, signs, strict=True)]
    return np.stack(frames)


def _unchanged(frame: Frame, _sign: float) -> Frame:
    return frame


def _auto_contrast(frame: Frame, _sign: float) -> Frame:
    """Stretches the range of each channel to 0 to 255, as Pillow's ImageOps.autocontrast does, but faster."""
    return cv2.merge([cv2.LUT(channel, _contrast_table(channel)) for channel in cv2.split(frame)])


def _contrast_table(channel: np.ndarray) -> np.ndarray:
    """Returns the new value of each of the 256 levels, uint8 [256]."""
    low, high, _, _ = cv2.minMaxLoc(channel)
    if high == low:
        return _LEVELS.astype(np.uint8)
    scale = 255 / (high - low)
    return np.clip(_LEVELS * scale - low * scale, 0, 255).astype(np.uint8)


def _equalize(frame: Frame, _sign: float) -> Frame:
    """Makes all levels of each channel equally frequent, as Pillow's ImageOps.equalize does, but faster."""
    return cv2.merge([cv2.LUT(channel, _equal_table(channel)) for channel in cv2.split(frame)])


def _equal_table(channel: np.ndarray) -> np.ndarray:
    """Returns the new value of each of the 256 levels, uint8 [256]."""
    counts = cv2.calcHist([channel], [0], None, [256], [0, 256]).astype(np.int64).ravel()
    step = (counts.sum() - counts[counts > 0][-1]) // 255
    below = np.cumsum(counts) - counts
    return (np.minimum((step // 2 + below) // step, 255) if step else _LEVELS).astype(np.uint8)


def _affine(frame: Frame, matrix: np.ndarray) -> Frame:
    """Moves the pixel at (x, y) to matrix @ (x, y, 1); the matrix is [2, 3]."""
    # OpenCV is twice as fast with four channels as with three.
    padded = cv2.cvtColor(frame, cv2.COLOR_RGB2RGBA)
    warped = cv2.warpAffine(padded, matrix, frame.shape[1::-1], flags=cv2.INTER_LINEAR, borderValue=(*FILL, 255))
    return cv2.cvtColor(warped, cv2.COLOR_RGBA2RGB)


def _shear_x(frame: Frame, sign: float) -> Frame:
    return _affine(frame, np.array([[1, sign * SHEAR, 0], [0, 1, 0]]))


def _shear_y(frame: Frame, sign: float) -> Frame:
    return _affine(frame, np.array([[1, 0, 0], [sign * SHEAR, 1, 0]]))


def _translate_x(frame: Frame, sign: float) -> Frame:
    moved = np.full_like(frame, FILL[0])
    if sign > 0:
        moved[:, :-TRANSLATION] = frame[:, TRANSLATION:]
    else:
        moved[:, TRANSLATION:] = frame[:, :-TRANSLATION]
    return moved


def _translate_y(frame: Frame, sign: float) -> Frame:
    moved = np.full_like(frame, FILL[0])
    if sign > 0:
        moved[:-TRANSLATION] = frame[TRANSLATION:]
    else:
        moved[TRANSLATION:] = frame[:-TRANSLATION]
    return moved


def _rotate(frame: Frame, sign: float) -> Frame:
    height, width = frame.shape[:2]
    return _affine(frame, cv2.getRotationMatrix2D((width / 2, height / 2), sign * ROTATION, 1))


OPERATIONS: dict[str, Callable[[Frame, float], Frame]] = {
    "identity": _unchanged,
    "auto_contrast": _auto_contrast,
    "brightness": _unchanged,
    "sharpness": _unchanged,
    "equalize": _equalize,
    "shear_x": _shear_x,
    "shear_y": _shear_y,
    "translate_x": _translate_x,
    "translate_y": _translate_y,
    "rotate": _rotate,
}
