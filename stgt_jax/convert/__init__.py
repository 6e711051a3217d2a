"""Weights of other implementations -> our parameter tree, and back."""
