"""`stgt eval qa`."""

from typing import Literal

from experiments.commands.values import Figures, File


def eval_qa(
    *,
    checkpoint: str,  # folder of a training (its newest checkpoint counts), of one checkpoint, or of an exported model
    shards: str,  # folder of the shard set, from `stgt data build`
    split: str = "test",  # split to measure on
    dtype: Literal["float32", "model"] = "float32",  # of the computation; model: that of the training
    encode_batch_size: int = 32,  # clips encoded at a time
    shuffle_frames: bool = False,  # shuffle the frames of every clip, to see if the answers need their order
    results: File | None = None,  # also write all figures, every answer, and what was measured how
) -> Figures:
    """Answer the questions of a split, and count the answers that are right word for word."""
    from experiments.evaluate import answering
    from stgt_jax.eval.question_answering import format_answering

    result, rows = answering(
        checkpoint, shards, split=split, dtype=dtype, batch_size=encode_batch_size, shuffle_frames=shuffle_frames,
        results=results,
    )  # fmt: skip
    print(f"split {split} of {shards}{', frames shuffled' if shuffle_frames else ''}")
    print(format_answering(rows, result))
    return {**result.to_dict(), "rows": rows}
