"""Augmentation as the original's: against plain formulas, and by what it must leave alone."""

import numpy as np
import pytest
from PIL import Image, ImageOps

from data_pipeline.augment import OPERATIONS, crop_bicubic, rand_augment


def bicubic(image, size):
    """Resizes [h, w] as torch does: cubic convolution with a = -0.75, pixel centres aligned, edges repeated."""

    def weights(length):
        matrix = np.zeros((size, length))
        for row in range(size):
            at = (row + 0.5) * length / size - 0.5
            for tap in range(int(np.floor(at)) - 1, int(np.floor(at)) + 3):
                x = abs(at - tap)
                near, far = (1.25 * x - 2.25) * x * x + 1, ((-0.75 * x + 3.75) * x - 6) * x + 3
                matrix[row, np.clip(tap, 0, length - 1)] += near if x <= 1 else far
        return matrix

    return weights(image.shape[0]) @ image @ weights(image.shape[1]).T


@pytest.mark.parametrize("box", [(0, 0, 40, 30), (5, 3, 25, 28), (10, 0, 40, 30)])
def test_crop_is_bicubic_without_antialiasing_and_clipped(box):
    video = np.random.default_rng(0).integers(0, 256, (2, 30, 40, 3), dtype=np.uint8)
    left, upper, right, lower = box
    expected = np.stack(
        [
            np.stack([bicubic(frame[upper:lower, left:right, c].astype(float), 16) for c in range(3)], -1)
            for frame in video
        ]
    )
    cropped = crop_bicubic(video, box, 16)
    assert cropped.dtype == np.uint8 and cropped.shape == (2, 16, 16, 3)
    np.testing.assert_allclose(cropped, np.clip(expected, 0, 255), atol=1.01)


def clip(num_frames=6):
    return np.random.default_rng(1).integers(40, 200, (num_frames, 32, 32, 3), dtype=np.uint8)


@pytest.mark.parametrize("name", ["identity", "brightness", "sharpness"])
def test_some_operations_change_nothing(name):
    for frame in clip():
        np.testing.assert_array_equal(OPERATIONS[name](frame, 1.0), frame)


def test_translation_moves_by_5_pixels_and_fills_with_grey():
    frame = clip()[0]
    for sign, kept, moved, filled in ((1.0, slice(5, None), slice(0, -5), slice(-5, None)),
                                      (-1.0, slice(0, -5), slice(5, None), slice(0, 5))):  # fmt: skip
        by_x, by_y = OPERATIONS["translate_x"](frame, sign), OPERATIONS["translate_y"](frame, sign)
        np.testing.assert_array_equal(by_x[:, moved], frame[:, kept])
        np.testing.assert_array_equal(by_y[moved], frame[kept])
        assert (by_x[:, filled] == 128).all() and (by_y[filled] == 128).all()


def test_shear_moves_a_row_by_its_height_and_rotation_turns_by_15_degrees():
    frame = np.zeros((64, 64, 3), np.uint8)
    frame[40, 30] = 255
    shear = OPERATIONS["shear_x"](frame, 1.0)
    assert np.abs(np.argwhere(shear[..., 0] > 200)[0] - [40, 30 + 6]).max() == 0
    turned = OPERATIONS["rotate"](frame, 1.0).astype(float)[4:-4, 16:-16, 0]
    turned[turned == 128] = 0
    y, x = np.unravel_index(turned.argmax(), turned.shape)
    angle = np.degrees(np.arctan2(-(y + 4 - 32), x + 16 - 32) - np.arctan2(-8, -2))
    assert abs((angle + 180) % 360 - 180) == pytest.approx(15, abs=4)


@pytest.mark.parametrize(
    ("name", "oracle"), [("auto_contrast", ImageOps.autocontrast), ("equalize", ImageOps.equalize)]
)
def test_contrast_operations_are_those_of_pillow(name, oracle):
    dark, flat = clip()[0] // 3, np.full((8, 8, 3), 77, np.uint8)
    two_levels = np.where(np.arange(64).reshape(8, 8, 1) < 50, 10, 200).astype(np.uint8).repeat(3, axis=2)
    for frame in (*clip(), dark, flat, two_levels):
        expected = np.asarray(oracle(Image.fromarray(frame)))
        np.testing.assert_array_equal(OPERATIONS[name](frame, 1.0), expected)


def test_operations_are_drawn_once_a_clip_and_their_signs_for_every_frame():
    still = np.repeat(clip(1), 16, axis=0)
    most_looks = 0
    for seed in range(40):
        changed = rand_augment(np.random.default_rng(seed), still)
        assert changed.shape == still.shape and changed.dtype == np.uint8
        looks = len(np.unique(changed.reshape(16, -1), axis=0))
        assert looks <= 4, "two operations with a sign each have four looks"
        most_looks = max(most_looks, looks)
    assert most_looks == 4


def test_same_generator_gives_the_same_clip():
    for seed in range(5):
        one, other = (rand_augment(np.random.default_rng(seed), clip()) for _ in range(2))
        np.testing.assert_array_equal(one, other)
