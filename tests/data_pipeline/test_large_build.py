"""Builds of several shards: they go on after an end of any kind, and their files never depend on who wrote them."""

import csv
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from clips import write_clip

from data_pipeline import build, video_reader
from data_pipeline.build_plan import usual_shard_length
from data_pipeline.errors import DataError
from data_pipeline.shards import ShardSettings, open_shards
from data_pipeline.verify import verify_shards

NUM_VIDEOS, A_SHARD = 22, 4  # 6 shards
OPTIONS = {
    "split": "train", "num_kept_frames": 4, "resize": 32, "max_text_length": 8, "videos_per_shard": A_SHARD,
    "num_workers": 0, "progress": False,
}  # fmt: skip
TWO_PROCESSES = "--direct_num_workers=2 --direct_running_mode=multi_processing"
BUILD = """
import json, sys, time
from data_pipeline import build
if __name__ == "__main__":
    build_shard = build.build_shard
    build.build_shard = lambda *args: (time.sleep(0.2), build_shard(*args))  # so that a signal comes before the end
    build.build_shards(sys.argv[1], sys.argv[2], **json.loads(sys.argv[3]))
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """22 videos, the second with an empty caption beside its own, and a caption file; not to be changed."""
    folder = tmp_path_factory.mktemp("videos")
    rows = []
    for number in range(NUM_VIDEOS):
        write_clip(folder / f"{number}.mp4", 6 + number, height=96, width=128)
        rows.append((f"{number}.mp4", f"ball number {number}"))
    rows.insert(2, ("1.mp4", " "))
    write_rows(folder / "captions.csv", rows)
    return folder


def write_rows(path, rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("video", "caption"), *rows])


@pytest.fixture(scope="module")
def whole(source, tmp_path_factory):
    """The shard set of an undisturbed build."""
    out = tmp_path_factory.mktemp("whole") / "set"
    build.build_shards(source / "captions.csv", out, **OPTIONS)
    return out


def content(folder):
    """The bytes of every file under a folder."""
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def record_files(shards):
    return sorted(path.name for path in (shards / "train").glob("*.array_record*"))


def test_split_of_several_shards_is_whole(whole):
    assert record_files(whole) == [f"videos-train.array_record-{number:05d}" for number in range(6)]
    source = open_shards(whole, "train")
    assert [source[index].video_id for index in range(len(source))] == [f"{n}.mp4" for n in range(NUM_VIDEOS)]
    assert [report.problems for report in verify_shards(whole, num_workers=0, progress=False)] == [()]
    assert sorted(path.name for path in (whole / "train").iterdir() if "array_record" not in path.name) == [
        "dataset_info.json", "features.json", "index.npy", "manifest.json", "rejected.jsonl",
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"num_workers": 2},
        {
            "beam_runner": "DirectRunner",
            "beam_options": "--direct_num_workers=2 --direct_running_mode=multi_processing",
        },
    ],
    ids=["workers", "Beam"],
)
def test_any_number_of_workers_writes_the_same_bytes(source, whole, tmp_path, options):
    build.build_shards(source / "captions.csv", tmp_path / "set", **OPTIONS | options)
    assert content(tmp_path / "set") == content(whole)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_stopped_build_goes_on_with_the_shards_it_has_finished(source, whole, tmp_path, number, num_workers, caplog):
    out, here = tmp_path / "set", Path(__file__).parents[2]
    (tmp_path / "build.py").write_text(BUILD)
    options = json.dumps(OPTIONS | {"num_workers": num_workers})
    command = [sys.executable, tmp_path / "build.py", source / "captions.csv", out, options]
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(here)})
    folder = out / ".train.incomplete"
    while len(list(folder.glob("shard-*.json"))) < 2 and process.poll() is None:
        time.sleep(0.001)
    process.send_signal(number)
    process.wait(60)
    finished = list(folder.glob("shard-*.json"))
    assert 2 <= len(finished) <= 6 and not (out / "train").exists()
    times = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.array_record*") if len(finished) > 2}
    with caplog.at_level("INFO", "stgt_jax"):
        report = build.build_shards(source / "captions.csv", out, **OPTIONS)
    assert f"an earlier build finished {len(finished)} of 6 shards; going on" in caplog.text
    assert content(out) == content(whole)
    kept = [name for name, when in times.items() if (out / "train" / name).stat().st_mtime_ns == when]
    assert len(kept) >= len(finished) - 1 or not times, "finished shards are not written again"
    assert (report.num_rows, report.num_written, report.num_rejected) == (NUM_VIDEOS + 1, NUM_VIDEOS, 1)


def stopped(monkeypatch, source, out, at, **options):
    """Builds until the video `at` is read, and is interrupted then."""

    def interrupt(self, video):
        if video.name == at:
            raise KeyboardInterrupt
        return read(self, video)

    read = video_reader.VideoReader.read
    with monkeypatch.context() as patch:
        patch.setattr(video_reader.VideoReader, "read", interrupt)
        with pytest.raises(KeyboardInterrupt):
            build.build_shards(source / "captions.csv", out, **OPTIONS | options)


def test_interrupted_build_keeps_finished_shards_alone_and_reads_no_video_of_them_again(
    monkeypatch, source, whole, tmp_path
):
    stopped(monkeypatch, source, tmp_path / "set", "13.mp4")
    left = sorted(path.name for path in (tmp_path / "set" / ".train.incomplete").iterdir())
    assert left == [*(f"shard-{n:05d}.json" for n in range(3)),
                    *(f"videos-train.array_record-{n:05d}" for n in range(3)), "vocab.txt"]  # fmt: skip
    read, names = video_reader.VideoReader.read, []
    monkeypatch.setattr(
        video_reader.VideoReader, "read", lambda self, video: names.append(video.name) or read(self, video)
    )
    build.build_shards(source / "captions.csv", tmp_path / "set", **OPTIONS)
    assert names == [f"{number}.mp4" for number in range(12, NUM_VIDEOS)]
    assert content(tmp_path / "set") == content(whole)


def test_finished_shards_of_another_plan_or_damaged_ones_are_not_taken(monkeypatch, source, whole, tmp_path):
    out = tmp_path / "set"
    stopped(monkeypatch, source, out, "13.mp4", resize=40)
    build.build_shards(source / "captions.csv", out, **OPTIONS)
    assert content(out) == content(whole)
    shutil.rmtree(out)
    stopped(monkeypatch, source, out, "13.mp4")
    folder = out / ".train.incomplete"
    (folder / "shard-00000.json").write_text("{")
    (folder / "videos-train.array_record-00001").write_bytes(b"short")
    (folder / "videos-train.array_record-00002").unlink()
    build.build_shards(source / "captions.csv", out, **OPTIONS)
    assert content(out) == content(whole)


def test_shard_without_any_usable_video_leaves_no_gap(source, tmp_path):
    rows = [(f"{number}.mp4", f"ball number {number}") for number in range(NUM_VIDEOS)]
    rows[4:8] = [(f"missing{number}.mp4", "x") for number in range(4)]
    for path in source.glob("*.mp4"):
        (tmp_path / path.name).symlink_to(path)
    write_rows(tmp_path / "captions.csv", rows)
    report = build.build_shards(tmp_path / "captions.csv", tmp_path / "set", **OPTIONS)
    assert (report.num_videos, report.num_rejected) == (NUM_VIDEOS - 4, 4)
    assert record_files(tmp_path / "set") == [f"videos-train.array_record-{number:05d}" for number in range(5)]
    (found,) = verify_shards(tmp_path / "set", num_workers=0, progress=False)
    assert found.num_videos == NUM_VIDEOS - 4 and not found.problems


@pytest.mark.parametrize("beam", [False, True], ids=["here", "Beam"])
def test_rejected_videos_are_read_again_and_the_rest_is_kept(monkeypatch, source, whole, tmp_path, beam):
    """After the retry the split is what a build without any failure gives."""
    videos, late = tmp_path / "videos", {"3.mp4", "14.mp4", "15.mp4"}
    videos.mkdir()
    for path in source.iterdir():
        if path.name not in late:
            (videos / path.name).symlink_to(path)
    out = tmp_path / "set"
    first = build.build_shards(videos / "captions.csv", out, **OPTIONS)
    assert first.rejected_by_reason == {"missing": 3, "empty caption": 1}
    for name in late:
        (videos / name).symlink_to(source / name)
    read, names = video_reader.VideoReader.read, []
    monkeypatch.setattr(
        video_reader.VideoReader, "read", lambda self, video: names.append(video.name) or read(self, video)
    )
    options = {"beam_runner": "DirectRunner"} if beam else {}
    second = build.build_shards(videos / "captions.csv", out, retry_rejected=True, **OPTIONS, **options)
    if not beam:  # Beam's workers are not patched
        assert names == ["3.mp4", "14.mp4", "15.mp4"]
    assert second.rejected_by_reason == {"empty caption": 1} and second.num_videos == NUM_VIDEOS
    assert content(out) == content(whole)


def test_retry_needs_the_same_rows_and_settings(source, whole, tmp_path):
    out = shutil.copytree(whole, tmp_path / "set")
    before = content(out)
    for options in ({"resize": 40}, {"videos_per_shard": 5}, {"encoding": "raw"}):
        with pytest.raises(DataError, match=r"--retry-rejected: split 'train' in '.*' was built from other rows or"):
            build.build_shards(source / "captions.csv", out, retry_rejected=True, **OPTIONS | options)
    assert content(out) == before
    (out / "train" / "rejected.jsonl").write_text("")
    with pytest.raises(DataError, match=r"rejected\.jsonl' has 0 rows, not 1"):
        build.build_shards(source / "captions.csv", out, retry_rejected=True, **OPTIONS)


@pytest.mark.parametrize(("failures", "kind"), [(2, errno.EIO), (9, errno.ESTALE), (1, errno.EACCES)])
def test_read_that_fails_for_a_moment_is_tried_again_after_growing_pauses(
    monkeypatch, source, whole, tmp_path, failures, kind
):
    decode, left, pauses = video_reader.decode_clip, {"7.mp4": failures}, []

    def failing(path, *args, **options):
        if left.get(path.name, 0):
            left[path.name] -= 1
            raise video_reader.ClipError("not readable: x") from OSError(kind, os.strerror(kind))
        return decode(path, *args, **options)

    monkeypatch.setattr(video_reader, "decode_clip", failing)
    monkeypatch.setattr(time, "sleep", pauses.append)
    report = build.build_shards(source / "captions.csv", tmp_path / "set", **OPTIONS)
    monkeypatch.undo()
    expected = {errno.EIO: [1, 4], errno.ESTALE: [1, 4, 16], errno.EACCES: []}[kind]
    assert pauses == expected and report.num_videos == NUM_VIDEOS - (kind != errno.EIO)
    if kind == errno.EIO:
        assert content(tmp_path / "set") == content(whole)
    else:
        assert report.rejected_by_reason == {"empty caption": 1, "not readable": 1}
        build.build_shards(source / "captions.csv", tmp_path / "set", retry_rejected=True, **OPTIONS)
        assert content(tmp_path / "set") == content(whole)


def test_failed_pipeline_is_one_line_and_can_go_on(monkeypatch, source, whole, tmp_path):
    def fail(self, number):
        raise RuntimeError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr("data_pipeline.beam_build._Work.build", fail)
        with pytest.raises(DataError, match="the Beam pipeline failed: ") as error:
            build.build_shards(
                source / "captions.csv", tmp_path / "set", beam_runner="DirectRunner",
                beam_options="--direct_running_mode=in_memory", **OPTIONS,
            )  # fmt: skip
    assert "\n" not in str(error.value)
    build.build_shards(source / "captions.csv", tmp_path / "set", **OPTIONS)
    assert content(tmp_path / "set") == content(whole)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beam_runner": "NoRunner"}, "the Beam pipeline failed: Unexpected pipeline runner: NoRunner"),
        ({"beam_runner": "DirectRunner", "beam_options": "--direct_num_workers=x"}, "invalid int value: 'x'"),
        ({"beam_runner": "DirectRunner", "beam_options": "--direkt=1"}, "Apache Beam has no option --direkt"),
        ({"beam_runner": "DataflowRunner"}, "Dataflow's machines need --out and --videos in a bucket"),
        ({"videos_per_shard": 0}, "videos_per_shard=0 must be at least 1"),
    ],
)
def test_impossible_option_of_a_large_build_is_named(source, tmp_path, options, message):
    with pytest.raises(DataError, match=message) as error:
        build.build_shards(source / "captions.csv", tmp_path / "set", **OPTIONS | options)
    assert "\n" not in str(error.value) and not (tmp_path / "set").exists()


@pytest.mark.parametrize(("encoding", "megabytes_a_clip"), [("jpeg", 0.33), ("raw", 3.53)])
def test_usual_shards_have_128_to_512_megabytes(encoding, megabytes_a_clip):
    """By the size of a clip that `stgt bench data` measured (docs/performance.md)."""
    length = usual_shard_length(ShardSettings(24, 224, "stretch", encoding, 90, 32, ""))
    assert 128 < length * megabytes_a_clip < 512
