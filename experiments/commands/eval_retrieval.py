"""`stgt eval retrieval`."""

from experiments.commands.values import Figures


def eval_retrieval(
    *,
    checkpoint: str,  # folder of a training (its newest checkpoint counts), of one checkpoint, or of an exported model
    shards: str,  # folder of the shard set, from `stgt data build`
    split: str = "test",  # split to measure on
    k_test: int = 32,  # candidates of each query that are re-ranked by matching
    encode_batch_size: int = 32,  # clips encoded at a time
    shuffle_frames: bool = False,  # shuffle the frames of every clip, to see if the model uses their order
) -> Figures:
    """Measure retrieval of videos by text and of texts by video, with and without re-ranking."""
    from experiments.evaluate import retrieval
    from stgt_jax.eval.retrieval import format_table, format_time_order

    result = retrieval(
        checkpoint, shards, split=split, k_test=k_test, batch_size=encode_batch_size, shuffle_frames=shuffle_frames
    )
    print(format_table(result))
    print(format_time_order({"frames shuffled" if shuffle_frames else "frames in order": result}))
    return result.to_dict()
