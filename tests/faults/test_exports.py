"""Models outside of runs: whatever changes in such a file is noticed by whoever reads it."""

import os

import inject
import numpy as np
import pytest
import tiny
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from small import random_params

from mom_jax.fields import ConfigError
from train.checkpoints import formats, models, single_file, weights
from train.data.tokenizers.spm import SentencePieceTokenizer, train_sentencepiece
from train.files import whole_file


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """(a single file, a folder of Hugging Face's kind) of the same small model."""
    folder = tmp_path_factory.mktemp("exported")
    model = tiny.config(folder).model_of("pretrain")
    params = random_params(model)
    words = [" ".join(tiny.WORDS)] * 50
    tokenizer = SentencePieceTokenizer(train_sentencepiece(iter(words), 290))
    single_file.save(folder / "single.safetensors", model, params, tokenizer.fingerprint)
    formats.write_folder(folder / "gpt2", "huggingface", model, params, tokenizer)
    return folder / "single.safetensors", folder / "gpt2" / "model.safetensors"


def read(file):
    path = file if file.name.startswith("single") else file.parent
    return formats.read(path, formats.detect(path, "checkpoint"), "checkpoint")


def refused(file):
    try:
        read(file)
    except ConfigError:
        return True
    return False


@pytest.mark.parametrize("which", [0, 1])
def test_every_fault_of_a_file_is_noticed(exported, which):
    file = exported[which]
    content = file.read_bytes()
    assert read(file).params
    for seed in range(12):
        for fault, harm in inject.FILE_FAULTS.items():
            if fault != "a bit flipped" and seed > 1:
                continue
            said = harm(file, seed=seed)
            assert refused(file), f"{fault}: {said}"
            file.write_bytes(content)
    header = int.from_bytes(content[:8], "little")
    # The configuration, the names, the checksums themselves; and each byte of the names by which these are found, which
    # the format's library puts wherever it likes.
    marks = [content.index(name.encode()) + place for name in weights.MARKS for place in range(len(name))]
    for place in (*range(8, 8 + header, 97), *marks):
        changed = bytearray(content)
        changed[place] ^= 2
        file.write_bytes(changed)
        assert refused(file), f"byte {place}: {content[place - 20 : place + 20]!r}"
    file.write_bytes(content)


def test_files_without_checksums_are_read(exported, tmp_path):
    single, weights_file = exported
    with safe_open(single, "np") as opened:
        texts = {name: text for name, text in opened.metadata().items() if name not in weights.MARKS}
    save_file(load_file(single), tmp_path / "single.safetensors", metadata=texts)
    np.testing.assert_equal(read(tmp_path / "single.safetensors").params, read(single).params)
    arrays = load_file(weights_file)
    kept = weights_file.read_bytes()
    save_file(arrays, weights_file, metadata={"format": "pt"})
    assert read(weights_file).fingerprint == ""
    weights_file.write_bytes(kept)


def test_a_tokenizer_that_is_not_the_models_is_refused(exported):
    folder = exported[1].parent
    assert models.load(folder)[1] is not None
    other = SentencePieceTokenizer(train_sentencepiece(iter([" ".join(tiny.WORDS[:6])] * 50), 290))
    kept = (folder / "tokenizer.model").read_bytes()
    other.save(folder)
    with pytest.raises(ConfigError, match="tokenizer beside it is not the one"):
        models.load(folder)
    with pytest.raises(ConfigError, match="tokenizer beside it is not the one"):
        models.encoding_tokenizer(str(folder), models.open_model(folder, field="checkpoint"), None)
    (folder / "tokenizer.model").write_bytes(kept)


def test_of_two_that_write_the_same_new_file_the_second_is_refused(tmp_path, monkeypatch):
    file = tmp_path / "model.safetensors"

    def write(process, meanwhile=()):
        monkeypatch.setattr(os, "getpid", lambda: process)
        with whole_file(file, new=True) as partial:
            partial.write_bytes(b"of %d" % process)
            for other in meanwhile:
                write(other)

    with pytest.raises(ConfigError, match="is there already"):
        write(1, meanwhile=(2,))
    assert file.read_bytes() == b"of 2"
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (np.array([1.0, 1e300]), "x has 1 of 2 numbers that are NaN or infinite"),
        (np.array([1 + 2j], np.complex64), "'x' must be of floats, not complex64"),
        (np.array([1, 2]), "'x' must be of floats, not int64"),
        (np.array([True]), "'x' must be of floats, not bool"),
    ],
)
def test_weights_are_numbers_that_float32_has(tmp_path, value, problem):
    save_file({"x": value}, tmp_path / "model.safetensors")
    with pytest.raises(ConfigError, match=problem):
        weights.open_weights(tmp_path, "input")["x"]
    save_file({"x": np.array([0.1, 2.0])}, tmp_path / "model.safetensors")
    assert weights.open_weights(tmp_path, "input")["x"].dtype == np.float32


def test_an_array_is_in_one_shard(tmp_path):
    for name in ("a.safetensors", "b.safetensors"):
        save_file({"x": np.zeros(2, np.float32)}, tmp_path / name)
    with pytest.raises(ConfigError, match=r"b\.safetensors': has 'x', which another file has too"):
        weights.Weights([tmp_path / "a.safetensors", tmp_path / "b.safetensors"], "input")
