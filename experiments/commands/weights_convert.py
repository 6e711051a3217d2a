"""`stgt weights convert`."""

import time

from experiments.commands.values import Figures, Folder
from stgt_jax.convert.options import Conversion


def weights_convert(
    sources: tuple[str, ...],  # files or folders of weights; later ones replace tensors of earlier ones
    *,
    out: Folder,  # folder to write the model to
    options: Conversion,
) -> Figures:
    """Convert weights of other projects to a model of this one.

    They are EVA's ViT, BLIP-2 of LAVIS and of Hugging Face, STGT, BERT, and mixtures of them (docs/weights.md).
    `stgt_jax.load` takes the folder, and so does every option that names a checkpoint. The report of what became of
    every tensor is printed, and written to conversion.json there.
    """
    from stgt_jax.convert.report import format_report
    from stgt_jax.loading import convert, write_converted

    start = time.perf_counter()
    report = write_converted(convert(sources, options), out)
    print(format_report(report))
    print(f"\n{out}: the converted model, in {time.perf_counter() - start:.0f} s")
    return report
