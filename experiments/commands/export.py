"""`stgt export`."""

from dataclasses import KW_ONLY, dataclass

from experiments.commands.values import Figures, Folder


@dataclass(frozen=True)
class Export:
    """Write a trained model to a folder of its own: config, vocabulary, and weights in the safetensors format.

    `stgt_jax.load` takes such a folder, and so does every option that names a checkpoint.
    """

    checkpoint: str  # folder of a training (its newest checkpoint counts), or of one checkpoint
    folder: Folder  # folder to write to; a model in it is replaced
    _: KW_ONLY
    shards: str = ""  # shard set to measure retrieval on; the figures go to origin.json
    split: str = "test"  # split to measure on
    made_by: str = ""  # command that trained the model, for origin.json

    def run(self) -> Figures:
        from experiments.export import export_checkpoint
        from stgt_jax.eval.metrics import format_metrics

        origin = export_checkpoint(
            self.checkpoint, self.folder, shards=self.shards, split=self.split, made_by=self.made_by
        )
        if "figures" in origin:
            figures = origin["figures"]
            print(format_metrics({"": figures["similarity"], "re-ranked": figures["reranked"]}))
        print(f"{self.folder}: the model of checkpoint {origin['checkpoint']}")
        return origin
