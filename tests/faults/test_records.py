"""What is kept about data and results: whatever changes in such a file is noticed by whoever reads it."""

import json

import inject
import jax
import numpy as np
import pytest
import tiny

from mom_jax.fields import ConfigError
from mom_jax.sharding import make_mesh
from train.data.cache import META, TokenCache
from train.data.documents import Part, Source
from train.data.encode import _read_journal
from train.data.prepared import prepare
from train.files import CHECKSUM, with_checksum, without_checksum
from train.reporting import metrics
from train.study.packed.running import FINAL, PARAMS, Ran, keep, kept
from train.tasks import results
from train.training.initial_state import fresh_params


def flipped(content, step=1):
    """The bytes with one bit changed, at one place after the other."""
    for place in range(0, len(content), step):
        changed = bytearray(content)
        changed[place] ^= 1 << place % 7
        yield bytes(changed)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    config = tiny.config(tmp_path_factory.mktemp("records")).data
    prepare(config)
    return config


def test_every_flipped_bit_of_a_cache_s_facts_is_noticed(data):
    [cache] = prepare(data).train
    file = cache.folder / META
    content = file.read_bytes()
    for changed in flipped(content):
        file.write_bytes(changed)
        with pytest.raises(ConfigError, match="delete its folder"):
            TokenCache.open(cache.folder, "train")
    file.write_bytes(content)
    np.testing.assert_array_equal(TokenCache.open(cache.folder, "train").tokens, cache.tokens)


def test_a_cache_without_a_checksum_is_read(data):
    """As they were written before there was one."""
    [cache] = prepare(data).train
    file = cache.folder / META
    content = file.read_bytes()
    facts = without_checksum(json.loads(content))
    file.write_text(json.dumps(facts))
    assert TokenCache.open(cache.folder, "train").meta == cache.meta
    file.write_text(json.dumps(facts | {"chacksum": 1}))
    with pytest.raises(ConfigError, match="does not have the checksum that it was written with"):
        TokenCache.open(cache.folder, "train")
    del facts["tokenizer"]
    file.write_text(json.dumps(facts))
    with pytest.raises(ConfigError, match=r"and a 'tokenizer'\); delete its folder"):
        TokenCache.open(cache.folder, "train")
    file.write_bytes(content)


def test_a_trained_tokenizer_that_has_changed_is_not_used(data):
    """Where it can be read all the same, documents would silently be tokenized anew, and otherwise."""
    known = prepare(data).tokenizer.fingerprint
    [folder] = (cache.folder.parent for cache in prepare(data).train)
    [file] = folder.glob("tokenizer-*/tokenizer.model")
    caches = sorted(folder.iterdir())
    content, record = file.read_bytes(), (file.parent / META).read_bytes()
    for changed in flipped(content, 101):
        file.write_bytes(changed)
        with pytest.raises(ConfigError):
            prepare(data)
    file.write_bytes(content)
    for changed in flipped(record):
        (file.parent / META).write_bytes(changed)
        with pytest.raises(ConfigError, match="does not have the tokenizer that was trained; delete its folder"):
            prepare(data)
    (file.parent / META).write_bytes(record)
    assert prepare(data).tokenizer.fingerprint == known
    assert sorted(folder.iterdir()) == caches


def test_a_journal_with_a_flipped_bit_is_not_believed(tmp_path):
    source = Source("s", tuple(Part(name, 1, lambda: iter(())) for name in ("first", "second")), {})
    side = {"tokens": 7, "documents": 2, "crc32": 5, "ends_crc32": 6, "begun": 3, "begun_crc32": 4}
    facts = {"part": 1, "name": "second", "pieces": 12, "train": side, "validation": side, "left_out": {}}
    file = tmp_path / "journal.json"
    file.write_text(json.dumps(with_checksum(facts)))
    assert _read_journal(file, source)[:2] == (1, 12)
    for changed in flipped(file.read_bytes()):
        file.write_bytes(changed)
        assert _read_journal(file, source)[:2] == (0, 0)


def test_every_flipped_bit_of_a_result_is_noticed(tmp_path):
    file = tmp_path / "seed-0.json"
    results.write(file, {"settings": {"epochs": 3}, "metrics": {"accuracy": 68.5}})
    content = file.read_bytes()
    record = results.read(file)
    assert record == {"version": results.VERSION, "settings": {"epochs": 3}, "metrics": {"accuracy": 68.5}}
    for changed in flipped(content):
        file.write_bytes(changed)
        with pytest.raises(ConfigError, match="delete it to do that part again"):
            results.read(file)
    old = {"version": 1, "metrics": {"accuracy": 68.5}}  # without a checksum, as it was before
    file.write_text(json.dumps(old))
    assert results.read(file) == old
    assert CHECKSUM not in old


def test_a_first_phase_that_is_damaged_is_not_used(tmp_path):
    model, mesh = tiny.config(tmp_path).model_of("pretrain"), make_mesh()
    params = fresh_params(model, 0, mesh)
    folder = tmp_path / "first"
    assert kept(folder, model, mesh) is None
    keep(folder, Ran(params, {"loss": 4.25, "tokens": 100}, [], 1.0))
    found, final = kept(folder, model, mesh)
    jax.tree.map(np.testing.assert_array_equal, found, params)
    assert final == {"loss": 4.25, "tokens": 100}
    for name in (PARAMS, FINAL):
        content = (folder / name).read_bytes()
        for fault, harm in inject.FILE_FAULTS.items():
            harm(folder / name, seed=1)
            if (name, fault) == (FINAL, "removed"):
                assert kept(folder, model, mesh) is None  # it is trained again
            else:
                with pytest.raises(ConfigError, match=f"first: {name}: .*the first phase is trained again"):
                    kept(folder, model, mesh)
            (folder / name).write_bytes(content)
    kept(folder, model, mesh)


def test_a_result_that_was_copied_to_another_place_does_not_count(tmp_path):
    file = tmp_path / "seed-1.json"
    assert results.read_own(file, "abc", task="rte", seed=1) is None
    record = {"model": {"digest": "abc"}, "task": "rte", "seed": 1, "settings": {}}
    results.write(file, record)
    assert results.read_own(file, "abc", task="rte", seed=1)["seed"] == 1
    for wanted in (("abd", "rte", 1), ("abc", "wnli", 1), ("abc", "rte", 2)):
        with pytest.raises(ConfigError, match=r"is of (model|task|seed) .*, not .*; delete it to do that part again"):
            results.read_own(file, wanted[0], task=wanted[1], seed=wanted[2])
    results.write(file, {name: value for name, value in record.items() if name != "settings"})
    with pytest.raises(ConfigError, match="has no settings"):
        results.read_own(file, "abc", task="rte", seed=1)


@pytest.mark.parametrize("odd", [{"step": "1"}, {"step": None}, {"phase": ["x"]}, {"kind": 1}, {"step": True}])
def test_a_record_of_a_log_has_the_types_of_one(tmp_path, odd):
    good = {"kind": "train", "phase": "mom", "step": 1, "loss": 2.0}
    file = tmp_path / "metrics.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in (good, good | odd, good)))
    with pytest.raises(ConfigError, match="line 2: must be a JSON object, of which kind and phase are texts"):
        metrics.read(file)
