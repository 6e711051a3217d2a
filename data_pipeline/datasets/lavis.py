"""Lists in the JSON form of LAVIS, which STGT, Singularity and UMT read too (docs/data/lavis.md)."""

from data_pipeline.captions import CaptionRow
from data_pipeline.datasets.annotation_files import Entry, read_entries
from data_pipeline.datasets.dataset import Annotated, Dataset, Request
from data_pipeline.datasets.select_file import select_file
from data_pipeline.errors import DataError

VIDEO_FIELDS = ("video", "image", "videoid")  # LAVIS and STGT; Singularity, for videos too; LAVIS's WebVid
CAPTION_FIELDS = ("caption", "name")  # all; LAVIS's WebVid


def read(request: Request) -> Annotated:
    """Reads a split of any task: a caption or a list of them, or a question with an answer or a list of them."""
    rows = []
    for number, entry in enumerate(read_entries(select_file(request.annotations, request.split)), 1):
        video = request.videos.find(entry.text(_field(entry, VIDEO_FIELDS)))
        if entry.has("question"):
            question = entry.text("question")
            rows += [
                CaptionRow(video, "", question=question, answer=answer, number=number)
                for answer in entry.texts("answer")
            ]
        else:
            rows += [
                CaptionRow(video, caption, number=number) for caption in entry.texts(_field(entry, CAPTION_FIELDS))
            ]
    return Annotated(rows)


def _field(entry: Entry, names: tuple[str, ...]) -> str:
    for name in names:
        if entry.has(name):
            return name
    raise DataError(f"{entry.place} lacks '{names[0]}' (found: {', '.join(map(str, entry.values)) or 'nothing'})")


DATASET = Dataset(read, {"": ()})
