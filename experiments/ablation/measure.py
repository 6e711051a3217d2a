"""What is measured of one trained arm: retrieval, the order of time, the graph, and pairs that share a caption."""

import functools
import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import softmax

from data_pipeline.config import TEST_SPLIT, TRAIN_SPLIT, DataConfig
from data_pipeline.crowded_shapes import Crowd, shape_numbers
from data_pipeline.loader import eval_batches
from data_pipeline.sampling import nearest_frames, uniform_frames
from experiments.evaluate import retrieval
from stgt_jax.api import load
from stgt_jax.encoder import Encoder, score_similarity
from stgt_jax.losses import csal_target_logits
from stgt_jax.models.layers import normalize

BATCH = 48  # clips, for the encoder; and of the batches whose near-duplicates are looked at, as in training
NUM_TRACKED = 200  # test clips whose graph is looked at
NUM_BATCHES = 20  # of training clips


def measure(
    checkpoint: Path, shards: Path, crowds: list[Crowd], *, num_kept_frames: int, sharpness: float
) -> dict[str, Any]:
    """Returns all figures of a model.

    Args:
      checkpoint: folder of its run.
      shards: shard set of crowded_shapes.
      crowds: the scenes of the test clips, in their order.
      num_kept_frames: K of the shards.
      sharpness: of CSAL's targets, which are looked at whatever the loss of the training was.
    """
    score = functools.partial(retrieval, checkpoint, shards, split=TEST_SPLIT, k_test=1, batch_size=BATCH)
    ordered, shuffled = (score(shuffle_frames=shuffle).to_dict() for shuffle in (False, True))
    model = load(checkpoint, batch_size=BATCH)
    data = DataConfig(shards=str(shards))
    return {
        "similarity": ordered["similarity"],
        "time_order": ordered["time_order"]["similarity"],
        "frames_shuffled": {"similarity": shuffled["similarity"], "time_order": shuffled["time_order"]["similarity"]},
        "graph": _graph(model.encoder, data, crowds, num_kept_frames),
        "duplicates": _duplicates(model.encoder, data, sharpness),
    }


def _graph(encoder: Encoder, data: DataConfig, crowds: list[Crowd], num_kept_frames: int) -> dict[str, float]:
    """The mean of each of `Encoder.graph_statistics` over test clips; none for a model without a graph."""
    config = encoder.model.config
    if config.graph.variant == "none":
        return {}
    tracked = crowds[:NUM_TRACKED]
    clips = itertools.islice(_clips(encoder, data, TEST_SPLIT), len(tracked))
    objects = (_objects(crowd, config.num_frames, config.vision.patch_size, num_kept_frames) for crowd in tracked)
    return {name: float(np.nanmean(values)) for name, values in encoder.graph_statistics(clips, objects).items()}


def _objects(crowd: Crowd, num_frames: int, patch_size: int, num_kept_frames: int) -> np.ndarray:
    """The shape that each patch of the frames of an evaluation shows: int [T, P]."""
    kept = uniform_frames(crowd.num_frames, num_kept_frames)
    taken = kept[nearest_frames(kept, crowd.num_frames, num_frames)]
    return shape_numbers(crowd, patch_size)[taken].reshape(num_frames, -1)


def _clips(encoder: Encoder, data: DataConfig, split: str) -> Iterator[np.ndarray]:
    for batch in _batches(encoder, data, split):
        yield from batch["video"][batch["valid"]]


def _batches(encoder: Encoder, data: DataConfig, split: str) -> Iterator[dict[str, np.ndarray]]:
    config = encoder.model.config
    return eval_batches(data, split, BATCH, num_frames=config.num_frames, image_size=config.vision.image_size)


def _duplicates(encoder: Encoder, data: DataConfig, sharpness: float) -> dict[str, float]:
    """What CSAL's targets and the model's similarities are for pairs of training clips that share a caption.

    Means over batches, of the rows of clips whose caption another clip of the batch has:
    target_own, target_same, target_others: CSAL's targets of the own pair, of the pairs with the same caption together,
      and of all other pairs together. probability_own, ...: the same for the model's own softmax.
    effective_pairs: exp of the entropy of the targets, the number of pairs that share them, over all rows.
    similarity_own, similarity_same, similarity_others: mean similarity of video and text.
    """
    batches = itertools.islice(_batches(encoder, data, TRAIN_SPLIT), NUM_BATCHES)
    rows = [_of_batch(encoder, batch, sharpness) for batch in batches]
    return {name: float(np.nanmean(np.concatenate([row[name] for row in rows]))) for name in rows[0]}


def _of_batch(encoder: Encoder, batch: Mapping[str, np.ndarray], sharpness: float) -> dict[str, np.ndarray]:
    valid = batch["valid"]
    video = encoder.embed_videos(batch["video"][valid])  # [B, Q, E]
    text = encoder.encode_texts(batch["input_ids"], batch["attention_mask"])  # [B, E], one caption a clip
    mean = np.asarray(normalize(video.mean(axis=1)))
    targets = softmax(np.asarray(csal_target_logits(mean @ mean.T, text @ text.T, sharpness)), axis=1)
    similarity = score_similarity(video, text)
    probability = softmax(similarity / float(encoder.params["temperature"]), axis=1)
    own = np.eye(len(text), dtype=bool)
    same = (batch["caption"][:, None] == batch["caption"][None]) & ~own
    rows = same.any(axis=1)
    kinds = {"own": own[rows], "same": same[rows], "others": ~(own | same)[rows]}

    def total(values: np.ndarray, kind: str) -> np.ndarray:
        return (values[rows] * kinds[kind]).sum(axis=1)

    figures = {f"target_{kind}": total(targets, kind) for kind in kinds}
    figures |= {f"probability_{kind}": total(probability, kind) for kind in kinds}
    figures |= {f"similarity_{kind}": total(similarity, kind) / kinds[kind].sum(axis=1) for kind in kinds}
    entropy = -(targets * np.log(np.maximum(targets, 1e-30))).sum(axis=1)
    return figures | {"effective_pairs": np.exp(entropy)}
