"""Token files made elsewhere: nanoGPT's, those with a meta.json, and what is wrong with them."""

import dataclasses
import json

import numpy as np
import pytest

from mom_jax.fields import ConfigError
from train.config import DataConfig
from train.data.prepared import expected_vocabulary, prepare


def write(folder, train, val, ids="<u2", **meta):
    """As nanoGPT's prepare.py does: `np.array(ids, dtype=np.uint16).tofile(...)`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, tokens in (("train.bin", train), ("val.bin", val)):
        np.array(tokens, ids).tofile(folder / name)
    if meta:
        (folder / "meta.json").write_text(json.dumps(meta))
    return folder


@pytest.fixture
def config(tmp_path):
    return DataConfig(source=f"bin:{tmp_path}/bin", cache=str(tmp_path / "cache"))


EOT = 50256
TRAIN = [5, 6, EOT, 7, EOT, EOT, 50255, 9]


def test_nanogpts_files_are_gpt2s(config, tmp_path):
    write(tmp_path / "bin", TRAIN, [1, 2, EOT])
    prepared = prepare(config)
    [cache] = prepared.train
    assert cache.tokens.tolist() == TRAIN
    assert cache.ends.tolist() == [3, 5, 6, 8]  # the last one without an end
    assert (prepared.tokenizer.vocab_size, prepared.tokenizer.eos_id) == (50257, EOT)
    assert prepared.tokenizer.decode([5, 6]) == "5 6"
    [validation] = prepared.validation
    assert (validation.tokens.tolist(), validation.ends.tolist()) == ([1, 2, EOT], [3])
    # The tokens stay where they are.
    assert cache.file == tmp_path / "bin" / "train.bin"
    assert sorted(path.name for path in cache.folder.iterdir()) == ["meta.json", "train.ends", "val.ends"]


def test_a_second_look_reads_nothing(config, tmp_path):
    write(tmp_path / "bin", TRAIN, [1])
    said: list[str] = []
    prepare(config, said.append)
    assert len(said) == 2
    said.clear()
    prepare(config, said.append)
    assert said == []


def test_changed_files_are_read_anew(config, tmp_path):
    import os

    write(tmp_path / "bin", TRAIN, [1])
    first = prepare(config)
    write(tmp_path / "bin", [EOT, *TRAIN[1:]], [1])
    os.utime(tmp_path / "bin" / "train.bin", ns=(1, 1))
    assert first.train[0].num_documents == 4
    assert prepare(config).train[0].num_documents == 5


def test_a_vocabulary_of_characters(config, tmp_path):
    """nanoGPT's shakespeare_char has a meta.pkl beside its files."""
    write(tmp_path / "bin", [3, 1, 64], [2])
    (tmp_path / "bin" / "meta.pkl").write_bytes(b"whatever")
    prepared = prepare(config)
    assert prepared.tokenizer.vocab_size == 65
    assert prepared.train[0].num_documents == 1


def test_wide_tokens_with_a_meta(config, tmp_path):
    write(tmp_path / "bin", [100_000, 2, 3], [1, 2], "<u4", dtype="uint32", vocab_size=128_000, eos_id=2)
    prepared = prepare(config)
    assert prepared.train[0].tokens.tolist() == [100_000, 2, 3]
    assert prepared.train[0].ends.tolist() == [2, 3]
    assert prepared.tokenizer.vocab_size == 128_000


def test_many_tokens_are_read_in_chunks(config, tmp_path, monkeypatch):
    monkeypatch.setattr("train.data.token_files._CHUNK", 7)
    ids = np.random.default_rng(0).integers(0, 4, 100)
    write(tmp_path / "bin", ids, [1], dtype="uint16", vocab_size=4, eos_id=0)
    [cache] = prepare(config).train
    expected = [*(np.flatnonzero(ids == 0) + 1), *([100] if ids[-1] else [])]
    assert cache.ends.tolist() == expected
    cache.verify()


def test_our_own_caches_are_token_files(config, tmp_path):
    for i in range(40):
        (tmp_path / f"{i}.txt").write_text(f"some text {i} " * 50)
    text = dataclasses.replace(config, source=f"text:{tmp_path}/*.txt", vocab_size=280, validation_fraction=0.3)
    made = prepare(text)
    folder = made.train[0].folder
    [trained] = (tmp_path / "cache").glob("tokenizer-*")
    for tokenizer, fingerprint in ((str(trained), made.tokenizer.fingerprint), ("sentencepiece", None)):
        prepared = prepare(dataclasses.replace(config, source=f"bin:{folder}", tokenizer=tokenizer))
        np.testing.assert_array_equal(prepared.train[0].ends, made.train[0].ends)
        assert prepared.tokenizer.fingerprint == fingerprint or fingerprint is None
        assert prepared.tokenizer.vocab_size == 280


def test_the_tokenizer_beside_the_files_is_taken(config, tmp_path):
    for i in range(40):
        (tmp_path / f"{i}.txt").write_text(f"some text {i} " * 50)
    text = dataclasses.replace(config, source=f"text:{tmp_path}/*.txt", vocab_size=280, validation_fraction=0.3)
    made = prepare(text)
    write(tmp_path / "bin", [3, 4, 1], [2], dtype="uint16", vocab_size=280, eos_id=made.tokenizer.eos_id)
    made.tokenizer.save(tmp_path / "bin")
    assert prepare(config).tokenizer.fingerprint == made.tokenizer.fingerprint


@pytest.mark.parametrize(
    ("meta", "vocabulary"),
    [
        ({"dtype": "uint16", "vocab_size": 290, "eos_id": 1}, "290 ids, the end of a document is 1"),
        ({"dtype": "uint16", "vocab_size": 280, "eos_id": 5}, "280 ids, the end of a document is 5"),
        (
            {"dtype": "uint16", "vocab_size": 280, "eos_id": 1, "tokenizer": "f00"},
            "280 ids, the end of a document is 1",
        ),
    ],
)
def test_another_tokenizer_is_refused(config, tmp_path, meta, vocabulary):
    from train.data.tokenizers.spm import train_sentencepiece

    (tmp_path / "own.model").write_bytes(train_sentencepiece(["some text of letters " * 50], 280))
    write(tmp_path / "bin", [1, 2], [1], **meta)
    with pytest.raises(ConfigError, match=f"was made with another one \\({vocabulary}"):
        prepare(dataclasses.replace(config, tokenizer=str(tmp_path / "own.model")))


def test_files_of_different_tokenizers_are_not_mixed(config, tmp_path):
    for name in ("one", "two"):
        write(tmp_path / name, [1, 2], [1], dtype="uint16", vocab_size=9, eos_id=1, tokenizer=f"{name}-fingerprint")
    source = f"mix:1=bin:{tmp_path}/one,1=bin:{tmp_path}/two"
    with pytest.raises(ConfigError, match=r"two was made with another one .*two-fingerpr; not .*one-fingerpr"):
        prepare(dataclasses.replace(config, source=source))


def test_files_that_change_under_a_cache_are_not_to_be_deleted(config, tmp_path):
    """The user's own; what is to go is our index of them."""
    write(tmp_path / "bin", TRAIN, [1])
    [cache] = prepare(config).train
    ids = np.memmap(tmp_path / "bin" / "train.bin", np.uint16, mode="r+")
    ids[0] = 8
    ids.flush()
    with pytest.raises(ConfigError, match=f"has the checksum .* delete '{cache.folder}', and it is read anew"):
        cache.verify()


@pytest.mark.parametrize(
    ("changes", "size"),
    [({}, 50257), ({"source": "builtin:stdlib", "vocab_size": 4321}, 4321), ({"source": "mix:1=bin:{}/bin"}, 50257)],
)
def test_the_vocabulary_is_known_without_preparing(config, tmp_path, changes, size):
    write(tmp_path / "bin", TRAIN, [1])
    changes = {name: value.format(tmp_path) if name == "source" else value for name, value in changes.items()}
    assert expected_vocabulary(dataclasses.replace(config, **changes)) == size
    assert not (tmp_path / "cache").exists()


def remove(name):
    return lambda folder: (folder / name).unlink()


def add(name, content):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes() + content)


def put(name, content):
    return lambda folder: (folder / name).write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (remove("val.bin"), "there is no val.bin; both train.bin and val.bin are needed"),
        (remove("train.bin"), "there is no train.bin"),
        (add("train.bin", b"x"), "train.bin has 17 bytes, not a multiple of 2 (uint16): empty or cut off"),
        (put("val.bin", b""), "val.bin has 0 bytes"),
        (
            put("train.bin", b"\xff\xff"),
            "has the token 65535, GPT-2's vocabulary has 50257; meta.json beside the files",
        ),
        (put("meta.json", b"{"), 'meta.json must have "dtype" (uint16 or uint32)'),
        (put("meta.json", b'{"dtype": "int8", "vocab_size": 9, "eos_id": 1}'), "meta.json must have"),
        (put("meta.json", b'{"dtype": "uint16", "vocab_size": 70000, "eos_id": 1}'), '"vocab_size" that fits it'),
        (put("meta.json", b'{"dtype": "uint16", "vocab_size": 9, "eos_id": 9}'), '"eos_id" (an id or null)'),
        (
            put("meta.json", b'{"dtype": "uint16", "vocab_size": 9, "eos_id": 8}'),
            "has the token 50256, the vocabulary has 9",
        ),
    ],
)
def test_what_cannot_be_used_is_one_line(config, tmp_path, damage, expected):
    damage(write(tmp_path / "bin", TRAIN, [1, 2]))
    with pytest.raises(ConfigError) as error:
        prepare(config)
    assert str(error.value).startswith(f"data.source={config.source!r}: ")
    assert expected in str(error.value)
    assert "\n" not in str(error.value)
    assert list((tmp_path / "cache").glob("bin-*")) == []


def test_no_folder(config):
    with pytest.raises(ConfigError, match=r"^data\.source='bin:.*/bin': there is no folder"):
        prepare(config)
