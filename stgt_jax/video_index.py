"""The files of an index of videos: embeddings of clips, and which clip of which file each belongs to.

    INDEX/index.json           what made the embeddings, their shape, and the number N of the files below
         /embeddings-N.f16     float16 [rows, Q, E], row after row
         /files-N.jsonl        a line for each event: a file was added, could not be read, or was removed

A file's rows are written before its line, so an interrupted run loses at most the file that it was at. Rows that no
line names any more are dropped by `compact`, which writes new files and then replaces index.json.
"""

import bisect
import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stgt_jax.checks import parse_json
from stgt_jax.errors import STGTError

SCHEMA = 1
HEADER_NAME = "index.json"
_COPIED_ROWS = 4096  # rows that `compact` has in memory


@dataclass(frozen=True)
class IndexedFile:
    """A file of an index as it was when it was read."""

    path: str  # relative to the folder of videos
    size: int  # bytes
    mtime_ns: int  # when it was last changed
    row: int = 0  # of its first clip
    segments: tuple[tuple[float, float], ...] = ()  # of its clips: start and end, seconds
    reason: str = ""  # why it could not be read; then it has no clips


class VideoIndex:
    """An index on the disk.

    Args:
      folder: of the index.

    Raises:
      STGTError: there is no index, or it is damaged or of another version.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        file = self.folder / HEADER_NAME
        try:
            self.header: dict[str, Any] = parse_json(file.read_text())
        except OSError as error:
            raise STGTError(f"no index in '{folder}' ({error.strerror}); make one with `stgt index`") from error
        except ValueError as error:
            raise STGTError(f"'{file}' is damaged ({error}); delete the index and make it again") from error
        if isinstance(self.header, dict) and self.header.get("schema") != SCHEMA:
            raise STGTError(f"'{folder}' is an index of another version; delete it and make it again")
        if not _is_header(self.header):
            raise STGTError(f"'{file}' is damaged: it lacks a number or a shape; delete the index and make it again")
        self.files: dict[str, IndexedFile] = {}
        self._by_row: list[IndexedFile] | None = None  # those with clips, for `locate`
        self._num_rows = 0
        self._replay()

    @classmethod
    def create(
        cls, folder: str | os.PathLike[str], shape: tuple[int, int], made_with: Mapping[str, Any]
    ) -> "VideoIndex":
        """Makes an empty index for embeddings of the shape [Q, E]; `made_with` is kept in its header."""
        place = Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        if any(name for name in os.listdir(place) if name != "run.lock"):
            raise STGTError(f"'{folder}' holds other files and no index; name a new folder")
        (place / "embeddings-0.f16").touch()
        (place / "files-0.jsonl").touch()
        header = {"schema": SCHEMA, "number": 0, "shape": list(shape), **made_with}
        _write_whole(place / HEADER_NAME, json.dumps(header, indent=2) + "\n")
        return cls(folder)

    @property
    def num_clips(self) -> int:
        """Clips that can be found."""
        return sum(len(file.segments) for file in self.files.values())

    def embeddings(self) -> np.ndarray:
        """Returns all rows, those of removed files among them: float16 [rows, Q, E], read from the disk when used."""
        shape = (self._num_rows, *self.header["shape"])
        if not self._num_rows:
            return np.zeros(shape, np.float16)
        return np.memmap(self._embeddings, np.float16, "r", shape=shape)

    def locate(self, row: int) -> tuple[IndexedFile, tuple[float, float]] | None:
        """Returns the file and the times of a row, or None for a row of a file that was removed or replaced."""
        if self._by_row is None:
            self._by_row = sorted((file for file in self.files.values() if file.segments), key=lambda file: file.row)
        place = bisect.bisect_right(self._by_row, row, key=lambda file: file.row) - 1
        if place < 0 or row >= self._by_row[place].row + len(self._by_row[place].segments):
            return None
        file = self._by_row[place]
        return file, file.segments[row - file.row]

    def set_header(self, **values: Any) -> None:
        """Changes what the header says besides the embeddings."""
        self.header |= values
        _write_whole(self.folder / HEADER_NAME, json.dumps(self.header, indent=2) + "\n")

    def add(self, file: IndexedFile, embeddings: np.ndarray) -> None:
        """Adds a file with its embeddings [clips, Q, E], or with none one that cannot be read; it replaces an entry."""
        if len(embeddings) != len(file.segments) or embeddings.shape[1:] != tuple(self.header["shape"]):
            raise ValueError(f"embeddings of shape {embeddings.shape} for {len(file.segments)} clips")
        file = dataclasses.replace(file, row=self._num_rows)
        with self._embeddings.open("r+b") as stream:
            stream.seek(self._num_rows * self._row_bytes)
            stream.truncate()  # what an interrupted run wrote of a file
            stream.write(np.ascontiguousarray(embeddings, np.float16).tobytes())
            stream.flush()
            os.fsync(stream.fileno())
        self._append(dataclasses.asdict(file))
        self.files[file.path], self._by_row = file, None
        self._num_rows += len(embeddings)

    def remove(self, path: str) -> None:
        """Removes a file."""
        self._append({"removed": path})
        del self.files[path]
        self._by_row = None

    def compact(self) -> None:
        """Drops rows that no file has any more."""
        if self.num_clips == self._num_rows:
            return
        number, old, rows = self.header["number"] + 1, self.embeddings(), 0
        lines = []
        with (self.folder / f"embeddings-{number}.f16").open("wb") as stream:
            for file in self.files.values():
                for start in range(0, len(file.segments), _COPIED_ROWS):
                    end = min(start + _COPIED_ROWS, len(file.segments))
                    stream.write(old[file.row + start : file.row + end].tobytes())
                lines.append(json.dumps(dataclasses.asdict(dataclasses.replace(file, row=rows))))
                rows += len(file.segments)
        (self.folder / f"files-{number}.jsonl").write_text("".join(f"{line}\n" for line in lines))
        before = self._embeddings, self._journal
        self.set_header(number=number)
        del old
        for path in before:
            path.unlink()
        self.files, self._by_row, self._num_rows = {}, None, 0
        self._replay()

    @property
    def _embeddings(self) -> Path:
        return self.folder / f"embeddings-{self.header['number']}.f16"

    @property
    def _journal(self) -> Path:
        return self.folder / f"files-{self.header['number']}.jsonl"

    @property
    def _row_bytes(self) -> int:
        queries, width = self.header["shape"]
        return 2 * queries * width

    def _append(self, event: Mapping[str, Any]) -> None:
        with self._journal.open("a") as stream:
            stream.write(json.dumps(event) + "\n")
            stream.flush()
            os.fsync(stream.fileno())

    def _replay(self) -> None:
        """Reads the events. An incomplete last line, of an interrupted run, is cut off."""
        try:
            text = self._journal.read_bytes().decode()
            held = self._embeddings.stat().st_size // self._row_bytes
        except (OSError, UnicodeDecodeError) as error:
            raise STGTError(
                f"the index in '{self.folder}' is damaged ({error}); delete it and make it again"
            ) from error
        whole = text[: text.rfind("\n") + 1]
        if whole != text and os.access(self._journal, os.W_OK):
            self._journal.write_text(whole)
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                self._apply(parse_json(line))
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                raise STGTError(
                    f"'{self._journal}', line {number} is damaged ({error}); delete the index and make it again"
                ) from error
        if self._num_rows > held:
            raise STGTError(
                f"'{self._embeddings}' holds {held} of {self._num_rows} rows; it is damaged: delete the index and make"
                " it again"
            )

    def _apply(self, event: Mapping[str, Any]) -> None:
        if "removed" in event:
            del self.files[event["removed"]]
            return
        file = IndexedFile(**{**event, "segments": tuple(map(_times, event["segments"]))})
        if not isinstance(file.path, str) or not isinstance(file.row, int) or file.row < 0:
            raise TypeError("it needs a path and a row")
        self.files[file.path] = file
        self._num_rows = max(self._num_rows, file.row + len(file.segments))


def _is_header(header: Any) -> bool:
    """Whether it has what the names and sizes of the other files follow from."""
    match header:
        case {"number": int(number), "shape": [int(queries), int(width)]}:
            return number >= 0 and queries > 0 and width > 0
    return False


def _times(values: Sequence[float]) -> tuple[float, float]:
    start, end = values
    return float(start), float(end)


def _write_whole(file: Path, text: str) -> None:
    partial = file.with_name(f"{file.name}.partial")
    partial.write_text(text)
    partial.replace(file)
