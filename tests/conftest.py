"""Every test runs on the CPU, with warnings as errors and without silent promotion of ranks or types."""

import os
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
# Compiled programs are shared among tests, the processes that they start, and reruns; not among parallel workers, since
# one could read what another has half written.
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(
    Path(__file__).parents[1] / ".pytest_cache" / f"xla-{os.environ.get('PYTEST_XDIST_WORKER', 'alone')}"
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "0")

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


@pytest.fixture
def internet(tmp_path, monkeypatch):
    """A table of what each URL has; TFDS's downloads come from there. The rest of TFDS is as it is."""
    import tensorflow_datasets as tfds
    from downloads import from_table

    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    content: dict[str, bytes] = {}
    monkeypatch.setattr(tfds.download.DownloadManager, "download", from_table(content))
    return content
