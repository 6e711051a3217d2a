"""The embedded data set: what its splits hold, what its clips show, and that a seed fixes every bit of it."""

import collections
import csv
import itertools
from pathlib import Path

import av
import numpy as np
import pytest

from data_pipeline.errors import DataError
from data_pipeline.moving_shapes import KIND_SHARES, Actor, Scene, make_moving_shapes, render, sample_scenes, write_mp4
from data_pipeline.moving_shapes.scenes import COLOURS, SHAPES

SMALL = {"num_train": 24, "num_test": 16, "image_size": 48, "num_frames": 8, "progress": False}


def decode(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def read_captions(folder: Path) -> list[dict[str, str]]:
    with (folder / "captions.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def small_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("moving_shapes")
    assert make_moving_shapes(out, **SMALL) == {"train": 24, "test": 16}
    return out


@pytest.fixture(scope="module")
def splits() -> tuple[list[Scene], list[Scene]]:
    return sample_scenes(seed=0, num_train=2400, num_test=200)


def centre_of_red(frame: np.ndarray) -> np.ndarray:
    reddish = frame[..., 0].astype(int) - frame[..., 1] > 100
    return np.argwhere(reddish).mean(axis=0)[::-1]  # x, y


def test_same_seed_gives_the_same_frames_and_captions(small_set: Path, tmp_path: Path):
    make_moving_shapes(tmp_path, **SMALL)
    for split in ("train", "test"):
        rows = read_captions(tmp_path / split)
        assert rows == read_captions(small_set / split)
        for row in rows:
            np.testing.assert_array_equal(
                decode(tmp_path / split / row["video"]), decode(small_set / split / row["video"])
            )


def test_worker_processes_write_the_same_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    make_moving_shapes(tmp_path / "alone", **SMALL)
    monkeypatch.setattr("data_pipeline.moving_shapes.write._CLIPS_PER_WORKER", 16)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    make_moving_shapes(tmp_path / "together", **SMALL)
    files = sorted(path.relative_to(tmp_path / "alone") for path in (tmp_path / "alone").rglob("*.*"))
    assert len(files) == 24 + 16 + 2 * 2
    for file in files:
        assert (tmp_path / "alone" / file).read_bytes() == (tmp_path / "together" / file).read_bytes()


def test_another_seed_gives_other_clips():
    assert sample_scenes(0, 24, 16) != sample_scenes(1, 24, 16)


def test_clips_are_h264_files_of_the_size_asked_for(small_set: Path):
    for split, count in (("train", 24), ("test", 16)):
        rows = read_captions(small_set / split)
        assert len(rows) == count == len(list((small_set / split).glob("*.mp4")))
        for row in rows:
            with av.open(str(small_set / split / row["video"])) as container:
                stream = container.streams.video[0]
                assert (stream.codec_context.name, stream.pix_fmt, stream.frames) == ("h264", "yuv420p", 8)
            assert decode(small_set / split / row["video"]).shape == (8, 48, 48, 3)


def test_decoded_clip_stays_close_to_what_was_drawn(tmp_path: Path):
    frames = render(Scene("move", (Actor("blue", "star", "small"),), ("from left to right",)))
    write_mp4(frames, tmp_path / "clip.mp4")
    assert np.abs(decode(tmp_path / "clip.mp4").astype(int) - frames).mean() < 4


def test_splits_share_no_caption_and_no_group(splits):
    train, test = splits
    assert not {scene.caption for scene in train} & {scene.caption for scene in test}
    assert not ({scene.group for scene in train} & {scene.group for scene in test}) - {""}


def test_every_test_clip_has_a_meaning_of_its_own(splits):
    _, test = splits
    assert len({scene.caption for scene in test}) == 200
    assert len({(scene.kind, scene.actors, scene.motions, scene.backward) for scene in test}) == 200


def test_most_test_captions_have_their_twin_in_the_test_set(splits):
    _, test = splits
    sizes = collections.Counter(scene.group for scene in test if scene.group)
    assert set(sizes.values()) <= {1, 2}
    assert sum(size for size in sizes.values() if size == 2) >= 0.6 * len(test)


def test_only_time_tells_most_captions_from_another(splits):
    for split in splits:
        assert sum(bool(scene.group) for scene in split) > 0.6 * len(split)


def test_train_covers_every_pair_of_attributes(splits):
    train, _ = splits
    assert {(a.colour, a.shape) for s in train for a in s.actors} == set(itertools.product(COLOURS, SHAPES))
    for kind in KIND_SHARES:
        shapes = [shape for shape in SHAPES if (kind, shape) != ("turn", "circle")]
        scenes = [scene for scene in train if scene.kind == kind]
        motions = {(motion, scene.backward) for scene in scenes for motion in scene.motions}
        for attribute, values in (("shape", shapes), ("colour", COLOURS)):
            seen = {
                (getattr(actor, attribute), (motion, scene.backward))
                for scene in scenes
                for actor, motion in zip(scene.actors, scene.motions, strict=True)
            }
            assert seen == set(itertools.product(values, motions))


def test_every_kind_occurs_in_both_splits_as_often_as_its_share_says(splits):
    for split in splits:
        counts = collections.Counter(scene.kind for scene in split)
        for kind, share in KIND_SHARES.items():
            assert counts[kind] == pytest.approx(share * len(split), abs=2)


def test_captions_are_short(splits):
    assert max(len(scene.caption.split()) for split in splits for scene in split) <= 20


@pytest.mark.parametrize(
    ("scene", "caption", "twin"),
    [
        (
            Scene("move", (Actor("red", "circle", "small"),), ("from left to right",)),
            "a small red circle moves from left to right",
            "a small red circle moves from right to left",
        ),
        (
            Scene("turn", (Actor("red", "star"),), ("clockwise",)),
            "a red star turns clockwise",
            "a red star turns counter-clockwise",
        ),
        (
            Scene("appear_in_turn", (Actor("red", "circle"), Actor("blue", "square")), ("", "")),
            "first a red circle appears, then a blue square appears",
            "first a blue square appears, then a red circle appears",
        ),
        (
            Scene(
                "move_in_turn",
                (Actor("red", "circle"), Actor("blue", "square")),
                ("from left to right", "from top to bottom"),
            ),
            "a red circle moves from left to right, then a blue square moves from top to bottom",
            "a blue square moves from bottom to top, then a red circle moves from right to left",
        ),
    ],
)
def test_twin_tells_the_same_event_backward(scene: Scene, caption: str, twin: str):
    assert scene.caption == caption
    assert scene.reversed().caption == twin
    assert scene.reversed().group == scene.group != ""
    np.testing.assert_array_equal(render(scene.reversed()), render(scene)[::-1])


@pytest.mark.parametrize(("direction", "axis"), [("from left to right", 0), ("from top to bottom", 1)])
@pytest.mark.parametrize("backward", [False, True])
def test_shape_moves_the_way_its_caption_says(direction: str, axis: int, backward: bool):
    frames = render(Scene("move", (Actor("red", "square", "large"),), (direction,), backward=backward, look=3))
    travelled = centre_of_red(frames[-1])[axis] - centre_of_red(frames[0])[axis]
    assert abs(travelled) > 0.3 * 96
    assert (travelled < 0) == backward


def test_large_shapes_cover_far_more_than_small_ones():
    def area(size: str, look: int) -> int:
        frame = render(Scene("bounce", (Actor("red", "circle", size),), ("",), look=look))[0]
        return int((frame[..., 0].astype(int) - frame[..., 1] > 100).sum())

    assert min(area("large", look) for look in range(5)) > 2 * max(area("small", look) for look in range(5))


def test_the_second_shape_comes_when_the_first_is_gone():
    frames = render(Scene("appear_in_turn", (Actor("red", "circle"), Actor("white", "star")), ("", ""), look=1))
    red = (frames[..., 0].astype(int) - frames[..., 1] > 100).any(axis=(1, 2))
    white = (frames.min(axis=-1) > 200).any(axis=(1, 2))
    assert not (red & white).any()
    assert red[:9].all() and white[-9:].all()


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("num_test", 100_000, r"num_test=100000: only (\d+) captions can be held out; use \1 or fewer"),
        ("num_test", 0, "num_test=0 must be at least 1"),
        ("num_train", -1, "num_train=-1 must be at least 1"),
        ("image_size", 47, "image_size=47 must be even"),
        ("image_size", 8, "image_size=8 must be .* at least 32"),
        ("num_frames", 2, "num_frames=2 must be at least 8"),
    ],
)
def test_sizes_that_cannot_work_are_refused(tmp_path: Path, option: str, value: int, message: str):
    with pytest.raises(DataError, match=message):
        make_moving_shapes(tmp_path, **(SMALL | {option: value}))
    assert not list(tmp_path.iterdir())


def test_the_most_test_captions_possible_can_be_had():
    with pytest.raises(DataError) as error:
        sample_scenes(0, 10, 100_000)
    most = int(str(error.value).split("only ")[1].split()[0])
    _, test = sample_scenes(0, 10, most)
    assert len({scene.caption for scene in test}) == most


def test_out_that_is_a_file_is_refused(tmp_path: Path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(DataError, match=r"cannot write to .*file"):
        make_moving_shapes(tmp_path / "file", **SMALL)


def test_odd_frames_are_not_encoded(tmp_path: Path):
    with pytest.raises(DataError, match="33x32"):
        write_mp4(np.zeros((8, 32, 33, 3), np.uint8), tmp_path / "clip.mp4")
