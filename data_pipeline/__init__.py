"""From video files to batches: decode, sample, tokenise, shard and load; plus the embedded data set `moving_shapes`.

Imports nothing of `stgt_jax`: the two meet in a batch, a plain dict of arrays.
"""
