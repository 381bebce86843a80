"""SentencePiece: nothing is lost, the same texts give the same model, complaints name the field."""

import hashlib
import io

import pytest
import sentencepiece

from mom_jax.fields import ConfigError
from train.data.sources.kinds import open_source
from train.data.tokenizers import load, spm
from train.data.tokenizers.spm import SentencePieceTokenizer, train_sentencepiece


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
    tokenizer.save(tmp_path)
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


def test_models_from_elsewhere_are_encoded_whole(texts, tmp_path):
    """A model with a space of its own before every text, or with pieces that have spaces inside, cannot be cut."""
    for change in ({"add_dummy_prefix": True}, {"split_by_whitespace": False}, {"remove_extra_whitespaces": True}):
        settings = {**spm.SETTINGS, **change}
        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(text for text in ["one two one two\n"] * 200),
            model_writer=model,
            vocab_size=280,
            hard_vocab_limit=False,
            minloglevel=3,
            **settings,
        )
        tokenizer = SentencePieceTokenizer(model.getvalue())
        text = "one two " * 1000
        assert tokenizer.encode(text) == tokenizer._processor.encode(text)
        assert tokenizer.encode_batch([text])[0].tolist() == tokenizer._processor.encode(text)
