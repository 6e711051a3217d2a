"""Clips prepared one by one from files and arrays: the very frames that shards and the evaluation loader give."""

import av
import numpy as np
import pytest
from clips import write_clip, write_sound

from data_pipeline.build import build_shards
from data_pipeline.config import DataConfig
from data_pipeline.errors import DataError
from data_pipeline.loader import eval_batches
from data_pipeline.prepare import ClipReader, list_videos

READER = ClipReader(num_kept_frames=8, resize=40, frame_shape="keep_aspect", num_frames=4, image_size=32)
LENGTHS = {"long.mp4": 24, "even.mp4": 8, "short.mp4": 6, "shorter.mp4": 2, "one.mp4": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of clips of several lengths and shapes."""
    folder = tmp_path_factory.mktemp("clips")
    for name, num_frames in LENGTHS.items():
        write_clip(folder / name, num_frames)
    write_clip(folder / "upright.mp4", 10, height=64, width=48)
    write_clip(folder / "tiny.mp4", 10, height=24, width=20)
    return folder


def frames_of(path):
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def test_file_gives_what_shards_and_the_evaluation_loader_give(folder, tmp_path):
    names = [path.name for path in folder.iterdir()]
    (folder / "captions.csv").write_text("video,caption\n" + "".join(f"{name},a clip\n" for name in names))
    build_shards(folder / "captions.csv", tmp_path / "shards", split="train", num_kept_frames=READER.num_kept_frames,
                 resize=READER.resize, max_text_length=8, encoding="raw", num_workers=0, progress=False)  # fmt: skip
    config = DataConfig(shards=str(tmp_path / "shards"))
    sizes = {"num_frames": READER.num_frames, "image_size": READER.image_size}
    (batch,) = eval_batches(config, "train", len(names), **sizes)
    read = list(READER.read_all(folder / name for name in batch["video_id"]))
    np.testing.assert_array_equal(np.stack(read), batch["video"])


@pytest.mark.parametrize("name", ["long.mp4", "even.mp4", "short.mp4", "upright.mp4", "tiny.mp4"])
def test_array_of_all_frames_gives_what_its_file_gives(folder, name):
    np.testing.assert_array_equal(READER.read(frames_of(folder / name)), READER.read(folder / name))


def test_array_as_the_model_takes_it_is_taken_as_it_is():
    frames = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    np.testing.assert_array_equal(READER.read(frames), frames)


def test_array_of_few_frames_repeats_the_last(folder):
    clip = READER.read(np.arange(2, dtype=np.uint8)[:, None, None, None] * np.ones((1, 32, 32, 3), np.uint8))
    assert clip[:, 0, 0, 0].tolist() == [0, 1, 1, 1]


@pytest.mark.parametrize(
    ("frames", "said"),
    [
        (np.zeros((4, 32, 32, 3), np.float32), "video 0 has frames of float32, not uint8"),
        (np.zeros((4, 3, 32, 32), np.uint8), r"np\.moveaxis"),
        (np.zeros((32, 32, 3), np.uint8), r"shape \(32, 32, 3\)"),
        (np.zeros((0, 32, 32, 3), np.uint8), "it is empty"),
        ([[0, 1], [2, 3]], "video 0 is of type list"),
        (None, "video 0 is of type NoneType"),
    ],
)
def test_what_is_no_video_is_refused(frames, said):
    with pytest.raises(DataError, match=said):
        READER.read(frames)


def test_error_names_the_file_or_the_place_in_the_list(folder, tmp_path):
    (tmp_path / "text.mp4").write_text("no video")
    for path, reason in (("missing.mp4", "no such file"), ("text.mp4", "not a video"), (".", "not a file")):
        with pytest.raises(DataError, match=f"video '{tmp_path / path}': .*{reason}"):
            list(READER.read_all([folder / "long.mp4", tmp_path / path]))
    with pytest.raises(DataError, match=r"sound\.mp4': no video stream"):
        READER.read(write_sound(tmp_path / "sound.mp4"))
    with pytest.raises(DataError, match="not a local file"):
        READER.read("https://host/clip.mp4")
    with pytest.raises(DataError, match="video 1 has frames of int64"):
        list(READER.read_all([folder / "long.mp4", np.zeros((4, 32, 32, 3), np.int64)]))


def test_videos_come_as_a_path_an_array_or_many_of_them():
    clip = np.zeros((2, 8, 8, 3), np.uint8)
    assert list(list_videos("a.mp4")) == ["a.mp4"]
    assert list(list_videos(np.array(["a.mp4", "b.mp4"]))) == ["a.mp4", "b.mp4"]
    assert list(list_videos(name for name in ("a.mp4", "b.mp4"))) == ["a.mp4", "b.mp4"]
    assert [video.shape for video in list_videos(clip)] == [clip.shape]
    assert [video.shape for video in list_videos(np.stack([clip] * 3))] == [clip.shape] * 3
    assert list(list_videos([])) == []
    for wrong in (5, None, np.zeros((8, 8, 3), np.uint8), np.zeros(4)):
        with pytest.raises(DataError, match="videos is "):
            list_videos(wrong)
