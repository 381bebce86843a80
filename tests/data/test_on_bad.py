"""Broken documents: the preparation ends at the first one, or leaves them out, exactly and counted."""

import gzip
import json
from types import SimpleNamespace

import numpy as np
import pytest
from letters import Letters, build
from programs import call

from mom_jax.fields import ConfigError
from train import prepare
from train.config import Config, DataConfig
from train.data import encode as encoding
from train.data import prepared
from train.data.cache import describe_left_out
from train.data.documents import SIDES, Broken, Document, Part, Source
from train.data.pipeline import TrainingData
from train.data.sources import text_files
from train.data.sources.kinds import open_source
from train.data.texts import documents_of
from train.reporting import page
from train.reporting.history import Run
from train.reporting.metrics import MetricsLog, read
from train.training.preparation import record_left_out
from train.verify import __main__ as verify

GOOD = [Document(f"{i}.txt", f"This is document {i}. " * (i % 5)) for i in range(30)]


def broken(name, kind="no JSON"):
    return Broken(name, kind, f"data.source='s': {name} is broken")


def items():
    """Good documents; among them broken ones, some of which are seen to be so after pieces of them."""
    found = []
    for i, document in enumerate(GOOD):
        found.append(document)
        if i % 4 == 1:
            found.append(broken(f"line {i}"))
        if i % 7 == 2:
            found += [Document(f"long {i}", f"piece {k} of {i} ", last=False) for k in range(i % 5)]
            found.append(broken(f"long {i}", "not UTF-8"))
    return found


def of(parts, on_bad="skip"):
    """parts: functions that read."""
    made = tuple(Part(str(k), 10, read) for k, read in enumerate(parts))
    return Source("s", made, {}).with_on_bad(on_bad)


@pytest.fixture
def small(monkeypatch):
    """Small batches, each of which is committed."""
    monkeypatch.setattr(encoding, "COMMIT_SECONDS", 0.0)
    monkeypatch.setattr(encoding, "BATCH", 100)


@pytest.mark.usefixtures("small")
def test_what_is_left_out_leaves_no_trace_but_its_count(tmp_path):
    expected = build(tmp_path / "good", of([lambda: iter(GOOD)]))
    assert expected["train"].left_out == {}
    caches = build(tmp_path / "all", of([lambda: iter(items()[:25]), lambda: iter(items()[25:])]))
    for side in SIDES:
        np.testing.assert_array_equal(caches[side].tokens, expected[side].tokens)
        np.testing.assert_array_equal(caches[side].ends, expected[side].ends)
        assert caches[side].left_out == {"no JSON": 8, "not UTF-8": 4}
        caches[side].verify()
    with pytest.raises(ConfigError, match=r"^data\.source='s': line 1 is broken \(data\.on_bad='skip' leaves out"):
        build(tmp_path / "fail", of([lambda: iter(items())], "fail"))
    with pytest.raises(ConfigError, match=r"no documents to tokenize; 2 broken documents were left out \(2 no JSON\)$"):
        build(tmp_path / "none", of([lambda: iter([broken("a"), broken("b")])]))
    assert not (tmp_path / "fail").exists()


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("stop", [4, 11, 19, 30, 44])
def test_interrupted_work_counts_nothing_twice(tmp_path, stop):
    expected = build(tmp_path / "whole", of([lambda: iter(items())]))
    stops = [stop]

    def read():
        for i, item in enumerate(items()):
            if [i] == stops:
                raise KeyboardInterrupt
            yield item

    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "cache", of([read]))
    stops.clear()
    caches = build(tmp_path / "cache", of([read]))
    for side in SIDES:
        np.testing.assert_array_equal(caches[side].tokens, expected[side].tokens)
        assert caches[side].meta == expected[side].meta
        caches[side].verify()


LINES = {
    b'{"text": "a"}': None, b"{": "no JSON", b'{"text": "\xff"}': "not UTF-8", b'{"body": "x"}': "without a text",
    b'{"text": null}': "without a text", b'{"text": "\\ud800"}': "without a text", b"[1]": "without a text",
    b'{"text": "' + b"x" * 300 + b'"}': "too long", b'{"text": "b"}': None,
}  # fmt: skip


def test_text_files(tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "_LINE", 200)
    monkeypatch.setattr(text_files, "_PIECE", 64)
    monkeypatch.setattr(text_files, "PART", 1)
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(LINES))
    # In the middle of a document of which pieces have been read; and cut off after the first line.
    (tmp_path / "b.txt").write_bytes(b"some words " * 40 + b"\xff" + b"more words " * 40)
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(b'{"text": "c"}\n{"text": "%x"}\n' % 3**300)[:-50])
    (tmp_path / "d.txt").write_bytes(b"d")
    source = open_source(f"text:{tmp_path}/*", on_bad="skip")
    found = [item for part in source.parts for item in source.read(part)]
    kinds = [item.kind for item in found if isinstance(item, Broken)]
    assert kinds == [kind for kind in LINES.values() if kind] + ["not UTF-8", "damaged"]
    assert {item.name for item in found if isinstance(item, Broken)} >= {"a.jsonl:2", "b.txt"}
    whole = list(documents_of(f"text:{tmp_path}/*", on_bad="skip"))
    assert [(text.name, text.text) for text in whole] == [
        ("a.jsonl:1", "a"), ("a.jsonl:9", "b"), ("c.jsonl.gz:1", "c"), ("d.txt", "d"),
    ]  # fmt: skip
    with pytest.raises(ConfigError, match=r"a\.jsonl, line 2: must be a JSON object"):
        list(documents_of(f"text:{tmp_path}/*"))


def test_it_belongs_to_what_identifies_a_cache(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"a")
    (tmp_path / "b.txt").write_bytes(b"b")
    config = DataConfig(source=f"text:{tmp_path}/*.txt", tokenizer="x", cache=str(tmp_path))
    fail, skip = (open_source(config.source, 0.1, on_bad).facts for on_bad in ("fail", "skip"))
    assert skip == fail | {"on_bad": "skip"}
    folders = [prepared.cache_folders(c, Letters()) for c in (config, DataConfig(**vars(config) | {"on_bad": "skip"}))]
    assert folders[0] != folders[1]


def test_the_programs_say_what_was_left_out(tmp_path, capsys):
    lines = [json.dumps({"text": f"number {i} of some words and others, and of {i * i}"}) for i in range(300)]
    (tmp_path / "a.jsonl").write_text("\n".join([*lines, "{", "{}", *lines]))
    flags = (f"text:{tmp_path}/*.jsonl", "--vocab-size", "300", "--cache", tmp_path / "cache")
    code, _, err = call(capsys, prepare.main, *flags)
    assert code == 2
    assert "line 301: must be a JSON object" in err
    assert err.endswith("(data.on_bad='skip' leaves out what is broken)\n")
    code, out, _ = call(capsys, prepare.main, *flags, "--on-bad", "skip", "--verify")
    assert code == 0
    said = "2 broken documents were left out (1 no JSON, 1 without a text)"
    assert out.endswith(f"documents; {said}; checksums are right\n")
    code, out, _ = call(capsys, prepare.main, *flags, "--on-bad", "skip", "--json")
    assert json.loads(out)["sources"][0]["left_out"] == {"no JSON": 1, "without a text": 1}
    code, out, _ = call(capsys, verify.main, tmp_path / "cache")
    assert code == 0
    assert out.count(f"have their checksums; of the whole source, {said}\n") == 2


def test_training_and_its_report_say_so(tmp_path):
    """Once in the log, however often a run is resumed."""
    data = DataConfig(batch_size=1, length=4)
    caches = build(tmp_path / "cache", of([lambda: iter(items())]))
    both = prepared.Prepared(Letters(), ("a<b",), (1.0,), (caches["train"],), (caches["validation"],))
    said = "12 broken documents were left out (8 no JSON, 4 not UTF-8)"
    [line] = TrainingData(both, data).describe()
    assert line.endswith(f"; {said}")
    config = Config(data=data, run=str(tmp_path / "run"))
    with MetricsLog(tmp_path / "run") as log:
        for _ in range(2):
            record_left_out(SimpleNamespace(prepared=both, config=config, log=log))
        log.write({"kind": "train", "phase": "pretrain", "step": 1, "loss": 2.0})
    [record, _] = read(tmp_path / "run" / "metrics.jsonl")
    kinds = {"no JSON": 8, "not UTF-8": 4}
    assert record == {"kind": "data", "phase": "pretrain", "step": 0, "left_out": {"a<b": kinds}}
    [shown] = page.left_out(Run(tmp_path / "run"))
    assert shown == "<p>Left out of a&lt;b as broken: 12 (8 no JSON, 4 not UTF-8).</p>"
    # Where nothing was left out, or nothing might be, nothing is said.
    good = build(tmp_path / "good", of([lambda: iter(GOOD)]))
    none = prepared.Prepared(Letters(), ("c",), (1.0,), (good["train"],), (good["validation"],))
    with MetricsLog(tmp_path / "other") as log:
        record_left_out(SimpleNamespace(prepared=none, config=config, log=log))
    assert not (tmp_path / "other").exists()
    assert "left out" not in TrainingData(none, data).describe()[0]


def test_sentences():
    assert describe_left_out({}) == "no broken document was left out"
    assert describe_left_out({"no JSON": 1}) == "1 broken document was left out (1 no JSON)"
