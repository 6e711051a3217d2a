"""What the modules of data sets have in common: what they are asked for, and what they return."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.captions import CaptionRow
from data_pipeline.datasets.video_files import VideoFiles


@dataclass(frozen=True)
class Counts:
    """Sizes of a split. None: not published."""

    videos: int | None = None
    captions: int | None = None
    questions: int | None = None


@dataclass(frozen=True)
class Request:
    """Where the files of a data set are, and which part of it is wanted."""

    annotations: Path  # folder of the annotation files; for some data sets it may be the file itself
    videos: VideoFiles
    split: str
    variant: str  # one of the data set's variants


@dataclass(frozen=True)
class Annotated:
    """The rows of a split, their videos relative to the folder of videos, and its published sizes."""

    rows: list[CaptionRow]
    published: Counts = Counts()


@dataclass(frozen=True)
class Dataset:
    """A data set.

    Attributes:
      read: reads the rows of a split. Raises DataError for a file that is missing or not as it should be.
      splits: of each variant, the first being the usual one; no names where the user names the splits.
    """

    read: Callable[[Request], Annotated]
    splits: Mapping[str, tuple[str, ...]]


def count(rows: list[CaptionRow]) -> Counts:
    """Returns the sizes of a split."""
    return Counts(
        videos=len({(row.video, row.start, row.end) for row in rows}),
        captions=sum(bool(row.caption) for row in rows),
        questions=len({row.number for row in rows if row.question}),
    )
