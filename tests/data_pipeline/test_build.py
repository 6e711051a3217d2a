import csv
import functools
import json
import pickle
import pwd
import shutil
from pathlib import Path

import av
import numpy as np
import pytest
import tensorflow_datasets as tfds
from clips import frame_level, write_clip, write_sound

from data_pipeline import build
from data_pipeline.decode import FrameOptions, decode_clip
from data_pipeline.errors import DataError
from data_pipeline.shards import hash_record, list_splits, open_shards
from data_pipeline.tokenizer import SPECIAL_TOKENS, decode, load_tokenizer

build_shards = functools.partial(build.build_shards, split="train")
OPTIONS = {
    "num_kept_frames": 4, "resize": 32, "max_text_length": 8, "encoding": "raw", "num_workers": 0, "progress": False,
}  # fmt: skip
ROWS = [
    ("a.mp4", "a red circle moves left", "g1"),
    ("b.mp4", "a blue square", ""),
    ("a.mp4", "a second caption", "g1"),
    ("sub/c.mp4", "one two three four five six seven eight nine", ""),
]
BROKEN = [
    ("missing.mp4", "m", "missing: no such file"),
    ("empty.mp4", "e", "empty: zero bytes"),
    ("text.mp4", "t", "not a video"),
    ("sound.mp4", "s", "no video stream"),
    ("cut.mp4", "c", "truncated: its index (moov atom) or header is missing"),
    ("a.mp4", "", "empty caption"),
    ("", "x", "no video named"),
]


def write_captions(path, rows):
    rows = [dict(zip(("video", "caption", "group"), (*row, ""), strict=False)) for row in rows]
    if path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, ("video", "caption", "group"))
            writer.writeheader()
            writer.writerows(rows)
    return path


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A folder with three good clips and a broken one of every kind."""
    root = tmp_path_factory.mktemp("videos")
    for name, num_frames, size in (("a.mp4", 24, (48, 64)), ("b.mp4", 3, (64, 48)), ("sub/c.mp4", 8, (32, 32))):
        write_clip(root / name, num_frames, height=size[0], width=size[1])
    (root / "empty.mp4").touch()
    (root / "text.mp4").write_text("no video\n" * 50)
    (root / "cut.mp4").write_bytes((root / "a.mp4").read_bytes()[:900])
    write_sound(root / "sound.mp4")
    write_captions(root / "good.csv", ROWS)
    write_captions(root / "good.json", ROWS)
    write_captions(root / "mixed.csv", [*BROKEN[:3], *((row[0], row[1], "") for row in BROKEN[3:]), *ROWS])
    write_captions(root / "broken.csv", [(video, caption) for video, caption, _ in BROKEN])
    return root


@pytest.fixture(scope="module")
def shards(source, tmp_path_factory):
    """A shard set of the good clips, split train; not to be changed."""
    out = tmp_path_factory.mktemp("shards") / "set"
    build_shards(source / "good.csv", out, **OPTIONS)
    return out


def assert_same_records(one, other):
    assert len(one) == len(other)
    for i in range(len(one)):
        assert hash_record(one[i]) == hash_record(other[i])


def rows_of(records):
    """The rows (video, caption, group) that the records hold."""
    return [(r.video_id, caption, r.group) for r in (records[i] for i in range(len(records))) for caption in r.captions]


def test_records_are_what_the_caption_file_says_in_its_order(shards):
    records = open_shards(shards, "train")
    assert rows_of(records) == [ROWS[0], ROWS[2], ROWS[1], ROWS[3]]
    assert [records[i].frames.stored.shape for i in range(3)] == [(4, 32, 43, 3), (4, 43, 32, 3), (4, 32, 32, 3)]
    assert [records[i].num_frames for i in range(3)] == [24, 3, 8]
    assert [records[i].frame_numbers.tolist() for i in range(3)] == [[0, 6, 12, 18], [0, 1, 2, 2], [0, 2, 4, 6]]
    video = records[0].frames[np.arange(4)]
    assert video.dtype == np.uint8
    np.testing.assert_allclose(video.mean((1, 2, 3)), [frame_level(i, 24) for i in (0, 6, 12, 18)], atol=4)


def test_records_carry_token_ids_of_the_shard_sets_vocabulary(shards):
    tokenizer, records = load_tokenizer(shards / "vocab.txt"), open_shards(shards, "train")
    assert records[0].input_ids.dtype == records[0].attention_mask.dtype == np.int32
    assert records[0].input_ids.shape == (2, 8)
    assert [decode(tokenizer, ids) for ids in records[0].input_ids] == [ROWS[0][1], ROWS[2][1]]
    assert decode(tokenizer, records[2].input_ids[0]) == "one two three four five six"
    assert records[2].input_ids[0, -1] == 3 and records[2].attention_mask.all()


def test_json_and_csv_give_the_same_shards(source, shards, tmp_path):
    build_shards(source / "good.json", tmp_path / "set", **OPTIONS)
    assert_same_records(open_shards(shards, "train"), open_shards(tmp_path / "set", "train"))


@pytest.mark.parametrize("name", ["a[1] *?", "a:b", "file:x", "~", "%03d {x}"])
def test_folders_and_clips_may_have_any_name(source, shards, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    folder = Path(name)
    folder.mkdir()
    for row in ROWS:
        (folder / f"http:{Path(row[0]).name}").write_bytes((source / row[0]).read_bytes())
    write_captions(folder / "all.csv", [(f"http:{Path(video).name}", *rest) for video, *rest in ROWS])
    assert build_shards(folder / "all.csv", folder / "set", **OPTIONS).num_rejected == 0
    records, expected = open_shards(folder / "set", "train"), open_shards(shards, "train")
    assert len(records) == len(expected)
    for index in range(len(records)):
        np.testing.assert_array_equal(records[index].frames.stored, expected[index].frames.stored)


def test_second_build_of_a_split_is_refused_while_the_first_one_runs(source, shards, tmp_path, monkeypatch):
    def build_too(*_, **options):
        with pytest.raises(DataError, match="another process is building in"):
            build_shards(source / "good.csv", tmp_path / "set", **OPTIONS)
        return decode_clip(*_, **options)

    monkeypatch.setattr("data_pipeline.video_reader.decode_clip", build_too)
    assert build_shards(source / "good.csv", tmp_path / "set", **OPTIONS).num_written == len(ROWS)
    assert rows_of(open_shards(tmp_path / "set", "train")) == rows_of(open_shards(shards, "train"))


def test_manifest_hash_is_that_of_the_records(source, shards, tmp_path):
    for name, rows in (("same", ROWS), ("swapped", [(ROWS[0][0], ROWS[2][1], "g1"), ROWS[1], (*ROWS[0],), ROWS[3]])):
        write_captions(source / f"{name}.csv", rows)
        build_shards(source / f"{name}.csv", tmp_path / name, vocab=shards / "vocab.txt", **OPTIONS)
    hashes = [
        open_shards(folder, "train").manifest_sha256 for folder in (shards, tmp_path / "same", tmp_path / "swapped")
    ]
    assert hashes[0] == hashes[1] != hashes[2]


def test_worker_processes_give_the_same_shards(source, shards, tmp_path):
    report = build_shards(source / "good.csv", tmp_path / "set", **OPTIONS | {"num_workers": 2})
    assert report.num_written == 4
    assert_same_records(open_shards(shards, "train"), open_shards(tmp_path / "set", "train"))


def test_unusable_clips_are_counted_and_listed_with_their_reasons(source, tmp_path):
    report = build_shards(source / "mixed.csv", tmp_path / "set", **OPTIONS)
    assert (report.num_rows, report.num_written, report.num_rejected) == (11, 4, 7)
    assert report.num_truncated_captions == 1
    assert sum(report.rejected_by_reason.values()) == 7
    lines = [json.loads(line) for line in (tmp_path / "set" / "train" / build.REJECTED_NAME).read_text().splitlines()]
    assert [(line["video"], line["caption"], line["reason"]) for line in lines] == BROKEN
    assert rows_of(open_shards(tmp_path / "set", "train")) == [ROWS[0], ROWS[2], ROWS[1], ROWS[3]]
    assert "11 rows = 4 written + 7 rejected" in report.summary()
    assert json.loads(json.dumps(report.to_dict()))["num_rejected"] == 7


def test_clip_that_the_system_cannot_read_is_refused_and_the_build_goes_on(source, tmp_path):
    write_captions(source / "long.csv", [("x" * 300 + ".mp4", "name too long"), ("b.mp4", "a ball")])
    report = build_shards(source / "long.csv", tmp_path / "set", **OPTIONS)
    assert (report.num_written, report.num_rejected) == (1, 1)
    assert "File name too long" in (tmp_path / "set" / "train" / build.REJECTED_NAME).read_text()


def test_nothing_usable_is_an_error_and_leaves_nothing(source, tmp_path):
    with pytest.raises(DataError, match=r"no usable video in .*broken.csv.*7 rows: .*1 not a video"):
        build_shards(source / "broken.csv", tmp_path / "set", **OPTIONS)
    assert not (tmp_path / "set").exists()


def test_failed_rebuild_leaves_the_split_as_it_was(source, tmp_path):
    build_shards(source / "good.csv", tmp_path / "set", **OPTIONS)
    before = {path: path.read_bytes() for path in (tmp_path / "set").rglob("*") if path.is_file()}
    with pytest.raises(DataError, match="no usable video"):
        build_shards(source / "broken.csv", tmp_path / "set", overwrite=True, **OPTIONS)
    assert {path: path.read_bytes() for path in (tmp_path / "set").rglob("*") if path.is_file()} == before


def test_second_split_uses_the_first_ones_vocabulary(source, shards, tmp_path):
    with pytest.raises(DataError, match="needs a vocabulary"):
        build_shards(source / "good.csv", tmp_path / "set", split="test", **OPTIONS)
    build_shards(source / "good.csv", tmp_path / "set", **OPTIONS)
    vocab = (tmp_path / "set" / "vocab.txt").read_bytes()
    write_captions(source / "other.csv", [("b.mp4", "zebra")])
    build_shards(source / "other.csv", tmp_path / "set", split="test", **OPTIONS)
    assert list_splits(tmp_path / "set") == ["test", "train"]
    assert (tmp_path / "set" / "vocab.txt").read_bytes() == vocab
    assert open_shards(tmp_path / "set", "test")[0].captions == ("zebra",)
    assert len(open_shards(tmp_path / "set", "train")) == 3


def test_given_vocabulary_is_used_and_another_is_refused_later(source, tmp_path):
    (tmp_path / "words.txt").write_text("\n".join([*SPECIAL_TOKENS, "square", "blue"]) + "\n")
    (tmp_path / "other.txt").write_text("\n".join([*SPECIAL_TOKENS, "red"]) + "\n")
    report = build_shards(source / "good.csv", tmp_path / "set", vocab=tmp_path / "words.txt", **OPTIONS)
    assert report.vocab_size == 7
    np.testing.assert_array_equal(open_shards(tmp_path / "set", "train")[1].input_ids, [[2, 1, 6, 5, 3, 0, 0, 0]])
    with pytest.raises(DataError, match=r"other.txt.*is not the one that split 'train'"):
        build_shards(source / "good.csv", tmp_path / "set", split="test", vocab=tmp_path / "other.txt", **OPTIONS)


def test_existing_split_is_only_replaced_when_asked(source, tmp_path):
    build_shards(source / "good.csv", tmp_path / "set", **OPTIONS)
    with pytest.raises(DataError, match="exists already"):
        build_shards(source / "good.csv", tmp_path / "set", **OPTIONS)
    build_shards(source / "good.csv", tmp_path / "set", overwrite=True, **OPTIONS | {"num_kept_frames": 2})
    assert open_shards(tmp_path / "set", "train").settings.num_kept_frames == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "a/b"}, "split 'a/b'"),
        ({"split": "all"}, "split 'all'"),
        ({"num_kept_frames": 0}, "num_kept_frames=0"),
        ({"resize": 0}, "resize=0"),
        ({"max_text_length": 2}, "max_text_length=2"),
        ({"num_workers": -1}, "num_workers=-1"),
        ({"jpeg_quality": 101}, "jpeg_quality=101 must be at most 100"),
        ({"max_damage": 1.5}, "max_damage=1.5 must be at most 1"),
        ({"vocab": "none.txt"}, "vocabulary 'none.txt' cannot be read"),
    ],
)
def test_bad_option_is_an_error_and_leaves_nothing(source, tmp_path, options, message):
    with pytest.raises(DataError, match=message):
        build_shards(source / "good.csv", tmp_path / "set", **OPTIONS | options)
    assert not (tmp_path / "set").exists()


def test_out_that_is_a_file_is_an_error(source, tmp_path):
    (tmp_path / "set").write_text("keep me")
    with pytest.raises(DataError, match="cannot write shard set"):
        build_shards(source / "good.csv", tmp_path / "set", **OPTIONS)
    assert (tmp_path / "set").read_text() == "keep me"


def test_source_survives_pickling_and_knows_its_ends(shards):
    records = open_shards(shards, "train")
    assert_same_records(records, pickle.loads(pickle.dumps(records)))
    with pytest.raises(IndexError):
        records[3]


def test_shard_set_whose_owner_has_no_name_is_read(shards, monkeypatch):
    def unknown(user_id):
        raise KeyError(user_id)

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    assert len(open_shards(shards, "train")) == 3


def test_missing_shard_set_or_split_is_an_error(shards, tmp_path):
    with pytest.raises(DataError, match="no shard set in"):
        open_shards(tmp_path, "train")
    with pytest.raises(DataError, match=r"no split 'tset' .* known: train"):
        open_shards(shards, "tset")


@pytest.mark.parametrize("damage", ["missing", "truncated", "manifest", "vocabulary", "metadata"])
def test_damaged_shard_set_is_an_error_that_names_the_file(source, tmp_path, damage):
    build_shards(source / "good.csv", tmp_path / "set", **OPTIONS)
    shard = next((tmp_path / "set" / "train").glob("*.array_record*"))
    if damage == "missing":
        shard.unlink()
    elif damage == "truncated":
        shard.write_bytes(shard.read_bytes()[:-100])
    elif damage == "manifest":
        (tmp_path / "set" / "train" / "manifest.json").write_text("{")
    elif damage == "vocabulary":
        (tmp_path / "set" / "vocab.txt").write_text("other\n")
    else:
        (tmp_path / "set" / "train" / "dataset_info.json").unlink()
    names = {"manifest": "manifest.json", "vocabulary": "vocab.txt", "metadata": "train"}
    with pytest.raises(DataError, match=names.get(damage, shard.name)) as error:
        open_shards(tmp_path / "set", "train")
    assert "\n" not in str(error.value)


def test_damaged_record_is_an_error_that_names_its_file_when_it_is_read(source, tmp_path):
    build_shards(source / "good.csv", tmp_path / "set", **OPTIONS)
    shard = next((tmp_path / "set" / "train").glob("*.array_record*"))
    data = bytearray(shard.read_bytes())
    data[100:200] = bytes(100)
    shard.write_bytes(data)
    with pytest.raises(DataError, match=rf"record 0 in .*{shard.name}' cannot be read"):
        open_shards(tmp_path / "set", "train")[0]


def test_record_holds_all_captions_questions_and_answers_of_its_video(source, tmp_path):
    rows = [
        {"video": "a.mp4", "caption": ["a circle", "a ball"]},
        {"video": "b.mp4", "question": "what is it?", "answer": ["a ball", "a circle"]},
        {"video": "a.mp4", "caption": "another", "question": "which colour?", "answer": "red"},
        {"video": "b.mp4", "question": "where?"},
    ]
    (tmp_path / "all.json").write_text(json.dumps([{**row, "video": str(source / row["video"])} for row in rows]))
    report = build_shards(tmp_path / "all.json", tmp_path / "set", **OPTIONS)
    records = open_shards(tmp_path / "set", "train")
    assert [records[i].captions for i in range(2)] == [("a circle", "a ball", "another"), ()]
    assert [(records[i].questions, records[i].answers) for i in range(2)] == [
        (("which colour?",), ("red",)),
        (("what is it?", "what is it?"), ("a ball", "a circle")),
    ]
    assert records[1].input_ids.shape == (0, 8)
    assert (report.num_rows, report.num_written, report.num_videos) == (6, 5, 2)
    assert report.rejected_by_reason == {"question without an answer": 1}


def test_segments_of_a_video_are_records_of_their_own(source, tmp_path):
    video = source / "a.mp4"  # 24 frames, 12 a second
    (source / "parts.csv").write_text(
        "video,caption,start,end\na.mp4,all,,\na.mp4,begin,0,1\na.mp4,end,1,\na.mp4,too late,9,10\n"
    )
    report = build_shards(source / "parts.csv", tmp_path / "set", **OPTIONS)
    records = open_shards(tmp_path / "set", "train")
    assert [records[i].video_id for i in range(3)] == ["a.mp4", "a.mp4#t=0,1", "a.mp4#t=1"]
    assert [records[i].num_frames for i in range(3)] == [24, 12, 12]
    whole = decode_clip(video, FrameOptions(24, 32)).frames
    np.testing.assert_array_equal(records[2].frames.stored, whole[12 + records[2].frame_numbers])
    assert report.rejected_by_reason == {"segment": 1}


def test_jpeg_frames_are_near_the_raw_ones_and_smaller(source, shards, tmp_path):
    build_shards(source / "good.csv", tmp_path / "set", **OPTIONS | {"encoding": "jpeg", "jpeg_quality": 95})
    records, raw = open_shards(tmp_path / "set", "train"), open_shards(shards, "train")
    for index in range(3):
        frames = records[index].frames[np.arange(4)]
        assert np.abs(frames.astype(int) - raw[index].frames.stored).max() <= 6
        assert all(file[:2] == b"\xff\xd8" for file in records[index].frames.stored)
        assert records[index].captions == raw[index].captions


def test_frames_can_be_stretched(source, tmp_path):
    build_shards(source / "good.csv", tmp_path / "set", frame_shape="stretch", **OPTIONS)
    records = open_shards(tmp_path / "set", "train")
    assert {records[index].frames.stored.shape for index in range(3)} == {(4, 32, 32, 3)}
    assert records.settings.frame_shape == "stretch"


def test_tfds_reads_a_shard_set(shards, source, tmp_path):
    build_shards(source / "good.csv", tmp_path / "jpeg", **OPTIONS | {"encoding": "jpeg"})
    for folder in (shards, tmp_path / "jpeg"):
        records = tfds.builder_from_directory(folder / "train").as_data_source("train")
        assert len(records) == 3
        assert [text.decode() for text in records[0]["captions"]] == [ROWS[0][1], ROWS[2][1]]
        assert records[0]["frame_numbers"].tolist() == [0, 6, 12, 18]


def test_damage_that_is_allowed_is_counted(source, tmp_path):
    data = (source / "a.mp4").read_bytes()
    with av.open(str(source / "a.mp4")) as container:
        position = next(packet.pos for packet in container.demux(video=0) if packet.pts == 20 * 1024)
    (source / "scratched.mp4").write_bytes(data[: position + 4] + b"\xff" * 9 + data[position + 13 :])
    write_captions(source / "scratched.csv", [("scratched.mp4", "x"), ("b.mp4", "y")])
    strict = build_shards(source / "scratched.csv", tmp_path / "strict", **OPTIONS)
    allowed = build_shards(source / "scratched.csv", tmp_path / "allowed", max_damage=0.5, **OPTIONS)
    assert (strict.num_videos, strict.rejected_by_reason) == (1, {"damaged": 1})
    assert (allowed.num_videos, allowed.num_damaged_videos) == (2, 1)
    assert "1 videos are damaged a little" in allowed.summary()


@pytest.mark.parametrize("caption", ["\u200b", "\x00\x01", " \u00ad ", "\ufeff"])
def test_caption_without_a_token_is_refused_like_an_empty_one(source, tmp_path, caption):
    (source / "odd.json").write_text(json.dumps([{"video": "b.mp4", "caption": c} for c in (caption, "a ball")]))
    report = build_shards(source / "odd.json", tmp_path / "set", **OPTIONS)
    assert (report.num_written, report.rejected_by_reason) == (1, {"empty caption": 1})


def test_rows_of_one_video_in_two_groups_are_refused(source, tmp_path):
    write_captions(source / "groups.csv", [("a.mp4", "x", "g1"), ("a.mp4", "y", "g2")])
    with pytest.raises(DataError, match=r"a\.mp4.*'g1' and 'g2'"):
        build_shards(source / "groups.csv", tmp_path / "set", **OPTIONS)


def test_shard_set_of_an_older_version_is_refused_with_the_way_out(shards, tmp_path):
    shutil.copytree(shards, tmp_path / "set")
    manifest = tmp_path / "set" / "train" / "manifest.json"
    old = {"num_records": 4, "settings": {"num_kept_frames": 4, "resize": 32}, "files": {}}
    manifest.write_text(json.dumps(old))
    with pytest.raises(DataError, match=r"records of version 1.*`stgt data build` and --overwrite"):
        open_shards(tmp_path / "set", "train")


def test_vocabulary_with_byte_order_mark_and_blank_lines_is_stored_clean(source, tmp_path):
    lines = [*SPECIAL_TOKENS, "square", "blue"]
    (tmp_path / "words.txt").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode() + b"\r\n\r\n \r\n")
    build_shards(source / "good.csv", tmp_path / "set", vocab=tmp_path / "words.txt", **OPTIONS)
    assert (tmp_path / "set" / "vocab.txt").read_text() == "\n".join(lines) + "\n"
    np.testing.assert_array_equal(open_shards(tmp_path / "set", "train")[1].input_ids, [[2, 1, 6, 5, 3, 0, 0, 0]])
