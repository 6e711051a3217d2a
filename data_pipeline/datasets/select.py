"""The data sets by name."""

from pathlib import Path

from data_pipeline.captions import CaptionedVideos
from data_pipeline.datasets import didemo, folder, lavis, lsmdc, msrvtt, msvd, vidal, webvid
from data_pipeline.datasets.dataset import Counts, Request, count
from data_pipeline.datasets.video_files import VideoFiles
from data_pipeline.errors import DataError
from data_pipeline.storage import any_path
from stgt_jax.checks import did_you_mean

DATASETS = {
    "webvid": webvid.DATASET,
    "vidal": vidal.DATASET,
    "msrvtt": msrvtt.DATASET,
    "msvd": msvd.DATASET,
    "didemo": didemo.DATASET,
    "lsmdc": lsmdc.DATASET,
    "lavis": lavis.DATASET,
    "folder": folder.DATASET,
}


def read_dataset(
    name: str, *, annotations: str | Path, videos: str | Path | None, split: str, variant: str | None = None
) -> CaptionedVideos:
    """Reads a split of a data set from its annotation files as they are distributed.

    Args:
      name: of the data set.
      annotations: folder of the annotation files; for some data sets it may be the file itself.
      videos: folder of the videos; by default that of the annotations.
      split: name of the split.
      variant: which form of the data set; by default its first one.

    Returns:
      The rows, and lines that compare their numbers with the published ones.

    Raises:
      DataError: unknown name, variant or split; a missing file, or one that is not as it should be.
    """
    if name not in DATASETS:
        raise DataError(f"unknown data set '{name}'{did_you_mean(name, DATASETS)}")
    splits = DATASETS[name].splits
    variant = next(iter(splits)) if variant is None else variant
    if variant not in splits:
        known = f"known: {', '.join(splits)}" if any(splits) else "it has none"
        raise DataError(f"--variant {variant}: {name} has no such variant; {known}")
    if splits[variant] and split not in splits[variant]:
        raise DataError(f"--split {split}: {name} {variant} has no such split; known: {', '.join(splits[variant])}")
    annotations = Path(annotations)
    if not annotations.exists():
        raise DataError(f"no file or folder '{annotations}'; --annotations names one")
    folder = annotations if annotations.is_dir() else annotations.parent
    files = VideoFiles(any_path(videos) if videos is not None else folder)
    annotated = DATASETS[name].read(Request(annotations, files, split, variant))
    title = " ".join(filter(None, (name, variant)))
    if not annotated.rows:
        raise DataError(f"{title}, split {split}: there is no row in '{annotations}'")
    lines = tuple(_compare(f"{title}, split {split}", count(annotated.rows), annotated.published))
    return CaptionedVideos(annotated.rows, files.folder, title, lines)


def _compare(title: str, found: Counts, published: Counts) -> list[str]:
    """Returns lines that tell the sizes of a split, and warn of each that is not as published."""
    sizes = {name: size for name, size in vars(found).items() if size}
    expected = {name: size for name, size in vars(published).items() if size is not None}
    listed = ", ".join(f"{size:,} {name}" for name, size in sizes.items())
    wrong = [
        f"warning: {title} has {sizes.get(name, 0):,} {name}, and {size:,} are published"
        for name, size in expected.items()
        if sizes.get(name, 0) != size
    ]
    told = "no published sizes" if not expected else "not as published" if wrong else "as published"
    return [f"{title}: {listed} ({told})", *wrong]
