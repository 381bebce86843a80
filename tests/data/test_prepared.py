"""From a configuration's words to a tokenizer and caches: built once, never stale, mixtures, and errors."""

import dataclasses
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from programs import ROOT, environment

from mom_jax.fields import ConfigError
from train.config import DataConfig
from train.data import prepared as preparing
from train.data.cache import build_folder
from train.data.documents import is_held_out
from train.data.prepared import components, prepare
from train.data.sources.kinds import open_source
from train.data.tokenizers import load
from train.data.tokenizers.spm import SentencePieceTokenizer, train_sentencepiece

TEXTS = {f"{i}.txt": f"This is document {i}. " * (i % 5) for i in range(40)}


@pytest.fixture(scope="module")
def tokenizer() -> SentencePieceTokenizer:
    return SentencePieceTokenizer(train_sentencepiece(TEXTS.values(), 290))


@pytest.fixture
def corpus(tmp_path) -> DataConfig:
    """Forty small files, a third of them held out."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    for name, text in TEXTS.items():
        (folder / name).write_text(text)
    return DataConfig(
        source=f"text:{folder}/*.txt", vocab_size=290, validation_fraction=0.3, cache=str(tmp_path / "cache" / "deep")
    )


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file below `folder` with its inode and time: unchanged unless something was written."""
    stats = {str(path.relative_to(folder)): path.stat() for path in folder.rglob("*")}
    return {name: (stat.st_ino, stat.st_mtime_ns) for name, stat in stats.items()}


def visible(folder: str) -> list[str]:
    """The kinds of folders in a cache."""
    return sorted(path.name.split("-")[0] for path in Path(folder).glob("*") if not path.name.startswith("."))


def documents(prepared, side: str, source: int = 0) -> list[str]:
    cache = getattr(prepared, side)[source]
    bounds = zip(cache.starts[:-1], cache.starts[1:], strict=True)
    return [prepared.tokenizer.decode(cache.tokens[start : end - 1]) for start, end in bounds]


def test_a_second_one_is_told_what_it_waits_for(tmp_path):
    began, told, made = threading.Event(), threading.Event(), []

    def fill(partial):
        began.set()
        assert told.wait(60)
        (partial / "file").touch()

    first = threading.Thread(target=build_folder, args=(tmp_path / "x", fill, made.append))
    first.start()
    assert began.wait(60)
    build_folder(tmp_path / "x", pytest.fail, lambda text: (made.append(text), told.set()))
    first.join()
    assert made == [f"waiting: another process is making {tmp_path / 'x'}"]
    assert [path.name for path in (tmp_path / "x").iterdir()] == ["file"]


def test_documents_are_split_and_the_tokenizer_knows_the_training_side(corpus):
    prepared = prepare(corpus)
    for side in ("train", "validation"):
        [cache] = getattr(prepared, side)
        assert cache.meta["split"] == {"rule": "sha256 of the document's name", "validation_fraction": 0.3}
        assert cache.meta["source"] == open_source(corpus.source).facts
        assert cache.meta["tokenizer"] == prepared.tokenizer.fingerprint
        expected = [TEXTS[name] for name in sorted(TEXTS) if is_held_out(name, 0.3) == (side == "validation")]
        assert documents(prepared, side) == expected
    alone = SentencePieceTokenizer(train_sentencepiece(documents(prepared, "train"), 290))
    assert prepared.tokenizer.fingerprint == alone.fingerprint


def test_a_second_prepare_builds_nothing(corpus):
    said: list[str] = []
    first = prepare(corpus, said.append)
    assert said[0].startswith("training a tokenizer of 290 pieces")
    assert said[1].startswith(f"tokenizing {corpus.source}: ")
    before = listing(Path(corpus.cache))
    said.clear()
    second = prepare(corpus, said.append)
    assert said == []
    assert listing(Path(corpus.cache)) == before
    np.testing.assert_array_equal(first.train[0].tokens, second.train[0].tokens)


def test_processes_that_prepare_at_once_all_end_well(corpus):
    program = """
import sys
from train.config import DataConfig
from train.data.prepared import prepare

data = prepare(DataConfig(source=sys.argv[1], vocab_size=290, validation_fraction=0.3, cache=sys.argv[2]))
print(data.tokenizer.fingerprint, data.train[0].num_tokens, data.validation[0].num_tokens)
"""
    command = [sys.executable, "-W", "error", "-c", program, corpus.source, corpus.cache]
    start = {"stdout": subprocess.PIPE, "text": True, "cwd": ROOT, "env": environment()}
    processes = [subprocess.Popen(command, **start) for _ in range(3)]
    outputs = {process.communicate(timeout=60)[0] for process in processes}
    assert [process.returncode for process in processes] == [0, 0, 0]
    data = prepare(corpus)
    assert outputs == {f"{data.tokenizer.fingerprint} {data.train[0].num_tokens} {data.validation[0].num_tokens}\n"}
    assert visible(corpus.cache) == ["data", "tokenizer"]


@pytest.mark.parametrize("change", ["contents", "new file", "name", "fraction", "vocab_size"])
def test_a_changed_source_or_setting_is_never_served_from_a_stale_cache(corpus, change):
    old = prepare(corpus)
    path = Path(corpus.source.removeprefix("text:")).parent / "3.txt"
    text = path.read_text()
    config = corpus
    if change == "contents":
        times = path.stat()
        path.write_text(text.replace("document", "documenT"))
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    elif change == "new file":
        path.with_name("new.txt").write_text("new")
    elif change == "name":
        path.rename(path.with_name("renamed.txt"))
    elif change == "fraction":
        config = dataclasses.replace(corpus, validation_fraction=0.6)
    else:
        config = dataclasses.replace(corpus, vocab_size=280)
    new = prepare(config)
    assert old.train[0].folder != new.train[0].folder
    found = documents(new, "train") + documents(new, "validation")
    assert sorted(found) == sorted(document.text for document in open_source(config.source).documents())


def test_a_tokenizer_from_a_file(corpus, tmp_path, tokenizer):
    tokenizer.save(tmp_path)
    prepared = prepare(dataclasses.replace(corpus, tokenizer=str(tmp_path / "tokenizer.model"), vocab_size=5000))
    assert prepared.tokenizer.fingerprint == tokenizer.fingerprint == prepared.train[0].meta["tokenizer"]
    assert load(tmp_path / "tokenizer.model").vocab_size == 290
    assert visible(corpus.cache) == ["data"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokenizer": "/no/such.model"}, r"data\.tokenizer='/no/such\.model': cannot be read"),
        ({"vocab_size": 60_000}, r"data\.vocab_size=60000: must be at most \d+"),
        ({"validation_fraction": 1e-9}, r"data\.validation_fraction=1e-09: holds out none"),
        ({"source": "text:/no/such/*.txt"}, r"data\.source='text:/no/such/\*\.txt': there is no folder"),
        ({"source": "mix:0.5=builtin:stdlib,x=bin:a"}, r"data\.source='builtin:stdlib,x=bin:a': unknown"),
        ({"source": "mix:0=builtin:stdlib"}, r"must be mix:WEIGHT=SOURCE"),
        ({"source": "mix:builtin:stdlib"}, r"must be mix:WEIGHT=SOURCE"),
        ({"source": "mix:"}, r"must be mix:WEIGHT=SOURCE"),
        ({"source": "mix:1=mix:1=builtin:stdlib"}, r"a mixture of mixtures"),
    ],
)
def test_what_cannot_be_prepared_names_the_field_and_leaves_no_cache(corpus, changes, message):
    with pytest.raises(ConfigError, match=message) as error:
        prepare(dataclasses.replace(corpus, **changes))
    assert "\n" not in str(error.value)
    assert visible(corpus.cache) in ([], ["tokenizer"])
    assert list(Path(corpus.cache).glob(".*.partial")) == []


def test_nothing_to_train_on(corpus):
    with pytest.raises(ConfigError, match=r"data\.source: there is no text|leaves for training none"):
        prepare(dataclasses.replace(corpus, validation_fraction=1 - 1e-9))


def test_an_empty_corpus(tmp_path):
    for i in range(9):
        (tmp_path / f"{i}.txt").touch()
    with pytest.raises(ConfigError, match=r"data\.source: there is no text to train a tokenizer on"):
        prepare(DataConfig(source=f"text:{tmp_path}/*.txt", cache=str(tmp_path / "cache")))


def test_a_cache_that_cannot_be_written_names_the_field(corpus, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(ConfigError, match=r"^data\.cache='.*file/cache': must be a folder that can be written"):
        prepare(dataclasses.replace(corpus, cache=str(tmp_path / "file" / "cache")))


def test_the_parts_of_a_mixture():
    assert components("builtin:stdlib") == (("builtin:stdlib", 1.0),)
    mixed = components("mix:3=text:a,b/*.txt,.5=bin:c=d,0.5=tfds:e/f")
    assert mixed == (("text:a,b/*.txt", 0.75), ("bin:c=d", 0.125), ("tfds:e/f", 0.125))


def test_a_mixture_has_one_tokenizer_and_a_cache_each(corpus, tmp_path):
    (tmp_path / "more.txt").write_text("Completely other words\n" * 50)
    source = f"mix:2={corpus.source},1=text:{tmp_path}/more.txt"
    prepared = prepare(dataclasses.replace(corpus, source=source, vocab_size=320))
    assert prepared.weights == (2 / 3, 1 / 3)
    assert prepared.names == (corpus.source, f"text:{tmp_path}/more.txt")
    assert sorted(documents(prepared, "train") + documents(prepared, "validation")) == sorted(TEXTS.values())
    texts = documents(prepared, "train", 1) + documents(prepared, "validation", 1)
    assert "".join(texts) == "Completely other words\n" * 50
    assert len(prepared.tokenizer.encode("Completely other words")) < 15  # it has learned from both
    assert visible(corpus.cache) == ["data", "data", "tokenizer"]


def test_no_tokenizer_is_trained_for_token_files(corpus, tmp_path):
    np.array([1, 2, 3], np.uint16).tofile(tmp_path / "train.bin")
    np.array([1, 2, 3], np.uint16).tofile(tmp_path / "val.bin")
    with pytest.raises(ConfigError, match=r"data\.tokenizer='sentencepiece': cannot be trained for token files"):
        prepare(dataclasses.replace(corpus, source=f"mix:1={corpus.source},1=bin:{tmp_path}"))


def test_a_tokenizer_is_trained_on_a_sample_of_all_parts(tmp_path, monkeypatch):
    """Of a large source only so much text is read that it fits into memory, some of every part."""
    from train.data.sources import text_files

    monkeypatch.setattr(text_files, "PART", 1)
    monkeypatch.setattr(preparing, "TRAINING_TEXT", 4000)
    for i in range(8):
        (tmp_path / f"{i}.txt").write_text(f"word{i} " * 10_000)
    taken: list[str] = []
    monkeypatch.setattr(preparing, "train_sentencepiece", lambda texts, size: taken.extend(texts) or b"no model")
    config = DataConfig(source=f"text:{tmp_path}/*.txt", validation_fraction=0.3, cache=str(tmp_path / "cache"))
    with pytest.raises(ConfigError, match="is not a SentencePiece model"):
        prepare(config)
    names = [f"{i}.txt" for i in range(8) if not is_held_out(f"{i}.txt", 0.3)]
    assert [text[:6] for text in taken] == [f"word{name[0]} " for name in names]
    assert {len(text) for text in taken} == {500}


def test_the_standard_library_is_prepared_once_and_then_at_hand(tmp_path):
    config = DataConfig(vocab_size=512, cache=str(tmp_path))
    first = prepare(config)
    assert prepare(config, pytest.fail).train[0].num_tokens == first.train[0].num_tokens > 1_000_000
    assert first.validation[0].num_documents > 10
