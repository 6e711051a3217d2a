"""MSVD: 1,970 web videos with 18 to 81 captions each, and MSVD-QA (docs/data/msvd.md)."""

from typing import Any

from data_pipeline.captions import CaptionRow
from data_pipeline.datasets.annotation_files import (
    Entry,
    find_file,
    read_entries,
    read_entry,
    read_pickle,
    read_words,
)
from data_pipeline.datasets.dataset import Annotated, Counts, Dataset, Request
from data_pipeline.errors import DataError

RETRIEVAL = {
    "train": Counts(videos=1_200, captions=48_774),
    "val": Counts(videos=100, captions=4_290),
    "test": Counts(videos=670, captions=27_763),
}
QUESTIONS = {
    "train": Counts(videos=1_200, questions=30_933),
    "val": Counts(videos=250, questions=6_415),
    "test": Counts(videos=520, questions=13_157),
}


def read(request: Request) -> Annotated:
    """Reads a split. For retrieval every caption is a query of its own."""
    return _read_questions(request) if request.variant == "qa" else _read_captions(request)


def _read_captions(request: Request) -> Annotated:
    listed = read_words(find_file(request.annotations, f"{request.split}_list.txt"))
    path = find_file(request.annotations, "raw-captions.pkl", "raw-captions.json", "captions.json")
    if path.suffix == ".pkl":
        captions = Entry(f"'{path}'", _joined_words(read_pickle(path), f"'{path}'"))
    else:
        captions = read_entry(path)
    pairs = [
        (request.videos.find(video), text)
        for (video, *_) in listed
        for text in ((captions.has(video) and captions.texts(video)) or [""])
    ]
    rows = [CaptionRow(video, text, number=number) for number, (video, text) in enumerate(pairs, 1)]
    return Annotated(rows, RETRIEVAL[request.split])


def _joined_words(content: Any, place: str) -> dict[str, Any]:
    """Returns the captions of each video, which a pickle may hold as lists of words."""
    if not isinstance(content, dict):
        raise DataError(f"{place} must hold a dict of captions by video, not {content!r:.40}")
    joined: dict[str, Any] = {}
    for video, captions in content.items():
        listed = captions if isinstance(captions, list | tuple) else [captions]
        joined[video] = [" ".join(map(str, text)) if isinstance(text, list | tuple) else text for text in listed]
    return joined


def _read_questions(request: Request) -> Annotated:
    lines = read_words(path := find_file(request.annotations, "youtube_mapping.txt"))
    if wrong := next((line for line in lines if len(line) != 2), None):
        raise DataError(f"'{path}': a line must be an id and a name such as vid1, not {' '.join(wrong)!r:.60}")
    videos = {name: video for video, name in lines}  # vid1, vid2, ...
    rows = []
    path = find_file(request.annotations, f"{request.split}_qa.json", f"{request.split}_qa.jsonl")
    for number, entry in enumerate(read_entries(path), 1):
        name = entry.text("video_id")
        name = f"vid{name}" if name.isdigit() else name
        for answer in entry.texts("answer"):
            rows.append(CaptionRow(request.videos.find(videos.get(name, name)), "", question=entry.text("question"),
                                   answer=answer, number=number))  # fmt: skip
    return Annotated(rows, QUESTIONS[request.split])


DATASET = Dataset(read, {"retrieval": tuple(RETRIEVAL), "qa": tuple(QUESTIONS)})
