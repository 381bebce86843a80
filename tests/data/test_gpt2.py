"""GPT-2's encoding: against a plain one, its files in all their forms, and files that are another's."""

import itertools
import json
import random
import sys
import unicodedata

import pytest
import small_gpt2
from test_tokenizer import TEXTS, random_texts

from mom_jax.fields import ConfigError
from train.data.tokenizers import load
from train.data.tokenizers.gpt2 import GPT2Tokenizer

tokenizers = pytest.importorskip("tokenizers")

CONTRACTIONS = ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return small_gpt2.write_vocabulary(tmp_path_factory.mktemp("gpt2"), TEXTS).parent


@pytest.fixture(scope="module")
def tokenizer(folder) -> GPT2Tokenizer:
    return load(folder)


def kind(character):
    if character.isspace() and not "\x1c" <= character <= "\x1f":
        return "space"
    return {"L": "letter", "N": "number"}.get(unicodedata.category(character)[0], "other")


def words(text):
    """Splits as GPT-2 does: a run of one kind with the space before it; of white space all but the last goes alone."""
    start = 0
    while start < len(text):
        short = next((word for word in CONTRACTIONS if text.startswith(word, start)), None)
        first = start + (text[start] == " " and kind(text[start + 1 : start + 2] or " ") != "space")
        end = first
        while end < len(text) and kind(text[end]) == kind(text[first]):
            end += 1
        if short:
            end = start + len(short)
        elif kind(text[first]) == "space" and end < len(text) and end - start > 1:
            end -= 1
        yield text[start:end]
        start = end


def plain_encode(text, vocabulary, merges):
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}
    rank = {pair: i for i, pair in enumerate(merges)}
    ids = []
    for word in words(text):
        tokens = [letters[byte] for byte in word.encode()]
        while pairs := [pair for pair in itertools.pairwise(tokens) if pair in rank]:
            best, merged, i = min(pairs, key=rank.__getitem__), [], 0
            while i < len(tokens):
                take = 2 if tuple(tokens[i : i + 2]) == best else 1
                merged.append("".join(tokens[i : i + take]))
                i += take
            tokens = merged
        ids += [vocabulary[token] for token in tokens]
    return ids


def test_ids_are_those_of_a_plain_encoder(folder, tokenizer):
    vocabulary = json.loads((folder / "vocab.json").read_text())
    merges = [tuple(line.split(" ")) for line in (folder / "merges.txt").read_text("utf-8").split("\n")[1:-1]]
    assert len(merges) > 300
    for text in [*TEXTS[:3], *random_texts(5, 1500)]:
        # The library's table of letters is of another year than Python's.
        text = text.replace("\u180e", "")
        assert tokenizer.encode(text) == plain_encode(text, vocabulary, merges), ascii(text)


def test_the_separator_is_never_the_encoding_of_a_text(tokenizer):
    for text in ("<|endoftext|>", " <|endoftext|>", "a<|endoftext|>\n" * 9):
        ids = tokenizer.encode(text)
        assert tokenizer.eos_id not in ids
        assert tokenizer.eos_id not in tokenizer.encode_batch([text])[0]
        assert tokenizer.decode(ids) == text
    assert tokenizer.eos_id == tokenizer.vocab_size - 1


def test_all_forms_of_the_files_are_one_tokenizer(folder, tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    record = json.loads((tmp_path / "tokenizer.json").read_text())
    # The form of older files: no types, merges as lines.
    del record["model"]["type"], record["pre_tokenizer"]["use_regex"]
    record["model"]["merges"] = [" ".join(pair) for pair in record["model"]["merges"]]
    (tmp_path / "older.json").write_text(json.dumps(record))
    (tmp_path / "encoder.json").write_bytes((folder / "vocab.json").read_bytes())
    (tmp_path / "vocab.bpe").write_bytes((folder / "merges.txt").read_bytes().replace(b"\n", b"\r\n"))
    for name in ("tokenizer.json", "older.json", "encoder.json"):
        loaded = load(tmp_path / name)
        assert loaded.fingerprint == tokenizer.fingerprint
        assert (loaded.vocab_size, loaded.eos_id) == (tokenizer.vocab_size, tokenizer.eos_id)
        assert loaded.encode(TEXTS[0]) == tokenizer.encode(TEXTS[0])


def test_other_merges_or_ids_are_another_tokenizer(folder, tokenizer):
    vocabulary = json.loads((folder / "vocab.json").read_text())
    merges = [tuple(line.split(" ")) for line in (folder / "merges.txt").read_text("utf-8").split("\n")[1:-1]]
    swapped = {**vocabulary, "a": vocabulary["b"], "b": vocabulary["a"]}
    others = [GPT2Tokenizer(vocabulary, merges[:-1]), GPT2Tokenizer(swapped, merges)]
    assert len({tokenizer.fingerprint, *(other.fingerprint for other in others)}) == 3
    assert GPT2Tokenizer(dict(sorted(vocabulary.items())), merges).fingerprint == tokenizer.fingerprint


def test_what_is_saved_is_read_by_the_library(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in [*TEXTS, *random_texts(6, 300)]:
        assert theirs.encode(text.replace(small_gpt2.EOS, "")).ids == tokenizer.encode(text.replace(small_gpt2.EOS, ""))
    assert theirs.encode("one<|endoftext|>").ids == [*tokenizer.encode("one"), tokenizer.eos_id]
    assert theirs.decode([*tokenizer.encode("one"), tokenizer.eos_id]) == "one"


@pytest.mark.slow
def test_what_is_saved_is_read_by_transformers(tokenizer, tmp_path):
    transformers = pytest.importorskip("transformers")
    tokenizer.save(tmp_path)
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    assert len(theirs) == tokenizer.vocab_size
    assert all(theirs(text)["input_ids"] == tokenizer.encode(text) for text in TEXTS)


def test_added_tokens_have_ids_but_no_text_becomes_them(tokenizer, tmp_path):
    whole = tokenizers.Tokenizer.from_str(tokenizer._encoder.to_str())
    whole.add_special_tokens([small_gpt2.EOS, "<pad>"])
    whole.save(str(tmp_path / "tokenizer.json"))
    loaded = load(tmp_path)
    assert (loaded.vocab_size, loaded.eos_id) == (tokenizer.vocab_size + 1, tokenizer.eos_id)
    assert loaded.encode("<pad>") == tokenizer.encode("<pad>")
    assert loaded.fingerprint != tokenizer.fingerprint
    loaded.save(tmp_path)
    assert load(tmp_path).fingerprint == loaded.fingerprint


def without(record, token):
    return {**record, "model": {**record["model"], "vocab": {t: i for t, i in vocab(record).items() if t != token}}}


def vocab(record):
    return record["model"]["vocab"]


def with_model(record, **change):
    return {**record, "model": {**record["model"], **change}}


BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: with_model(r, type="WordPiece"), "a WordPiece model"),
        (lambda r: {**r, "normalizer": {"type": "NFC"}}, r"a normalizer \(NFC\)"),
        (lambda r: {**r, "pre_tokenizer": None}, r"another pre_tokenizer \(None\)"),
        (lambda r: {**r, "pre_tokenizer": {"type": "Whitespace"}}, r"another pre_tokenizer \(Whitespace\)"),
        (lambda r: {**r, "pre_tokenizer": {**BYTE_LEVEL, "use_regex": False}}, "another pre_tokenizer"),
        (lambda r: {**r, "pre_tokenizer": {**BYTE_LEVEL, "add_prefix_space": True}}, "add_prefix_space"),
        (lambda r: {**r, "decoder": None}, r"another decoder \(None\)"),
        (lambda r: {**r, "decoder": {"type": "WordPiece"}}, r"another decoder \(WordPiece\)"),
        (lambda r: with_model(r, dropout=0.1), r"model\.dropout=0\.1"),
        (lambda r: with_model(r, ignore_merges=True), r"model\.ignore_merges=True"),
        (lambda r: without({**r, "added_tokens": []}, small_gpt2.EOS), "has no <|endoftext|> token"),
        (lambda r: without(r, "Ġ"), "no token for 1 of the 256 bytes"),
        (lambda r: with_model(r, vocab={**vocab(r), "a": vocab(r)["b"]}), "an id of its own"),
        (lambda r: with_model(r, vocab={**vocab(r), "a": None}), "an id of its own"),
        (lambda r: with_model(r, merges=[["a", "漢"]]), "merges a and 漢, which its vocabulary has not"),
        (lambda r: with_model(r, merges=["abc"]), "is not a whole tokenizer.json"),
        (lambda r: {"model": None}, "is not a whole tokenizer.json"),
        (lambda r: {}, "is not a whole tokenizer.json"),
        (lambda r: [], "is not a JSON object"),
    ],
)
def test_other_tokenizers_are_refused_in_one_line(tokenizer, tmp_path, change, message):
    tokenizer.save(tmp_path)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(ConfigError, match=message.replace("|", r"\|")) as error:
        load(path)
    assert str(error.value).startswith(f"data.tokenizer={str(path)!r}: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("vocabulary", "merges", "message"),
    [
        (b"junk", b"", "is not a JSON object"),
        (b"{}", b"a b c\n", "has merges that are not two tokens a line"),
        (b"{}", b"\xff\n", "has merges that are not two tokens a line"),
        (b"{}", b"", "has no token for 256 of the 256 bytes"),
    ],
)
def test_damaged_vocabularies_are_refused(tmp_path, vocabulary, merges, message):
    (tmp_path / "vocab.json").write_bytes(vocabulary)
    (tmp_path / "merges.txt").write_bytes(merges)
    with pytest.raises(ConfigError, match=message):
        load(tmp_path / "vocab.json")


def test_without_the_library_the_message_tells_what_to_install(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ConfigError, match=r"^data\.tokenizer='.*': needs .* pip install 'tokenizers>=0\.22'$"):
        load(folder)


def test_the_threads_of_several_batches_do_not_mix(tokenizer):
    from concurrent.futures import ThreadPoolExecutor

    generator = random.Random(7)
    batches = [generator.choices(TEXTS, k=20) for _ in range(6)]
    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(tokenizer.encode_batch, batches))
    expected = {text: tokenizer.encode(text) for text in TEXTS}
    for batch, ids in zip(batches, results, strict=True):
        assert [part.tolist() for part in ids] == [expected[text] for text in batch]
