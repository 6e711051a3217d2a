"""Frame sampling: sorted, within the halves, whole clips where they are short."""

import numpy as np
import pytest

from data_pipeline.sampling import headtail_frames, train_frames, uniform_frames, wrong_time_order


def _rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_uniform_frames_are_floor_of_i_n_over_t():
    assert uniform_frames(10, 4).tolist() == [0, 2, 5, 7]
    assert uniform_frames(8, 8).tolist() == list(range(8))
    assert uniform_frames(16, 1).tolist() == [0]


@pytest.mark.parametrize("sampling", ["headtail", "uniform"])
def test_short_clip_repeats_its_last_frame(sampling):
    assert train_frames(_rng(), sampling, 3, 6).tolist() == [0, 1, 2, 2, 2, 2]
    assert train_frames(_rng(), sampling, 1, 4).tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(("num_available", "num_frames"), [(16, 8), (17, 8), (16, 5), (5, 5), (4, 4), (24, 2)])
def test_headtail_frames_are_sorted_distinct_and_split_over_the_halves(num_available, num_frames):
    for seed in range(50):
        frames = headtail_frames(_rng(seed), num_available, num_frames)
        assert frames.shape == (num_frames,)
        assert (np.diff(frames) > 0).all()
        assert frames.min() >= 0 and frames.max() < num_available
        assert (frames < (num_available + 1) // 2).sum() == (num_frames + 1) // 2  # an odd T's extra frame is early


def test_headtail_frames_reach_every_frame_and_vary():
    drawn = [headtail_frames(_rng(seed), 12, 4) for seed in range(100)]
    assert set(np.concatenate(drawn).tolist()) == set(range(12))
    assert len({tuple(frames) for frames in drawn}) > 20


def test_one_headtail_frame_may_be_any():
    assert {headtail_frames(_rng(seed), 6, 1).item() for seed in range(100)} == set(range(6))


def test_uniform_training_frames_are_those_of_evaluation():
    assert train_frames(_rng(), "uniform", 16, 8).tolist() == uniform_frames(16, 8).tolist()


@pytest.mark.parametrize("num_frames", [3, 4, 8])
def test_wrong_time_order_is_neither_the_right_one_nor_reversed(num_frames):
    right = list(range(num_frames))
    for seed in range(100):
        order = wrong_time_order(_rng(seed), num_frames).tolist()
        assert sorted(order) == right
        assert order not in (right, right[::-1])


def test_wrong_time_order_of_one_and_two_frames():
    assert wrong_time_order(_rng(), 1).tolist() == [0]
    assert wrong_time_order(_rng(), 2).tolist() == [1, 0]
