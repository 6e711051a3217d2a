"""What training sees of the data: one batch."""

from typing import NotRequired, TypedDict

import jax


class Batch(TypedDict):
    """A batch of B clips with a caption each: T frames, S tokens."""

    video: jax.Array  # [B, T, height, width, 3] uint8; or the ViT's tokens of the frames, [B, T, L, D] bfloat16
    input_ids: jax.Array  # [B, S] int32
    attention_mask: jax.Array  # [B, S] int32; 1 for tokens, 0 for padding
    answer: NotRequired[jax.Array]  # [B] int32, of questions: the number of the right answer, -1 if not listed
