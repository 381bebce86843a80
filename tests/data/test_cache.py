"""Token caches: what is stored, that it is whole or not there, and that nothing is built twice or used when stale."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from mom_jax.fields import ConfigError
from train.config import DataConfig
from train.data.cache import TokenCache, build, prepare
from train.data.sources import Document, is_held_out, open_source
from train.data.tokenizer import SentencePieceTokenizer, load, train_sentencepiece

DOCUMENTS = [Document(f"{i}.txt", f"This is document {i}. " * (i % 5)) for i in range(40)]


@pytest.fixture(scope="module")
def tokenizer() -> SentencePieceTokenizer:
    return SentencePieceTokenizer(train_sentencepiece([document.text for document in DOCUMENTS], 290))


@pytest.fixture
def corpus(tmp_path) -> DataConfig:
    """Forty small files, a third of them held out."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    for document in DOCUMENTS:
        (folder / document.name).write_text(document.text)
    return DataConfig(
        source=f"text:{folder}/*.txt", vocab_size=290, validation_fraction=0.3, cache=str(tmp_path / "cache" / "deep")
    )


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file below `folder` with its inode and time: unchanged unless something was written."""
    stats = {str(path.relative_to(folder)): path.stat() for path in folder.rglob("*")}
    return {name: (stat.st_ino, stat.st_mtime_ns) for name, stat in stats.items()}


def test_every_document_comes_back_followed_by_the_separator(tokenizer, tmp_path):
    cache = build(tmp_path / "cache", iter(DOCUMENTS), tokenizer, {"note": 1})
    assert cache.num_documents == len(DOCUMENTS)
    for document, start, end in zip(DOCUMENTS, cache.starts[:-1], cache.starts[1:], strict=True):
        assert tokenizer.decode(cache.tokens[start : end - 1]) == document.text
        assert cache.tokens[end - 1] == tokenizer.eos_id
    assert cache.starts[-1] == cache.num_tokens
    assert np.count_nonzero(cache.tokens == tokenizer.eos_id) == len(DOCUMENTS)


def test_the_files(tokenizer, tmp_path):
    cache = build(tmp_path / "cache", iter(DOCUMENTS), tokenizer, {"note": 1})
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == ["documents.npy", "meta.json", "tokens.bin"]
    np.testing.assert_array_equal(np.fromfile(tmp_path / "cache" / "tokens.bin", np.uint16), cache.tokens)
    np.testing.assert_array_equal(np.load(tmp_path / "cache" / "documents.npy"), cache.starts)
    assert json.loads((tmp_path / "cache" / "meta.json").read_text()) == {
        "note": 1,
        "tokenizer": tokenizer.fingerprint,
        "vocab_size": 290,
        "eos_id": tokenizer.eos_id,
        "dtype": "uint16",
        "documents": 40,
        "tokens": cache.num_tokens,
    }
    assert isinstance(cache.tokens, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        cache.tokens[0] = 1


@pytest.mark.parametrize(("vocab_size", "dtype"), [(65_536, np.uint16), (65_537, np.uint32)])
def test_tokens_are_as_wide_as_the_vocabulary_needs(tmp_path, vocab_size, dtype):
    class Last:
        """Every character is the vocabulary's last token."""

        eos_id = 0
        fingerprint = "last"

        def __init__(self):
            self.vocab_size = vocab_size

        def encode(self, text):
            return [vocab_size - 1] * len(text)

    cache = build(tmp_path / "cache", [Document("a", "ab")], Last(), {})
    assert cache.tokens.dtype == dtype
    assert cache.tokens.tolist() == [vocab_size - 1, vocab_size - 1, 0]


def cut_tokens(folder: Path) -> None:
    with open(folder / "tokens.bin", "r+b") as file:
        file.truncate(100)


def shift_starts(folder: Path) -> None:
    np.save(folder / "documents.npy", np.load(folder / "documents.npy") + 1)


def move_end(folder: Path) -> None:
    starts = np.load(folder / "documents.npy")
    starts[-1] += 1
    np.save(folder / "documents.npy", starts)


def cut_starts(folder: Path) -> None:
    (folder / "documents.npy").write_bytes((folder / "documents.npy").read_bytes()[:50])


def wrong_count(folder: Path) -> None:
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps(meta | {"documents": 39}))


def cut_meta(folder: Path) -> None:
    (folder / "meta.json").write_text((folder / "meta.json").read_text()[:30])


def no_meta(folder: Path) -> None:
    (folder / "meta.json").unlink()


@pytest.mark.parametrize("damage", [cut_tokens, shift_starts, move_end, cut_starts, wrong_count, cut_meta, no_meta])
def test_a_damaged_cache_is_refused(tokenizer, tmp_path, damage):
    folder = build(tmp_path / "cache", iter(DOCUMENTS), tokenizer, {}).folder
    TokenCache.open(folder)
    damage(folder)
    with pytest.raises(ConfigError, match="not a whole token cache") as error:
        TokenCache.open(folder)
    assert str(error.value).startswith(f"data.cache={str(folder)!r}: ")
    assert "\n" not in str(error.value)


def test_a_cache_appears_whole(tokenizer, tmp_path):
    seen = []

    def documents():
        for document in DOCUMENTS:
            seen.append([(path.name, path.stat().st_ino) for path in tmp_path.iterdir() if path.is_dir()])
            yield document

    folder = build(tmp_path / "cache", documents(), tokenizer, {}).folder
    # Until the last document a folder of another name; it is that very folder in the end.
    assert seen == [[(".cache.partial", folder.stat().st_ino)]] * len(DOCUMENTS)


def test_a_build_that_fails_leaves_nothing(tokenizer, tmp_path):
    def failing():
        yield DOCUMENTS[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "caches" / "cache", failing(), tokenizer, {})
    with pytest.raises(ConfigError, match="no documents"):
        build(tmp_path / "caches" / "cache", [], tokenizer, {})
    assert [path.name for path in (tmp_path / "caches").iterdir()] == [".cache.lock"]


def test_a_killed_build_leaves_nothing_usable_and_the_next_one_cleans_up(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "tokenizer.model")
    program = """
import sys, time
from train.data.cache import build
from train.data.sources import Document
from train.data.tokenizer import load

def documents():
    yield Document("a", "text " * 100_000)
    print("started", flush=True)
    time.sleep(600)

build(sys.argv[1] + "/caches/cache", documents(), load(sys.argv[1] + "/tokenizer.model"), {})
"""
    with subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "started\n"
        finally:
            process.send_signal(signal.SIGKILL)
    folder = tmp_path / "caches" / "cache"
    assert [path.name for path in folder.parent.rglob("tokens.bin")] == ["tokens.bin"]
    with pytest.raises(ConfigError):
        TokenCache.open(folder)
    cache = build(folder, iter(DOCUMENTS), tokenizer, {})
    assert cache.num_documents == len(DOCUMENTS)
    assert sorted(path.name for path in folder.parent.iterdir()) == [".cache.lock", "cache"]


def test_a_second_builder_waits_for_the_first_and_uses_its_cache(tokenizer, tmp_path):
    writing, go_on, second_reads = threading.Event(), threading.Event(), threading.Event()

    def slow():
        writing.set()
        assert go_on.wait(30)
        yield from DOCUMENTS

    def unwanted():
        second_reads.set()
        yield DOCUMENTS[0]

    built = {}
    folder = tmp_path / "cache"
    first = threading.Thread(target=lambda: built.update(first=build(folder, slow(), tokenizer, {})))
    second = threading.Thread(target=lambda: built.update(second=build(folder, unwanted(), tokenizer, {})))
    first.start()
    assert writing.wait(30)
    second.start()
    time.sleep(0.2)
    assert second.is_alive()
    go_on.set()
    first.join(30)
    second.join(30)
    assert not second_reads.is_set()
    np.testing.assert_array_equal(built["first"].tokens, built["second"].tokens)
    assert built["second"].num_documents == len(DOCUMENTS)


def test_processes_that_prepare_at_once_all_end_well(corpus):
    program = """
import sys
from train.config import DataConfig
from train.data.cache import prepare

data = prepare(DataConfig(source=sys.argv[1], vocab_size=290, validation_fraction=0.3, cache=sys.argv[2]))
print(data.tokenizer.fingerprint, data.train.num_tokens, data.validation.num_tokens)
"""
    command = [sys.executable, "-W", "error", "-c", program, corpus.source, corpus.cache]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    outputs = {process.communicate(timeout=60)[0] for process in processes}
    assert [process.returncode for process in processes] == [0, 0, 0]
    data = prepare(corpus)
    assert outputs == {f"{data.tokenizer.fingerprint} {data.train.num_tokens} {data.validation.num_tokens}\n"}
    assert len([path for path in Path(corpus.cache).iterdir() if not path.name.startswith(".")]) == 3


def test_prepare_splits_the_documents_and_trains_on_the_training_side(corpus):
    data = prepare(corpus)
    sides = {}
    for side, cache in (("train", data.train), ("validation", data.validation)):
        bounds = zip(cache.starts[:-1], cache.starts[1:], strict=True)
        sides[side] = [data.tokenizer.decode(cache.tokens[start : end - 1]) for start, end in bounds]
        assert cache.meta["side"] == side
        assert cache.meta["split"]["validation_fraction"] == 0.3
        assert cache.meta["source"] == open_source(corpus.source).fingerprint()
        assert cache.meta["tokenizer"] == data.tokenizer.fingerprint
    in_order = sorted(DOCUMENTS)
    assert sides["train"] == [document.text for document in in_order if not is_held_out(document.name, 0.3)]
    assert sides["validation"] == [document.text for document in in_order if is_held_out(document.name, 0.3)]
    alone = SentencePieceTokenizer(train_sentencepiece(sides["train"], 290))
    assert data.tokenizer.fingerprint == alone.fingerprint


def test_a_second_prepare_builds_nothing(corpus):
    messages: list[str] = []
    first = prepare(corpus, messages.append)
    assert any("training a tokenizer" in message for message in messages)
    assert any("tokenizing" in message and "(validation)" in message for message in messages)
    before = listing(Path(corpus.cache))
    messages.clear()
    second = prepare(corpus, messages.append)
    assert messages == []
    assert listing(Path(corpus.cache)) == before
    np.testing.assert_array_equal(first.train.tokens, second.train.tokens)


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
    assert {old.train.folder, old.validation.folder}.isdisjoint({new.train.folder, new.validation.folder})
    tokens = [new.tokenizer.decode(cache.tokens) for cache in (new.train, new.validation)]
    files = [document.text for document in open_source(config.source).documents()]
    assert sorted("".join(tokens)) == sorted("".join(files))


def test_a_tokenizer_from_a_file(corpus, tmp_path, tokenizer):
    tokenizer.save(tmp_path / "own.model")
    data = prepare(dataclasses.replace(corpus, tokenizer=str(tmp_path / "own.model"), vocab_size=5000))
    assert data.tokenizer.fingerprint == tokenizer.fingerprint == data.train.meta["tokenizer"]
    assert load(tmp_path / "own.model").vocab_size == 290
    assert sorted(path.name.split("-")[0] for path in Path(corpus.cache).iterdir() if path.name[0] != ".") == [
        "train",
        "validation",
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokenizer": "/no/such.model"}, r"data\.tokenizer='/no/such\.model': cannot be read"),
        ({"vocab_size": 60_000}, r"data\.vocab_size=60000: must be at most \d+"),
        ({"validation_fraction": 1e-9}, r"data\.validation_fraction=1e-09: holds out none"),
        ({"validation_fraction": 1 - 1e-9}, r"data\.validation_fraction=0\.999999999: leaves none"),
        ({"source": "text:/no/such/*.txt"}, r"data\.source='text:/no/such/\*\.txt': there is no folder"),
    ],
)
def test_what_cannot_be_prepared_names_the_field_and_leaves_no_cache(corpus, changes, message):
    with pytest.raises(ConfigError, match=message):
        prepare(dataclasses.replace(corpus, **changes))
    assert [path for path in Path(corpus.cache).glob("*") if not path.name.endswith(".lock")] == []


def test_a_cache_that_cannot_be_written_names_the_field(corpus, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(ConfigError, match=r"^data\.cache='.*file/cache': must be a folder that can be written"):
        prepare(dataclasses.replace(corpus, cache=str(tmp_path / "file" / "cache")))


def test_the_standard_library_is_prepared_once_and_then_at_hand(tmp_path):
    config = DataConfig(vocab_size=512, cache=str(tmp_path))
    first = prepare(config)
    start = time.perf_counter()
    second = prepare(config)
    assert time.perf_counter() - start < 2
    assert first.train.num_tokens == second.train.num_tokens > 1_000_000
    assert first.validation.num_documents > 10
