"""`stgt export`."""

from experiments.commands.values import Figures, Folder


def export(
    checkpoint: str,  # folder of a training (its newest checkpoint counts), or of one checkpoint
    folder: Folder,  # folder to write to; a model in it is replaced
    *,
    shards: str = "",  # shard set to measure retrieval on; the figures go to origin.json
    split: str = "test",  # split to measure on
    made_by: str = "",  # command that trained the model, for origin.json
) -> Figures:
    """Write a trained model to a folder: config, vocabulary, and weights in the safetensors format.

    `stgt_jax.load` takes such a folder, and so does every option that names a checkpoint.
    """
    from experiments.export import export_checkpoint
    from stgt_jax.eval.metrics import format_metrics

    origin = export_checkpoint(checkpoint, folder, shards=shards, split=split, made_by=made_by)
    if figures := origin.get("figures"):
        print(format_metrics({"": figures["similarity"], "re-ranked": figures["reranked"]}))
    print(f"{folder}: the model of checkpoint {origin['checkpoint']}")
    return origin
