"""LSMDC: clips of films with a sentence each (docs/data/lsmdc.md)."""

from data_pipeline.captions import CaptionRow
from data_pipeline.datasets.annotation_files import find_file
from data_pipeline.datasets.dataset import Annotated, Counts, Dataset, Request
from data_pipeline.errors import DataError
from data_pipeline.text_files import read_lines

FILES = {  # split -> file, captions
    "train": ("LSMDC16_annos_training.csv", 101_079),
    "val": ("LSMDC16_annos_val.csv", 7_408),
    "test": ("LSMDC16_challenge_1000_publictect.csv", 1_000),
}
NUM_CELLS = 6  # id, start and end aligned, start and end extracted, sentence


def read(request: Request) -> Annotated:
    """Reads a split. A clip is in the folder of its film; ids hold dots, and quotes are part of the text."""
    name, num_captions = FILES[request.split]
    rows = []
    for number, line in enumerate(read_lines(path := find_file(request.annotations, name)), 1):
        if not line.strip():
            continue
        cells = line.rstrip("\r\n").split("\t")
        if len(cells) != NUM_CELLS:
            raise DataError(f"line {number} of '{path}' has {len(cells)} cells, not {NUM_CELLS} separated by tabs")
        clip = cells[0].strip()
        video = request.videos.find(clip, clip.rpartition("_")[0])
        rows.append(CaptionRow(video, cells[-1].strip(), number=number))
    return Annotated(rows, Counts(captions=num_captions))


DATASET = Dataset(read, {"": tuple(FILES)})
