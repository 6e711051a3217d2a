"""Retrieval: how well a trained model finds the clip of a caption and the caption of a clip."""
