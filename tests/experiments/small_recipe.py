"""The options that make any recipe small enough for a test: two steps of a model of a few thousand weights."""

SMALL = [
    "--image_size=16", "--patch_size=8", "--vision.width=16", "--vision.depth=1",
    "--vision.mlp_dim=16", "--qformer.width=16", "--qformer.depth=1", "--qformer.mlp_dim=16", "--num_queries=2",
    "--embed_dim=8", "--num_frames=2", "--num_workers=0", "--num_steps=2",
    "--warmup_steps=1", "--batch_size=8", "--eval_every=0", "--scan_layers=false",
]  # fmt: skip
SMALL_ARM = ["--patch_size=32", *SMALL[2:]]  # of the ablation, which has an image size of its own
SMALL_STEP = [*SMALL, "--vocab_size=64", "--variant=none"]  # the graph, which others test, compiles for long
