"""Benchmarks: how long the model's parts take, how much memory, and which share of what the device can do."""
