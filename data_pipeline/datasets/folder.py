"""Any folder of videos with a caption file of this project's form (docs/data.md)."""

import dataclasses

from data_pipeline.captions import read_captions
from data_pipeline.datasets.dataset import Annotated, Dataset, Request
from data_pipeline.datasets.select_file import select_file


def read(request: Request) -> Annotated:
    """Reads a caption file whose videos may lack their extension, and may be in another folder."""
    rows = read_captions(select_file(request.annotations, request.split, (".csv", ".json")))
    return Annotated([dataclasses.replace(row, video=request.videos.find(row.video)) for row in rows])


DATASET = Dataset(read, {"": ()})
