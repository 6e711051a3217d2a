"""`verify_shards` names whatever was damaged in a shard set, and nothing wrong is read without an error."""

import contextlib
import dataclasses
import itertools
import json
import re
import shutil

import numpy as np
import pytest
from clips import write_clip

from data_pipeline.build import build_shards
from data_pipeline.config import DataConfig
from data_pipeline.contact_sheet import write_contact_sheet
from data_pipeline.errors import DataError
from data_pipeline.loader import eval_batches, train_loader
from data_pipeline.shard_writer import write_split
from data_pipeline.shards import open_shards
from data_pipeline.stored_frames import StoredFrames
from data_pipeline.verify import verify_shards

CAPTIONS = ["a red circle", "a blue square", "a ball"]
SIZES = {"num_frames": 2, "image_size": 32}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A shard set of nine videos, 15 captions and one question; not to be changed."""
    folder = tmp_path_factory.mktemp("videos")
    rows = []
    for index in range(9):
        write_clip(folder / f"{index}.mp4", 6 + index)
        rows += [{"video": f"{index}.mp4", "caption": caption} for caption in CAPTIONS[: 1 + index % 3]]
    rows[0] |= {"question": "what is it?", "answer": "a circle"}
    (folder / "captions.json").write_text(json.dumps(rows))
    options = {"num_kept_frames": 4, "resize": 32, "max_text_length": 8, "num_workers": 0, "progress": False}
    for split in ("train", "test"):
        build_shards(folder / "captions.json", folder / "set", split=split, **options)
    return folder / "set"


@pytest.fixture
def shards(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "set")


def problems(shards, split="train"):
    reports = {report.split: report for report in verify_shards(shards, num_workers=0, progress=False)}
    return list(reports[split].problems)


def shard_file(shards):
    return next((shards / "train").glob("*.array_record*"))


def rewrite(shards, change):
    """Writes the split train anew with changed records."""
    source = open_shards(shards, "train")
    records = change([source[index] for index in range(len(source))])
    shutil.rmtree(shards / "train")
    (shards / "train").mkdir()
    write_split(shards / "train", "train", records, source.settings)


def test_whole_shard_set_has_no_problem_and_its_counts_add_up(whole):
    for workers in (0, 2):
        reports = verify_shards(whole, num_workers=workers, progress=False)
        figures = [(r.split, r.num_videos, r.num_captions, r.num_questions, r.problems) for r in reports]
        assert figures == [("test", 9, 18, 1, ()), ("train", 9, 18, 1, ())]


def test_flipped_byte_is_named_by_file_and_record(shards):
    file = shard_file(shards)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    found = problems(shards)
    assert any("does not have the checksum" in problem and file.name in problem for problem in found)
    assert any(problem.startswith("record ") and "cannot be read" in problem for problem in found)
    assert not problems(shards, "test")


def test_missing_and_truncated_files_are_named(shards):
    file = shard_file(shards)
    data = file.read_bytes()
    file.write_bytes(data[:-50])
    assert [file.name in problem and "truncated" in problem for problem in problems(shards)] == [True]
    file.unlink()
    assert [file.name in problem and "missing" in problem for problem in problems(shards)] == [True]


def test_shard_of_another_build_is_named(shards, whole, tmp_path):
    rewrite(shards, lambda records: records[::-1])
    mixed = shutil.copytree(whole, tmp_path / "mixed")
    other, file = shard_file(shards), shard_file(mixed)
    file.write_bytes(other.read_bytes())
    found = problems(mixed)
    assert found and all(file.name in problem or "record" in problem for problem in found)
    shutil.copy(other, file.with_name("videos-train.array_record-00001-of-00002"))
    assert any("00001-of-00002" in problem and "remove it" in problem for problem in problems(mixed))


def test_metadata_of_another_schema_is_named(shards):
    features = shards / "train" / "features.json"
    features.write_text(features.read_text().replace("frame_numbers", "frame_places"))
    assert any("features.json" in problem or "record 0" in problem for problem in problems(shards))


CHANGES = {
    "duplicate": (lambda records: [*records, records[3]], "record 9 .*same video as record 3"),
    "empty caption": (
        lambda r: [dataclasses.replace(r[0], captions=(" ",)), *r[1:]],
        "record 0 .*one of its texts is empty",
    ),
    "other ids": (
        lambda r: [*r[:2], dataclasses.replace(r[2], input_ids=r[2].input_ids[:, ::-1].copy()), *r[3:]],
        "record 2 .*token ids are not those of its captions",
    ),
    "no text": (
        lambda r: [
            dataclasses.replace(
                r[0], captions=(), input_ids=r[0].input_ids[:0], attention_mask=r[0].attention_mask[:0],
                questions=(), answers=(),
            ),
            *r[1:],
        ],
        "record 0 .*neither a caption nor a question",
    ),
    "frame numbers": (
        lambda r: [dataclasses.replace(r[0], frame_numbers=r[0].frame_numbers[::-1].copy()), *r[1:]],
        "record 0 .*not in order",
    ),
    "frames": (
        lambda r: [dataclasses.replace(r[0], frames=StoredFrames([b"\xff\xd8"] * 4, "jpeg")), *r[1:]],
        "record 0 .*not a whole JPEG file",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_wrong_record_is_named(shards, name):
    change, message = CHANGES[name]
    rewrite(shards, change)
    found = problems(shards)
    assert len(found) == 1
    with pytest.raises(DataError, match=message):
        raise DataError(found[0])


def test_caption_that_occurs_twice_is_a_remark(shards):
    def twice(records):
        first = records[2]
        captions = (first.captions[0],) * 3
        ids, mask = np.repeat(first.input_ids[:1], 3, axis=0), np.repeat(first.attention_mask[:1], 3, axis=0)
        return [*records[:2], dataclasses.replace(first, captions=captions, input_ids=ids, attention_mask=mask)]

    rewrite(shards, twice)
    report = verify_shards(shards, num_workers=0, progress=False)[1]
    assert not report.problems
    assert [remark.endswith("a caption occurs twice") for remark in report.remarks] == [True]


def test_file_that_stands_under_two_names_is_a_remark(tmp_path):
    write_clip(tmp_path / "a.mp4", 6)
    shutil.copy(tmp_path / "a.mp4", tmp_path / "b.mp4")
    rows = [{"video": video, "caption": "a ball"} for video in ("a.mp4", "b.mp4")]
    rows += [rows[0] | {"start": 0, "end": 0.1}]
    (tmp_path / "captions.json").write_text(json.dumps(rows))
    build_shards(tmp_path / "captions.json", tmp_path / "set", split="train", num_kept_frames=2, resize=32,
                 max_text_length=8, num_workers=0, progress=False)  # fmt: skip
    (report,) = verify_shards(tmp_path / "set", num_workers=0, progress=False)
    assert report.num_videos == 3 and not report.problems
    assert [remark.endswith("is of the same file as record 0") for remark in report.remarks] == [True]


def read_everything(shards):
    """Reads a split in training and in evaluation, and returns what they gave."""
    config = DataConfig(shards=str(shards), num_workers=0)
    with train_loader(config, "train", 3, 0, **SIZES) as loader:
        batches = list(itertools.islice(loader, 6))
    return [*batches, *eval_batches(config, "train", 4, **SIZES)]


@pytest.mark.parametrize("seed", range(60))
def test_random_damage_to_a_shard_set_is_found_and_never_read_as_something_else(whole, shards, seed):
    rng = np.random.default_rng(seed)
    files = sorted(path for path in shards.rglob("*") if path.is_file() and path.name != "rejected.jsonl")
    files = [path for path in files if "test" not in path.relative_to(shards).parts]
    path = files[rng.integers(len(files))]
    data = bytearray(path.read_bytes())
    kind, at = rng.choice(["flip", "cut", "insert", "zeros", "remove"]), int(rng.integers(len(data)))
    if kind == "flip":
        data[at] ^= 1 << int(rng.integers(8))
    elif kind == "cut":
        del data[at:]
    elif kind == "insert":
        data[at:at] = rng.bytes(3)
    elif kind == "zeros":
        data[at : at + 20] = bytes(len(data[at : at + 20]))
    path.write_bytes(data)
    if kind == "remove":
        path.unlink()
    try:
        found = problems(shards)
    except DataError as error:  # without its manifest the split is not one of the set
        found = [str(error)]
    except KeyError:
        found = ["the split is not there"]
    is_changed = kind == "remove" or path.read_bytes() != (whole / path.relative_to(shards)).read_bytes()
    assert bool(found) == is_changed
    assert all("\n" not in problem for problem in found)
    with contextlib.suppress(DataError):
        for batch, expected in zip(read_everything(shards), read_everything(whole), strict=True):
            for name in expected:
                np.testing.assert_array_equal(batch[name], expected[name])


def test_contact_sheet_shows_frames_captions_and_tokens(whole, tmp_path):
    config = DataConfig(shards=str(whole), num_workers=0)
    shown = write_contact_sheet(tmp_path / "a.html", config, "train", count=5, seed=0, **SIZES)
    page = (tmp_path / "a.html").read_text()
    assert shown == 5 and page.count("<section>") == 5
    assert page.count("data:image/png;base64,") == 5 * 2 * 2
    write_contact_sheet(tmp_path / "b.html", config, "train", records=[3, 1], count=5, seed=0, **SIZES)
    ids = re.findall("<h2>(.*?)</h2>", (tmp_path / "b.html").read_text())
    assert ids == [open_shards(whole, "train")[number].video_id for number in (3, 1)]
    with pytest.raises(DataError, match=r"record 99 is not in '.*', split 'train': it has 0 to \d+"):
        write_contact_sheet(tmp_path / "c.html", config, "train", records=[99], count=5, seed=0, **SIZES)
    assert "“a red circle”" in page and "[CLS]</span>" in page and "kept frames 0, " in page
