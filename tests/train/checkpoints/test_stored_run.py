"""A run of version 0.1 (tests/goldens/run_0_1.tar.xz): its checkpoints are read, and a run goes on from them.

It was made with tests/helpers/tiny.py's experiment at width 8: `run/logits.npy` are the logits of its last checkpoint.
"""

import dataclasses
import tarfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from train.checkpoint import load
from train.checkpoints import locate
from train.checkpoints.run_config import read_config
from train.reporting import metrics
from train.reporting.page import write_report
from train.training import loop

pytestmark = pytest.mark.usefixtures("shared_steps")

STORED = Path(__file__).parents[2] / "goldens" / "run_0_1.tar.xz"


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stored")
    with tarfile.open(STORED) as archive:
        archive.extractall(folder, filter="data")
    return folder / "run"


def test_the_model_is_the_same(stored):
    model, tokenizer = load(stored)
    logits = model(jnp.arange(12, dtype=jnp.int32)[None] * 20).logits
    np.testing.assert_allclose(logits, np.load(stored / "logits.npy"), atol=1e-5, rtol=1e-5)
    assert tokenizer.decode(tokenizer.encode("alpha beta")) == "alpha beta"


@pytest.mark.slow
def test_a_run_goes_on_from_it(stored, tmp_path):
    old = read_config(stored, "run")
    source = tiny.write_corpus(tmp_path / "corpus")
    data = dataclasses.replace(old.data, source=source, cache=str(tmp_path / "cache"), tokenizer=str(stored))
    [_, mom] = old.phases
    phases = (dataclasses.replace(mom, steps=6, init_from="scratch"),)
    new = dataclasses.replace(old, phases=phases, data=data, run=str(tmp_path / "run"), resume=str(stored))
    assert loop.train(new) is None
    steps = [r["step"] for r in metrics.read(tmp_path / "run" / metrics.FILE) if r["kind"] == "train"]
    assert steps == [5, 6]
    before = locate.find(stored, field="stored").meta()
    after = locate.find(tmp_path / "run", field="run").meta()
    assert after.examples_seen == before.examples_seen + 2 * data.batch_size


def test_its_report_is_written_anew(stored):
    assert "Routing in phase mom" in write_report(stored).read_text()
