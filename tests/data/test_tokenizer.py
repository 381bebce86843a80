"""The tokenizer: nothing is lost, the same texts give the same model, complaints name the field."""

import hashlib
import random

import pytest

from mom_jax.fields import ConfigError
from train.data.sources import open_source
from train.data.tokenizer import SentencePieceTokenizer, load, train_sentencepiece


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return [document.text for document in open_source("builtin:stdlib").documents()]


@pytest.fixture(scope="module")
def model(texts) -> bytes:
    return train_sentencepiece(texts[::20], 1024)


@pytest.fixture(scope="module")
def tokenizer(model) -> SentencePieceTokenizer:
    return SentencePieceTokenizer(model)


def round_trips(tokenizer: SentencePieceTokenizer, text: str) -> bool:
    ids = tokenizer.encode(text)
    assert all(0 <= i < tokenizer.vocab_size and i != tokenizer.eos_id for i in ids)
    return tokenizer.decode(ids) == text


def test_documents_survive(tokenizer, texts):
    assert all(round_trips(tokenizer, text) for text in texts[7::10])


@pytest.mark.slow
def test_every_document_survives(texts):
    tokenizer = SentencePieceTokenizer(train_sentencepiece(texts, 4096))
    assert all(round_trips(tokenizer, text) for text in texts)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "   three ",
        "\0",
        "a\0b",
        "\u2581",
        "a\u2581 \u2581\u2581b ",
        "\u2585 \u2047",
        "\t\n\r\n\x0b\x0c\x85\u2028",
        "\ufeffbyte order mark",
        "e\u0301 \u00e9 \ufb01 \u3000\u00a0\u200b\u200d",
        "\ufffd\uffff\U0010ffff\U0001f600",
        "</s><s><unk><pad><0x41><0xE2>",
        "x" * 100_000,
        " " * 100_000,
    ],
)
def test_odd_texts_survive(tokenizer, text):
    assert round_trips(tokenizer, text)


def test_every_character_survives(tokenizer):
    surrogates = range(0xD800, 0xE000)
    for start in range(0, 0x110000, 0x1000):
        text = "a ".join(chr(point) for point in range(start, start + 0x1000) if point not in surrogates)
        assert round_trips(tokenizer, text), hex(start)


def test_random_texts_survive(tokenizer):
    generator = random.Random(0)
    alphabets = ["ab \n", " \u2581\0\u2585", "</s>0xE2 ", "\t\r\n", "éß漢字\U0001f600", "def self(x):\n    return "]
    for _ in range(3000):
        alphabet = "".join(generator.sample(alphabets, generator.randint(1, 3)))
        text = "".join(generator.choices(alphabet, k=generator.randint(0, 40)))
        assert round_trips(tokenizer, text), ascii(text)


def test_bytes_that_are_not_text_decode_to_replacements_and_the_separator_to_nothing(tokenizer):
    ids = tokenizer.encode("\u2581")
    assert len(ids) == 3
    assert tokenizer.decode(ids[:1]) == "\ufffd"
    assert tokenizer.decode([*tokenizer.encode("one"), tokenizer.eos_id, *tokenizer.encode("two")]) == "onetwo"


def test_the_vocabulary_is_as_large_as_asked_and_earns_its_size(tokenizer, texts):
    assert tokenizer.vocab_size == 1024
    sample = "".join(texts[7::10])
    assert len(tokenizer.encode(sample)) < len(sample.encode()) / 2


def test_the_same_texts_give_the_same_model(texts, model):
    assert train_sentencepiece(iter(texts[::20]), 1024) == model


def test_training_is_silent(capfd, texts):
    train_sentencepiece(texts[:5], 400)
    assert capfd.readouterr() == ("", "")


def test_long_lines_and_reserved_characters_drop_nothing_from_training():
    # In a text without a space or line end, far longer than the trainer takes, and with characters that it refuses.
    long = "zebra-" * 40_000
    for text in (long, long + "\0", long + "\u2585"):
        tokenizer = SentencePieceTokenizer(train_sentencepiece([text], 270))
        assert len(tokenizer.encode(long)) <= 80_000


def test_saved_and_loaded(tokenizer, model, tmp_path):
    tokenizer.save(tmp_path / "tokenizer.model")
    loaded = load(tmp_path / "tokenizer.model")
    assert loaded.fingerprint == tokenizer.fingerprint == hashlib.sha256(model).hexdigest()
    assert (loaded.vocab_size, loaded.eos_id) == (tokenizer.vocab_size, tokenizer.eos_id)
    text = "def f(x):\n    return x\u2581\0"
    assert loaded.encode(text) == tokenizer.encode(text)


def test_a_vocabulary_too_large_for_the_texts_tells_the_largest():
    with pytest.raises(ConfigError, match=r"^data\.vocab_size=4096: must be at most \d+, ") as error:
        train_sentencepiece(["hello world"], 4096)
    largest = int(str(error.value).split("at most ")[1].split(",")[0])
    assert SentencePieceTokenizer(train_sentencepiece(["hello world"], largest)).vocab_size == largest


def test_a_vocabulary_too_small_for_the_texts_tells_the_smallest(texts):
    with pytest.raises(ConfigError, match=r"^data\.vocab_size=300: must be at least \d+ ") as error:
        train_sentencepiece(texts[:20], 300)
    smallest = int(str(error.value).split("at least ")[1].split(" ")[0])
    assert SentencePieceTokenizer(train_sentencepiece(texts[:20], smallest)).vocab_size == smallest


def test_too_few_pieces_for_the_bytes_and_empty_texts():
    with pytest.raises(ConfigError, match=r"^data\.vocab_size=258: must be more than 258"):
        train_sentencepiece(["text"], 258)
    with pytest.raises(ConfigError, match=r"^data\.source: there is no text"):
        train_sentencepiece(["", "\0", "\n"], 300)


@pytest.mark.parametrize(("content", "message"), [(b"", "is not a"), (b"junk", "is not a"), (None, "cannot be read")])
def test_a_file_that_is_no_model_names_the_field(tmp_path, capfd, content, message):
    path = tmp_path / "x.model"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=message) as error:
        load(path)
    assert str(error.value).startswith(f"data.tokenizer={str(path)!r}: ")
    assert capfd.readouterr() == ("", "")
