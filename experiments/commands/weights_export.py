"""`stgt weights export`."""

from typing import Literal

from experiments.commands.values import Figures, Folder


def weights_export(
    checkpoint: str,  # folder of a training (its newest checkpoint counts), of one checkpoint, or of a model
    folder: Folder,  # folder to write to
    *,
    names: Literal["reference", "hugging_face"] = "reference",  # of the original and LAVIS, or of transformers
) -> Figures:
    """Write a model's weights as safetensors under the names of other projects.

    With --names hugging_face, `transformers` loads the folder as Blip2ForImageTextRetrieval; that class has no graph.
    """
    from stgt_jax.loading import export_as

    written = export_as(checkpoint, folder, names)
    if written["left_out"]:
        print(f"no place there for {', '.join(written['left_out'])}")
    print("\n".join(f"note: {note}" for note in written["notes"]), end="\n" if written["notes"] else "")
    print(f"{folder}: {written['tensors']} tensors")
    return written
