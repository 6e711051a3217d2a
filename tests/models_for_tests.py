"""A model that tests can run in seconds on one CPU core."""

from stgt_jax.config import GraphConfig, ModelConfig, QFormerConfig, VisionConfig


def tiny() -> ModelConfig:
    """4 frames of 4 x 4 patches, two layers of width 32."""
    return ModelConfig(
        num_frames=4,
        vision=VisionConfig(image_size=32, patch_size=8, width=32, depth=2, num_heads=4, mlp_dim=64),
        graph=GraphConfig(num_heads=4, time_embed_rows=4),
        qformer=QFormerConfig(vocab_size=64, max_text_length=16, width=32, depth=2, num_heads=4, mlp_dim=64,
                              num_queries=4, sep_token_id=3),
        embed_dim=16,
    )  # fmt: skip
