"""Evaluations of a checkpoint on a shard set: what `stgt eval` runs, and the last step of the demo and the ablation."""

from pathlib import Path

from data_pipeline.config import DataConfig
from data_pipeline.loader import eval_batches
from experiments.storage import check_storage
from stgt_jax.encoder import Encoder
from stgt_jax.eval.retrieval import RetrievalResult, evaluate_retrieval
from stgt_jax.train.checkpoint import load_config, load_params

FRAME_SHUFFLE_SEED = 0


def retrieval(
    checkpoint: str | Path,
    shards: str | Path,
    *,
    split: str,
    k_test: int,
    batch_size: int,
    shuffle_frames: bool = False,
) -> RetrievalResult:
    """Retrieval with the weights of a checkpoint over a whole split.

    Args:
      checkpoint: the folder of a training (its newest checkpoint) or of one checkpoint.
      shards: shard set folder.
      split: of the shard set.
      k_test: candidates of each query that are re-ranked.
      batch_size: clips encoded at a time.
      shuffle_frames: the control for whether the model sees time: each clip's frames out of order.

    Raises:
      STGTError, DataError: no such checkpoint or shards.
    """
    check_storage(checkpoint, shards)
    config = load_config(checkpoint)
    encoder = Encoder(config, load_params(checkpoint, config), batch_size=batch_size)
    batches = eval_batches(
        DataConfig(shards=str(shards)),
        split,
        batch_size,
        num_frames=config.num_frames,
        image_size=config.vision.image_size,
        shuffle_frames_seed=FRAME_SHUFFLE_SEED if shuffle_frames else None,
    )
    return evaluate_retrieval(encoder, batches, k_test=k_test)
