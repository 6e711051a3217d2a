"""The order of training examples: the video and the caption at every position, without end.

No batch holds a video twice. An example depends on its position and the seed only, so a run can be resumed anywhere.
"""

import bisect
import dataclasses
from collections.abc import Callable, Sequence
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
        self._epochs: dict[int, np.ndarray] = {}  # the rows of the two epochs read last

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, position: int) -> tuple[int, int]:
        while position >= self._starts[-1]:
            self._starts.append(self._starts[-1] + len(self._rows(len(self._starts) - 1)))
        epoch = bisect.bisect_right(self._starts, position) - 1
        video, caption = self._rows(epoch)[position - self._starts[epoch]]
        return int(video), int(caption)

    def video(self, position: int) -> int:
        """Returns the video at a position."""
        return self[position][0]

    def epoch_length(self) -> int:
        """Returns the number of examples of the first epoch."""
        return len(self._rows(0))

    def _rows(self, epoch: int) -> np.ndarray:
        if epoch in self._epochs:
            return self._epochs[epoch]
        rows = self._shuffled_rows(np.random.default_rng((self._seed, epoch)))
        batches = _into_batches(rows, self._batch_size)
        if not len(batches):
            raise DataError(f"batch_size={self._batch_size} is more than the videos with a caption; give a smaller one")
        self._epochs = dict([*self._epochs.items()][-1:]) | {epoch: batches}
        return batches

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


def common_videos(keys: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Numbers the videos of several data sets, so that only a video that two sets hold has one number in both.

    Args:
      keys: of each set, int64 [videos], not negative, the same in two sets for the same video.

    Returns:
      The numbers, int64 [videos] of each set; negative if no other set holds the video.
    """
    of_sets, counts = np.unique(np.concatenate([np.unique(of_set) for of_set in keys]), return_counts=True)
    common, starts = of_sets[counts > 1], np.cumsum([0, *map(len, keys)])
    own = [-1 - np.arange(start, start + len(of_set)) for start, of_set in zip(starts, keys, strict=False)]
    return [np.where(np.isin(of_set, common), of_set, alone) for of_set, alone in zip(keys, own, strict=True)]


@dataclasses.dataclass(frozen=True)
class MixturePart:
    """One data set of a mixture.

    Attributes:
      examples: by position, each a dict of arrays; a damaged one raises BadRecordError.
      record: returns the number of the record at a position.
      videos: of each record, int64 [records], see `common_videos`.
      share: examples in a batch.
    """

    examples: Sequence[dict[str, np.ndarray]] | Any
    record: Callable[[int], int]
    videos: np.ndarray
    share: int

    def video(self, position: int) -> int:
        """Returns the number of the video at a position."""
        return int(self.videos[self.record(position)])


class Mixture:
    """Examples of several data sets, as batch after batch: the first `share` of each batch from the first set, ...

    An example is left out where the batch already holds its video, or where its record is damaged. The example at the
    same place of a later batch takes its place. The numbers of damaged records come with the example that stands in for
    them, so that they can be counted.

    Args:
      parts: the data sets.
      skips_bad: whether a damaged record may be left out; else BadRecordError passes.

    Raises:
      DataError: so many videos of a set are in the sets before it that a batch can lack others.
    """

    def __init__(self, parts: Sequence[MixturePart], *, skips_bad: bool) -> None:
        self._parts, self._skips_bad = parts, skips_bad
        self._ends = np.cumsum([part.share for part in parts])
        self._batch, self._positions = -1, list[int]()
        self._check_enough_videos()

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, at: int) -> dict[str, np.ndarray]:
        batch, place = divmod(at, int(self._ends[-1]))
        number, positions = self._part_number(place), self._positions_of(batch)
        part, position, bad = self._parts[number], positions[place], list[int]()
        held: set[int] = set()
        while True:
            try:
                example = part.examples[position]
                break
            except BadRecordError as error:
                if not self._skips_bad or len(bad) == MAX_BAD_IN_A_ROW:
                    raise
                bad.append(number * ENDLESS + error.index)
                held |= {part.video(position)} if held else self._videos_of(positions)
                if np.isin(part.videos, [*held]).all():
                    raise  # there is no other
                position = _next_other(part, position + part.share, held)
        return {**example, BAD_RECORDS: np.array(bad + [-1] * (MAX_BAD_IN_A_ROW - len(bad)), np.int64)}

    def records(self, batch: int) -> list[tuple[int, int]]:
        """Returns the number of the part and of the record of each example of a batch, damaged records included."""
        placed = enumerate(self._positions_of(batch))
        return [(number := self._part_number(place), self._parts[number].record(at)) for place, at in placed]

    def _part_number(self, place: int) -> int:
        return int(np.searchsorted(self._ends, place, side="right"))

    def _positions_of(self, batch: int) -> list[int]:
        """Returns the position of each example of a batch in its data set."""
        if batch != self._batch:
            held: set[int] = set()
            positions = []
            for part in self._parts:
                for place in range(part.share):
                    positions.append(_next_other(part, batch * part.share + place, held))
                    held.add(part.video(positions[-1]))
            self._batch, self._positions = batch, positions
        return self._positions

    def _videos_of(self, positions: list[int]) -> set[int]:
        return {self._parts[self._part_number(place)].video(position) for place, position in enumerate(positions)}

    def _check_enough_videos(self) -> None:
        before, num_before = np.zeros(0, np.int64), 0  # videos of the sets before, and how many a batch takes of them
        for number, part in enumerate(self._parts, 1):
            videos = np.unique(part.videos)
            num_common = int(np.isin(videos, before).sum())
            if len(videos) - min(num_common, num_before) < part.share:
                raise DataError(
                    f"data.mix_shards: a batch takes {part.share} of the {len(videos)} videos of shard set {number} and"
                    f" {num_before} of the sets before it, which hold {num_common} of the same videos; so it could hold"
                    " a video twice; give a smaller --batch_size, or --data.mix_weights"
                )
            before, num_before = np.union1d(before, videos), num_before + part.share


def _next_other(part: MixturePart, position: int, held: set[int]) -> int:
    """Returns the position of the first example at this place, in this batch or later, whose video is not in `held`."""
    while part.video(position) in held:
        position += part.share
    return position
