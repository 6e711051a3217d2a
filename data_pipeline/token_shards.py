"""Writes token shards: a split whose records hold, in place of frames, what a frozen vision encoder makes of them.

All else in a record stays as it is, so the loader, `verify` and mixtures take both kinds. Letters: F frames that are
kept of a video, L tokens a frame, D width.
"""

import dataclasses
import hashlib
import itertools
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from tqdm import tqdm

from data_pipeline.errors import DataError
from data_pipeline.incomplete_folder import incomplete_folder, keep_finished_shards, stopping_in_good_order
from data_pipeline.loader import eval_clips
from data_pipeline.sampling import nearest_frames
from data_pipeline.shard_build import ShardReport, Tally, read_reports, report_path, write_report
from data_pipeline.shard_writer import SHARD_BYTES, describe_split, shard_name, write_shard
from data_pipeline.shards import VOCAB_NAME, ShardSource, TokenSettings, VideoRecord, list_splits
from data_pipeline.storage import any_path, written_locally
from data_pipeline.stored_frames import StoredFrames

# From clips, uint8 [F, H, W, 3], to their tokens, bfloat16 [F, L, D], in the same order.
Encode = Callable[[Iterable[np.ndarray]], Iterator[np.ndarray]]


def write_token_split(
    source: ShardSource,
    out: str | os.PathLike[str],
    tokens: TokenSettings,
    num_frames: int,
    encode: Encode,
    *,
    overwrite: bool = False,
    progress: bool = True,
    videos_per_shard: int | None = None,
) -> int:
    """Writes the tokens of a split to a shard set; an interrupted call goes on with the shards that it has finished.

    Args:
      source: the split with the frames.
      out: folder of the shard set of tokens.
      tokens: of which encoder they are.
      num_frames: F: those that evaluation would take for F frames.
      encode: the encoder.
      overwrite: replace the split if it is there already.
      progress: show a progress bar.
      videos_per_shard: videos in a file of records; by default as many as have about 256 MB.

    Returns:
      The number of videos.

    Raises:
      DataError: the source has too few frames or holds tokens itself; the split is there already, or the shard set has
        another vocabulary; a record is damaged; a full disk.
    """
    out, split = any_path(out), source.split
    _check_source(source, num_frames)
    _check_target(out, source, overwrite)
    bytes_a_video = 2 * num_frames * tokens.tokens_per_frame * tokens.width
    length = videos_per_shard or max(1, SHARD_BYTES // bytes_a_video)
    num_shards = math.ceil(len(source) / length)
    settings = dataclasses.replace(
        source.settings, num_kept_frames=num_frames, encoding="tokens", jpeg_quality=None, tokens=tokens
    )
    made_of = json.dumps([source.manifest_sha256, length, dataclasses.asdict(settings)])
    plan = hashlib.sha256(made_of.encode()).hexdigest()
    with stopping_in_good_order(), incomplete_folder(out, split) as folder:
        with written_locally(folder / VOCAB_NAME) as file:
            file.write_bytes(source.vocab)
        todo = keep_finished_shards(folder, num_shards, plan)
        num_todo = sum(min(length, len(source) - number * length) for number in todo)
        with tqdm(total=num_todo, desc=f"caching {split}", unit=" videos", disable=not progress) as bar:
            for number in todo:
                records = range(number * length, min((number + 1) * length, len(source)))
                made = _token_records(source, records, num_frames, tokens, encode, bar)
                shard = write_shard(folder / shard_name(split, number), made, settings)
                write_report(folder, number, plan, ShardReport(shard, Tally(), []))
        written = [report.written for report in read_reports(folder, num_shards, plan) if report and report.written]
        num_videos = describe_split(folder, split, written, settings, {"made_of": source.manifest_sha256})
        for number in range(num_shards):
            report_path(folder, number).unlink()
    return num_videos


def _check_source(source: ShardSource, num_frames: int) -> None:
    kept = source.settings.num_kept_frames
    if source.settings.tokens:
        raise DataError(f"'{source.shards}' holds tokens already; give the shards with the frames")
    if not 1 <= num_frames <= kept:
        raise DataError(f"--num-frames={num_frames} must be 1 to {kept}, the frames of a clip in '{source.shards}'")


def _check_target(out: Any, source: ShardSource, overwrite: bool) -> None:
    if (out / source.split).exists() and not overwrite:
        raise DataError(f"'{out / source.split}' exists already; choose another folder, or --overwrite it")
    others = [name for name in list_splits(out) if name != source.split]
    if others and (out / VOCAB_NAME).read_bytes() != source.vocab:
        raise DataError(f"split '{others[0]}' in '{out}' has another vocabulary than '{source.shards}'")


def _token_records(
    source: ShardSource, records: range, num_frames: int, tokens: TokenSettings, encode: Encode, bar: Any
) -> Iterator[VideoRecord]:
    clips = eval_clips(source, records, num_frames=num_frames, image_size=tokens.image_size)
    for_encoder, for_records = itertools.tee(clips)  # the encoder runs ahead of the records by a batch
    encoded = encode(clip for _, clip in for_encoder)
    for (record, _), of_clip in zip(for_records, encoded, strict=True):
        chosen = nearest_frames(record.frame_numbers, record.num_frames, num_frames)
        bar.update()
        yield dataclasses.replace(
            record, frames=StoredFrames(np.ascontiguousarray(of_clip), "tokens"),
            frame_numbers=record.frame_numbers[chosen],
        )  # fmt: skip
