"""Crops, resizes and flips clips: uint8 [T, h, w, 3] -> uint8 [T, image_size, image_size, 3].

All frames of a clip share one crop and one flip, so what moves in the output has moved in the video. Pillow's
antialiased bilinear filter crops and resizes in one pass.
"""

import math

import cv2
import numpy as np
from PIL import Image

Box = tuple[int, int, int, int]  # left, upper, right, lower, in pixels

ASPECT_RATIOS = (3 / 4, 4 / 3)
_CROP_ATTEMPTS = 10


def crop_and_resize(video: np.ndarray, box: Box, size: int) -> np.ndarray:
    """Returns `box` of every frame of `video` [T, h, w, 3], resized: uint8 [T, size, size, 3].

    The filter also reads pixels just outside the box, as if the whole frame had been resized before cropping.
    """
    frames = [Image.fromarray(frame).resize((size, size), Image.Resampling.BILINEAR, box=box) for frame in video]
    return np.stack([np.asarray(frame) for frame in frames])


def random_crop_box(rng: np.random.Generator, height: int, width: int, scale: tuple[float, float]) -> Box:
    """Draws the box of a random resized crop, with an area in `scale` of the frame's and an aspect ratio of 3/4 to 4/3.

    If no drawn box fits into the frame, which may be very wide or very high, it is the largest centred box of such a
    ratio.
    """
    for _ in range(_CROP_ATTEMPTS):
        area = rng.uniform(*scale) * height * width
        ratio = math.exp(rng.uniform(*np.log(ASPECT_RATIOS)))
        crop_width, crop_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            left = int(rng.integers(width - crop_width + 1))
            upper = int(rng.integers(height - crop_height + 1))
            return left, upper, left + crop_width, upper + crop_height
    crop_width = min(width, round(height * ASPECT_RATIOS[1]))
    crop_height = min(height, round(width / ASPECT_RATIOS[0]))
    return _centre_box(height, width, crop_height, crop_width)


def random_resized_crop(
    rng: np.random.Generator, video: np.ndarray, size: int, scale: tuple[float, float]
) -> np.ndarray:
    """Crops the same random box from every frame and resizes it: uint8 [T, h, w, 3] -> [T, size, size, 3].

    A scale of (1, 1) means `centre_crop`; nothing is drawn.
    """
    if tuple(scale) == (1.0, 1.0):
        return centre_crop(video, size)
    height, width = video.shape[1:3]
    return crop_and_resize(video, random_crop_box(rng, height, width, scale), size)


def centre_crop(video: np.ndarray, size: int) -> np.ndarray:
    """Resizes the short side to `size` and keeps the centre: uint8 [T, h, w, 3] -> [T, size, size, 3].

    Frames whose short side already is `size` are only cropped.
    """
    height, width = video.shape[1:3]
    short = min(height, width)
    left, upper, right, lower = _centre_box(height, width, short, short)
    if short == size:
        return video[:, upper:lower, left:right]
    return crop_and_resize(video, (left, upper, right, lower), size)


def random_flip(rng: np.random.Generator, video: np.ndarray) -> np.ndarray:
    """Mirrors all frames of the clip horizontally, with probability 1/2."""
    if rng.random() >= 0.5:
        return video
    return np.stack([cv2.flip(frame, 1) for frame in video])  # 30 times as fast as copying a reversed view later


def _centre_box(height: int, width: int, crop_height: int, crop_width: int) -> tuple[int, int, int, int]:
    left, upper = (width - crop_width) // 2, (height - crop_height) // 2
    return left, upper, left + crop_width, upper + crop_height
