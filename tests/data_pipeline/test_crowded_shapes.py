"""The embedded data set `crowded_shapes`: what its splits hold, what its clips show, and which shape is where."""

import csv
import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.crowded_shapes import Crowd, make_crowded_shapes, render, sample_crowds, shape_numbers
from data_pipeline.crowded_shapes.scenes import FATES, SHARED
from data_pipeline.decode import FrameOptions, decode_clip
from data_pipeline.errors import DataError

PATCH = 8


@pytest.fixture(scope="module")
def splits() -> dict[str, list[Crowd]]:
    return sample_crowds(0, 2000, 200, 1000)


def ways(crowd: Crowd) -> np.ndarray:
    """How far each of the two like shapes goes while it is seen, in patches, beside what the camera does: [2, 2]."""
    numbers, ends = shape_numbers(crowd, PATCH // 2), []
    for shape in (0, 1):
        seen = [np.argwhere(frame == shape)[:, ::-1].mean(0) for frame in numbers if (frame == shape).any()]
        ends.append(seen[-1] - seen[0])
    return np.stack(ends)


def test_splits_have_the_sizes_asked_for_and_share_no_full_caption(splits: dict[str, list[Crowd]]) -> None:
    assert {name: len(scenes) for name, scenes in splits.items()} == {"train": 2000, "val": 200, "test": 1000}
    captions = {name: {c.caption for c in scenes if c.told == "all"} for name, scenes in splits.items()}
    assert not any(captions[a] & captions[b] for a, b in itertools.combinations(captions, 2))
    assert len(captions["test"]) == 1000 and max(len(c.split()) for c in set.union(*captions.values())) <= 20


def test_train_has_every_value_of_every_attribute(splits: dict[str, list[Crowd]]) -> None:
    for value in ("like", "place", "witness", "witness_fate"):
        in_train, in_test = ({getattr(c, value) for c in splits[name]} for name in ("train", "test"))
        assert in_test <= in_train
    assert {fate for crowd in splits["train"] for fate in crowd.fates} == set(FATES)


def test_some_training_captions_are_shared_by_several_clips(splits: dict[str, list[Crowd]]) -> None:
    for told, share in SHARED.items():
        shared = Counter(crowd.caption for crowd in splits["train"] if crowd.told == told)
        assert abs(sum(shared.values()) / 2000 - share) < 0.05
        assert sum(count for count in shared.values() if count > 1) > 0.2 * sum(shared.values())
    assert {crowd.told for name in ("val", "test") for crowd in splits[name]} == {"all"}
    assert {crowd.group for crowd in splits["train"] if crowd.told != "all"} == {""}


def test_clips_of_a_group_show_the_same_but_for_which_shape_does_what(splits: dict[str, list[Crowd]]) -> None:
    for one, other in zip(splits["test"][:40:2], splits["test"][1:40:2], strict=True):
        assert one.group == other.group != "" and one.caption != other.caption
        assert one.fates == other.fates[::-1]
        frames = render(one), render(other)
        np.testing.assert_array_equal(frames[0][0], frames[1][0])
        assert (frames[0][-1] != frames[1][-1]).any()


def test_shapes_do_what_the_caption_says(splits: dict[str, list[Crowd]]) -> None:
    steps = {"moves left": (-1, 0), "moves right": (1, 0), "moves up": (0, -1), "moves down": (0, 1)}
    pans, checked = [], 0
    for crowd in splits["val"]:
        (first, second), fates = ways(crowd), crowd.fates
        for way, other, fate, other_fate in ((first, second, *fates), (second, first, *fates[::-1])):
            if fate in steps and other_fate == "stays":  # which shows how the camera moves
                along = (way - other) @ np.array(steps[fate])
                pans.append(np.abs(other).max())
                assert along > 1.0, crowd
                checked += 1
    assert checked > 15
    assert 0.5 < np.mean(np.array(pans) < 1.0) < 1.0  # the camera moves in some of the clips


def test_shape_that_disappears_is_gone_at_the_end_and_others_are_not(splits: dict[str, list[Crowd]]) -> None:
    gone = Counter[tuple[bool, bool]]()
    for crowd in splits["val"]:
        last = shape_numbers(crowd, PATCH // 2)[-1]
        for shape, fate in enumerate(crowd.fates):
            gone[fate == "disappears", bool((last == shape).any())] += 1
    assert gone[True, True] == 0 and gone[True, False] > 20
    assert gone[False, False] < 0.05 * gone[False, True]  # a few are behind another shape or the bar


def test_same_seed_gives_the_same_files_and_real_videos(tmp_path: Path) -> None:
    sizes = {"num_train": 6, "num_val": 2, "num_test": 4, "progress": False}
    for folder in ("one", "other"):
        assert make_crowded_shapes(tmp_path / folder, **sizes) == {"train": 6, "val": 2, "test": 4}
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.*"))
    assert len(files) == 12 + 3 * 2
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "other" / file).read_bytes()
    with (tmp_path / "one/test/captions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    crowd = sample_crowds(0, 6, 2, 4)["test"][0]
    assert rows[0]["caption"] == crowd.caption and rows[0]["group"] == rows[1]["group"] == crowd.group
    clip = decode_clip(tmp_path / "one/test" / rows[0]["video"], FrameOptions(24, 64))
    assert np.abs(clip.frames.astype(int) - render(crowd)).mean() < 8


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((0, 2, 2), "num_train=0 must be at least 1"),
        ((1, 3, 2), "num_val=3 must be even"),
        ((1, 2, 0), "num_test=0 must be even"),
        ((1, 2, 10**6), "only 21600 clips can be held out"),
    ],
)
def test_sizes_that_cannot_be_are_named(sizes: tuple[int, int, int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        sample_crowds(0, *sizes)
