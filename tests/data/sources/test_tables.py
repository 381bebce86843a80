"""Parquet files and Hugging Face's data sets as sources: what is read, in which order, and what is said where not."""

import json
import os
import shutil
import subprocess
import sys

import hub
import numpy as np
import pytest
from letters import build
from programs import ROOT, environment

from mom_jax.fields import ConfigError
from train.data import encode as encoding
from train.data.documents import SIDES, Broken
from train.data.sources import hf, parquet
from train.data.sources.kinds import open_source
from train.data.texts import documents_of

pa = pytest.importorskip("pyarrow", reason="needs the [parquet] extra")
pq = pytest.importorskip("pyarrow.parquet")

TEXTS = [f"Row {i} of some words. " * (i % 4) for i in range(40)]


def write(path, texts, *, kind=None, group=1000, **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    array = texts if isinstance(texts, pa.Array) else pa.array(texts, kind or pa.string())
    pq.write_table(pa.table({"text": array} | columns), path, row_group_size=group)


def said(function, *arguments, **more):
    with pytest.raises(ConfigError) as error:
        function(*arguments, **more)
    assert "\n" not in str(error.value)
    return str(error.value)


def not_utf8():
    """Three texts, the second of which is none."""
    offsets = pa.py_buffer(np.array([0, 2, 5, 7], np.int32))
    return pa.Array.from_buffers(pa.string(), 3, [None, offsets, pa.py_buffer(b"abc\xffdef")])


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_rows_are_documents(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(parquet, "PART", 1)
    monkeypatch.setattr(parquet, "_ROWS", 3)
    write(tmp_path / "b.parquet", TEXTS[25:], kind=kind, other=pa.array(range(15)))
    write(tmp_path / "a" / "a.parquet", TEXTS[:25], kind=kind, group=10)
    source = open_source(f"parquet:{tmp_path}/**/*.parquet")
    assert [part.name for part in source.parts] == [
        "a/a.parquet[0:10]", "a/a.parquet[10:20]", "a/a.parquet[20:25]", "b.parquet[0:15]",
    ]  # fmt: skip
    found = list(source.documents())
    assert [document.text for document in found] == TEXTS
    assert [document.name for document in found] == [
        *(f"a/a.parquet:{i}" for i in range(25)), *(f"b.parquet:{i}" for i in range(15)),
    ]  # fmt: skip
    for part in source.parts:
        positions = [item.position for item in part.read()]
        assert positions == sorted(positions)
        assert positions[-1] == part.size
    assert json.loads(json.dumps(source.facts)) == source.facts
    write(tmp_path / "b.parquet", TEXTS[24:], kind=kind)
    assert open_source(f"parquet:{tmp_path}/**/*.parquet").facts["sha256"] != source.facts["sha256"]


def test_small_row_groups_make_one_part(tmp_path):
    write(tmp_path / "a.parquet", TEXTS, group=7)
    [part] = open_source(f"parquet:{tmp_path}/a.parquet").parts
    assert part.name == "a.parquet[0:40]"


def test_which_column(tmp_path):
    write(tmp_path / "a.parquet", ["a"], body=pa.array(["b"]), number=pa.array([1]))
    assert [d.text for d in open_source(f"parquet:{tmp_path}/*#body").documents()] == ["b"]
    assert "there is no text column 'number'; known names: body, text" in said(
        open_source, f"parquet:{tmp_path}/*#number"
    )
    pq.write_table(pa.table({"body": ["b"]}), tmp_path / "b.parquet")
    assert [d.text for d in open_source(f"parquet:{tmp_path}/b*").documents()] == ["b"]
    assert "b.parquet has no text column 'text'" in said(open_source, f"parquet:{tmp_path}/*")
    pq.write_table(pa.table({"body": ["b"], "head": ["h"]}), tmp_path / "c.parquet")
    text = said(open_source, f"parquet:{tmp_path}/c*")
    assert text.endswith(f"choose one: parquet:{tmp_path}/c*#body or parquet:{tmp_path}/c*#head")
    pq.write_table(pa.table({"number": [1]}), tmp_path / "d.parquet")
    assert said(open_source, f"parquet:{tmp_path}/d*").endswith("has no text column")


def test_broken_rows(tmp_path):
    write(tmp_path / "a.parquet", not_utf8())
    write(tmp_path / "b.parquet", ["x", None, "y"])
    where = f"data.source='parquet:{tmp_path}/*': "
    found = list(open_source(f"parquet:{tmp_path}/*", on_bad="skip").documents())
    assert [document.text for document in found] == ["ab", "ef", "x", "y"]
    source = open_source(f"parquet:{tmp_path}/*", on_bad="skip")
    bad = [item for part in source.parts for item in source.read(part) if isinstance(item, Broken)]
    assert [(item.name, item.kind, item.why) for item in bad] == [
        ("a.parquet:1", "not UTF-8", f"{where}a.parquet, row 1 is not UTF-8 (byte 1)"),
        ("b.parquet:1", "without a text", f"{where}b.parquet, row 1 has no text"),
    ]
    assert said(list, documents_of(f"parquet:{tmp_path}/*")).startswith(bad[0].why)


def test_a_row_group_does_not_have_to_fit_into_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "_ROWS", 50)
    texts = pa.table({"text": [f"{i} " * 2000 for i in range(2000)]})
    # Pages end after a batch that makes them large enough: by default of 1024 rows.
    pq.write_table(texts, tmp_path / "a.parquet", use_dictionary=False, write_batch_size=10)
    del texts
    source = open_source(f"parquet:{tmp_path}/*")
    [part] = source.parts
    assert part.size > 15e6
    pool, before, most = pa.default_memory_pool(), pa.total_allocated_bytes(), 0
    for _ in source.documents():
        most = max(most, pool.bytes_allocated() - before)
    assert 0 < most < part.size / 3


def test_what_cannot_be_read(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("no Parquet")
    assert f"{tmp_path}/a.txt cannot be read as Parquet (Parquet magic bytes" in said(
        open_source, f"parquet:{tmp_path}/*"
    )
    assert "no file matches (for a whole folder: parquet:" in said(open_source, f"parquet:{tmp_path}/*.parquet")
    write(tmp_path / "b.parquet", [str(i) * 1000 for i in range(300)])
    source = open_source(f"parquet:{tmp_path}/b.parquet")
    content = bytearray((tmp_path / "b.parquet").read_bytes())
    content[100:2000] = bytes(1900)
    (tmp_path / "b.parquet").write_bytes(content)
    assert f"{tmp_path}/b.parquet cannot be read as Parquet" in said(lambda: list(source.documents()))
    write(tmp_path / "b.parquet", [str(i) for i in range(200)])
    assert "has 200 rows where it had 300" in said(lambda: list(source.documents()))
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    assert said(open_source, f"parquet:{tmp_path}/*").endswith("pip install pyarrow (the extra 'parquet')")


README = """---
configs:
- config_name: whole
  data_files:
  - split: train
    path: data/train-*
  - split: validation
    path: data/held-out-*
- config_name: train only
  data_files: data/train-*
---
"""


def dataset(folder, files=3):
    """A data set as it lies in a repository of the Hub."""
    for k in range(files):
        write(folder / "data" / f"train-0000{k}.parquet", TEXTS[k * 10 : k * 10 + 10], label=pa.array(range(10)))
    write(folder / "data" / "held-out-00000.parquet", TEXTS[30:], label=pa.array(range(10)))
    (folder / "README.md").write_text(README)
    return folder


@pytest.fixture
def datasets():
    return pytest.importorskip("datasets", reason="needs the [hf] extra")


@pytest.mark.usefixtures("datasets")
def test_a_folder_as_the_hub_has_it(tmp_path, monkeypatch):
    folder = dataset(tmp_path / "words")
    source = open_source(f"hf:{folder}/whole")
    assert [(part.name, part.side) for part in source.parts] == [
        ("train/0", "train"), ("train/1", "train"), ("train/2", "train"), ("validation/0", "validation"),
    ]  # fmt: skip
    found = list(source.documents())
    assert [document.text for document in found] == TEXTS
    assert [found[0].name, found[29].name, found[39].name] == ["train/0:0", "train/2:9", "validation/0:9"]
    monkeypatch.setattr(encoding, "COMMIT_SECONDS", 0.0)
    monkeypatch.setattr(encoding, "BATCH", 100)
    expected = build(tmp_path / "cache", source)
    # Interrupted in the middle of a shard, the work goes on there.
    rows, stops = hf.rows, ["train/1"]

    def interrupted(source, where, first, column):
        for item in rows(source, where, first, column):
            if [where] == stops and item.name.endswith(":6"):
                raise KeyboardInterrupt
            yield item

    monkeypatch.setattr(hf, "rows", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "other", source)
    assert json.loads((tmp_path / ".other.partial" / "journal.json").read_text())["part"] > 0
    stops.clear()
    again = build(tmp_path / "other", open_source(f"hf:{folder}/whole"))
    for side in SIDES:
        np.testing.assert_array_equal(again[side].tokens, expected[side].tokens)
    assert again["train"].meta == expected["train"].meta
    # Lines of JSON, of which the first rows tell the columns; no split of its own.
    plain = tmp_path / "plain"
    plain.mkdir()
    lines = [{"body": "a", "n": 1}, {"body": None, "n": 2}, {"body": "c", "n": 3}]
    (plain / "train.jsonl").write_text("\n".join(map(json.dumps, lines)))
    source = open_source(f"hf:{plain}#body", on_bad="skip")
    assert [(document.text, document.name) for document in source.documents()] == [
        ("a", "train/0:0"),
        ("c", "train/0:2"),
    ]
    assert source.parts[0].side is None
    facts = source.facts
    (plain / "train.jsonl").write_text("\n".join(map(json.dumps, lines[:1])))
    assert open_source(f"hf:{plain}#body", on_bad="skip").facts["sha256"] != facts["sha256"]


@pytest.mark.usefixtures("datasets")
def test_wrong_names(tmp_path):
    folder = dataset(tmp_path / "words", files=1)
    assert "there is no configuration 'hole'; did you mean 'whole'?" in said(open_source, f"hf:{folder}/hole")
    assert "there is no text column 'label'; known names: text" in said(open_source, f"hf:{folder}/whole#label")
    assert f"there is no folder '{tmp_path}/no'" in said(open_source, f"hf:{tmp_path}/no/whole")
    (tmp_path / "empty").mkdir()
    assert "cannot be read (EmptyDatasetError: The directory at" in said(open_source, f"hf:{tmp_path}/empty")


def test_what_was_not_prepared(tmp_path, monkeypatch):
    text = said(open_source, "hf:some/words/whole#text", cache=str(tmp_path))
    assert text.endswith(f"is not prepared in {tmp_path}; run: python -m train.prepare hf:some/words/whole")
    assert "must be hf:NAME, hf:NAME/CONFIG" in said(open_source, "hf:a/b/c/d")
    reference = hf._parse("hf:some/words/whole")
    file = hf._record(reference, tmp_path)
    for content in ("{", "[]", '{"revision": "a", "splits": {"train": [0, 1]}, "columns": []}'):
        file.write_text(content)
        assert said(open_source, "hf:some/words/whole", cache=str(tmp_path)).startswith(
            f"data.source='hf:some/words/whole': {file} is damaged; delete it"
        )
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert said(hf.find_hf, "hf:other", tmp_path, print).endswith("pip install datasets (the extra 'hf')")


@pytest.mark.slow
@pytest.mark.usefixtures("datasets")
def test_a_data_set_of_the_hub(tmp_path):
    """Streamed from a Hub on this machine; what is prepared then needs none, and no library either."""
    folder = dataset(tmp_path / "words")
    for k in range(3):  # enough for a tokenizer
        texts = [f"Number {i} of part {k}, which has some words, and others as well: {i * i}." for i in range(200)]
        write(folder / "data" / f"train-0000{k}.parquet", texts, label=pa.array(range(200)))
    own = {"HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_TELEMETRY": "1"}

    def prepare(source, endpoint, code=""):
        program = (
            f"{code}\nimport sys\nfrom train import cli, prepare\ncli.run_program(lambda: prepare.main(sys.argv[1:]))"
        )
        flags = ["--vocab-size", "320", "--cache", str(tmp_path / "cache"), "--json"]
        command = [sys.executable, "-c", program, source, *flags]
        return subprocess.run(
            command, cwd=ROOT, env=environment() | own | {"HF_ENDPOINT": endpoint}, capture_output=True, text=True
        )

    with hub.serving(folder, "some/words") as server:
        done = prepare("hf:some/words/whole", server.endpoint)
        assert done.returncode == 0, done.stderr
        [record] = json.loads(done.stdout)["sources"]
        assert (record["train"]["documents"], record["validation"]["documents"]) == (600, 10)
        assert f"commit {hub.COMMIT}" in done.stderr
        assert sum("train-00001.parquet" in line for line in server.asked) > 0
        for source, expected in {
            "hf:some/other": "the Hub has no such data set, or none that is open to you (log in with: hf auth login)",
            "hf:some/words/hole": "there is no configuration 'hole'; did you mean 'whole'?",
            "hf:some/words/whole@none": "the Hub has no such revision of it: some/words",
        }.items():
            wrong = prepare(source, server.endpoint)
            assert wrong.returncode == 2, wrong.stderr
            assert expected in wrong.stderr.splitlines()[-1]
        gone = server.endpoint
    shutil.rmtree(tmp_path / "home")
    without = "import sys; sys.modules['datasets'] = None"
    again = prepare("hf:some/words/whole", gone, without)
    assert (again.returncode, again.stdout, again.stderr) == (0, done.stdout, "")
    # What is not whole needs the Hub, and says so.
    shutil.rmtree(record["folder"])
    lost = prepare("hf:some/words/whole", gone)
    assert lost.returncode == 2
    assert lost.stderr.splitlines()[-1].endswith("with a network, run the same command again: what is finished is kept")
    assert "Traceback" not in lost.stderr
    assert os.listdir(tmp_path / "cache")
