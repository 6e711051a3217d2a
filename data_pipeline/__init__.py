"""From video files to batches: decode, sample, tokenise, shard and load; with the built-in data set `moving_shapes`.

The package knows no model: a batch is a plain dict of arrays. Of `stgt_jax` it imports only `errors` and `checks`.
"""
