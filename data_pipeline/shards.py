"""The shard set on disk: a TFDS ArrayRecord data set per split, and random access to its records.

A record is one video with all its captions, and with questions and answers about it.

A shard set is a folder with `vocab.txt` and a folder for each split (`train/`, `test/`, ...). A split's folder holds
the ArrayRecord files, the metadata of TFDS, `index.npy` (what the order of an epoch needs to know of each record), and
`manifest.json`. The manifest has the settings of the build, a hash of all records, and the size of every file, so a
missing or truncated file is found on opening and not in the middle of an epoch. A shard set is written to a local
folder. It is read from there or, after copying, from Google Cloud Storage.
"""

import dataclasses
import functools
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from data_pipeline.config import FrameShape, StoredEncoding, TextCleaning
from data_pipeline.errors import DataError
from data_pipeline.stored_frames import StoredFrames
from stgt_jax.checks import in_bucket, parse_json

VOCAB_NAME = "vocab.txt"
MANIFEST_NAME = "manifest.json"
INDEX_NAME = "index.npy"
INDEX_TYPE = np.dtype([("num_captions", "<i4"), ("video_key", "<i8")])  # of the array [videos] in that file
SCHEMA = 3  # version of the records; 1 had one record for each caption, 2 no video_key
DATASET_NAME, DATASET_VERSION = "videos", f"{SCHEMA}.0.0"
_TEXT_LISTS = ("captions", "questions", "answers")


@dataclasses.dataclass(frozen=True)
class TokenSettings:
    """Which vision encoder made the tokens of a split, and what they are like."""

    vision_fingerprint: str  # of its weights
    image_size: int  # pixels of the frames that it saw
    dtype: str  # in which it computed; tokens are stored as bfloat16
    tokens_per_frame: int  # L
    width: int  # D


@dataclasses.dataclass(frozen=True)
class ShardSettings:
    """What all records of a split have in common; their token ids belong to the vocabulary with this hash."""

    num_kept_frames: int  # K
    resize: int  # pixels: the short side of the frames, or both sides
    frame_shape: FrameShape  # whether the frames keep their aspect or are stretched to a square
    encoding: StoredEncoding  # of the frames
    jpeg_quality: int | None  # 1 to 100; None for raw frames
    max_text_length: int  # S
    vocab_sha256: str
    clean_text: TextCleaning = "none"  # how captions and questions were cleaned
    tokens: TokenSettings | None = None  # for the encoding "tokens"

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "ShardSettings":
        """Returns what `dataclasses.asdict` turned into a dict."""
        tokens = values.get("tokens")
        return cls(**{**values, "tokens": tokens and TokenSettings(**tokens)})


@dataclasses.dataclass(frozen=True)
class VideoRecord:
    """One video with its C captions, and with Q questions and answers."""

    video_id: str  # the path in the caption file; of a segment with "#t=START,END" behind it
    video_key: int  # below 2^63; the same for the same file, or the same segment of it, under any name in any shard set
    group: str  # videos of one group differ only in the order in which things happen; empty for no group
    frames: StoredFrames  # K frames
    frame_numbers: np.ndarray  # int32 [K], which frames of the video they are
    num_frames: int  # n, of the video
    captions: tuple[str, ...]
    input_ids: np.ndarray  # int32 [C, S]
    attention_mask: np.ndarray  # int32 [C, S]
    questions: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()  # Q, one for each question


def hash_file(path: str | Path) -> str:
    """Returns the SHA-256 of a file, in hexadecimal."""
    with epath.Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@functools.cache  # TFDS keeps each of them for ever
def features_of(settings: ShardSettings) -> tfds.features.FeaturesDict:
    """The fields of `VideoRecord`. Raw frames are plain bytes: ArrayRecord compresses them, faster than zlib."""
    num_kept, length = settings.num_kept_frames, settings.max_text_length
    texts = tfds.features.Tensor(shape=(None,), dtype=np.object_)
    tokens = tfds.features.Tensor(shape=(None, length), dtype=np.int32)
    frames = tfds.features.Tensor(shape=(num_kept,), dtype=np.object_)  # JPEG files
    if settings.encoding == "raw":
        frames = tfds.features.Tensor(shape=(num_kept, None, None, 3), dtype=np.uint8, encoding="bytes")
    elif settings.tokens:
        shape = (num_kept, settings.tokens.tokens_per_frame, settings.tokens.width)
        frames = tfds.features.Tensor(shape=shape, dtype=np.uint16, encoding="bytes")  # the bits of bfloat16
    return tfds.features.FeaturesDict(
        {
            "video_id": tfds.features.Text(),
            "video_key": tfds.features.Scalar(dtype=np.int64),
            "group": tfds.features.Text(),
            "frames": frames,
            "frame_numbers": tfds.features.Tensor(shape=(num_kept,), dtype=np.int32),
            "num_frames": tfds.features.Scalar(dtype=np.int32),
            "captions": texts,
            "input_ids": tokens,
            "attention_mask": tokens,
            "questions": texts,
            "answers": texts,
        }
    )


def to_example(record: VideoRecord) -> dict[str, Any]:
    """Returns a record as TFDS writes it."""
    values = {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}
    texts = {name: np.array([text.encode() for text in values[name]], object) for name in _TEXT_LISTS}
    stored, encoding = record.frames.stored, record.frames.encoding
    as_written = {"raw": lambda: stored, "jpeg": lambda: np.array(stored, object), "tokens": lambda: stored.view("u2")}
    return values | texts | {"frames": as_written[encoding]()}


def _from_example(example: dict[str, Any], encoding: StoredEncoding) -> VideoRecord:
    texts = {name: tuple(text.decode() for text in example[name]) for name in _TEXT_LISTS}
    names = {name: example[name].decode() for name in ("video_id", "group")}
    stored = example["frames"].view(ml_dtypes.bfloat16) if encoding == "tokens" else example["frames"]
    frames = StoredFrames(stored, encoding)
    numbers = {name: int(example[name]) for name in ("video_key", "num_frames")}
    return VideoRecord(**{**example, **texts, **names, **numbers, "frames": frames})


def hash_record(record: VideoRecord) -> bytes:
    """Returns the SHA-256 of all that a record holds."""
    digest = hashlib.sha256()
    for name, value in sorted(to_example(record).items()):
        parts = list(value) if isinstance(value, np.ndarray) and value.dtype == object else [value]
        digest.update(f"{name} {len(parts)} ".encode())
        for part in parts:
            data = part.encode() if isinstance(part, str) else part
            data = data if isinstance(data, bytes) else np.ascontiguousarray(data).tobytes()
            digest.update(len(data).to_bytes(8, "little") + data)
    return digest.digest()


def is_shard(name: str) -> bool:
    """Whether a file of that name holds records."""
    return ".array_record" in name


def hash_manifest(manifest: dict[str, Any]) -> str:
    """Returns the SHA-256 of what a manifest says, in hexadecimal."""
    content = {name: value for name, value in manifest.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def list_splits(shards: str | os.PathLike[str]) -> list[str]:
    """Returns the splits of the shard set in the folder `shards`; none if there is no such folder."""
    folder = epath.Path(shards)
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    # A hidden folder is an unfinished build.
    return sorted(name for name in names if not name.startswith(".") and (folder / name / MANIFEST_NAME).exists())


def _read_settings(manifest: dict[str, Any]) -> ShardSettings | None:
    """Returns the settings in a manifest; None for records of another version."""
    return ShardSettings.from_dict(manifest["settings"]) if manifest.get("schema", 1) == SCHEMA else None


def _check_form(manifest: dict[str, Any]) -> None:
    """Raises ValueError, KeyError or TypeError where a manifest lacks what is read of it, or has it in another form."""
    needed = [(manifest, {"num_videos": int, "num_captions": int, "records_sha256": str, "files": dict})]
    needed += [(described, {"bytes": int, "sha256": str}) for described in manifest["files"].values()]
    for values, kinds in needed:
        for name, kind in kinds.items():
            if not isinstance(values[name], kind):
                raise ValueError(f"{name} is {values[name]!r}")


def _check_split(shards: epath.Path, split: str) -> dict[str, Any]:
    """Returns the split's manifest after checking its files and that it belongs to the shard set's vocabulary."""
    if in_bucket(shards) and not os.fspath(shards).startswith("gs://"):
        raise DataError(
            f"shard set '{shards}': ArrayRecord reads only local folders and gs://; mount that bucket as a folder, or"
            " copy the shard set"
        )
    known = list_splits(shards)
    if not known:
        raise DataError(f"no shard set in '{shards}': build one with `stgt data build`")
    if split not in known:
        raise DataError(f"no split '{split}' in shard set '{shards}'; known: {', '.join(known)}")
    folder, rebuild = shards / split, f"rebuild split '{split}'"
    try:
        manifest = parse_json((folder / MANIFEST_NAME).read_text())
        schema = manifest.get("schema", 1)
        if schema == SCHEMA and manifest["sha256"] != hash_manifest(manifest):
            raise ValueError("it was changed")
        settings, files = _read_settings(manifest), manifest["files"]
        if settings is not None:
            _check_form(manifest)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"shard set file '{folder / MANIFEST_NAME}' cannot be read: {rebuild}") from error
    if settings is None:
        raise DataError(
            f"shard set '{folder}' has records of version {schema}, and this is for version {SCHEMA}; build it again"
            " with `stgt data build` and --overwrite"
        )
    present = {path.name for path in folder.iterdir()}  # one listing: in a bucket, each question takes long
    for name, described in files.items():
        path, size = folder / name, described["bytes"]
        if name not in present:
            raise DataError(f"missing shard file '{path}': {rebuild}")
        # Objects in a bucket are never truncated. epath's stat() fails for an owner without a name.
        if not in_bucket(path) and (found := os.path.getsize(path)) != size:
            raise DataError(f"truncated shard file '{path}': {found} bytes, not {size}; {rebuild}")
    if not (shards / VOCAB_NAME).is_file():
        raise DataError(f"missing vocabulary '{shards / VOCAB_NAME}': rebuild the shard set")
    if hash_file(shards / VOCAB_NAME) != settings.vocab_sha256:
        raise DataError(f"split '{split}' was not tokenised with '{shards / VOCAB_NAME}' as it is now: {rebuild}")
    return manifest


class ShardSource:
    """Random access to the records of a split, in the order of the caption file. Pickling keeps only the paths.

    `source[i]` is a `VideoRecord`. `source.settings` says what K, S and the size of the frames are;
    `source.manifest_sha256` is the same for two splits only if their records are the same.
    """

    def __init__(self, shards: str | os.PathLike[str], split: str) -> None:
        self.shards, self.split = epath.Path(shards), split
        manifest = _check_split(self.shards, split)
        self.settings = ShardSettings.from_dict(manifest["settings"])
        self._folder = self.shards / split
        self.manifest_sha256 = hash_file(self._folder / MANIFEST_NAME)
        try:
            # Absolute, since TFDS takes a relative "~" for the home folder.
            folder = self._folder if in_bucket(shards) else self._folder.absolute()
            builder = _builder(os.fspath(folder), self.manifest_sha256)
            self._records, self._info = builder.as_data_source(split), builder.info.splits[split]
            num_records = len(self._records)
        except Exception as error:  # TFDS and ArrayRecord raise many types
            raise DataError(f"shard set '{self._folder}' cannot be opened: {_one_line(error)}") from error
        if num_records != manifest["num_videos"]:
            raise DataError(f"shard set '{self._folder}' has {num_records} records, not {manifest['num_videos']}")
        self.num_captions: int = manifest["num_captions"]
        self.records_sha256: str = manifest["records_sha256"]
        self.shard_lengths: list[int] = list(self._info.shard_lengths)
        self.manifest = manifest
        # The SHA-256, in hexadecimal, that each file of the split had when it was built.
        self.file_hashes = {self._folder / name: described["sha256"] for name, described in manifest["files"].items()}

    def unknown_files(self) -> list[epath.Path]:
        """Returns the shard files that do not belong to the split's build."""
        return sorted(path for path in self._folder.iterdir() if is_shard(path.name) and path not in self.file_hashes)

    @property
    def vocab(self) -> bytes:
        """The content of the shard set's vocabulary file."""
        return (self.shards / VOCAB_NAME).read_bytes()

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> VideoRecord:
        """Reads a record. Raises DataError, which names the record and its file, where that is damaged."""
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        try:
            return _from_example(self._records[index], self.settings.encoding)
        except Exception as error:  # a corrupt block is only noticed when it is read
            raise DataError(f"{self.place(index)} cannot be read: {_one_line(error)}") from error

    def place(self, index: int) -> str:
        """Returns the number of a record and the file that it is in, for a message."""
        shard = int(np.searchsorted(np.cumsum(self._info.shard_lengths), index, side="right"))
        return f"record {index} in '{self._info.filepaths[shard]}'"

    def index(self) -> np.ndarray:
        """Returns `num_captions` and `video_key` of every record, a structured array [videos].

        Raises:
          DataError: its file is damaged.
        """
        path = self._folder / INDEX_NAME
        try:
            with path.open("rb") as file:
                index = np.load(file)
        except Exception as error:  # a damaged header makes NumPy's parser raise many types
            raise DataError(f"'{path}' cannot be read: rebuild split '{self.split}'") from error
        fits = index.shape == (len(self),) and index.dtype == INDEX_TYPE
        if not fits or index["num_captions"].sum() != self.num_captions:
            raise DataError(f"'{path}' does not fit its split: rebuild split '{self.split}'")
        return index

    def __reduce__(self) -> tuple[type["ShardSource"], tuple[epath.Path, str]]:
        return ShardSource, (self.shards, self.split)

    def __repr__(self) -> str:
        return f"ShardSource(shards={str(self.shards)!r}, split={self.split!r}, num_records={len(self)})"


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


@functools.cache
def _builder(folder: str, manifest_sha256: str) -> Any:
    """TFDS's view of a split with this manifest: only one, as TFDS keeps each that was ever made."""
    del manifest_sha256
    return tfds.builder_from_directory(folder)


def open_shards(shards: str | os.PathLike[str], split: str) -> ShardSource:
    """Opens one split of a shard set.

    Raises:
      DataError: no shard set there, no such split, a missing or truncated file, another vocabulary, or a place that
        ArrayRecord cannot read.
    """
    return ShardSource(shards, split)
