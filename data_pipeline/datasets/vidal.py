"""VIDAL: short web videos with captions from several sources (docs/data/vidal.md)."""

from data_pipeline.captions import CaptionRow
from data_pipeline.datasets.annotation_files import Entry, read_entry
from data_pipeline.datasets.dataset import Annotated, Dataset, Request
from data_pipeline.datasets.select_file import select_file
from data_pipeline.errors import DataError

FIELDS = ("polish_mplug", "mplug", "raw", "ofa", "sound_mplug")  # the variants: which text is the caption


def read(request: Request) -> Annotated:
    """Reads a split. The variant names the field that is the caption; `ofa` is eight captions of a video."""
    content = read_entry(path := select_file(request.annotations, request.split))
    rows = []
    for number, (video, values) in enumerate(content.values.items(), 1):
        if not isinstance(values, dict):
            raise DataError(f"'{video}' in '{path}' must be an object, not {values!r:.40}")
        entry = Entry(f"'{video}' in '{path}'", values)
        file = request.videos.find(video, entry.text("folder") if entry.has("folder") else "")
        texts = entry.texts(request.variant) if entry.has(request.variant) else [""]
        rows += [CaptionRow(file, text, number=number) for text in texts]
    return Annotated(rows)


DATASET = Dataset(read, dict.fromkeys(FIELDS, ()))
