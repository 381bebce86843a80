"""Tokenizing into a cache: what is stored, that it is whole or not there, and that interrupted work goes on."""

import json
import subprocess
import sys
import threading
import time
import zlib

import numpy as np
import pytest
from letters import Letters, source
from programs import ROOT, environment

from mom_jax.fields import ConfigError
from train.data import encode as encoding
from train.data.cache import TokenCache
from train.data.documents import SIDES, Document, Part, Source, is_held_out
from train.data.encode import encode
from train.files import without_checksum

DOCUMENTS = [Document(f"{i}.txt", f"This is document {i}. " * (i % 5)) for i in range(40)]
FRACTION = 0.3


def silent(share: float, tokens: int) -> None:
    pass


def build(folder, documents, tokenizer=None, meta=None, report=silent):
    """The caches of both sides."""
    made = documents if isinstance(documents, Source) else source(list(documents))
    encode(folder, made, tokenizer or Letters(), FRACTION, meta or {}, report)
    return {side: TokenCache.open(folder, side) for side in SIDES}


def texts(cache: TokenCache) -> list[str]:
    assert all(cache.tokens[end - 1] == 0 for end in cache.ends)
    bounds = zip(cache.starts[:-1], cache.starts[1:], strict=True)
    return [Letters().decode(cache.tokens[start:end]) for start, end in bounds]


def test_every_document_comes_back_on_its_side_followed_by_the_separator(tmp_path):
    caches = build(tmp_path / "cache", DOCUMENTS)
    for side, cache in caches.items():
        expected = [d.text for d in DOCUMENTS if is_held_out(d.name, FRACTION) == (side == "validation")]
        assert texts(cache) == expected
        assert cache.num_documents == len(expected) > 5
        assert cache.starts[-1] == cache.num_tokens == len(cache.tokens)


def test_the_files(tmp_path):
    caches = build(tmp_path / "cache", DOCUMENTS, meta={"note": 1})
    names = ["meta.json", "train.bin", "train.ends", "val.bin", "val.ends"]
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == names
    sides = {}
    for side, stem in (("train", "train"), ("validation", "val")):
        content = (tmp_path / "cache" / f"{stem}.bin").read_bytes()
        np.testing.assert_array_equal(np.frombuffer(content, np.uint16), caches[side].tokens)
        sides[side] = {
            "file": f"{stem}.bin",
            "tokens": len(content) // 2,
            "documents": caches[side].num_documents,
            "crc32": zlib.crc32(content),
            "ends_crc32": zlib.crc32((tmp_path / "cache" / f"{stem}.ends").read_bytes()),
        }
        caches[side].verify()
    expected = {"note": 1, "vocab_size": 60_000, "eos_id": 0, "dtype": "uint16", "tokenizer": "letters", **sides}
    assert without_checksum(json.loads((tmp_path / "cache" / "meta.json").read_text())) == expected
    assert isinstance(caches["train"].tokens, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        caches["train"].tokens[0] = 1


@pytest.mark.parametrize(("vocab_size", "dtype"), [(65_536, np.uint16), (65_537, np.uint32)])
def test_tokens_are_as_wide_as_the_vocabulary_needs(tmp_path, vocab_size, dtype):
    class Last(Letters):
        """Every character is the vocabulary's last token."""

        def encode(self, text):
            return [vocab_size - 1] * len(text)

    tokenizer = Last()
    tokenizer.vocab_size = vocab_size
    cache = build(tmp_path / "cache", DOCUMENTS, tokenizer)["train"]
    assert cache.tokens.dtype == dtype
    assert set(np.unique(cache.tokens)) == {0, vocab_size - 1}


def test_pieces_of_a_document_are_one_document(tmp_path):
    pieces = [Document("a", "one ", last=False), Document("a", "two", last=False), Document("a", "")]
    made = Source(
        "s", (Part("p", 1, lambda: iter(pieces), "train"), Part("q", 1, lambda: iter(pieces), "validation")), {}
    )
    for cache in build(tmp_path / "cache", made).values():
        assert texts(cache) == ["one two"]


def change(name):
    def damage(folder):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) - 8])

    return damage


def rewrite(name, value):
    def damage(folder):
        meta = json.loads((folder / "meta.json").read_text())
        meta["train"][name] = value
        (folder / "meta.json").write_text(json.dumps(meta))

    return damage


DAMAGES = {
    "tokens cut": change("train.bin"),
    "ends cut": change("train.ends"),
    "ends empty": lambda folder: (folder / "train.ends").write_bytes(b""),
    "meta cut": change("meta.json"),
    "no meta": lambda folder: (folder / "meta.json").unlink(),
    "no tokens": lambda folder: (folder / "train.bin").unlink(),
    "a list": lambda folder: (folder / "meta.json").write_text("[]"),
    "other count": rewrite("documents", 3),
    "other tokens": rewrite("tokens", 10),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=list(DAMAGES))
def test_a_damaged_cache_is_refused(tmp_path, damage):
    folder = build(tmp_path / "cache", DOCUMENTS)["train"].folder
    damage(folder)
    with pytest.raises(ConfigError, match="delete its folder to have it made again") as error:
        TokenCache.open(folder, "train")
    assert str(error.value).startswith(f"data.cache: '{folder}")
    assert "\n" not in str(error.value)


def test_ends_that_were_altered_are_seen(tmp_path):
    cache = build(tmp_path / "cache", DOCUMENTS)["train"]
    ends = np.memmap(tmp_path / "cache" / "train.ends", np.int64, mode="r+")
    ends[3] = ends[9]
    ends.flush()
    with pytest.raises(ConfigError, match=r"train\.ends' has documents out of order; delete"):
        _ = cache.starts
    with pytest.raises(ConfigError, match=r"train\.ends' has the checksum"):
        cache.verify()


def test_a_cache_appears_whole(tmp_path):
    seen = []

    def documents():
        for document in DOCUMENTS:
            seen.append([(path.name, path.stat().st_ino) for path in tmp_path.iterdir() if path.is_dir()])
            yield document

    folder = build(tmp_path / "cache", Source("s", (Part("p", 1, documents),), {}))["train"].folder
    # Until the last document a folder of another name; it is that very folder in the end.
    assert seen == [[(".cache.partial", folder.stat().st_ino)]] * len(DOCUMENTS)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ConfigError("data.source: broken")])
def test_work_that_fails_early_leaves_nothing(tmp_path, error):
    def failing():
        yield DOCUMENTS[0]
        raise error

    with pytest.raises(error if isinstance(error, type) else type(error)):
        build(tmp_path / "caches" / "cache", Source("s", (Part("p", 1, failing),), {}))
    assert not (tmp_path / "caches").exists()


@pytest.mark.parametrize(
    ("documents", "message"),
    [
        ([], r"^data\.source: there are no documents"),
        (
            [d for d in DOCUMENTS if not is_held_out(d.name, FRACTION)],
            r"^data\.validation_fraction=0\.3: holds out none of",
        ),
        (
            [d for d in DOCUMENTS if is_held_out(d.name, FRACTION)],
            r"^data\.validation_fraction=0\.3: leaves for training none",
        ),
    ],
)
def test_a_side_without_documents(tmp_path, documents, message):
    with pytest.raises(ConfigError, match=message):
        build(tmp_path / "caches" / "cache", documents)
    assert not (tmp_path / "caches").exists()


def several_parts(read=None):
    """Four parts of ten documents; `read` is told of every document that is read."""

    def part(k):
        def documents():
            for document in DOCUMENTS[k * 10 : (k + 1) * 10]:
                if read is not None:
                    read(document)
                yield document

        return Part(str(k), 10, documents)

    return Source("s", tuple(part(k) for k in range(4)), {})


@pytest.mark.parametrize("stop", [3, 10, 11, 19, 27, 39])
def test_interrupted_work_goes_on_where_it_was(tmp_path, monkeypatch, stop):
    """Every batch is committed here; so what was committed is not tokenized again, and the files are the same."""
    monkeypatch.setattr(encoding, "COMMIT_SECONDS", 0.0)
    monkeypatch.setattr(encoding, "BATCH", 100)
    expected = build(tmp_path / "whole", several_parts())
    tokenized: list[str] = []

    class Counting(Letters):
        def encode_batch(self, texts):
            tokenized.extend(texts)
            return super().encode_batch(texts)

    def interrupt(document):
        if document is DOCUMENTS[stop]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "cache", several_parts(interrupt), Counting())
    first = len(tokenized)
    caches = build(tmp_path / "cache", several_parts(), Counting())
    for side in SIDES:
        np.testing.assert_array_equal(caches[side].tokens, expected[side].tokens)
        np.testing.assert_array_equal(caches[side].ends, expected[side].ends)
        caches[side].verify()
    assert caches["train"].meta == expected["train"].meta
    # At most what was under way is done twice: three batches of about two documents.
    assert len(tokenized) - len(DOCUMENTS) <= 8
    assert stop < 10 or first >= stop - 8
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["cache", "whole"]


def test_a_document_in_pieces_goes_on_too(tmp_path, monkeypatch):
    monkeypatch.setattr(encoding, "COMMIT_SECONDS", 0.0)
    monkeypatch.setattr(encoding, "BATCH", 10)
    pieces = [Document("a", f"piece {i} ", last=i == 29) for i in range(30)]
    whole = []  # until then reading stops in the middle

    def long():
        for i, piece in enumerate(pieces):
            if i == 20 and not whole:
                raise KeyboardInterrupt
            yield piece

    made = Source("s", (Part("p", 1, long, "train"), Part("q", 1, lambda: iter(DOCUMENTS), "validation")), {})
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "cache", made)
    whole.append(True)
    assert texts(build(tmp_path / "cache", made)["train"]) == ["".join(piece.text for piece in pieces)]


PROGRAM = """
import sys, time
from train.data import encode
from train.data.documents import Document, Part, Source
sys.path.insert(0, sys.argv[2])
from letters import Letters

encode.BATCH, encode.COMMIT_SECONDS = 1, 0.0
slow = float(sys.argv[3])

def documents():
    for i in range(40):
        if i == 20 and slow:
            print("half", flush=True)
            time.sleep(slow)
        yield Document(f"{i}.txt", f"text {i}")

source = Source("s", (Part("p", 40, documents),), {})
encode.encode(__import__("pathlib").Path(sys.argv[1]), source, Letters(), 0.3, {}, lambda share, tokens: None)
"""


def program(folder, slow):
    command = [sys.executable, "-W", "error", "-c", PROGRAM, str(folder), str(ROOT / "tests" / "helpers"), str(slow)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment()
    )


def test_a_killed_process_leaves_nothing_usable_and_the_next_goes_on(tmp_path):
    folder = tmp_path / "caches" / "cache"
    with program(folder, 600) as process:
        try:
            assert process.stdout.readline() == "half\n"
        finally:
            process.kill()
    with pytest.raises(ConfigError):
        TokenCache.open(folder, "train")
    journal = json.loads((folder.parent / ".cache.partial" / "journal.json").read_text())
    assert 10 <= journal["pieces"] <= 20
    with program(folder, 0) as process:
        assert process.communicate(timeout=60)[1] == ""
    with program(tmp_path / "whole", 0) as process:
        process.communicate(timeout=60)
    for side in SIDES:
        caches = [TokenCache.open(path, side) for path in (folder, tmp_path / "whole")]
        np.testing.assert_array_equal(caches[0].tokens, caches[1].tokens)
        np.testing.assert_array_equal(caches[0].ends, caches[1].ends)
    assert sorted(path.name for path in folder.parent.iterdir()) == [".cache.lock", "cache"]


def test_a_second_builder_waits_for_the_first_and_uses_its_cache(tmp_path):
    writing, go_on, second_reads = threading.Event(), threading.Event(), threading.Event()

    def slow():
        writing.set()
        assert go_on.wait(30)
        yield from DOCUMENTS

    def unwanted():
        second_reads.set()
        yield DOCUMENTS[0]

    built = {}
    sources = {"first": Source("s", (Part("p", 1, slow),), {}), "second": Source("s", (Part("p", 1, unwanted),), {})}

    def start(name):
        thread = threading.Thread(target=lambda: built.update({name: build(tmp_path / "cache", sources[name])}))
        thread.start()
        return thread

    first = start("first")
    assert writing.wait(30)
    second = start("second")
    time.sleep(0.2)
    assert second.is_alive()
    go_on.set()
    first.join(30)
    second.join(30)
    assert not second_reads.is_set()
    np.testing.assert_array_equal(built["first"]["train"].tokens, built["second"]["train"].tokens)


def test_a_full_disk_loses_nothing_that_is_finished(tmp_path, monkeypatch):
    """The system refuses to let any file of this process grow beyond a limit."""
    import resource

    monkeypatch.setattr(encoding, "COMMIT_SECONDS", 0.0)
    monkeypatch.setattr(encoding, "BATCH", 1)
    big = [Document(str(i), "0123456789" * 1000) for i in range(40)]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))
    try:
        with pytest.raises(ConfigError) as error:
            build(tmp_path / "caches" / "cache", big)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    must = "needs more room, what is finished is kept (File too large)"
    assert str(error.value) == f"data.cache='{tmp_path}/caches': {must}"
    journal = json.loads((tmp_path / "caches" / ".cache.partial" / "journal.json").read_text())
    assert journal["pieces"] > 5
    read = []
    made = Source("s", (Part("p", 40, lambda: (read.append(d) or d for d in big)),), {})
    caches = build(tmp_path / "caches" / "cache", made)
    assert sum(cache.num_tokens for cache in caches.values()) == 40 * 10_001
    for cache in caches.values():
        cache.verify()
        assert set(texts(cache)) == {big[0].text}


def test_progress_goes_from_nothing_to_all(tmp_path, monkeypatch):
    monkeypatch.setattr(encoding, "BATCH", 100)
    seen = []
    caches = build(tmp_path / "cache", several_parts(), report=lambda share, tokens: seen.append((share, tokens)))
    assert seen == sorted(seen)
    assert seen[-1] == (1.0, sum(cache.num_tokens for cache in caches.values()))
    assert len(seen) > 10
