"""`stgt caption`."""

from experiments.commands.values import Figures
from stgt_jax.config import GenerationConfig


def caption(
    videos: tuple[str, ...],  # video files, or folders of them
    *,
    checkpoint: str,  # of the model: a run, a checkpoint, an exported model, or other weights
    seed: int = 0,  # of the method nucleus
    generation: GenerationConfig,
) -> Figures:
    """Describe videos by captions. Files that cannot be read are listed at the end."""
    import os
    from collections.abc import Iterator

    import numpy as np

    import stgt_jax as stgt
    from data_pipeline.datasets.video_files import walk_videos
    from experiments.tables import format_table
    from stgt_jax.checks import check

    files = [str(file) for path in videos for file in (walk_videos(path) if os.path.isdir(path) else [path])]
    check(bool(files), f"no video in {', '.join(videos)}")
    model = stgt.load(checkpoint)
    unreadable: dict[str, str] = {}

    def clips() -> Iterator[np.ndarray]:
        for file, clip in zip(files, model.read_clips(files), strict=True):
            if isinstance(clip, str):
                unreadable[file] = clip
            else:
                yield clip

    written = model.caption_candidates(clips(), generation, seed=seed)
    captions = dict(zip([file for file in files if file not in unreadable], written, strict=True))
    check(bool(captions), "; ".join(unreadable.values()))
    rows = [
        {"file": "" if rank else file, "caption": text}
        for file, of_video in captions.items()
        for rank, text in enumerate(of_video)
    ]
    print(format_table(rows, left=("file", "caption")))
    for reason in unreadable.values():
        print(f"not read: {reason}")
    return {"captions": captions, "unreadable": unreadable}
