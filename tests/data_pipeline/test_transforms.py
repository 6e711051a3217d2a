"""Crop, resize and flip: one crop for all frames, geometry within bounds, nothing resampled without need."""

import numpy as np
import pytest

from data_pipeline.transforms import centre_crop, crop_and_resize, random_crop_box, random_flip, random_resized_crop


def _rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def _noise(num_frames: int, height: int, width: int) -> np.ndarray:
    return _rng(7).integers(0, 256, (num_frames, height, width, 3), dtype=np.uint8)


def test_cropping_everything_at_the_same_size_changes_nothing():
    video = _noise(3, 16, 16)
    np.testing.assert_array_equal(crop_and_resize(video, (0, 0, 16, 16), 16), video)


def test_resizing_averages_over_the_pixels_it_merges():
    stripes = np.zeros((1, 64, 64, 3), np.uint8)
    stripes[:, :, ::2] = 255
    small = crop_and_resize(stripes, (0, 0, 64, 64), 16)
    assert np.abs(small.astype(int) - 127).max() < 25  # sampling without antialiasing would give 0 or 255


def test_random_crop_is_the_same_for_all_frames_of_a_clip():
    video = np.repeat(_noise(1, 40, 48), 5, axis=0)
    crop = random_resized_crop(_rng(), video, 24, (0.3, 0.9))
    assert crop.shape == (5, 24, 24, 3) and crop.dtype == np.uint8
    np.testing.assert_array_equal(crop, np.repeat(crop[:1], 5, axis=0))


def test_random_crops_differ_between_draws_and_repeat_for_a_seed():
    video = _noise(1, 40, 48)
    first, again, other = (random_resized_crop(_rng(seed), video, 24, (0.3, 0.9)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@pytest.mark.parametrize(("height", "width"), [(64, 64), (64, 96), (100, 60)])
def test_random_crop_box_keeps_area_and_aspect_ratio_in_range(height, width):
    for seed in range(200):
        left, upper, right, lower = random_crop_box(_rng(seed), height, width, (0.3, 0.7))
        assert 0 <= left < right <= width and 0 <= upper < lower <= height
        assert 0.28 < (right - left) * (lower - upper) / (height * width) < 0.72  # whole pixels: a little beside
        assert 0.72 < (right - left) / (lower - upper) < 1.39


def test_random_crop_of_a_very_wide_frame_is_its_middle():
    assert random_crop_box(_rng(), 30, 300, (1.0, 1.0)) == (130, 0, 170, 30)


def test_crop_scale_one_is_the_centre_crop():
    video = _noise(2, 20, 30)
    np.testing.assert_array_equal(random_resized_crop(_rng(), video, 16, (1.0, 1.0)), centre_crop(video, 16))


def test_centre_crop_cuts_without_resampling_where_the_short_side_fits():
    video = _noise(2, 16, 24)
    np.testing.assert_array_equal(centre_crop(video, 16), video[:, :, 4:20])


@pytest.mark.parametrize("size", [8, 32])
def test_centre_crop_resizes_the_short_side(size):
    video = np.zeros((2, 24, 16, 3), np.uint8)
    video[:, 4:20] = 200  # the middle square
    resized = centre_crop(video, size)
    assert resized.shape == (2, size, size, 3)
    assert (resized[:, 1:-1] == 200).all()  # the outermost rows blend with what was cut off


def test_random_flip_mirrors_whole_clips_half_of_the_time():
    video = _noise(3, 8, 8)
    flips = 0
    for seed in range(200):
        result = random_flip(_rng(seed), video)
        mirrored = np.array_equal(result, video[:, :, ::-1])
        assert mirrored or np.array_equal(result, video)
        flips += mirrored
    assert 70 < flips < 130
