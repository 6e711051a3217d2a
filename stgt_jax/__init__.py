"""STGT, Video-Language Alignment via Spatio-Temporal Graph Transformer (arXiv 2407.11677), in JAX and Flax."""
