"""MSR-VTT: 10,000 web videos of 10 to 30 s with 20 captions each, and MSRVTT-QA (docs/data/msrvtt.md)."""

import hashlib

from data_pipeline.captions import CaptionRow
from data_pipeline.datasets.annotation_files import Entry, find_file, read_entries, read_entry, read_rows
from data_pipeline.datasets.dataset import Annotated, Counts, Dataset, Request

NUM_HELD_OUT = 500  # training videos of the variants 1k-A and 7k that are their split val
TRAIN_LISTS = {"1k-A": ("MSRVTT_train.9k.csv", 9_000), "7k": ("MSRVTT_train.7k.csv", 7_010)}  # file, videos
CAPTIONS_A_VIDEO = 20
FULL = {  # split -> its names in the files, videos, questions of MSRVTT-QA
    "train": (("train",), 6_513, 158_581),
    "val": (("validate", "val"), 497, 12_278),
    "test": (("test",), 2_990, 72_821),
}


def read(request: Request) -> Annotated:
    """Reads a split.

    The variants 1k-A and 7k have no validation videos of their own. Their split val is a part of the training videos,
    always the same one, and train is the rest; train_and_val is all that was published for training.
    """
    if request.variant == "qa":
        return _read_questions(request)
    if request.variant == "full":
        return _read_full(request)
    return _read_test(request) if request.split == "test" else _read_train(request)


def _read_test(request: Request) -> Annotated:
    table = read_rows(find_file(request.annotations, "MSRVTT_JSFUSION_test.csv"), "video_id", "sentence")
    rows = [
        CaptionRow(request.videos.find(entry.text("video_id")), entry.text("sentence"), number=number)
        for number, entry in enumerate(table, 1)
    ]
    return Annotated(rows, Counts(videos=1_000, captions=1_000))


def _read_train(request: Request) -> Annotated:
    name, num_videos = TRAIN_LISTS[request.variant]
    listed = [entry.text("video_id") for entry in read_rows(find_file(request.annotations, name), "video_id")]
    held_out = set(sorted(set(listed), key=_held_out_order)[:NUM_HELD_OUT])
    wanted, num_videos = {
        "train": ([video for video in listed if video not in held_out], num_videos - NUM_HELD_OUT),
        "val": ([video for video in listed if video in held_out], NUM_HELD_OUT),
        "train_and_val": (listed, num_videos),
    }[request.split]
    sentences = read_entry(find_file(request.annotations, "MSRVTT_data.json")).entries("sentences")
    return _join(request, wanted, list(sentences), num_videos)


def _held_out_order(video: str) -> bytes:
    """Sorts the videos at random: the first ones are held out. A hash gives the same order on every machine."""
    return hashlib.sha256(f"held out of MSR-VTT: {video}".encode()).digest()


def _read_full(request: Request) -> Annotated:
    name = "test_videodatainfo.json" if request.split == "test" else "train_val_videodatainfo.json"
    content = read_entry(find_file(request.annotations, name, "MSRVTT_data.json"))
    names, num_videos, _ = FULL[request.split]
    wanted = [video.text("video_id") for video in content.entries("videos") if video.text("split") in names]
    return _join(request, wanted, list(content.entries("sentences")), num_videos)


def _join(request: Request, wanted: list[str], sentences: list[Entry], num_videos: int) -> Annotated:
    """Returns the captions of the wanted videos; one without any stays as a row without a caption."""
    captions: dict[str, list[str]] = {video: [] for video in wanted}
    for entry in sentences:
        if (video := entry.text("video_id")) in captions:
            captions[video].append(entry.text("caption"))
    pairs = [(request.videos.find(video), text) for video, texts in captions.items() for text in texts or [""]]
    rows = [CaptionRow(video, text, number=number) for number, (video, text) in enumerate(pairs, 1)]
    return Annotated(rows, Counts(videos=num_videos, captions=num_videos * CAPTIONS_A_VIDEO))


def _read_questions(request: Request) -> Annotated:
    split = request.split
    path = find_file(request.annotations, f"{split}_qa.json", f"{split}_qa.jsonl", f"{split}.jsonl")
    rows = []
    for number, entry in enumerate(read_entries(path), 1):
        video = entry.text("video_id")  # a number, or the whole name in the .jsonl form
        name = f"video{video}" if video.isdigit() else video
        for answer in entry.texts("answer"):
            rows.append(CaptionRow(request.videos.find(name), "", question=entry.text("question"), answer=answer,
                                   number=number))  # fmt: skip
    _, num_videos, num_questions = FULL[split]
    return Annotated(rows, Counts(videos=num_videos, questions=num_questions))


_SPLITS = ("train", "val", "train_and_val", "test")
DATASET = Dataset(read, {"1k-A": _SPLITS, "7k": _SPLITS, "full": tuple(FULL), "qa": tuple(FULL)})
