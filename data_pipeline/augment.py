"""Training augmentation as the original's (docs/model.md section 6.3): a bicubic random crop, and RandAugment.

RandAugment changes all frames of a clip by two operations, drawn from ten. Their strength is fixed at 5 of 10, where
brightness and sharpness change nothing.
"""

from collections.abc import Callable

import cv2
import numpy as np
from PIL import Image, ImageOps

NUM_OPERATIONS = 2
PROBABILITY = 0.99  # of applying an operation that was drawn
SHEAR, TRANSLATION, ROTATION = 0.15, 5.0, 15.0  # per pixel; pixels; degrees
FILL = (128, 128, 128)  # colour of what comes in from outside the frame

Frame = np.ndarray  # uint8 [h, w, 3]


def crop_bicubic(video: np.ndarray, box: tuple[int, int, int, int], size: int) -> np.ndarray:
    """Returns `box` (left, upper, right, lower; pixels) of every frame: uint8 [T, h, w, 3] -> [T, size, size, 3].

    Bicubic without antialiasing, as `torch.nn.functional.interpolate` does. Values beyond 0 to 255 are clipped.
    """
    left, upper, right, lower = box
    cropped = video[:, upper:lower, left:right]
    return np.stack([cv2.resize(frame, (size, size), interpolation=cv2.INTER_CUBIC) for frame in cropped])


def rand_augment(rng: np.random.Generator, video: np.ndarray) -> np.ndarray:
    """Applies two different random operations to a clip, uint8 [T, h, w, 3]; the sign is drawn for each frame."""
    for name in rng.choice(list(OPERATIONS), NUM_OPERATIONS, replace=False):
        if rng.random() >= PROBABILITY:
            continue
        signs = np.where(rng.random(len(video)) < 0.5, -1.0, 1.0)
        video = np.stack([OPERATIONS[name](frame, sign) for frame, sign in zip(video, signs, strict=True)])
    return video


def _unchanged(frame: Frame, sign: float) -> Frame:
    del sign
    return frame


def _auto_contrast(frame: Frame, sign: float) -> Frame:
    del sign
    return np.asarray(ImageOps.autocontrast(Image.fromarray(frame)))


def _equalize(frame: Frame, sign: float) -> Frame:
    del sign
    return np.asarray(ImageOps.equalize(Image.fromarray(frame)))


def _affine(frame: Frame, matrix: np.ndarray) -> Frame:
    """Moves the pixel at (x, y) to matrix @ (x, y, 1); the matrix is [2, 3]."""
    size = frame.shape[1::-1]
    return cv2.warpAffine(frame, matrix, size, flags=cv2.INTER_LINEAR, borderValue=FILL)


def _shear_x(frame: Frame, sign: float) -> Frame:
    return _affine(frame, np.array([[1, sign * SHEAR, 0], [0, 1, 0]]))


def _shear_y(frame: Frame, sign: float) -> Frame:
    return _affine(frame, np.array([[1, 0, 0], [sign * SHEAR, 1, 0]]))


def _translate_x(frame: Frame, sign: float) -> Frame:
    return _affine(frame, np.array([[1, 0, -sign * TRANSLATION], [0, 1, 0]]))


def _translate_y(frame: Frame, sign: float) -> Frame:
    return _affine(frame, np.array([[1, 0, 0], [0, 1, -sign * TRANSLATION]]))


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
