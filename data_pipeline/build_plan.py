"""What a build will do: the videos of a split in their order, divided into shards before anything is read.

The division depends on the caption file and the settings alone. So an interrupted build can go on, and any number of
workers writes the same files.
"""

import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Sequence

from data_pipeline.captions import CaptionedVideos, CaptionRow
from data_pipeline.config import TextCleaning
from data_pipeline.errors import DataError
from data_pipeline.shard_writer import SHARD_BYTES
from data_pipeline.shards import ShardSettings
from data_pipeline.text_cleaning import clean_caption, clean_question

# Of a pixel: measured on films and web videos at quality 90; raw frames have 3, of which compression leaves about 2.9.
_JPEG_BYTES, _RAW_BYTES = 0.3, 2.9
_USUAL_ASPECT = 16 / 9  # of frames that keep theirs


@dataclasses.dataclass(frozen=True, slots=True)
class Video:
    """A video, or a segment of one, and the rows of the caption file about it."""

    name: str
    start: float | None
    end: float | None
    group: str
    rows: tuple[CaptionRow, ...]

    @property
    def id(self) -> str:
        """The name; of a segment with a media fragment, as in web addresses."""
        return self.name + self.segment

    @property
    def segment(self) -> str:
        """The media fragment, empty for a whole video."""
        if self.start is None and self.end is None:
            return ""
        return f"#t={self.start or 0:g}" + ("" if self.end is None else f",{self.end:g}")


@dataclasses.dataclass(frozen=True)
class ShardPlan:
    """What to write to one file of records."""

    split: str
    number: int
    videos: tuple[Video, ...]
    settings: ShardSettings
    plan_sha256: str

    def to_json(self) -> str:
        """Returns it as JSON, for workers elsewhere."""
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> "ShardPlan":
        """Returns what `to_json` wrote."""
        content = json.loads(text)
        videos = (
            Video(**{**video, "rows": tuple(CaptionRow(**row) for row in video["rows"])}) for video in content["videos"]
        )
        return cls(**{**content, "videos": tuple(videos), "settings": ShardSettings.from_dict(content["settings"])})


@dataclasses.dataclass(frozen=True)
class BuildPlan:
    """What to write to a split."""

    split: str
    videos: tuple[Video, ...]
    max_damage: float
    settings: ShardSettings
    shard_length: int  # videos

    @property
    def num_shards(self) -> int:
        """The number of shards."""
        return math.ceil(len(self.videos) / self.shard_length)

    def shard(self, number: int) -> ShardPlan:
        """Returns the plan of one shard."""
        videos = self.videos[number * self.shard_length : (number + 1) * self.shard_length]
        return ShardPlan(self.split, number, videos, self.settings, self.sha256)

    @functools.cached_property
    def rows_sha256(self) -> str:
        """The hash of the rows, the settings and the division."""
        digest = hashlib.sha256()
        head = [self.split, self.shard_length, dataclasses.asdict(self.settings)]
        for part in (head, *map(dataclasses.asdict, self.videos)):
            digest.update(json.dumps(part, sort_keys=True).encode() + b"\n")
        return digest.hexdigest()

    @property
    def sha256(self) -> str:
        """The hash of all that decides what the shards hold, but for the videos themselves."""
        return hashlib.sha256(f"{self.rows_sha256} {self.max_damage}".encode()).hexdigest()


def clean_rows(rows: Sequence[CaptionRow], cleaning: TextCleaning) -> list[CaptionRow]:
    """Returns the rows with their texts cleaned."""
    if cleaning == "none":
        return list(rows)
    return [
        dataclasses.replace(
            row, caption=clean_caption(row.caption, cleaning), question=clean_question(row.question, cleaning)
        )
        for row in rows
    ]


def group_rows(captions: CaptionedVideos) -> tuple[Video, ...]:
    """Returns the videos in the order in which they first occur, each with its rows.

    Raises:
      DataError: a video is in two groups.
    """
    found: dict[tuple[str, float | None, float | None], list[CaptionRow]] = {}
    for row in captions.rows:
        found.setdefault((row.video, row.start, row.end), []).append(row)
    videos = []
    for key, same in found.items():
        groups = list(dict.fromkeys(row.group for row in same if row.group))
        if len(groups) > 1:
            raise DataError(
                f"{captions.source}: the rows of video '{same[0].video}' name the groups '{groups[0]}' and"
                f" '{groups[1]}'; a video belongs to one group"
            )
        videos.append(Video(*key, groups[0] if groups else "", tuple(same)))
    return tuple(videos)


def usual_shard_length(settings: ShardSettings) -> int:
    """Returns the number of videos whose records have about SHARD_BYTES."""
    width = settings.resize * (1 if settings.frame_shape == "stretch" else _USUAL_ASPECT)
    pixels = settings.num_kept_frames * settings.resize * width
    return max(1, int(SHARD_BYTES / (pixels * (_RAW_BYTES if settings.encoding == "raw" else _JPEG_BYTES))))
