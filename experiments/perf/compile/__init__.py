"""`stgt compile`: compiles a train step for a TPU slice, without a TPU, and predicts its cost."""
