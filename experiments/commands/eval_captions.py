"""`stgt eval captions`."""

from typing import Literal

from experiments.commands.processes import Processes
from experiments.commands.values import Figures, File
from stgt_jax.config import GenerationConfig


def eval_captions(
    *,
    checkpoint: str,  # folder of a training (its newest checkpoint counts), of one checkpoint, or of an exported model
    shards: str,  # folder of the shard set, from `stgt data build`
    split: str = "test",  # split to measure on
    seed: int = 0,  # of the method nucleus
    dtype: Literal["float32", "model"] = "float32",  # of the computation; model: that of the training
    encode_batch_size: int = 32,  # clips captioned at a time
    results: File | None = None,  # also write all figures, every caption, and what was measured how
    generation: GenerationConfig,
    processes: Processes,
) -> Figures | None:
    """Caption every clip, and compare with its own captions by BLEU-4, ROUGE-L and CIDEr-D."""
    with processes.joined():
        from experiments.evaluate import captioning, is_first_process
        from stgt_jax.eval.captioning import format_captioning

        result = captioning(
            checkpoint, shards, split=split, generation=generation, seed=seed, dtype=dtype,
            batch_size=encode_batch_size, results=results,
        )  # fmt: skip
        if not is_first_process():
            return None
    print(f"split {split} of {shards}")
    print(format_captioning(result))
    return result.to_dict()
