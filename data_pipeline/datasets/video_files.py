"""Finds the file of a video that an annotation names by an id, by a name without extension or with another one."""

import os
from collections.abc import Iterator
from pathlib import Path

from etils import epath

from data_pipeline.errors import DataError
from stgt_jax.checks import in_bucket

# The first one is taken where a folder holds a video in several forms.
SUFFIXES = (
    ".mp4", ".webm", ".mkv", ".avi", ".mov", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".3gp", ".3g2", ".mts", ".m2ts",
    ".ts", ".ogv", ".vob",
)  # fmt: skip


def walk_videos(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields the video files under a folder, in order, known by their extensions. Links to folders are followed."""
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not _leads_back(parent, name))
        for name in sorted(names):
            path = Path(parent, name)
            if _suffix(name) in SUFFIXES and path.is_file():
                yield path


class VideoFiles:
    """The videos under a folder. Each of its folders is listed once, when it is needed.

    Args:
      folder: of the videos.

    Raises:
      DataError: there is no such folder.
    """

    def __init__(self, folder: Path | epath.Path) -> None:
        if not folder.is_dir():
            raise DataError(f"no folder of videos '{folder}'; --videos names it")
        self.folder = folder
        self._by_stem: dict[str, dict[str, str]] = {}  # folder -> stem -> name of the file

    def find(self, name: str, inside: str = "") -> str:
        """Returns the path of a video relative to the folder.

        Ids may hold dots, so only a known extension of a video is ever taken for one.

        Args:
          name: name of the file; also without its extension, or with that of another form of the video.
          inside: the folder that it is in, relative to the folder of videos.

        Returns:
          The path of a file, or, if there is none, the path where it was expected.
        """
        path = os.path.join(inside, name)
        if not name:
            return ""
        top = os.path.normpath(self.folder)
        if os.path.commonpath([top, os.path.normpath(os.path.join(top, path))]) != top:
            raise DataError(
                f"'{path:.200}' is not a video in '{self.folder}'; if another folder is meant, give it with --videos"
            )
        if not in_bucket(self.folder) and os.path.isfile(self.folder / path):
            return path
        parent, base = os.path.split(path)
        files = self._list(parent)  # also in a bucket, where asking for each file takes long
        if base in files.values():
            return path
        stem = _stem(base)
        found = files.get(base) or files.get(stem)
        return os.path.join(parent, found or (base if stem != base else f"{base}{SUFFIXES[0]}"))

    def has_folder(self, inside: str) -> bool:
        """Whether there is a folder of this name in the folder of videos."""
        place = self.folder / inside
        return place.is_dir() if in_bucket(place) else os.path.isdir(place)  # which a name that is too long is not

    def _list(self, inside: str) -> dict[str, str]:
        if inside not in self._by_stem:
            names = []
            if self.has_folder(inside):
                listed = [path.name for path in (self.folder / inside).iterdir()]
                names = [name for name in listed if _stem(name) != name]
            by_preference = sorted(names, key=lambda name: (SUFFIXES.index(_suffix(name)), name), reverse=True)
            self._by_stem[inside] = {_stem(name): name for name in by_preference}
        return self._by_stem[inside]


def _leads_back(parent: str, name: str) -> bool:
    """Whether a folder is a link to one that it is in, which would lead round and round."""
    place = os.path.join(parent, name)
    if not os.path.islink(place):
        return False
    target = os.path.realpath(place)
    return os.path.commonpath([target, os.path.realpath(parent)]) == target


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _stem(name: str) -> str:
    return os.path.splitext(name)[0] if _suffix(name) in SUFFIXES else name
