"""Annotation files and videos damaged at random: no crash without a message, nothing wrong accepted, counts add up.

`test_verify.py` does the same to shard sets.
"""

import json

import numpy as np
import pytest
from test_troublesome_clips import write_moving

from data_pipeline.build import REJECTED_NAME, build_shards
from data_pipeline.decode import FrameOptions, decode_clip
from data_pipeline.errors import DataError
from data_pipeline.shards import open_shards

NUM_ANNOTATIONS, NUM_VIDEOS, VIDEOS_A_BUILD = 70, 70, 10
OPTIONS = {"num_kept_frames": 4, "resize": 32, "max_text_length": 8, "num_workers": 0, "progress": False}
CODECS = {"a.mp4": ("libx264", {}), "b.mkv": ("libx264", {}), "c.avi": ("mpeg4", {}), "d.mkv": ("mpeg2video", {})}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of whole videos."""
    folder = tmp_path_factory.mktemp("whole")
    for name, how in CODECS.items():
        write_moving(folder / name, *how, num_frames=24)
    return folder


def damaged(data: bytes, rng: np.random.Generator, shortest: int, longest: int) -> bytes:
    """Returns data with a stretch removed, repeated, zeroed or replaced, or with its end cut off."""
    length = int(rng.integers(shortest, longest + 1))
    at = int(rng.integers(max(1, len(data) - length)))
    kind = rng.choice(["cut", "hole", "zeros", "noise", "twice"])
    if kind == "cut":
        return data[: len(data) - length]
    middle = {"hole": b"", "zeros": bytes(length), "noise": rng.bytes(length), "twice": 2 * data[at : at + length]}
    return data[:at] + middle[kind] + data[at + length :]


def check_counts(report, out):
    """The rows written and rejected are those of the records and of the list."""
    records = open_shards(out, "train")
    lines = (out / "train" / REJECTED_NAME).read_text().splitlines()
    num_rows = sum(len(records[index].captions) for index in range(len(records)))
    assert report.num_rows == report.num_written + report.num_rejected
    assert (report.num_written, report.num_videos) == (num_rows, len(records))
    assert report.num_rejected == len(lines) == sum(report.rejected_by_reason.values())
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("seed", range(NUM_ANNOTATIONS))
def test_damaged_annotation_file_is_an_error_of_one_line_or_its_rows_add_up(folder, tmp_path, seed):
    rng = np.random.default_rng(seed)
    rows = [(name, text) for name in CODECS for text in ("a cat", "größer, schöner", 'says "no"')]
    if seed % 2:
        data = json.dumps([{"video": video, "caption": text} for video, text in rows], ensure_ascii=False).encode()
    else:
        quoted = ((video, text.replace('"', '""')) for video, text in rows)
        data = ("video,caption\n" + "".join(f'{video},"{text}"\n' for video, text in quoted)).encode()
    captions = folder / f"damaged{seed}{'.json' if seed % 2 else '.csv'}"
    captions.write_bytes(damaged(data, rng, 1, 12))
    try:
        report = build_shards(captions, tmp_path / "set", split="train", **OPTIONS)
    except DataError as error:
        message = str(error)
        assert message.count("\n") == 0 and str(captions) in message  # both outcomes are right
        assert not (tmp_path / "set").exists()
        return
    check_counts(report, tmp_path / "set")


@pytest.mark.parametrize("first", range(0, NUM_VIDEOS, VIDEOS_A_BUILD))
def test_damaged_videos_are_refused_with_a_reason_or_give_the_very_frames(folder, tmp_path, first):
    for seed in range(first, first + VIDEOS_A_BUILD):
        rng, name = np.random.default_rng(seed), list(CODECS)[seed % len(CODECS)]
        data = (folder / name).read_bytes()
        (tmp_path / f"{seed}-{name}").write_bytes(damaged(data, rng, 100, len(data) // 5))
    names = sorted(path.name for path in tmp_path.iterdir())
    (tmp_path / "whole.mp4").write_bytes((folder / "a.mp4").read_bytes())
    rows = "".join(f"{name},a cat\n{name},a dog\n" for name in [*names, "whole.mp4"])
    (tmp_path / "captions.csv").write_text(f"video,caption\n{rows}")
    options = OPTIONS | {"encoding": "raw"}
    report = build_shards(tmp_path / "captions.csv", tmp_path / "set", split="train", **options)
    rejected = check_counts(report, tmp_path / "set")
    assert all(line["reason"].strip() and "\n" not in line["reason"] for line in rejected)
    records = open_shards(tmp_path / "set", "train")
    for index in range(len(records)):
        name = records[index].video_id.partition("-")[2] or "a.mp4"
        whole = decode_clip(folder / name, FrameOptions(4, 32))
        np.testing.assert_array_equal(records[index].frames.stored, whole.frames, records[index].video_id)
