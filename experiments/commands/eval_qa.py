"""`stgt eval qa`."""

from typing import Literal

from experiments.commands.processes import Processes
from experiments.commands.values import Figures, File


def eval_qa(
    *,
    checkpoint: str,  # folder of a training (its newest checkpoint counts), of one checkpoint, or of an exported model
    shards: str,  # folder of the shard set, from `stgt data build`
    split: str = "test",  # split to measure on
    by: Literal["head", "likelihood"] = "head",  # what chooses the answer; likelihood needs no training on questions
    answers: str = "",  # by likelihood: file of the answers; by default those of the head or of the training split
    num_answers: int = 1500,  # by likelihood: most frequent answers of the training split to choose among
    candidates: int = 16,  # by likelihood: answers compared by all their tokens, not by the first alone
    dtype: Literal["float32", "model"] = "float32",  # of the computation; model: that of the training
    encode_batch_size: int = 32,  # clips encoded at a time
    shuffle_frames: bool = False,  # shuffle the frames of every clip, to see if the answers need their order
    results: File | None = None,  # also write all figures, every answer, and what was measured how
    processes: Processes,
) -> Figures | None:
    """Answer the questions of a split, and count the answers that are right word for word."""
    from stgt_jax.checks import check

    check(min(num_answers, candidates) > 0, "--num-answers and --candidates must be greater than 0")
    with processes.joined():
        from experiments.evaluate import answering, is_first_process
        from stgt_jax.eval.question_answering import format_answering

        result, rows = answering(
            checkpoint, shards, split=split, answers=answers, num_answers=num_answers,
            num_candidates=candidates if by == "likelihood" else 0, dtype=dtype, batch_size=encode_batch_size,
            shuffle_frames=shuffle_frames, results=results,
        )  # fmt: skip
        if not is_first_process():
            return None
    print(f"split {split} of {shards}{', frames shuffled' if shuffle_frames else ''}")
    print(format_answering(rows, result))
    return {**result.to_dict(), "rows": rows}
