"""The order of training examples: every caption once, no video twice in a batch, mixtures in fixed shares."""

import numpy as np
import pytest

from data_pipeline.errors import DataError
from data_pipeline.order import (
    BAD_RECORDS,
    ENDLESS,
    BadRecordError,
    CaptionOrder,
    Mixture,
    MixturePart,
    batch_shares,
    common_videos,
)

COUNTS = np.array([3, 1, 5, 2, 4, 1, 1, 3], np.int32)  # 20 captions of 8 videos


def rows(order, first, last):
    return [order[position] for position in range(first, last)]


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("seed", range(3))
def test_no_batch_holds_a_video_twice_and_no_epoch_a_caption(batch_size, seed):
    order = CaptionOrder(COUNTS, batch_size, seed)
    length = order.epoch_length()
    epoch = rows(order, 0, length)
    assert length % batch_size == 0 and len(set(epoch)) == length
    assert all(caption < COUNTS[video] for video, caption in epoch)
    for start in range(0, 20 * batch_size, batch_size):
        assert len({video for video, _ in rows(order, start, start + batch_size)}) == batch_size


def test_few_captions_fill_no_batch():
    assert CaptionOrder(COUNTS, 1, 0).epoch_length() == 20
    for seed in range(3):
        counts = np.random.default_rng(seed).integers(18, 82, 1200)  # as those of MSVD
        left_out = counts.sum() - CaptionOrder(counts, 64, seed).epoch_length()
        assert left_out < 2 * 64


def test_videos_of_as_many_captions_are_all_in_each_pass():
    order = CaptionOrder(np.full(6, 3, np.int32), 1, 0)
    passes = [{video for video, _ in rows(order, start, start + 6)} for start in (0, 6, 12)]
    assert passes == [set(range(6))] * 3


def test_captions_of_a_video_are_spread_over_the_epoch():
    counts = np.array([2, 4, 8] * 20)
    places: dict[int, list[float]] = {}
    for place, (video, _) in enumerate(rows(CaptionOrder(counts, 1, 0), 0, int(counts.sum()))):
        places.setdefault(video, []).append(place / counts.sum())
    for video, of_video in places.items():
        assert abs(np.sum(np.array(of_video) < 0.5) - counts[video] / 2) <= 1


def test_order_is_another_one_in_each_epoch_and_for_each_seed_and_needs_the_position_alone():
    order = CaptionOrder(COUNTS, 1, 0)
    first, second = rows(order, 0, 20), rows(order, 20, 40)
    assert sorted(first) == sorted(second) and first != second
    assert rows(CaptionOrder(COUNTS, 1, 1), 0, 20) != first
    assert rows(CaptionOrder(COUNTS, 1, 0), 20, 40) == second
    assert rows(order, 5, 10) == first[5:10]


def test_batch_that_the_videos_cannot_fill_is_refused():
    with pytest.raises(DataError, match="batch_size=9"):
        CaptionOrder(COUNTS, 9, 0)[0]


def test_shares_of_a_batch_follow_the_weights():
    assert batch_shares(10, [0.7, 0.3]) == [7, 3]
    assert batch_shares(8, [2, 1]) == [5, 3]
    assert batch_shares(4, [5]) == [4]
    assert batch_shares(2048, [10_000_000, 4_000_000]) == [1463, 585]
    with pytest.raises(DataError, match=r"data\.mix_weights.*shard set 2"):
        batch_shares(8, [1.0, 0.01])


class Examples:
    """Examples that tell the set and the position; some are damaged."""

    def __init__(self, name, bad=()):
        self.name, self.bad = name, bad

    def __getitem__(self, position):
        if position in self.bad:
            raise BadRecordError(f"{self.name} {position}", position)
        return {"set": self.name, "position": position}


def part(name, share, bad=(), num_videos=100):
    """A set of videos that no other set holds, in the order of their numbers, again and again."""
    videos = -1 - ord(name) * 1000 - np.arange(num_videos)
    return MixturePart(Examples(name, bad), lambda position: position % num_videos, videos, share)


def taken(mixture, count):
    return [(example["set"], example["position"]) for example in (mixture[at] for at in range(count))]


def test_mixture_takes_its_shares_in_every_batch_and_each_set_in_its_order():
    mixture = Mixture([part("a", 3), part("b", 1)], skips_bad=False)
    assert taken(mixture, 8) == [*(("a", i) for i in range(3)), ("b", 0), *(("a", i) for i in range(3, 6)), ("b", 1)]


def test_damaged_example_ends_the_run_or_is_told_with_the_one_that_stands_in():
    with pytest.raises(BadRecordError, match="b 1"):
        taken(Mixture([part("a", 3), part("b", 1, [1])], skips_bad=False), 8)
    mixture = Mixture([part("a", 3), part("b", 1, [1, 2])], skips_bad=True)
    assert taken(mixture, 8)[-1] == ("b", 3)
    assert [code for code in mixture[7][BAD_RECORDS].tolist() if code >= 0] == [ENDLESS + 1, ENDLESS + 2]
    assert (mixture[6][BAD_RECORDS] == -1).all()
    with pytest.raises(BadRecordError, match="a 24"):
        Mixture([part("a", 3, range(100))], skips_bad=True)[0]


def test_what_stands_in_for_a_damaged_example_is_not_in_the_batch_yet():
    # The next example at the place of the damaged one is of a new epoch, and of video 0, which the batch holds.
    mixture = Mixture([part("a", 4, [3], num_videos=7)], skips_bad=True)
    assert taken(mixture, 4)[-1] == ("a", 11)  # video 4
    with pytest.raises(BadRecordError, match="a 1"):  # there is no other video
        taken(Mixture([part("a", 4, [1], num_videos=4)], skips_bad=True), 4)


def test_common_videos_have_one_number_in_all_sets_and_others_a_number_of_their_own():
    keys = [np.array([5, 7, 7, 1]), np.array([9, 1]), np.array([5, 3, 1])]
    numbers = common_videos(keys)
    assert [(of_set >= 0).tolist() for of_set in numbers] == [
        [True, False, False, True], [False, True], [True, False, True],
    ]  # fmt: skip
    assert numbers[0][3] == numbers[1][1] == numbers[2][2] and numbers[0][0] == numbers[2][0]
    assert len(set(np.concatenate(numbers).tolist())) == 6, "7 stands twice in one set, as two videos"
    (alone,) = common_videos([np.array([2, 2, 4])])
    assert len(set(alone.tolist())) == 3 and (alone < 0).all()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("num_common", [3, 20])
def test_no_batch_of_a_mixture_holds_a_video_of_two_sets_twice(seed, num_common):
    rng = np.random.default_rng(seed)
    keys = [np.arange(100, 140), np.concatenate([np.arange(100, 100 + num_common), np.arange(200, 210)])]
    videos, shares = common_videos(keys), (6, 3)
    parts, orders = [], []
    for name, own, share in zip("ab", videos, shares, strict=True):
        order = np.concatenate([rng.permutation(len(own))[: len(own) // share * share] for _ in range(200)])
        parts.append(MixturePart(Examples(name), order.__getitem__, own, share))
        orders.append(keys["ab".index(name)][order])
    mixture, num_changed = Mixture(parts, skips_bad=False), 0
    for batch in range(60):
        examples = [mixture[at] for at in range(9 * batch, 9 * batch + 9)]
        held = [orders["ab".index(example["set"])][example["position"]] for example in examples]
        assert len(set(held)) == 9
        assert [example["position"] for example in examples[:6]] == [*range(6 * batch, 6 * batch + 6)]
        num_changed += [example["position"] for example in examples[6:]] != [*range(3 * batch, 3 * batch + 3)]
    assert num_changed, "some batches that would have held a video twice"


def test_mixture_that_could_not_fill_a_batch_with_different_videos_is_refused():
    videos = common_videos([np.arange(10), np.arange(5)])
    parts = [MixturePart(Examples("a"), int, videos[0], 4), MixturePart(Examples("b"), int, videos[1], 2)]
    with pytest.raises(DataError, match=r"data\.mix_shards: a batch takes 2 of the 5 videos of shard set 2 and 4 of"):
        Mixture(parts, skips_bad=False)
