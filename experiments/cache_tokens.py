"""Vision tokens that are computed once: writes what the frozen ViT of a model gives, and checks whose they are."""

from pathlib import Path
from typing import Any

from data_pipeline.shards import ShardSource, TokenSettings, open_shards
from data_pipeline.token_shards import write_token_split
from stgt_jax.api import load
from stgt_jax.config import ModelConfig
from stgt_jax.errors import STGTError
from stgt_jax.exported import model_folder
from stgt_jax.fingerprint import fingerprint
from stgt_jax.run_folder import read_run
from stgt_jax.storage import check_storage


def cache_tokens(
    checkpoint: str | Path,
    shards: str | Path,
    out: str | Path,
    *,
    split: str,
    num_frames: int | None = None,
    batch_size: int = 32,
    videos_per_shard: int | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Writes what the ViT of a model makes of a split's frames, over all devices of this process.

    Args:
      checkpoint: folder or name of a model, as for `stgt_jax.load`.
      shards: folder of the shard set with the frames.
      out: folder of the shard set of tokens.
      split: of both.
      num_frames: kept of each clip; by default those that the model takes.
      batch_size: clips at a time.
      videos_per_shard: videos in a file; by default as many as have about 256 MB.
      overwrite: replace the split in `out`.
      progress: show a progress bar.

    Returns:
      Figures for JSON.

    Raises:
      STGTError: there is no such model or split, its frames were not prepared as the model's, or a record is damaged.
    """
    check_storage(checkpoint, shards, out)
    run = read_run(model_folder(checkpoint))
    source = open_shards(shards, split)
    given, trained = source.settings.frame_shape, run.preparation.frame_shape
    if given != trained:
        raise STGTError(
            f"'{shards}' was built with frame_shape={given}, and the model in '{run.folder}' was trained with"
            f" {trained}; build the shards with --frame-shape {trained}"
        )
    model = load(checkpoint, batch_size=batch_size)
    frames = model.config.num_frames if num_frames is None else num_frames
    settings = token_settings(model.config, model.params["vision"])
    num_videos = write_token_split(
        source, out, settings, frames, model.encoder.encode_frames,
        videos_per_shard=videos_per_shard, overwrite=overwrite, progress=progress,
    )  # fmt: skip
    return {
        "shards": str(out),
        "split": split,
        "num_videos": num_videos,
        "num_frames": frames,
        "bytes_per_clip": 2 * frames * settings.tokens_per_frame * settings.width,
        "vision_fingerprint": settings.vision_fingerprint,
    }


def token_settings(model: ModelConfig, vision_params: Any = None) -> TokenSettings:
    """Returns which encoder a model has; without its parameters the fingerprint is empty."""
    vision = model.vision
    of_weights = "" if vision_params is None else fingerprint(vision_params)
    return TokenSettings(of_weights, vision.image_size, model.dtype, vision.tokens_per_frame, vision.width)


def check_tokens(source: ShardSource, model: ModelConfig, params: Any = None) -> None:
    """Checks that the tokens of a split, if it holds any, are of a model's own ViT.

    Args:
      source: the split.
      model: the config of the model.
      params: its parameters; without them its weights are not compared.

    Raises:
      STGTError: they are of another one.
    """
    if source.settings.tokens is None:
        return
    ours = token_settings(model, None if params is None else params["vision"])
    for name, value in vars(ours).items():
        there = getattr(source.settings.tokens, name)
        if value and there != value:
            raise STGTError(
                f"'{source.shards}' holds tokens of another ViT: {name} is {there!s:.16} there, and {value!s:.16} of"
                " this model; make them with `stgt data cache-tokens` and this model's ViT"
            )


def check_tokens_for_training(source: ShardSource, model: ModelConfig) -> None:
    """As `check_tokens`. Raises STGTError also where the model would train the ViT that the tokens are of."""
    check_tokens(source, model)
    if source.settings.tokens and (not model.vision.freeze or model.vision.open_blocks):
        raise STGTError(
            f"'{source.shards}' holds tokens of a frozen ViT, and this model would train its own: give --vision.freeze"
            " true and --vision.open_blocks 0, or shards with frames"
        )
