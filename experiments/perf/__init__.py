"""Measuring tools: benchmarks on the local devices, and ahead-of-time compilation for TPU slices."""
