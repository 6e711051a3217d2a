"""`stgt eval retrieval`."""

from typing import Literal

from experiments.commands.processes import Processes
from experiments.commands.values import Figures, File


def eval_retrieval(
    *,
    checkpoint: str,  # folder of a training (its newest checkpoint counts), of one checkpoint, or of an exported model
    shards: str,  # folder of the shard set, from `stgt data build`
    split: str = "test",  # split to measure on
    k_test: int = 32,  # candidates of each query that are re-ranked by matching
    rule: Literal["probability", "logit"] = "probability",  # what re-ranking adds: P(match), or as LAVIS the logit
    dtype: Literal["float32", "model"] = "float32",  # of the computation; model: that of the training
    encode_batch_size: int = 32,  # clips encoded at a time
    shuffle_frames: bool = False,  # shuffle the frames of every clip, to see if the model uses their order
    results: File | None = None,  # also write all figures, every query's ranks, and what was measured how
    processes: Processes,
) -> Figures | None:
    """Measure retrieval of videos by text and of texts by video, with and without re-ranking.

    Several processes measure together if each is started with the same command, as for `stgt pretrain`.
    """
    with processes.joined():
        from experiments.evaluate import is_first_process, retrieval
        from stgt_jax.eval.retrieval import format_table, format_time_order

        result = retrieval(
            checkpoint, shards, split=split, k_test=k_test, rule=rule, dtype=dtype, batch_size=encode_batch_size,
            shuffle_frames=shuffle_frames, results=results,
        )  # fmt: skip
        if not is_first_process():
            return None
    print(f"split {split} of {shards}")
    print(format_table(result))
    print(format_time_order({"frames shuffled" if shuffle_frames else "frames in order": result}))
    return result.to_dict()
