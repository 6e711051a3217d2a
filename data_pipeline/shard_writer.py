"""Writes the files of a split: those of records, one by one, and what describes them all."""

import dataclasses
import hashlib
import itertools
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from etils import epath
from tensorflow_datasets.core.example_serializer import ExampleSerializer

from data_pipeline.shards import (
    DATASET_NAME,
    DATASET_VERSION,
    INDEX_NAME,
    INDEX_TYPE,
    MANIFEST_NAME,
    SCHEMA,
    ShardSettings,
    VideoRecord,
    features_of,
    hash_file,
    hash_manifest,
    hash_record,
    to_example,
)
from data_pipeline.storage import size_of, written_locally

SHARD_BYTES = 256 << 20  # of a file of records, about
_METADATA_NAMES = (INDEX_NAME, "dataset_info.json", "features.json")


@dataclasses.dataclass(frozen=True)
class WrittenShard:
    """A file of records, as the manifest describes it."""

    file: str  # its name
    num_bytes: int  # of the file
    sha256: str  # of the file
    num_record_bytes: int  # of the records alone
    num_questions: int
    records_sha256: str  # of what the records hold
    index: np.ndarray  # of INDEX_TYPE [videos]

    def described(self) -> dict[str, Any]:
        """Returns what the manifest says of the file, apart from its name, size and hash."""
        return {
            "num_records": len(self.index),
            "num_record_bytes": self.num_record_bytes,
            "num_questions": self.num_questions,
            "records_sha256": self.records_sha256,
        }


def shard_name(split: str, number: int) -> str:
    """Returns the name of a file of records."""
    return f"{DATASET_NAME}-{split}.array_record-{number:05d}"


def write_shard(
    path: Path | epath.Path, records: Iterable[VideoRecord], settings: ShardSettings
) -> WrittenShard | None:
    """Writes records to an ArrayRecord file, one at a time; returns None, and writes nothing, where there is none.

    A file of that name is whole: it gets the name at the end.
    """
    records = iter(records)
    first = next(records, None)
    if first is None:
        return None
    features = features_of(settings)
    serializer = ExampleSerializer(features.get_serialized_info())
    index: list[tuple[int, int]] = []
    num_record_bytes, num_questions, digest = 0, 0, hashlib.sha256()
    with written_locally(path) as file:
        writer = ArrayRecordWriter(os.fspath(file), "group_size:1")  # each record can be read by itself
        try:
            for record in itertools.chain([first], records):
                example = serializer.get_tf_example(features.encode_example(to_example(record)))
                data = example.SerializeToString(deterministic=True)  # else fields are in any order
                writer.write(data)
                num_record_bytes += len(data)
                num_questions += len(record.questions)
                index.append((len(record.captions), record.video_key))
                digest.update(hash_record(record))
        finally:
            writer.close()
        size, file_hash = file.stat().st_size, hash_file(file)
    of_records = num_record_bytes, num_questions, digest.hexdigest(), np.array(index, INDEX_TYPE)
    return WrittenShard(path.name, size, file_hash, *of_records)


def describe_split(
    folder: Path | epath.Path,
    split: str,
    shards: Sequence[WrittenShard],
    settings: ShardSettings,
    about: dict[str, Any] | None = None,
) -> int:
    """Writes the index, the metadata of TFDS and, at last, the manifest; returns the number of videos.

    Args:
      folder: of the split, in which the files of records are.
      split: its name.
      shards: the files of records, in order; their names are numbered from 0.
      settings: of the records.
      about: what else the manifest shall say.
    """
    index = np.concatenate([shard.index for shard in shards])
    with (folder / INDEX_NAME).open("wb") as file:
        np.save(file, index)
    _write_tfds_metadata(folder, split, shards, settings)
    files = {name: {"bytes": size_of(folder / name), "sha256": hash_file(folder / name)} for name in _METADATA_NAMES}
    files |= {shard.file: {"bytes": shard.num_bytes, "sha256": shard.sha256} for shard in shards}
    digests = b"".join(bytes.fromhex(shard.records_sha256) for shard in shards)
    manifest = {
        "schema": SCHEMA,
        "num_videos": len(index),
        "num_captions": int(index["num_captions"].sum()),
        "num_questions": sum(shard.num_questions for shard in shards),
        "records_sha256": hashlib.sha256(digests).hexdigest(),
        "settings": dataclasses.asdict(settings),
        "files": dict(sorted(files.items())),
        **(about or {}),
    }
    text = json.dumps(manifest | {"sha256": hash_manifest(manifest)}, indent=2) + "\n"
    (folder / MANIFEST_NAME).write_text(text)
    return len(index)


def write_split(folder: Path, split: str, records: Iterable[VideoRecord], settings: ShardSettings) -> int:
    """Writes all records of a split to `folder`, in order; returns their number. A few are in memory at a time."""
    records = iter(records)
    first = next(records, None)
    if first is None:
        return 0
    num_bytes = sum(len(memoryview(frame).cast("B")) for frame in first.frames.stored)
    length, records = max(1, SHARD_BYTES // num_bytes), itertools.chain([first], records)
    shards: list[WrittenShard] = []
    while written := write_shard(folder / shard_name(split, len(shards)), itertools.islice(records, length), settings):
        shards.append(written)
    return describe_split(folder, split, shards, settings)


def _write_tfds_metadata(
    folder: Path | epath.Path, split: str, shards: Sequence[WrittenShard], settings: ShardSettings
) -> None:
    version = tfds.core.Version(DATASET_VERSION)
    identity = tfds.core.DatasetIdentity(DATASET_NAME, version, os.fspath(folder), module_name=__name__)
    info = tfds.core.DatasetInfo(builder=identity, features=features_of(settings), disable_shuffling=True)
    info.set_file_format("array_record")
    template = tfds.core.ShardedFileTemplate(
        data_dir=epath.Path(folder), dataset_name=DATASET_NAME, split=split, filetype_suffix="array_record",
        template="{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_INDEX}",
    )  # fmt: skip
    of_split = tfds.core.SplitInfo(
        name=split, shard_lengths=[len(shard.index) for shard in shards],
        num_bytes=sum(shard.num_record_bytes for shard in shards), filename_template=template,
    )  # fmt: skip
    info.set_splits(tfds.core.SplitDict([of_split]))
    info.write_to_directory(folder)
