"""The order of training examples: the video and the caption at every position, without end.

No batch holds a video twice. An example depends on its position and the seed only, so a run can be resumed anywhere.
"""

import bisect
from collections.abc import Sequence
from typing import Any

import numpy as np

from data_pipeline.errors import DataError

ENDLESS = 1 << 40  # positions; more than any run reaches
BAD_RECORDS = "bad_records"  # int64 [MAX_BAD_IN_A_ROW] of an example: set number * ENDLESS + record, or -1
MAX_BAD_IN_A_ROW = 8


class BadRecordError(DataError):
    """A record that cannot be read or decoded."""

    def __init__(self, message: str, index: int = -1) -> None:
        super().__init__(message)
        self.index = index

    def __reduce__(self) -> tuple[type["BadRecordError"], tuple[str, int]]:
        return BadRecordError, (str(self), self.index)


def batch_shares(batch_size: int, weights: Sequence[float]) -> list[int]:
    """Returns how many examples of a batch each data set gives: in proportion to the weights, at least one.

    Raises:
      DataError: the batch is too small to hold an example of each.
    """
    exact = batch_size * np.array(weights) / sum(weights)
    shares = np.floor(exact).astype(int)
    for at in np.argsort(shares - exact, kind="stable")[: batch_size - shares.sum()]:
        shares[at] += 1
    if 0 in shares:
        raise DataError(
            f"data.mix_weights: a batch of {batch_size} has no example of shard set {shares.tolist().index(0) + 1},"
            " whose weight is too small; give it a larger one, or a larger batch"
        )
    return shares.tolist()


class CaptionOrder:
    """Every caption of every video once in an epoch, in as many passes as a video has captions at most.

    Pass k takes the k-th caption of each video, in an order of captions that is drawn for each epoch. A video with
    fewer captions than there are passes takes part at equal distances; else the last passes would be of few videos,
    which fill no batch. `order[position]` is (video, caption). A video that its batch already holds waits for the next
    batch. Captions that fill no batch at the end of an epoch are left out of that epoch; each epoch leaves out others.

    Args:
      caption_counts: int [videos].
      batch_size: examples of this data set in a batch.
      seed: of the order.
    """

    def __init__(self, caption_counts: np.ndarray, batch_size: int, seed: int) -> None:
        self._counts, self._batch_size, self._seed = caption_counts, batch_size, seed
        self._starts = [0]  # first position of each epoch
        self._epoch, self._rows = -1, np.zeros((0, 2), np.int64)

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, position: int) -> tuple[int, int]:
        while position >= self._starts[-1]:
            self._load(len(self._starts) - 1)
            self._starts.append(self._starts[-1] + len(self._rows))
        epoch = bisect.bisect_right(self._starts, position) - 1
        self._load(epoch)
        video, caption = self._rows[position - self._starts[epoch]]
        return int(video), int(caption)

    def epoch_length(self) -> int:
        """Returns the number of examples of the first epoch."""
        self._load(0)
        return len(self._rows)

    def _load(self, epoch: int) -> None:
        if epoch == self._epoch:
            return
        rows = self._shuffled_rows(np.random.default_rng((self._seed, epoch)))
        self._epoch, self._rows = epoch, _into_batches(rows, self._batch_size)
        if not len(self._rows):
            raise DataError(f"batch_size={self._batch_size} is more than the videos with a caption; give a smaller one")

    def _shuffled_rows(self, rng: np.random.Generator) -> np.ndarray:
        """Returns (video, caption) of all captions, int [captions, 2], pass by pass."""
        counts = self._counts.astype(np.int64)
        videos = np.repeat(np.arange(len(counts)), counts)
        turns = np.arange(len(videos)) - np.repeat(np.cumsum(counts) - counts, counts)  # 0, 1, ... of each video
        captions = turns[np.lexsort((rng.random(len(videos)), videos))]  # those of each video in a random order
        delays = np.floor(rng.random(len(counts)) * counts.max(initial=0)).astype(np.int64)  # of the first turn
        passes = (turns * counts.max(initial=0) + delays[videos]) // counts[videos]
        return np.stack([videos, captions], axis=1)[np.lexsort((rng.random(len(videos)), passes))]


def _into_batches(rows: np.ndarray, batch_size: int) -> np.ndarray:
    """Returns the rows (video, caption), int [n, 2], of full batches, each of different videos."""
    batches: list[tuple[int, int]] = []
    batch: list[tuple[int, int]] = []
    held: set[int] = set()
    waiting: list[tuple[int, int]] = []
    for row in map(tuple, rows.tolist()):
        if row[0] in held:
            waiting.append(row)
            continue
        batch.append(row)
        held.add(row[0])
        while len(batch) == batch_size:
            batches += batch
            batch, held, still = [], set(), []
            for other in waiting:
                if len(batch) < batch_size and other[0] not in held:
                    batch.append(other)
                    held.add(other[0])
                else:
                    still.append(other)
            waiting = still
    return np.array(batches, np.int64).reshape(-1, 2)


class Mixture:
    """Examples of several data sets, as batch after batch: the first `shares[0]` of each batch from the first set, ...

    A damaged record is left out, and the example at the same place of a later batch takes its place; this batch does
    not hold it yet. The numbers of the records left out come with the example, so that they can be counted.

    Args:
      parts: data sets of examples by position, each a dict of arrays; a damaged one raises BadRecordError.
      shares: examples of each in a batch.
      skips_bad: whether a damaged record may be left out; else BadRecordError passes.
    """

    def __init__(self, parts: Sequence[Any], shares: Sequence[int], *, skips_bad: bool) -> None:
        self._parts, self._shares, self._skips_bad = parts, shares, skips_bad
        self._ends = np.cumsum(shares)

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, position: int) -> dict[str, np.ndarray]:
        batch, place = divmod(position, int(self._ends[-1]))
        part = int(np.searchsorted(self._ends, place, side="right"))
        share = self._shares[part]
        at = batch * share + place - int(self._ends[part]) + share
        bad: list[int] = []
        while True:
            try:
                example = self._parts[part][at]
                break
            except BadRecordError as error:
                if not self._skips_bad or len(bad) == MAX_BAD_IN_A_ROW:
                    raise
                bad.append(part * ENDLESS + error.index)
                at += share
        return {**example, BAD_RECORDS: np.array(bad + [-1] * (MAX_BAD_IN_A_ROW - len(bad)), np.int64)}
