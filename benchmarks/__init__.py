"""Measurements side by side: `python -m benchmarks.NAME` prints one JSON line."""
