"""What all tokenizers promise: nothing is lost, batches and cut texts give the same ids, files are found and named."""

import json
import random
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import small_gpt2

from mom_jax.fields import ConfigError
from train.data.splitting import safe_cut
from train.data.tokenizers import find, load
from train.data.tokenizers.spm import SentencePieceTokenizer, train_sentencepiece
from train.data.tokenizers.token_ids import IdsTokenizer

TEXTS = [path.read_text("utf-8") for path in sorted(Path(__file__).parents[2].glob("mom_jax/*.py"))]
# For Python "\x1c" is white space, for GPT-2 it is not: with this a token has it inside, where no text may be cut.
TEXTS.append("!\x1c" * 3000)

# What texts are drawn from: scripts, spaces of all kinds, controls, marks of the tokenizers' own, words and code.
ALPHABETS = [
    "ab \n",
    " \u2581\0\u2585",
    "\t\r\n \x0b\x0c\x1c\x1f\x85\xa0\u1680\u180e\u2003\u2028\u200b\u3000",
    [chr(point) for point in range(256)],
    "éßñ漢字かな한글שלוםअआ\U00010348\U0001f600\U0001f468\u200d\U0001f469",
    "e\u0301\u0327\ufe0f\ufeff\ufffd\uffff\U0010ffff",
    ["<|endoftext|>", "<s>", "</s>", "<unk>", "<0x41>", "<pad>", "<|", "Ġ", "Ċ"],
    ["'s", "'ll", "'", " it", "don't", "  ", "\r\n", "     ", "I'VE"],
    ["def ", "self", "(x):", "\n    return", " 1234567890", " == ", "\n\n\n", "return None\n"],
]


@pytest.fixture(scope="module", params=["sentencepiece", "gpt2"])
def tokenizer(request, tmp_path_factory):
    if request.param == "sentencepiece":
        return SentencePieceTokenizer(train_sentencepiece(TEXTS, 1024))
    pytest.importorskip("tokenizers")
    return load(small_gpt2.write_vocabulary(tmp_path_factory.mktemp("gpt2"), TEXTS))


def random_texts(seed, count):
    generator = random.Random(seed)
    for _ in range(count):
        some = generator.sample(ALPHABETS, generator.randint(1, 4))
        characters = [character for alphabet in some for character in alphabet]
        yield "".join(generator.choices(characters, k=generator.randint(0, 60)))


def assert_survives(tokenizer, text):
    ids = tokenizer.encode(text)
    assert all(0 <= i < tokenizer.vocab_size and i != tokenizer.eos_id for i in ids)
    assert tokenizer.decode(ids) == text, ascii(text[:200])


def test_random_texts_survive(tokenizer):
    for text in random_texts(0, 3000):
        assert_survives(tokenizer, text)


def test_every_piece_survives_as_a_text(tokenizer):
    for i in range(tokenizer.vocab_size):
        assert_survives(tokenizer, tokenizer.decode([i]))


def test_every_character_survives(tokenizer):
    # All of planes 0 and 1, and what is assigned above.
    for start in (*range(0, 0x20000, 0x1000), 0x2F000, 0xE0000, 0x10F000):
        points = (point for point in range(start, start + 0x1000) if not 0xD800 <= point < 0xE000)
        assert_survives(tokenizer, "a ".join(map(chr, points)))


@pytest.mark.parametrize("unit", ["x", " ", "漢", "\u2581", "<|endoftext|>", " a\n"])
def test_a_megabyte_of_anything_survives(tokenizer, unit):
    assert_survives(tokenizer, unit * (1_000_000 // len(unit.encode())))


def test_batches_are_the_same_as_one_by_one(tokenizer):
    texts = [*random_texts(1, 1000), "", "".join(TEXTS), *TEXTS]
    batch = tokenizer.encode_batch(texts)
    assert all(isinstance(ids, np.ndarray) and ids.dtype == np.int32 for ids in batch)
    assert [ids.tolist() for ids in batch] == [tokenizer.encode(text) for text in texts]
    assert tokenizer.encode_batch([]) == []
    assert all(tokenizer.decode(ids) == text for ids, text in zip(batch, texts, strict=True))


def test_a_long_text_has_the_ids_that_the_library_gives_it_whole(tokenizer):
    # These are cut; none has a character that SentencePiece must not see.
    generator = random.Random(2)
    words = [*ALPHABETS[2], *ALPHABETS[7], *ALPHABETS[8], "<|endoftext|>", "é", "漢字", "\x1c", "!"]
    for text in [*TEXTS, *("".join(generator.choices(words, k=5000)) for _ in range(20))]:
        if isinstance(tokenizer, SentencePieceTokenizer):
            whole = tokenizer._processor.encode(text)
        else:
            whole = tokenizer._encoder.encode(text, add_special_tokens=False).ids
        assert tokenizer.encode(text) == whole


def test_the_separator_and_torn_characters_in_what_is_decoded(tokenizer):
    ids = tokenizer.encode("\U0010ffff")
    assert tokenizer.decode(ids[:1]) == "\ufffd"
    assert tokenizer.decode([*tokenizer.encode("one"), tokenizer.eos_id, *tokenizer.encode("two")]) == "onetwo"


def test_pieces_are_the_text_in_parts(tokenizer):
    """With the bytes of torn characters in hexadecimal, and a name for the separator, which has no text."""
    for text in (TEXTS[0][:2000], "  two\n\ttab é漢字\U0001f600\0 ▁", "".join(ALPHABETS[2])):
        pieces = [tokenizer.piece(i) for i in tokenizer.encode(text)]
        whole = re.sub(rb"\\x([0-9a-f]{2})", lambda found: bytes.fromhex(found[1].decode()), "".join(pieces).encode())
        assert whole.decode() == text
    torn = [tokenizer.piece(i) for i in tokenizer.encode("\U00010348")]
    assert torn[-1] == "\\x88"
    assert tokenizer.piece(tokenizer.eos_id) in ("</s>", "<|endoftext|>")


def test_where_a_text_can_be_cut():
    assert safe_cut("one two three", 9) == 7
    assert safe_cut("one two three", 7) == 7
    assert safe_cut("one two three", 6) == 3
    assert safe_cut("one  two", 5) == 3  # not within white space
    assert safe_cut("one\n two", 5) == 5  # nor after another kind of it: there is no place
    assert safe_cut(" one two", 3) == 3  # nor before everything
    assert safe_cut("         one", 5) == 5


def test_cut_texts_have_the_ids_of_the_whole(tokenizer):
    generator = random.Random(3)
    cut = 0
    for text in random_texts(4, 4000):
        if len(text) < 2:
            continue
        limit = generator.randrange(1, len(text))
        place = safe_cut(text, limit)
        assert 0 < place <= limit
        first, second = text[:place], text[place:]
        if second[0] == " " and not first[-1].isspace():
            cut += 1
            assert tokenizer.encode(first) + tokenizer.encode(second) == tokenizer.encode(text), ascii(text)
        assert tokenizer.decode(tokenizer.encode(first)) + tokenizer.decode(tokenizer.encode(second)) == text
    assert cut > 1000


def test_a_cut_after_any_character_keeps_the_ids(tokenizer):
    characters = [c for c in map(chr, range(0x3100)) if not c.isspace()]
    first, second = tokenizer.encode_batch([f"\n {c}" for c in characters]), tokenizer.encode("  \n b")
    whole = tokenizer.encode_batch([f"\n {c}  \n b" for c in characters])
    assert all([*a, *second] == list(b) for a, b in zip(first, whole, strict=True))


def test_saved_found_and_loaded(tokenizer, tmp_path):
    assert find(tmp_path) is None
    tokenizer.save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [tokenizer.file_name]
    assert find(tmp_path) == tmp_path / tokenizer.file_name
    for path in (tmp_path, str(tmp_path / tokenizer.file_name)):
        loaded = load(path)
        assert loaded.fingerprint == tokenizer.fingerprint
        assert (loaded.vocab_size, loaded.eos_id) == (tokenizer.vocab_size, tokenizer.eos_id)
        text = "def f(x):\n    return x\u2581\0<|endoftext|>"
        assert loaded.encode(text) == tokenizer.encode(text)


def test_what_counts_in_a_folder(tmp_path):
    pytest.importorskip("tokenizers")
    vocabulary = small_gpt2.write_vocabulary(tmp_path, TEXTS)
    assert find(tmp_path) == vocabulary
    shutil.move(tmp_path / "merges.txt", tmp_path / "vocab.bpe")
    assert find(tmp_path) is None
    shutil.move(vocabulary, tmp_path / "encoder.json")
    assert find(tmp_path) == tmp_path / "encoder.json"
    gpt2 = load(tmp_path)
    gpt2.save(tmp_path)
    assert find(tmp_path) == tmp_path / "tokenizer.json"
    SentencePieceTokenizer(train_sentencepiece(TEXTS, 1024)).save(tmp_path)
    assert find(tmp_path) == tmp_path / "tokenizer.model"


def test_ids_without_a_tokenizer(tmp_path):
    tokenizer = IdsTokenizer(50304, 50256)
    tokenizer.save(tmp_path)
    loaded = load(tmp_path)
    assert (loaded.vocab_size, loaded.eos_id, loaded.file_name) == (50304, 50256, "vocabulary.json")
    assert loaded.fingerprint == tokenizer.fingerprint != IdsTokenizer(50304).fingerprint
    assert IdsTokenizer(50304).eos_id == -1
    assert loaded.decode(np.array([5, 50256], np.uint16)) == "5 50256"
    assert loaded.piece(5) == "5"
    for call in (lambda: loaded.encode("text"), lambda: loaded.encode_batch(["text"])):
        with pytest.raises(ConfigError, match=r"^data\.tokenizer: there is none to encode a text with"):
            call()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (".", None, "this folder has no tokenizer"),
        ("x.model", None, "cannot be read"),
        ("x.model", b"", "is not a SentencePiece model"),
        ("x.model", b"junk", "is not a SentencePiece model"),
        ("vocab.json", b"{}", "merges.txt cannot be read"),
        ("vocabulary.json", b"junk", "must have a vocab_size"),
        ("vocabulary.json", b"[]", "must have a vocab_size"),
        ("vocabulary.json", json.dumps({"vocab_size": 7, "eos_id": 7}).encode(), "must have a vocab_size"),
        ("vocabulary.json", json.dumps({"vocab_size": 7, "eos_id": None}).encode(), "must have a vocab_size"),
    ],
)
def test_a_file_that_is_no_tokenizer_names_the_field(tmp_path, capfd, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=message) as error:
        load(path, field="some.field")
    assert str(error.value).startswith(f"some.field={str(path)!r}: ")
    assert "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")
