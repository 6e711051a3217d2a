"""The loader on real shards: what an epoch holds, that it can be repeated, resumed and shared, and what it refuses.

Every frame of a test clip has one colour, 6 * clip + frame, which survives crops and resizes: so a batch tells which
frames of which clips it holds.
"""

import dataclasses
import gc
import itertools
import multiprocessing
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.config import DataConfig
from data_pipeline.errors import DataError
from data_pipeline.loader import TrainLoader, eval_batches, num_videos, train_loader
from data_pipeline.shard_writer import write_split
from data_pipeline.shards import ShardSettings, VideoRecord, hash_file, open_shards
from data_pipeline.stored_frames import StoredFrames, encode_jpeg
from stgt_jax.errors import STGTError

NUM_CLIPS, NUM_KEPT, TEXT_LENGTH = 22, 6, 5
SIZES = {"num_frames": 4, "image_size": 8}
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "ball"]


def _record(clip: int) -> VideoRecord:
    video = np.zeros((NUM_KEPT, 12, 16, 3), np.uint8)
    video += (NUM_KEPT * clip + np.arange(NUM_KEPT, dtype=np.uint8))[:, None, None, None]
    return VideoRecord(
        video_id=f"clip_{clip}.mp4",
        video_key=clip,
        group="pair" if clip < 2 else "",
        frames=StoredFrames(video, "raw"),
        frame_numbers=np.arange(NUM_KEPT, dtype=np.int32),
        num_frames=NUM_KEPT,
        captions=(f"caption {clip}",),
        input_ids=np.array([[2, clip, 3, 0, 0]], np.int32),
        attention_mask=np.array([[1, 1, 1, 0, 0]], np.int32),
    )


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> DataConfig:
    shards: Path = tmp_path_factory.mktemp("shards")
    (shards / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    settings = ShardSettings(NUM_KEPT, 12, "keep_aspect", "raw", None, TEXT_LENGTH, hash_file(shards / "vocab.txt"))
    (shards / "train").mkdir()
    write_split(shards / "train", "train", (_record(clip) for clip in range(NUM_CLIPS)), settings)
    return DataConfig(shards=str(shards), flip=True, num_workers=0)


def _take(config: DataConfig, num_batches: int, batch_size: int = 4, seed: int = 0, **processes) -> list[dict]:
    with train_loader(config, "train", batch_size, seed, **processes, **SIZES) as loader:
        return list(itertools.islice(loader, num_batches))


def _clips(batches: list[dict]) -> list[int]:
    return np.concatenate([batch["input_ids"][:, 1] for batch in batches]).tolist()


def _assert_same_batches(batches: list[dict], expected: list[dict]) -> None:
    assert len(batches) == len(expected)
    for batch, other in zip(batches, expected, strict=True):
        assert batch.keys() == other.keys()
        for name in batch:
            np.testing.assert_array_equal(batch[name], other[name])


def test_training_batch_has_the_promised_arrays(config):
    (batch,) = _take(config, 1)
    shapes = {name: (array.shape, array.dtype.name) for name, array in batch.items()}
    assert shapes == {
        "video": ((4, 4, 8, 8, 3), "uint8"),
        "input_ids": ((4, TEXT_LENGTH), "int32"),
        "attention_mask": ((4, TEXT_LENGTH), "int32"),
    }


def test_video_and_text_of_a_clip_stay_together_with_frames_in_order(config):
    for batch in _take(config, 5):
        clip, frame = np.divmod(batch["video"][:, :, 4, 4, 0].astype(int), NUM_KEPT)  # [B, T]
        np.testing.assert_array_equal(clip, np.repeat(batch["input_ids"][:, 1:2], 4, axis=1))
        assert (np.diff(frame) > 0).all()
        assert ((frame < NUM_KEPT // 2).sum(axis=1) == 2).all()  # headtail


def test_epoch_holds_each_clip_once_in_a_new_order_each_time(config):
    clips = _clips(_take(config, 22, batch_size=2))
    first, second = clips[:NUM_CLIPS], clips[NUM_CLIPS:]
    assert sorted(first) == sorted(second) == list(range(NUM_CLIPS))
    assert first != second


def test_clips_that_fill_no_batch_wait_for_another_epoch(config):
    epochs = np.array(_clips(_take(config, 20, batch_size=4))).reshape(4, 20)
    assert all(len(set(epoch)) == 20 for epoch in epochs.tolist())
    assert set(epochs.flatten().tolist()) == set(range(NUM_CLIPS))


def test_seed_alone_decides(config):
    batches = _take(config, 6)
    _assert_same_batches(_take(config, 6), batches)
    assert _clips(_take(config, 6, seed=1)) != _clips(batches)


def test_a_clip_is_augmented_anew_in_each_epoch(config):
    batches = _take(config, 22, batch_size=2)
    frames = {}
    for batch in batches:
        for clip, video in zip(batch["input_ids"][:, 1].tolist(), batch["video"], strict=True):
            frames.setdefault(clip, []).append(video[:, 0, 0, 0].tolist())
    assert sum(first != second for first, second in frames.values()) > NUM_CLIPS // 2


def test_processes_share_an_epoch_and_see_what_one_alone_would(config):
    alone = _take(config, 10, batch_size=4)
    shares = [_take(config, 10, batch_size=2, process_index=i, process_count=2) for i in range(2)]
    for whole, first, second in zip(alone, *shares, strict=True):
        for name in whole:
            np.testing.assert_array_equal(np.concatenate([first[name], second[name]]), whole[name])
    assert set(_clips(shares[0][:5])).isdisjoint(_clips(shares[1][:5]))


def test_restored_state_continues_with_the_very_same_batches(config):
    expected = _take(config, 12)
    with train_loader(config, "train", 4, 0, **SIZES) as loader:
        list(itertools.islice(loader, 7))  # in the middle of the second epoch
        state = loader.get_state()
        next(loader)
        loader.set_state(state)
        _assert_same_batches(list(itertools.islice(loader, 5)), expected[7:])
    with train_loader(config, "train", 4, 0, **SIZES) as other:
        other.set_state(pickle.loads(pickle.dumps(state)))
        assert other.get_state() == state
        _assert_same_batches(list(itertools.islice(other, 5)), expected[7:])


@pytest.mark.parametrize(("before", "after"), [(2, 1), (2, 4), (4, 2)])
def test_another_number_of_processes_continues_where_the_others_were(config, before, after):
    def share(index: int, count: int) -> TrainLoader:
        return train_loader(config, "train", 4 // count, 0, process_index=index, process_count=count, **SIZES)

    states = []
    for index in range(before):
        with share(index, before) as loader:
            list(itertools.islice(loader, 7))
            states.append(loader.get_state())
    assert states == states[:1] * before
    parts = []
    for index in range(after):
        with share(index, after) as loader:
            loader.set_state(states[0])
            parts.append(list(itertools.islice(loader, 5)))
    together = [
        {name: np.concatenate([part[name] for part in batch]) for name in batch[0]}
        for batch in zip(*parts, strict=True)
    ]
    _assert_same_batches(together, _take(config, 12)[7:])


@pytest.mark.slow
def test_sigterm_to_everything_leaves_the_worker_processes_at_work(config):
    expected = _take(config, 20)
    with train_loader(dataclasses.replace(config, num_workers=1), "train", 4, 0, **SIZES) as loader:
        batches = [next(loader)]
        (worker,) = multiprocessing.active_children()
        worker.terminate()
        batches += itertools.islice(loader, 19)
    _assert_same_batches(batches, expected)
    worker.join(10)
    assert worker.exitcode is not None


@pytest.mark.slow
def test_worker_processes_change_neither_batches_nor_resuming(config):
    expected = _take(config, 12)
    with train_loader(dataclasses.replace(config, num_workers=2), "train", 4, 0, **SIZES) as loader:
        _assert_same_batches(list(itertools.islice(loader, 7)), expected[:7])
        state = loader.get_state()
        next(loader)
        loader.set_state(state)
        batches = list(itertools.islice(loader, 5))
    _assert_same_batches(batches, expected[7:])  # they outlive their loader
    with train_loader(config, "train", 4, 0, **SIZES) as loader:
        loader.set_state(state)
        _assert_same_batches(list(itertools.islice(loader, 5)), expected[7:])


@pytest.mark.parametrize(("batch_size", "seed", "name"), [(2, 0, "global_batch_size"), (4, 1, "seed")])
def test_state_of_another_run_is_refused(config, batch_size, seed, name):
    with train_loader(config, "train", 4, 0, **SIZES) as loader:
        state = loader.get_state()
    with train_loader(config, "train", batch_size, seed, **SIZES) as loader, pytest.raises(DataError, match=f"{name}="):
        loader.set_state(state)


def test_origin_names_the_records_of_the_global_batch(config, captions_config):
    both = dataclasses.replace(config, mix_shards=(captions_config.shards,), num_workers=0)
    with train_loader(both, "train", 6, 0, **SIZES) as loader, train_loader(both, "train", 3, 0, **SIZES,
                      process_index=1, process_count=2) as second:  # fmt: skip
        for _ in range(5):
            batch, of_batch, _, of_both = next(loader), loader.origin(), next(second), second.origin()
            next(loader)
            records = of_batch()
            assert records == of_both()
            assert list(records) == [f"{config.shards}/train", f"{captions_config.shards}/train"]
            sources = [open_shards(folder.removesuffix("/train"), "train") for folder in records]
            named = [source[n] for source, numbers in zip(sources, records.values(), strict=True) for n in numbers]
            for ids, record in zip(batch["input_ids"], named, strict=True):
                assert ids.tolist() in record.input_ids.tolist()
            next(second)


def test_evaluation_gives_each_clip_once_in_order_and_pads_the_last_batch(config):
    batches = list(eval_batches(config, "train", 8, **SIZES))
    assert [batch["valid"].tolist() for batch in batches] == [[True] * 8, [True] * 8, [True] * 6 + [False] * 2]
    assert _clips(batches) == [*range(NUM_CLIPS)]
    assert [batch["row"].tolist() for batch in batches] == [[*range(8)], [*range(8)], [*range(6)]]
    last = batches[-1]
    assert last["video"].shape == (8, 4, 8, 8, 3) and last["video"].dtype == np.uint8
    assert last["input_ids"].dtype == last["attention_mask"].dtype == np.int32
    np.testing.assert_array_equal(last["video"][6], last["video"][5])
    assert last["video_id"].tolist()[4:] == ["clip_20.mp4", "clip_21.mp4", "clip_21.mp4", "clip_21.mp4"]
    assert batches[0]["caption"].tolist()[:2] == ["caption 0", "caption 1"]
    assert batches[0]["group"].tolist()[:3] == ["pair", "pair", ""]


def _eval_frames(config: DataConfig, seed: int | None) -> np.ndarray:
    batches = eval_batches(config, "train", 22, shuffle_frames_seed=seed, **SIZES)
    return np.concatenate([batch["video"][:, :, 0, 0, 0] % NUM_KEPT for batch in batches])  # [clips, T]


def test_evaluation_frames_are_uniform(config):
    np.testing.assert_array_equal(_eval_frames(config, None), np.tile([0, 1, 3, 4], (NUM_CLIPS, 1)))


def test_shuffled_evaluation_frames_are_the_same_frames_out_of_order(config):
    shuffled = _eval_frames(config, 3)
    np.testing.assert_array_equal(np.sort(shuffled, axis=1), _eval_frames(config, None))
    orders = {tuple(frames) for frames in shuffled.tolist()}
    assert len(orders) > 5
    assert orders.isdisjoint({(0, 1, 3, 4), (4, 3, 1, 0)})
    np.testing.assert_array_equal(_eval_frames(config, 3), shuffled)


def test_sizes_of_the_shard_set(config):
    assert num_videos(config, "train") == NUM_CLIPS


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_frame_sampling": "headtails"}, "did you mean 'headtail'"),
        ({"train_frame_sampling": "x"}, "known: headtail, uniform"),
        ({"crop_scale": (0.0, 1.0)}, "data.crop_scale"),
        ({"crop_scale": (0.9, 0.5)}, "data.crop_scale"),
        ({"crop_scale": (0.5, 1.5)}, "data.crop_scale"),
        ({"num_workers": -1}, "data.num_workers=-1"),
    ],
)
def test_impossible_options_are_refused_by_name(options, message):
    with pytest.raises(STGTError, match=message) as error:
        DataConfig(**options)
    assert "\n" not in str(error.value)


def test_batch_larger_than_the_split_names_both_numbers(config):
    with pytest.raises(DataError, match="batch_size=24 must be 1 to 22"):
        train_loader(config, "train", 12, 0, process_count=2, **SIZES)


def test_more_frames_than_the_shards_keep_is_refused(config):
    more = {"num_frames": 7, "image_size": 8}
    for start in (
        lambda: train_loader(config, "train", 4, 0, **more),
        lambda: eval_batches(config, "train", 4, **more),
    ):
        with pytest.raises(DataError, match=r"num_frames=7 .* 6 frames .* --num-kept-frames 7"):
            start()


@pytest.mark.parametrize("option", SIZES)
def test_sizes_below_one_are_refused(config, option):
    with pytest.raises(DataError, match=f"{option}=0 must be at least 1"):
        eval_batches(config, "train", 4, **{**SIZES, option: 0})


def test_missing_shards_are_named(config, tmp_path):
    with pytest.raises(DataError, match=r"data\.shards is empty"):
        train_loader(DataConfig(), "train", 4, 0, **SIZES)
    with pytest.raises(DataError, match="nowhere"):
        train_loader(dataclasses.replace(config, shards=str(tmp_path / "nowhere")), "train", 4, 0, **SIZES)


def _several_captions(clip: int) -> VideoRecord:
    """A record of another video than `_record(clip)`."""
    count = 1 + clip % 3
    ids = np.array([[2, clip, 3, which, 0] for which in range(count)], np.int32)
    return dataclasses.replace(
        _record(clip),
        video_key=100 + clip,
        captions=tuple(map(str, range(count))),
        input_ids=ids,
        attention_mask=np.ones_like(ids),
    )


@pytest.fixture(scope="module")
def captions_config(config, tmp_path_factory) -> DataConfig:
    """A shard set of JPEG frames whose videos have one to three captions."""
    shards = tmp_path_factory.mktemp("captions")
    (shards / "vocab.txt").write_bytes((Path(config.shards) / "vocab.txt").read_bytes())
    settings = ShardSettings(NUM_KEPT, 12, "keep_aspect", "jpeg", 95, TEXT_LENGTH, hash_file(shards / "vocab.txt"))
    records = (_several_captions(clip) for clip in range(NUM_CLIPS))
    records = (
        dataclasses.replace(record, frames=StoredFrames(encode_jpeg(record.frames.stored, 95), "jpeg"))
        for record in records
    )
    (shards / "train").mkdir()
    write_split(shards / "train", "train", records, settings)
    return dataclasses.replace(config, shards=str(shards))


NUM_CAPTIONS = sum(1 + clip % 3 for clip in range(NUM_CLIPS))  # 43


def test_epoch_of_captions_takes_each_once_and_none_of_a_video_twice_in_a_batch(captions_config):
    config = dataclasses.replace(captions_config, epoch="captions")
    batches = _take(config, NUM_CAPTIONS // 4 * 2, batch_size=4)
    pairs = [tuple(ids[[1, 3]]) for batch in batches for ids in batch["input_ids"]]
    first, second = pairs[: len(pairs) // 2], pairs[len(pairs) // 2 :]
    assert len(set(first)) == len(first) and len(set(second)) == len(second)
    assert all(len(set(batch["input_ids"][:, 1].tolist())) == 4 for batch in batches)
    for batch in batches:  # frames and caption belong together
        np.testing.assert_allclose(batch["video"][:, :, 4, 4, 0] // NUM_KEPT, batch["input_ids"][:, [1] * 4], atol=1)


def test_epoch_of_videos_draws_one_of_their_captions(captions_config):
    batches = _take(captions_config, 44, batch_size=2)
    clips = _clips(batches)
    assert sorted(clips[:NUM_CLIPS]) == list(range(NUM_CLIPS))
    assert {ids[3] for batch in batches for ids in batch["input_ids"] if ids[1] % 3 == 2} == {0, 1, 2}


@pytest.mark.parametrize("epoch", ["captions", "videos"])
def test_several_captions_and_mixtures_can_be_resumed_and_shared(config, captions_config, epoch):
    config = dataclasses.replace(
        captions_config, epoch=epoch, mix_shards=(config.shards,), mix_weights=(3.0, 1.0), rand_augment=True,
        crop_filter="bicubic",
    )  # fmt: skip
    expected = _take(config, 20)
    with train_loader(config, "train", 4, 0, **SIZES) as loader:
        list(itertools.islice(loader, 13))
        state = pickle.loads(pickle.dumps(loader.get_state()))
    with train_loader(config, "train", 4, 0, **SIZES) as loader:
        loader.set_state(state)
        _assert_same_batches(list(itertools.islice(loader, 7)), expected[13:])
    shares = [_take(config, 20, batch_size=2, process_index=i, process_count=2) for i in range(2)]
    together = [{name: np.concatenate([a[name], b[name]]) for name in a} for a, b in zip(*shares, strict=True)]
    _assert_same_batches(together, expected)


def test_mixture_takes_its_share_of_each_set(config, captions_config):
    mixed = dataclasses.replace(config, mix_shards=(captions_config.shards,), mix_weights=(3.0, 1.0))
    batches = _take(mixed, 22)
    own = _clips([{"input_ids": batch["input_ids"][:3]} for batch in batches])
    assert sorted(own[:21]) == sorted(set(own[:21])), "an epoch of the first set holds each clip once"
    assert all((batch["attention_mask"][3] == 1).all() for batch in batches)  # those of the other set alone
    unweighted = dataclasses.replace(mixed, mix_weights=())
    assert [(batch["attention_mask"].all(1)).tolist() for batch in _take(unweighted, 3)] == [
        [False] * 2 + [True] * 2
    ] * 3


@pytest.mark.parametrize("epoch", ["captions", "videos"])
def test_mixture_never_takes_a_video_of_two_sets_twice_in_a_batch(config, captions_config, tmp_path, caplog, epoch):
    """The second set holds ten videos of the first, under other names."""
    source = open_shards(captions_config.shards, "train")
    shards = shutil.copytree(captions_config.shards, tmp_path / "common")
    shutil.rmtree(shards / "train")
    (shards / "train").mkdir()
    records = [source[clip] for clip in range(NUM_CLIPS)]
    records[:10] = [dataclasses.replace(record, video_key=clip) for clip, record in enumerate(records[:10])]
    write_split(shards / "train", "train", records, source.settings)
    mixed = dataclasses.replace(config, epoch=epoch, mix_shards=(str(shards),))
    with caplog.at_level("INFO", "stgt_jax"):
        batches = _take(mixed, 60)
    assert "10 videos are in more than one of the shard sets" in caplog.text
    clips = np.array([batch["input_ids"][:, 1] for batch in batches])  # [batches, 4]: two of each set
    clips[:, 2:] += 100 * (clips[:, 2:] >= 10)
    assert all(len(set(batch)) == 4 for batch in clips.tolist())
    _assert_same_batches(batches[7:9], _resumed(mixed, 7, 2))
    apart = _take(dataclasses.replace(mixed, mix_shards=(captions_config.shards,)), 60)
    would_hold = np.array([batch["input_ids"][:, 1] for batch in apart])
    would_hold[:, 2:] += 100 * (would_hold[:, 2:] >= 10)
    same = [len(set(batch)) == 4 for batch in would_hold.tolist()]
    assert 5 < sum(same) < 60
    np.testing.assert_array_equal(clips[same], would_hold[same])  # the other batches are as they would be


def _resumed(config: DataConfig, first: int, num_batches: int) -> list[dict]:
    with train_loader(config, "train", 4, 0, **SIZES) as loader:
        loader.set_state(loader.get_state() | {"next_batch": first})
        return list(itertools.islice(loader, num_batches))


def test_evaluation_takes_all_captions_of_a_video(captions_config):
    batches = list(eval_batches(captions_config, "train", 8, **SIZES))
    assert sum(batch["valid"].sum() for batch in batches) == NUM_CLIPS
    assert sum(len(batch["caption"]) for batch in batches) == NUM_CAPTIONS
    assert batches[0]["row"].tolist() == [0, 1, 1, 2, 2, 2, 3, 4, 4, 5, 5, 5, 6, 7, 7]
    np.testing.assert_array_equal(batches[0]["input_ids"][:, 1], batches[0]["row"])


def _damaged(config: DataConfig, folder: Path, num_clips: int = 2) -> DataConfig:
    """Copies a shard set and damages the frames of some clips."""
    shutil.copytree(config.shards, folder)
    source = open_shards(folder, "train")
    records = [source[clip] for clip in range(NUM_CLIPS)]
    for clip in range(5, 5 + num_clips):
        broken = records[clip].frames.stored[0][:-40]
        records[clip] = dataclasses.replace(records[clip], frames=StoredFrames([broken] * NUM_KEPT, "jpeg"))
    shutil.rmtree(folder / "train")
    (folder / "train").mkdir()
    write_split(folder / "train", "train", records, source.settings)
    return dataclasses.replace(config, shards=str(folder))


def test_damaged_record_ends_training_with_its_name(captions_config, tmp_path):
    with pytest.raises(Exception, match=r"record [56] in '.*array_record.*not a whole JPEG"):
        _take(_damaged(captions_config, tmp_path / "damaged"), 11, batch_size=2)


@pytest.mark.parametrize("epoch", ["captions", "videos"])
def test_damaged_records_are_left_out_counted_and_named_up_to_a_limit(captions_config, tmp_path, caplog, epoch):
    config = dataclasses.replace(_damaged(captions_config, tmp_path / "damaged"), epoch=epoch, max_bad_records=2)
    with train_loader(config, "train", 2, 0, **SIZES) as loader, caplog.at_level("WARNING", "stgt_jax"):
        batches = list(itertools.islice(loader, 45))
        assert loader.num_bad_records == 2
        state = loader.get_state()
        loader.set_state(state)
        assert loader.num_bad_records == 2
    assert not {5, 6} & set(_clips(batches))
    assert all(len(set(_clips([batch]))) == 2 for batch in batches)
    assert sorted(record.message[:8] for record in caplog.records) == ["record 5", "record 6"]
    few = dataclasses.replace(config, max_bad_records=1)
    with pytest.raises(DataError, match=r"is damaged, the 2\. such record.*--data\.max_bad_records"):
        _take(few, 45, batch_size=2)


def test_frames_of_another_shape_are_refused(config):
    with pytest.raises(DataError, match=r"--data\.frame_shape keep_aspect"):
        train_loader(dataclasses.replace(config, frame_shape="stretch"), "train", 4, 0, **SIZES)


@pytest.mark.slow
def test_worker_processes_change_nothing_in_a_mixture_of_captions(config, captions_config, tmp_path):
    damaged = _damaged(captions_config, tmp_path / "damaged")
    mixed = dataclasses.replace(damaged, epoch="captions", mix_shards=(config.shards,), max_bad_records=2)
    expected = _take(mixed, 16)
    with train_loader(dataclasses.replace(mixed, num_workers=2), "train", 4, 0, **SIZES) as loader:
        _assert_same_batches(list(itertools.islice(loader, 9)), expected[:9])
        state = loader.get_state()
        loader.set_state(state)
        batches = list(itertools.islice(loader, 7))
        assert loader.num_bad_records > 0
    _assert_same_batches(batches, expected[9:])


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the memory from /proc")
@pytest.mark.parametrize("epoch", ["videos", "captions"])
def test_memory_does_not_grow_with_the_records_read(config, epoch):
    def megabytes() -> float:
        gc.collect()
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6

    with train_loader(dataclasses.replace(config, epoch=epoch), "train", 22, 0, **SIZES) as loader:
        list(itertools.islice(loader, 30))
        before = megabytes()
        for _ in itertools.islice(loader, 100):
            pass
        assert megabytes() - before < 3  # 2,200 records of 3.5 kB, of 100 epochs
