"""A part of the campaign of faults (`make faults`), and that what it compares can differ.

docs/faults.md is its page, made of tests/faults/campaign/results.jsonl.
"""

import contextlib
import functools
import json
import random
import shutil

import jax
import pytest
from campaign import catalogue, table
from campaign.nursery import Nursery
from campaign.outcomes import Outcome, Said
from campaign.workshop import Place, Workshop, shared_programs

SHORT = (
    *("parameters of the newest checkpoint: a bit flipped 0",),
    *("metrics.jsonl: emptied 0", "the cache's meta.json: truncated 0", "changed: --seed"),
    *("a single file with a model: a bit flipped", "a weight is nan"),
)
SLOW = (
    *("optimizer of the newest checkpoint: removed 0", "link as lock"),
    *("its checksums (manifest): a bit flipped 0", "metrics.jsonl: a bit flipped 0", "earlier phase: overwritten"),
    *("all checkpoints of a phase", "journal: truncated", "a file instead of a phase's checkpoints", "no checksums"),
    *("checkpoint read: overwritten", "a weight of a run is nan", "files of at most 4 KB", "saves fail: 28"),
    *("log fails", "lock held", "clock back by days", "a learning rate of 1e30", "killed (SIGKILL) 0"),
)


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    jax.config.update("jax_enable_compilation_cache", True)  # runs of processes find what this one compiles
    shop = Workshop(tmp_path_factory.mktemp("campaign"))
    with shared_programs():
        shop.prepare()
        yield shop


@pytest.fixture(scope="module")
def jobs():
    with contextlib.ExitStack() as stack:
        made = functools.cache(lambda: stack.enter_context(Nursery()))  # only the slow ones need it
        yield {job.name: job for job in catalogue.jobs(made)}


@pytest.mark.parametrize("name", [*SHORT, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_what_faults_lead_to(shop, jobs, name):
    place = shop.place(name)
    outcomes = jobs[name].do(place)
    assert outcomes
    for outcome in outcomes:
        assert not outcome.wrong, outcome
        assert not outcome.silent, outcome
        assert outcome.data == 0, outcome
    shutil.rmtree(place.folder)


def test_differences_are_found(shop, tmp_path):
    """In the parameters, in the log, in the data; and programs that end with a traceback, or with no clear line."""

    def compared(**options):
        outcome = Outcome("none", "nothing")
        place.compare(outcome, **options)
        return outcome

    place = Place(shop, tmp_path, random.Random(0))
    shutil.copytree(shop.reference, place.run)
    same = compared()
    assert (same.wrong, same.silent, same.data) == ([], False, 0)
    log = place.run / "metrics.jsonl"
    lines = log.read_text().splitlines()
    record = json.loads(lines[2])
    for change, data in (({"loss": record["loss"] + 1e-6}, 0), ({"examples_seen": 13}, 1), ({"step": 2}, 2)):
        log.write_text("\n".join([*lines[:2], json.dumps(record | change), *lines[3:]]) + "\n")
        other = compared()
        assert other.wrong
        assert (other.silent, other.data) == (True, data)
        assert not compared(told=True).silent
    log.write_text("\n".join(lines) + "\n")
    shutil.rmtree(place.run / "checkpoints" / "mom" / "6")
    (place.run / "checkpoints" / "mom" / "4").rename(place.run / "checkpoints" / "mom" / "6")
    assert compared().silent
    assert not Said(2, "", "a notice\nerror: field=1: must be 2\n").complaints()
    for code, err in ((2, "error: a\nerror: b\n"), (2, "error: a\nnoise\n"), (3, ""), (1, ""), (0, "Traceback (most")):
        assert Said(code, "", err).complaints()


def test_the_page_is_of_the_results():
    rows = table.read(table.RESULTS)
    assert table.PAGE.read_text() == table.page(rows, [job.name for job in catalogue.jobs(None)])
    assert len(rows) >= 200
    assert len({row["kind"] for row in rows}) >= 40
    killed = [row["group"] for row in rows if row["kind"].startswith("killed (SIGKILL)")]
    assert killed.count("One process") >= 60
    assert killed.count("One of two processes") >= 15
    assert not [row for row in rows if row["silent"] or row["data"] or row["wrong"]]
