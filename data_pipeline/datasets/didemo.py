"""DiDeMo: 10,000 videos with several descriptions of moments, joined to one paragraph (docs/data/didemo.md)."""

from data_pipeline.captions import CaptionRow
from data_pipeline.datasets.annotation_files import find_file, read_entries
from data_pipeline.datasets.dataset import Annotated, Counts, Dataset, Request

NUM_VIDEOS = {"train": 8_395, "val": 1_065, "test": 1_004}
ANNOTATED_SECONDS = 30.0  # six moments of 5 s: only this part was shown to those who described the videos


def read(request: Request) -> Annotated:
    """Reads a split: for each video one caption, its descriptions joined by blanks in the order of the file."""
    descriptions: dict[str, list[str]] = {}
    for entry in read_entries(find_file(request.annotations, f"{request.split}_data.json")):
        descriptions.setdefault(entry.text("video"), []).append(entry.text("description"))
    end = ANNOTATED_SECONDS if request.variant == "first-30s" else None
    rows = [
        CaptionRow(request.videos.find(video), " ".join(texts).strip(), end=end, number=number)
        for number, (video, texts) in enumerate(descriptions.items(), 1)
    ]
    num_videos = NUM_VIDEOS[request.split]
    return Annotated(rows, Counts(videos=num_videos, captions=num_videos))


DATASET = Dataset(read, {"first-30s": tuple(NUM_VIDEOS), "whole": tuple(NUM_VIDEOS)})
