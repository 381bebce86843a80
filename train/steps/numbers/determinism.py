"""The same bits every time."""

import os


def make_deterministic() -> None:
    """XLA's GPU programs give the same bits every time from here on. Before the first use of a device: XLA reads its
    flags once."""
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_deterministic_ops=true".strip()
