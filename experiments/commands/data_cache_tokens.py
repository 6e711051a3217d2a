"""`stgt data cache-tokens`."""

from experiments.commands.values import Figures, Folder


def data_cache_tokens(
    *,
    checkpoint: str,  # folder or name of the model whose ViT is used
    shards: str,  # folder of the shard set with the frames
    out: Folder,  # folder of the shard set of tokens; its other splits stay
    split: str = "train",  # name of the split
    num_frames: int | None = None,  # kept of each clip; by default as many as the model takes, more leave a choice
    clips_at_a_time: int = 32,  # clips to encode at a time, over all devices
    videos_per_shard: int | None = None,  # videos in a file of records; by default as many as have about 256 MB
    overwrite: bool = False,  # replace the split if it exists
) -> Figures:
    """Compute the tokens of a frozen ViT once, so that training need not.

    `stgt pretrain` and `stgt eval` take the result as --data.shards and --shards. An interrupted command goes on.
    """
    from experiments.cache_tokens import cache_tokens

    figures = cache_tokens(
        checkpoint, shards, out, split=split, num_frames=num_frames, batch_size=clips_at_a_time,
        videos_per_shard=videos_per_shard, overwrite=overwrite,
    )  # fmt: skip
    print(
        f"{out}/{split}: {figures['num_videos']} videos, tokens of {figures['num_frames']} frames each,"
        f" {figures['bytes_per_clip'] / 1e6:.2f} MB a clip"
    )
    return figures
