"""Texts that studies need besides the standard library's sources, under `data/`."""
