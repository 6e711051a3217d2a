"""Search over one's own videos: an index of a folder, and the clips in it that fit a text.

    import stgt_jax as stgt

    index = stgt.index("my_videos", "my_index", weights="moving_shapes")
    for hit in index.search("a red square moves left"):
        print(hit.path, hit.start, hit.score)

Scores are exact: the text is compared with every clip. The first ones are then re-ranked by the matching head, which
sees video and text together.
"""

import concurrent.futures
import dataclasses
import itertools
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from data_pipeline.datasets.video_files import walk_videos
from data_pipeline.errors import DataError
from data_pipeline.packets import ClipError
from data_pipeline.processes import ahead
from data_pipeline.segments import Times, plan_segments
from stgt_jax.api import Model, load
from stgt_jax.checks import check
from stgt_jax.errors import STGTError
from stgt_jax.fingerprint import fingerprint
from stgt_jax.ops.precision import precision_of
from stgt_jax.train.run_lock import locked
from stgt_jax.video_index import HEADER_NAME, IndexedFile, VideoIndex

SEGMENT_SECONDS = 30.0
_CHUNK, _BLOCK = 8192, 64  # clips that are compared in one call, and at a time
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Hit:
    """A clip that was found."""

    path: str  # of the file
    start: float  # seconds after the first frame
    end: float
    score: float  # similarity, plus P(match) where it was re-ranked
    similarity: float  # cosine, -1 to 1
    match: float | None  # P(match), 0 to 1; None where it was not re-ranked


@dataclass(frozen=True)
class Changes:
    """What bringing an index up to date did, in files."""

    added: int
    changed: int
    removed: int
    unchanged: int
    unreadable: dict[str, str]  # path -> reason, of all files that are not in the index for it


class Index:
    """An index of videos with the model that made it; `index` and `load_index` make it.

    Attributes:
      store: the files of the index.
      model: that made it.
      changes: what `index` did; None for `load_index`.
    """

    def __init__(self, store: VideoIndex, model: Model, changes: Changes | None = None) -> None:
        self.store, self.model, self.changes = store, model, changes

    def search(self, text: str, *, count: int = 10, rerank: int = 16) -> list[Hit]:
        """Finds the clips that fit a text best.

        Of overlapping segments of a video only the best one is returned.

        Args:
          text: such as "a red square moves left".
          count: hits to return.
          rerank: hits, of those with the highest similarity, that are re-ranked by similarity plus P(match); each is
            read and encoded again. 0 for none.

        Raises:
          STGTError: the text is empty or too long, or a number is out of range.
        """
        check(isinstance(text, str) and bool(text.strip()), "the text to search for is empty")
        check(count > 0 and rerank >= 0, f"count={count} must be greater than 0, and rerank={rerank} at least 0")
        if not self.store.num_clips:
            return []
        scores = self._similarities(text)
        hits: list[Hit] = []
        for row in np.argsort(-scores, kind="stable").tolist():
            if (found := self.store.locate(row)) is None:
                continue
            file, (start, end) = found
            if not any(hit.path == file.path and start < hit.end and hit.start < end for hit in hits):
                hits.append(Hit(file.path, start, end, float(scores[row]), float(scores[row]), None))
            if len(hits) >= max(count, rerank):
                break
        return self._reranked(hits, text, rerank)[:count]

    def read(self, hit: Hit) -> np.ndarray:
        """Returns the frames of a hit as the model sees them, uint8 [T, H, W, 3]. Raises STGTError if it is gone."""
        file = self.store.files[hit.path]
        times = (hit.start, hit.end) if len(file.segments) > 1 else None
        return self.model.read_clip(self.folder / hit.path, times)

    @property
    def folder(self) -> Path:
        """Of the videos."""
        return Path(self.store.header["folder"])

    def _similarities(self, text: str) -> np.ndarray:
        """Of all rows, float32 [rows]."""
        embeddings, (text_embed,) = self.store.embeddings(), self.model.encode_text(text)
        scores = np.empty(len(embeddings), np.float32)
        chunk = min(_CHUNK, max(_BLOCK, 1 << (len(embeddings) - 1).bit_length()))
        for start in range(0, len(embeddings), chunk):
            rows = embeddings[start : start + chunk]
            padding = np.zeros((chunk - len(rows), *rows.shape[1:]), rows.dtype)
            scores[start : start + chunk] = _compare(np.concatenate([rows, padding]), text_embed)[: len(rows)]
        return scores

    def _reranked(self, hits: Sequence[Hit], text: str, rerank: int) -> list[Hit]:
        """The first hits in a new order, then the others. A file that cannot be read any more keeps its similarity."""
        first, clips = [], []
        for hit in hits[:rerank]:
            try:
                clips.append(self.read(hit))
                first.append(hit)
            except STGTError as error:
                _log.warning("warning: '%s' is not re-ranked: %s", hit.path, error)
        if not first:
            return list(hits)
        matches = self.model.match(clips, text)[:, 0]
        scored = [
            dataclasses.replace(hit, score=hit.similarity + float(match), match=float(match))
            for hit, match in zip(first, matches, strict=True)
        ]
        scored.sort(key=lambda hit: -hit.score)
        return scored + [hit for hit in hits if hit not in first]


@jax.jit
def _compare(clips: jax.Array, text: jax.Array) -> jax.Array:
    """Similarities of clips [n, Q, E] with a text [E]: the maximum over the queries, float32 [n].

    A few clips at a time: as float32 they then stay in the processor's cache.
    """
    blocks = clips.reshape(-1, _BLOCK * clips.shape[1], clips.shape[2])
    precision = precision_of(text.dtype)
    by_query = jax.lax.map(lambda block: jnp.dot(block.astype(text.dtype), text, precision=precision), blocks)
    return by_query.reshape(clips.shape[:2]).max(axis=1)


def index(
    folder: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    weights: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    segment_seconds: float = SEGMENT_SECONDS,
    batch_size: int = 32,
    **conversion: Any,
) -> Index:
    """Makes an index of the videos under a folder, or brings one up to date.

    New and changed files are read and encoded, deleted ones are removed, and unchanged ones are skipped, by size and
    time of the last change. An interrupted call goes on. Files that cannot be read are listed in `Index.changes`.

    Args:
      folder: with videos, also in folders of it; files are known by their extensions.
      out: folder of the index.
      weights: of the model, as `load` takes them.
      segment_seconds: longer videos (by half) are cut into overlapping segments of this length.
      batch_size: clips to encode at a time, over all devices.
      **conversion: further options of `load`.

    Raises:
      STGTError: no such folder; the index is of other weights, another folder, or another length of segments.
    """
    videos = Path(folder)
    check(videos.is_dir(), f"'{folder}' is not a folder of videos")
    check(segment_seconds > 0, f"segment_seconds={segment_seconds} must be greater than 0")
    model = load(weights, batch_size=batch_size, **conversion)  # type: ignore[arg-type]
    with locked(out):
        store = _open_store(model, videos, out, weights, segment_seconds, conversion)
        return Index(store, model, _bring_up_to_date(store, model, videos, segment_seconds))


def load_index(path: str | os.PathLike[str], *, batch_size: int = 32) -> Index:
    """Loads an index with the model that made it.

    Raises:
      STGTError: there is no index, or its weights are gone or were changed.
    """
    store = VideoIndex(path)
    weights = store.header["weights"]
    model = load(weights if len(weights) > 1 else weights[0], batch_size=batch_size, **store.header["conversion"])
    _check_weights(store, model)
    return Index(store, model)


def _open_store(
    model: Model, videos: Path, out: Any, weights: Any, segment_seconds: float, conversion: dict[str, Any]
) -> VideoIndex:
    listed = [weights] if isinstance(weights, str | os.PathLike) else list(weights)
    if not (Path(out) / HEADER_NAME).exists():
        made_with = {
            "folder": str(videos.absolute()),
            "weights": [_lasting(path) for path in listed],
            "conversion": {
                name: list(value) if isinstance(value, tuple) else value for name, value in conversion.items()
            },
            "fingerprint": fingerprint(model.params),
            "segment_seconds": segment_seconds,
        }
        return VideoIndex.create(out, (model.config.qformer.num_queries, model.config.embed_dim), made_with)
    store = VideoIndex(out)
    _check_weights(store, model)
    if (before := store.header["segment_seconds"]) != segment_seconds:
        raise STGTError(
            f"'{out}' was made with segments of {before:g} seconds, now {segment_seconds:g}; give another --out"
        )
    if (before := store.header["folder"]) != str(videos.absolute()):
        if os.path.isdir(before):
            raise STGTError(f"'{out}' is an index of '{before}', not of '{videos}'; give another --out")
        store.set_header(folder=str(videos.absolute()))  # the folder was moved
    return store


def _lasting(path: str | os.PathLike[str]) -> str:
    """The path of weights as another process finds them, in whatever folder it starts."""
    text = os.fspath(path)
    return os.path.abspath(text) if os.path.exists(text) else text


def _check_weights(store: VideoIndex, model: Model) -> None:
    if fingerprint(model.params) != store.header["fingerprint"]:
        raise STGTError(
            f"the index in '{store.folder}' was made by other weights than those in"
            f" {', '.join(store.header['weights'])} now; make it again in another folder"
        )


def _bring_up_to_date(store: VideoIndex, model: Model, videos: Path, segment_seconds: float) -> Changes:
    found = dict(_list_videos(videos))
    gone = [path for path in store.files if path not in found]
    for path in gone:
        store.remove(path)
    known = {path: store.files[path] for path in found if path in store.files}
    unchanged = {path for path, file in known.items() if (file.size, file.mtime_ns) == found[path]}
    wanted = [IndexedFile(path, *stat) for path, stat in found.items() if path not in unchanged]
    with tqdm(total=len(wanted), unit=" files", delay=2.0, leave=False) as bar:
        for file, embeddings in _encoded(model, videos, wanted, segment_seconds):
            store.add(file, embeddings)
            bar.update()
    store.compact()
    num_changed = len(known) - len(unchanged)
    unreadable = {path: file.reason for path, file in store.files.items() if file.reason}
    return Changes(len(wanted) - num_changed, num_changed, len(gone), len(unchanged), unreadable)


def _list_videos(videos: Path) -> Iterator[tuple[str, tuple[int, int]]]:
    """Yields each video's path, relative to the folder, with its size and the time of its last change, in order."""
    for path in walk_videos(videos):
        stat = path.stat()
        yield str(path.relative_to(videos)), (stat.st_size, stat.st_mtime_ns)


def _encoded(
    model: Model, videos: Path, files: Sequence[IndexedFile], segment_seconds: float
) -> Iterator[tuple[IndexedFile, np.ndarray]]:
    """Yields each file as it is to stand in the index, with the embeddings of its segments, [clips, Q, E]."""
    read = _read_segments(model, videos, files, segment_seconds)
    done: dict[str, list[np.ndarray | str]] = {}
    nothing = np.zeros((0, model.config.qformer.num_queries, model.config.embed_dim), np.float32)
    while batch := list(itertools.islice(read, model.encoder.batch_size)):
        embeddings = iter(model.encoder.embed_videos([clip for _, clip in batch if not isinstance(clip, str)]))
        for file, clip in batch:
            done.setdefault(file.path, []).append(clip if isinstance(clip, str) else next(embeddings))
        for file in {file.path: file for file, _ in batch}.values():
            if len(done[file.path]) >= len(file.segments):
                yield _finished(file, done.pop(file.path), nothing)


def _finished(
    file: IndexedFile, segments: Sequence[np.ndarray | str], nothing: np.ndarray
) -> tuple[IndexedFile, np.ndarray]:
    """Leaves the segments out that could not be read; each is an embedding or the reason."""
    reasons = [one for one in segments if isinstance(one, str)]
    if not reasons:
        return file, np.stack(segments)
    kept = [(times, one) for times, one in zip(file.segments, segments, strict=False) if not isinstance(one, str)]
    reason = f"{len(reasons)} of {len(segments)} segments: {reasons[0]}" if kept else reasons[0]
    file = dataclasses.replace(file, segments=tuple(times for times, _ in kept), reason=reason)
    return file, np.stack([one for _, one in kept]) if kept else nothing


def _read_segments(
    model: Model, videos: Path, files: Sequence[IndexedFile], segment_seconds: float
) -> Iterator[tuple[IndexedFile, np.ndarray | str]]:
    """Yields the clip of each segment of each file, in order, or the reason why there is none. Threads read ahead."""
    num_threads = min(8, os.cpu_count() or 1)

    def plan(file: IndexedFile) -> IndexedFile:
        try:
            return dataclasses.replace(file, segments=tuple(plan_segments(videos / file.path, segment_seconds)))
        except ClipError as error:
            return dataclasses.replace(file, reason=str(error))

    def read(file: IndexedFile, times: Times | None) -> np.ndarray | str:
        if file.reason:
            return file.reason
        try:
            return model.read_clip(videos / file.path, times)
        except DataError as error:
            return str(error.__cause__ or error)

    pool = concurrent.futures.ThreadPoolExecutor(num_threads)
    try:
        planned = (future.result() for future in ahead((pool.submit(plan, file) for file in files), 2 * num_threads))
        reads = (
            (file, pool.submit(read, file, times if len(file.segments) > 1 else None))
            for file in planned
            for times in file.segments or [None]
        )
        for file, clip in ahead(reads, 4 * num_threads):
            yield file, clip.result()
    finally:
        pool.shutdown(cancel_futures=True)
