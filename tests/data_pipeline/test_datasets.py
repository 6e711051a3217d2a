"""The public data sets, in small files of exactly the forms in which they are distributed, built to shards."""

import csv
import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from clips import frame_level, write_clip

from data_pipeline.build import build_shards
from data_pipeline.datasets.msrvtt import NUM_HELD_OUT
from data_pipeline.datasets.select import DATASETS, read_dataset
from data_pipeline.datasets.video_files import VideoFiles, walk_videos
from data_pipeline.errors import DataError
from data_pipeline.shards import open_shards
from data_pipeline.tokenizer import SPECIAL_TOKENS
from data_pipeline.verify import verify_shards

CODECS = {".webm": "libvpx", ".avi": "mpeg4", ".wmv": "wmv2"}


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """One clip of each kind, which the data sets' files are links to."""
    folder = tmp_path_factory.mktemp("clips")
    for suffix in (".mp4", ".webm", ".avi", ".m4v", ".mov", ".wmv"):
        write_clip(folder / f"clip{suffix}", 12, codec=CODECS.get(suffix, "libx264"))
    return folder


@pytest.fixture
def place(clips, tmp_path):
    """`place(names...)` makes the videos of a data set, in `tmp_path / "videos"`."""

    def place(*names):
        for name in names:
            path = tmp_path / "videos" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.symlink_to(clips / f"clip{os.path.splitext(name)[1].lower()}")

    (tmp_path / "videos").mkdir()
    return place


@pytest.fixture
def annotations(tmp_path):
    (tmp_path / "annotations").mkdir()
    return tmp_path / "annotations"


def texts(name, annotations, split, variant=None, folder="videos"):
    """Returns (video, caption or (question, answer)) of each row that a data set is read to."""
    read = read_dataset(name, annotations=annotations, videos=annotations.parent / folder, split=split, variant=variant)
    return [(row.video, row.caption or (row.question, row.answer)) for row in read.rows]


def build(name, annotations, split="train", variant=None, **options):
    """Builds a split; returns the report, its records, and the remarks on its size."""
    videos = annotations.parent / "videos"
    read = read_dataset(name, annotations=annotations, videos=videos, split=split, variant=variant)
    out = annotations.parent / "shards"
    options = {"vocab": VOCAB, "num_kept_frames": 4, "resize": 32, "max_text_length": 16, **options}
    report = build_shards(read, out, split=split, num_workers=0, progress=False, **options)
    source = open_shards(out, split)
    return report, [source[index] for index in range(len(source))], read.remarks


VOCAB = None


@pytest.fixture(autouse=True, scope="module")
def vocab(tmp_path_factory):
    global VOCAB
    VOCAB = tmp_path_factory.mktemp("vocab") / "vocab.txt"
    letters = "abcdefghijklmnopqrstuvwxyz"
    VOCAB.write_text("\n".join([*SPECIAL_TOKENS, *letters, *(f"##{letter}" for letter in letters)]) + "\n")


def assert_frames_are_those_of_the_clip(record):
    frames = record.frames[np.arange(4)].astype(int)
    levels = [frame_level(number, 12) for number in record.frame_numbers]
    assert np.abs(frames.mean(axis=(1, 2, 3)) - levels).max() < 12


def write_msrvtt(folder):
    """`MSRVTT_data.json` with spaces in keys, as well as the lists of 1k-A and 7k and the original split's files."""
    splits = {"video0": "train", "video1": "train", "video2": "validate", "video7010": "test", "video7011": "test"}
    content = {
        "info": {"contributor": "x", "data_created": "2016", "version": "1.0"},
        "videos": [
            {"id": int(name[5:]), "video_id": name, "category": 9, "url": "https://x/y?v=z", "start time": 137.72,
             "end time": 149.44, "split": split}
            for name, split in splits.items()
        ],
        "sentences": [
            {"sen_id": 10 * index + which, "video_id": name, "caption": f"caption {which} of {name}"}
            for which in range(2)
            for index, name in enumerate(splits)
        ],
    }  # fmt: skip
    (folder / "MSRVTT_data.json").write_text(json.dumps(content))
    (folder / "MSRVTT_train.9k.csv").write_text("video_id\nvideo0\nvideo1\nvideo2\n")
    (folder / "MSRVTT_train.7k.csv").write_text("video_id\r\nvideo0\r\nvideo1\r\n")
    (folder / "MSRVTT_JSFUSION_test.csv").write_text(
        "key,vid_key,video_id,sentence\nret0,msr7010,video7010,a woman creating a fondant baby and flower\n"
        'ret1,msr7011,video7011,"a boy, plays grand theft auto 5"\n'
    )
    for name, wanted in (("train_val", ("train", "validate")), ("test", ("test",))):
        part = dict(content, videos=[video for video in content["videos"] if video["split"] in wanted])
        (folder / f"{name}_videodatainfo.json").write_text(json.dumps(part))


def test_msrvtt_1k_a_test_split_has_its_own_sentences(annotations, place):
    write_msrvtt(annotations)
    place("video7010.mp4", "video7011.webm")
    report, records, remarks = build("msrvtt", annotations, "test")
    assert [(record.video_id, record.captions) for record in records] == [
        ("video7010.mp4", ("a woman creating a fondant baby and flower",)),
        ("video7011.webm", ("a boy, plays grand theft auto 5",)),
    ]
    for record in records:
        assert_frames_are_those_of_the_clip(record)
    assert report.num_rows == report.num_written == 2
    assert remarks == (
        "msrvtt 1k-A, split test: 2 videos, 2 captions (not as published)",
        "warning: msrvtt 1k-A, split test has 2 videos, and 1,000 are published",
        "warning: msrvtt 1k-A, split test has 2 captions, and 1,000 are published",
    )


def test_msrvtt_training_lists_are_joined_with_the_sentences_and_missing_videos_are_listed(annotations, place):
    write_msrvtt(annotations)
    place("video0.mp4", "video1.webm")
    report, records, _ = build("msrvtt", annotations, "train_and_val")
    assert [(record.video_id, record.captions) for record in records] == [
        ("video0.mp4", ("caption 0 of video0", "caption 1 of video0")),
        ("video1.webm", ("caption 0 of video1", "caption 1 of video1")),
    ]
    assert (report.num_rows, report.num_written, report.rejected_by_reason) == (6, 4, {"missing": 2})
    rejected = (annotations.parent / "shards" / "train_and_val" / "rejected.jsonl").read_text().splitlines()
    assert [json.loads(line)["video"] for line in rejected] == ["video2.mp4"] * 2
    assert {video for video, _ in texts("msrvtt", annotations, "train_and_val", "7k")} == {"video0.mp4", "video1.webm"}


def test_msrvtt_holds_the_same_training_videos_out_everywhere_and_never_a_test_video(annotations, place):
    names = [f"video{index}" for index in range(700)]
    sentences = [{"sen_id": 0, "video_id": name, "caption": f"of {name}"} for name in [*names, "video9000"]]
    (annotations / "MSRVTT_data.json").write_text(json.dumps({"videos": [], "sentences": sentences}))
    parts = {}
    for order in (names, names[::-1]):
        (annotations / "MSRVTT_train.9k.csv").write_text("\n".join(["video_id", *order]))
        for split in ("train", "val", "train_and_val"):
            found = {video for video, _ in texts("msrvtt", annotations, split)}
            assert parts.setdefault(split, found) == found
    assert len(parts["val"]) == NUM_HELD_OUT and parts["val"].isdisjoint(parts["train"])
    assert parts["val"] | parts["train"] == parts["train_and_val"] == {f"{name}.mp4" for name in names}
    assert "video10.mp4" in parts["train"] and "video0.mp4" in parts["val"]  # on every machine


def test_msrvtt_original_split_is_in_two_files_or_in_one(annotations, place):
    write_msrvtt(annotations)
    two_files = {split: texts("msrvtt", annotations, split, "full") for split in ("train", "val", "test")}
    assert [len(rows) for rows in two_files.values()] == [4, 2, 4]
    for path in annotations.glob("*videodatainfo.json"):
        path.unlink()
    assert {split: texts("msrvtt", annotations, split, "full") for split in two_files} == two_files


def test_msrvtt_qa_has_numbers_for_videos_or_names_in_json_lines(annotations, place):
    place("video6513.mp4", "video7.mp4")
    questions = [
        {"answer": "couch", "category_id": 14, "id": 0, "question": "what do they sit on?", "video_id": 6513},
        {"answer": "three", "category_id": 14, "id": 1, "question": "how many people?", "video_id": 6513},
        {"answer": "run", "category_id": 1, "id": 2, "question": "what does a man do?", "video_id": 7},
    ]  # fmt: skip
    (annotations / "val_qa.json").write_text(json.dumps(questions))
    report, records, remarks = build("msrvtt", annotations, "val", "qa")
    assert [(record.video_id, record.captions, record.questions, record.answers) for record in records] == [
        ("video6513.mp4", (), ("what do they sit on?", "how many people?"), ("couch", "three")),
        ("video7.mp4", (), ("what does a man do?",), ("run",)),
    ]
    assert report.num_rows == report.num_written == 3 and "12,278 are published" in remarks[-1]
    lines = [
        {"answer": question["answer"], "question": question["question"], "video_id": f"video{question['video_id']}",
         "answer_type": "what"}
        for question in questions
    ]  # fmt: skip
    (annotations / "test.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert texts("msrvtt", annotations, "test", "qa") == texts("msrvtt", annotations, "val", "qa")


MSVD_IDS = ["-4wsuPCjDBc_5_15", "mv89psg6zh4_33_46"]


def test_msvd_ids_begin_with_a_hyphen_and_captions_are_lists_of_words_in_a_pickle(annotations, place):
    place(*(f"{video}.avi" for video in MSVD_IDS))
    (annotations / "test_list.txt").write_text("\n".join(MSVD_IDS) + "\n")
    captions = {MSVD_IDS[0]: [["a", "squirrel", "is", "eating"], ["it", "eats"]], MSVD_IDS[1]: [["a", "bird"]]}
    (annotations / "raw-captions.pkl").write_bytes(pickle.dumps(captions | {"other": [["x"]]}))
    report, records, remarks = build("msvd", annotations, "test")
    assert [(record.video_id, record.captions) for record in records] == [
        (f"{MSVD_IDS[0]}.avi", ("a squirrel is eating", "it eats")),
        (f"{MSVD_IDS[1]}.avi", ("a bird",)),
    ]
    for record in records:
        assert_frames_are_those_of_the_clip(record)
    assert report.num_written == 3, "every caption is a query of its own"
    assert "27,763 are published" in remarks[-1]
    from_pickle = texts("msvd", annotations, "test")
    for protocol in range(5):
        (annotations / "raw-captions.pkl").write_bytes(pickle.dumps(captions, protocol))
        assert texts("msvd", annotations, "test") == from_pickle
    (annotations / "raw-captions.pkl").unlink()
    as_json = {MSVD_IDS[0]: ["a squirrel is eating", "it eats"], MSVD_IDS[1]: "a bird"}  # a text where a list is usual
    (annotations / "raw-captions.json").write_text(json.dumps(as_json))
    assert texts("msvd", annotations, "test") == from_pickle


class Hostile:
    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps({"a": Hostile(os.system, ("touch executed",))}), r"asks to call (posix|nt)\.system"),
        (pickle.dumps(Hostile(eval, ("1",))), r"asks to call builtins\.eval"),
        (pickle.dumps({"a": np.zeros(2)}), r"asks to call numpy"),
        (b"cos\nsystem\n(S'touch executed'\ntR.", r"asks to call os\.system"),
        (pickle.dumps({"a": ["b"]})[:-4], "cannot be read as a pickle"),
        (b"no pickle", "cannot be read as a pickle"),
        (pickle.dumps([1, 2]), "must hold a dict of captions"),
        (pickle.dumps({MSVD_IDS[0]: [7.5]}), r"must be text, not 7\.5"),
    ],
)
def test_nothing_in_a_pickle_is_executed(annotations, place, monkeypatch, content, message):
    monkeypatch.chdir(annotations)
    (annotations / "test_list.txt").write_text(MSVD_IDS[0])
    (annotations / "raw-captions.pkl").write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        texts("msvd", annotations, "test")
    assert "raw-captions.pkl" in str(error.value) and "\n" not in str(error.value)
    assert not (annotations / "executed").exists()


def test_msvd_qa_counts_videos_from_one(annotations, place):
    place(*(f"{video}.avi" for video in MSVD_IDS))
    (annotations / "youtube_mapping.txt").write_text(f"{MSVD_IDS[0]} vid1\n{MSVD_IDS[1]} vid2\n")
    questions = [
        {"answer": "bird", "id": 0, "question": "what is chirping?", "video_id": 2},
        {"answer": "eat", "id": 1, "question": "what does it do?", "video_id": 1},
        {"answer": "x", "id": 2, "question": "what is missing?", "video_id": 3},
    ]
    (annotations / "train_qa.json").write_text(json.dumps(questions))
    report, records, _ = build("msvd", annotations, "train", "qa")
    assert [(record.video_id, record.answers) for record in records] == [
        (f"{MSVD_IDS[1]}.avi", ("bird",)), (f"{MSVD_IDS[0]}.avi", ("eat",)),
    ]  # fmt: skip
    assert report.rejected_by_reason == {"missing": 1}


def test_didemo_descriptions_are_a_paragraph_and_files_are_found_by_stem(annotations, place):
    names = ["26292851@N04_4253489686_265c3c8051.m4v", "12090392@N02_13482799053_87ef417396.mov", "9@N0_1_no_extension"]
    place(
        "26292851@N04_4253489686_265c3c8051.mp4", "12090392@N02_13482799053_87ef417396.mov", "9@N0_1_no_extension.wmv"
    )
    entries = [
        {"annotation_id": index, "description": text, "video": names[video], "times": [[0, 0], [1, 1]],
         "dl_link": "https://x", "num_segments": 6}
        for index, (video, text) in enumerate([(0, "a dog. "), (1, "first"), (0, "it runs"), (2, "x"), (1, "second")])
    ]  # fmt: skip
    (annotations / "test_data.json").write_text(json.dumps(entries))
    _, records, remarks = build("didemo", annotations, "test", "whole")
    assert [(record.video_id, record.captions) for record in records] == [
        ("26292851@N04_4253489686_265c3c8051.mp4", ("a dog. it runs",)),
        ("12090392@N02_13482799053_87ef417396.mov", ("first second",)),
        ("9@N0_1_no_extension.wmv", ("x",)),
    ]
    assert "3 videos, and 1,004 are published" in remarks[1]
    read = read_dataset("didemo", annotations=annotations, videos=annotations.parent / "videos", split="test")
    assert [(row.start, row.end) for row in read.rows] == [(None, 30.0)] * 3, "by default what the annotators saw"


def test_lsmdc_has_no_header_quotes_are_text_and_ids_hold_dots(annotations, place):
    ids = ["3009_BATTLE_LOS_ANGELES_00.03.07.170-00.03.09.675", "1004_Juno_00.00.32.801-00.00.35.994"]
    place(f"3009_BATTLE_LOS_ANGELES/{ids[0]}.avi", f"1004_Juno/{ids[1]}.avi")
    lines = [
        f'{ids[0]}\t00.03.07.170\t00.03.09.675\t00.03.06.956\t00.03.09.000\tSOMEONE says, "Go.',
        f"{ids[1]}\t0\t1\t0\t1\tSOMEONE's look",
        f"{ids[0]}\t0\t1\t0\t1\tA second, of the same clip",
    ]
    (annotations / "LSMDC16_annos_training.csv").write_text("\n".join(lines) + "\n")
    _, records, remarks = build("lsmdc", annotations)
    assert [(record.video_id, record.captions) for record in records] == [
        (f"3009_BATTLE_LOS_ANGELES/{ids[0]}.avi", ('SOMEONE says, "Go.', "A second, of the same clip")),
        (f"1004_Juno/{ids[1]}.avi", ("SOMEONE's look",)),
    ]
    assert "101,079 are published" in remarks[-1]
    (annotations / "LSMDC16_annos_training.csv").write_text("\n".join([lines[0], "two\tcells"]))
    with pytest.raises(DataError, match=r"line 2 of '.*LSMDC16_annos_training.csv' has 2 cells, not 6"):
        build("lsmdc", annotations)


WEBVID_ROWS = [
    (
        "1066647457",
        "https://x/1",
        "PT00H00M10S",
        "100001_100050",
        "Travel blogger shoots a story, on top of mountains.",
    ),
    ("1066650133", "https://x/2", "PT00H00M10S", "100001_100050", ""),
    ("1063125190", "https://x/3", "PT00H00M10S", "000751_000800", 'Digital "chart" grows'),
]


@pytest.mark.parametrize("part", ["", "videos/", "part_3/"])
def test_webvid_videos_are_in_folders_of_pages_and_rows_without_a_name_are_listed(annotations, place, part):
    with (annotations / "results_2M_val.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("videoid", "contentUrl", "duration", "page_dir", "name"), *WEBVID_ROWS])
    place(*(f"{part}{row[3]}/{row[0]}.mp4" for row in WEBVID_ROWS))
    report, records, remarks = build("webvid", annotations, "val", "2M")
    assert [(record.video_id, record.captions) for record in records] == [
        (f"{part}100001_100050/1066647457.mp4", (WEBVID_ROWS[0][4],)),
        (f"{part}000751_000800/1063125190.mp4", (WEBVID_ROWS[2][4],)),
    ]
    assert report.rejected_by_reason == {"empty caption": 1}
    assert remarks == ("webvid 2M, split val: 3 videos, 2 captions (no published sizes)",)


def test_vidal_has_captions_of_several_sources(annotations, place):
    place("a/-EF5nKK8cgM.mp4", "b/Zz0.mp4")
    content = {
        "-EF5nKK8cgM": {
            "folder": "a", "raw": "my cat #cat #shorts", "mplug": "a cat", "polish_mplug": "A cat sits.",
            "ofa": [f"{index} cats" for index in range(8)], "sound_mplug": "a cat, purring",
        },
        "Zz0": {"folder": "b", "raw": "x", "mplug": None, "polish_mplug": "Two dogs.", "ofa": "one text"},
    }  # fmt: skip
    (annotations / "vidal_train.json").write_text(json.dumps(content))
    assert texts("vidal", annotations, "train") == [("a/-EF5nKK8cgM.mp4", "A cat sits."), ("b/Zz0.mp4", "Two dogs.")]
    assert texts("vidal", annotations, "train", "raw")[0] == ("a/-EF5nKK8cgM.mp4", "my cat #cat #shorts")
    report, records, _ = build("vidal", annotations, "train", "ofa")
    assert [len(record.captions) for record in records] == [8, 1]
    for record in records:
        assert_frames_are_those_of_the_clip(record)
    report, records, _ = build("vidal", annotations, "train", "mplug", overwrite=True)
    assert len(records) == 1 and report.rejected_by_reason == {"empty caption": 1}


def test_lavis_lists_of_every_task(annotations, place):
    place("video1.mp4", "sub/v.2.mp4", "77.webm")
    lists = {
        "retrieval_train": [{"video": "video1.mp4", "caption": "one"}, {"video": "sub/v.2", "caption": "two"}],
        "retrieval_val": [{"video": "video1.mp4", "caption": ["one", "other"]}],
        "cap_test": [{"video": "video1.mp4", "caption": "one", "image_id": 0}],
        "qa_dev": [{"video": "video1.mp4", "question": "what?", "answer": "it", "question_id": 0},
                   {"video": "sub/v.2.mp4", "question": "who?", "answer": ["she", "a woman"], "question_id": 1}],
        "umt_extra": [{"image": "video1.mp4", "caption": ["one", "two"]}],
        "webvid_more": [{"videoid": 77, "name": "a text"}],
    }  # fmt: skip
    for name, content in lists.items():
        (annotations / f"{name}.json").write_text(json.dumps(content))
    (annotations / "train_ans2label.json").write_text(json.dumps({"it": 0}))
    assert texts("lavis", annotations, "train") == [("video1.mp4", "one"), ("sub/v.2.mp4", "two")]
    assert texts("lavis", annotations, "val") == [("video1.mp4", "one"), ("video1.mp4", "other")]
    assert texts("lavis", annotations, "test") == [("video1.mp4", "one")]
    assert texts("lavis", annotations, "dev") == [
        ("video1.mp4", ("what?", "it")), ("sub/v.2.mp4", ("who?", "she")), ("sub/v.2.mp4", ("who?", "a woman")),
    ]  # fmt: skip
    assert texts("lavis", annotations, "extra") == [("video1.mp4", "one"), ("video1.mp4", "two")]
    assert texts("lavis", annotations, "more") == [("77.webm", "a text")]
    report, records, _ = build("lavis", annotations, "dev")
    assert [record.answers for record in records] == [("it",), ("she", "a woman")] and report.num_rejected == 0
    with pytest.raises(DataError, match=r"which one is split 'full'\? give it as --annotations FILE"):
        texts("lavis", annotations, "full")


def test_a_lone_file_is_taken_for_any_split_but_not_for_another_than_it_names(annotations, place):
    rows = [{"video": "a", "caption": "x"}]
    (annotations / "all.json").write_text(json.dumps(rows))
    assert texts("lavis", annotations, "test") == texts("lavis", annotations, "train") == [("a.mp4", "x")]
    (annotations / "all.json").rename(annotations / "msrvtt_train.json")
    assert texts("lavis", annotations, "train") == [("a.mp4", "x")]
    with pytest.raises(DataError, match=r"has msrvtt_train.json: which one is split 'test'"):
        texts("lavis", annotations, "test")


def test_folder_takes_any_caption_file_and_completes_its_names(annotations, place):
    place("a.webm", "b.mp4")
    (annotations / "mine_train.csv").write_text("video,caption\na,one\nb.avi,two\nc,three\n")
    report, records, _ = build("folder", annotations)
    assert [(record.video_id, record.captions) for record in records] == [("a.webm", ("one",)), ("b.mp4", ("two",))]
    assert report.rejected_by_reason == {"missing": 1}


@pytest.mark.parametrize(
    ("cleaning", "caption", "question"),
    [
        ("none", 'A man: "Go!"  (loudly) #tag; it\'s 3.5*2', "What is it (now)?"),
        ("lavis", "a man go loudly tag it's 3 5 2", "what is it now?"),
        ("stgt", "a man go loudly tag it's 3 5 2", "what is it now ?"),
    ],
)
def test_texts_are_cleaned_as_asked(annotations, place, cleaning, caption, question):
    place("a.mp4")
    rows = [
        {"video": "a.mp4", "caption": 'A man: "Go!"  (loudly) #tag; it\'s 3.5*2'},
        {"video": "a.mp4", "question": "What is it (now)?", "answer": "This"},
        {"video": "a.mp4", "caption": " ".join(["word"] * 60)},
    ]
    (annotations / "train.json").write_text(json.dumps(rows))
    _, (record,), _ = build("folder", annotations, clean_text=cleaning)
    assert record.captions[0] == caption and record.questions == (question,) and record.answers == ("This",)
    assert len(record.captions[1].split()) == (60 if cleaning == "none" else 50)
    (report,) = verify_shards(annotations.parent / "shards", num_workers=0, progress=False)
    assert not report.problems
    assert open_shards(annotations.parent / "shards", "train").settings.clean_text == cleaning


MISTAKES = {
    "video": ("lavis", "train.json", [{"caption": "x"}], r"entry 1 of '.*train.json' lacks 'video' \(found: caption\)"),
    "number": ("lavis", "train.json", [{"video": "a", "caption": 1.5}], r"'caption' must be text, not 1.5"),
    "surrogate": ("lavis", "train.json", [{"video": "a", "caption": "\ud800"}], "half of a surrogate pair"),
    "no list": ("lavis", "train.json", {"a": 1}, r"must be a list of objects"),
    "no object": ("lavis", "train.json", ["a"], r"entry 1 of '.*' must be an object"),
    "answer": ("lavis", "train.json", [{"video": "a", "question": "x"}], "lacks 'answer'"),
    "no rows": ("lavis", "train.json", [], "there is no row"),
    "vidal": ("vidal", "train.json", {"a": 1}, r"'a' in '.*' must be an object"),
    "sentences": ("msrvtt", "MSRVTT_data.json", {"videos": []}, "no MSRVTT_train.9k.csv in "),
    "columns": ("webvid", "results_10M_train.csv", "videoid,name\n1,x\n", r"lacks the column page_dir \(found"),
    "cells": ("webvid", "results_10M_train.csv", "videoid,page_dir,name\n1,2,3,4\n", "line 2 .* more cells"),
    "quote": ("webvid", "results_10M_train.csv", 'videoid,page_dir,name\n1,2,"x\n', "bad CSV in .*, line 2: the quote"),
    "encoding": ("lsmdc", "LSMDC16_annos_training.csv", b"a_1\t\xff", r"not UTF-8 text: line 1, byte 4 \(0xff\)"),
    "mapping": ("msvd qa", "youtube_mapping.txt", "one two three\n", "a line must be an id and a name"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake_in_an_annotation_file_is_named(annotations, place, name):
    dataset, file, content, message = MISTAKES[name]
    content = json.dumps(content) if not isinstance(content, str | bytes) else content
    (annotations / file).write_bytes(content.encode() if isinstance(content, str) else content)
    dataset, *variant = dataset.split()
    with pytest.raises(DataError, match=message) as error:
        texts(dataset, annotations, "train", *variant)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("seed", range(40))
def test_random_damage_to_annotation_files_ends_in_one_line_or_in_rows(annotations, place, seed):
    rng = np.random.default_rng(seed)
    write_msrvtt(annotations)
    (annotations / "test_list.txt").write_text("\n".join(MSVD_IDS))
    (annotations / "raw-captions.pkl").write_bytes(pickle.dumps({video: [["a", "b"]] for video in MSVD_IDS}))
    name, split, file = [
        ("msrvtt", "train_and_val", "MSRVTT_data.json"),
        ("msrvtt", "test", "MSRVTT_JSFUSION_test.csv"),
        ("msrvtt", "train", "MSRVTT_train.9k.csv"),
        ("msvd", "test", "raw-captions.pkl"),
    ][seed % 4]
    data = bytearray((annotations / file).read_bytes())
    for _ in range(3):
        data[int(rng.integers(len(data)))] = int(rng.integers(256))
    (annotations / file).write_bytes(data)
    message, rows = "", []
    try:
        rows = texts(name, annotations, split)
    except DataError as error:
        message = str(error)
    assert "\n" not in message and (rows or str(annotations) in message)
    assert all(isinstance(text, str) for row in rows for text in row)


def test_of_several_forms_of_a_video_the_usual_one_is_taken(annotations, place):
    place("video7010.webm", "video7010.avi", "video7010.mp4", "video7011.AVI")
    write_msrvtt(annotations)
    assert [video for video, _ in texts("msrvtt", annotations, "test")] == ["video7010.mp4", "video7011.AVI"]


def test_what_is_not_known_is_refused_with_what_is(annotations, place):
    with pytest.raises(DataError, match="unknown data set 'msrvt'; did you mean 'msrvtt'"):
        texts("msrvt", annotations, "train")
    with pytest.raises(DataError, match=r"--variant 9k: .* known: 1k-A, 7k, full, qa"):
        texts("msrvtt", annotations, "train", "9k")
    with pytest.raises(DataError, match="--split dev: msvd qa has no such split; known: train, val, test"):
        texts("msvd", annotations, "dev", "qa")
    with pytest.raises(DataError, match=r"no folder of videos '.*nowhere'; --videos"):
        texts("msvd", annotations, "test", folder="nowhere")
    shutil.rmtree(annotations)
    with pytest.raises(DataError, match=r"no file or folder '.*annotations'"):
        texts("msvd", annotations, "test")
    assert set(DATASETS) == {"webvid", "vidal", "msrvtt", "msvd", "didemo", "lsmdc", "lavis", "folder"}


def test_link_to_a_folder_above_is_not_followed_and_one_to_another_is(tmp_path: Path) -> None:
    videos, elsewhere = tmp_path / "videos", tmp_path / "elsewhere"
    for folder, name in ((videos / "a", "1.mp4"), (elsewhere, "2.mp4")):
        folder.mkdir(parents=True)
        (folder / name).touch()
    (videos / "a" / "up").symlink_to(videos)
    (videos / "b").symlink_to(elsewhere)
    assert [str(path.relative_to(videos)) for path in walk_videos(videos)] == ["a/1.mp4", "b/2.mp4"]


@pytest.mark.parametrize("name", ["../secret", "a/../../secret.mp4", "/etc/secret"])
def test_video_outside_of_the_folder_is_refused_by_name(tmp_path: Path, name: str) -> None:
    (tmp_path / "videos").mkdir()
    (tmp_path / "secret.mp4").touch()
    with pytest.raises(DataError, match=rf"'{name}' is not a video in '{tmp_path}/videos'; .*--videos"):
        VideoFiles(tmp_path / "videos").find(name)
    assert VideoFiles(tmp_path).find(str(tmp_path / "secret")) == str(tmp_path / "secret.mp4")
