"""Texts in, texts out: stop strings, half characters, truncation; and the program."""

import itertools

import jax
import numpy as np
import pytest
from flax import nnx
from programs import call
from small_gpt2 import write_gpt2

import mom_jax as mom
from mom_jax.fields import ConfigError
from train import generate
from train.tasks.text_generation import continue_texts, stream_text

EOS = 255  # no byte of UTF-8
TEXT = "Aé€𝄞b. XYz\n"  # characters of one to four bytes, all bytes different


class Bytes:
    """Every byte is a token."""

    vocab_size, eos_id = 256, EOS

    def encode(self, text):
        return list(text.encode())

    def decode(self, ids):
        return bytes(i for i in ids if i != EOS).decode(errors="replace")


@pytest.fixture(scope="module")
def decoder():
    """A real model without layers that continues each byte of TEXT by the next one, and the last one by EOS."""
    config = mom.ModelConfig(
        vocab_size=256,
        context_length=32,
        d_model=64,
        num_heads=1,
        num_bottom=0,
        num_top=0,
        num_chunks=0,
        tie_embeddings=False,
    )
    model = mom.MoM(config, rngs=nnx.Rngs(0))
    model.embed.positions[...] = model.embed.positions[...] * 0
    chain = [*TEXT.encode(), EOS]
    assert len(set(chain)) == len(chain)
    kernel = np.zeros((256, 64), np.float32)
    tokens = np.asarray(model.embed.tokens[...])
    for before, after in itertools.pairwise(chain):
        kernel[after] = tokens[before]
    model.lm_head.kernel[...] = jax.numpy.asarray(kernel)
    return mom.Decoder(model)


def both(decoder, prompt, count, **settings):
    """The continuation, whole and in pieces."""
    [whole] = continue_texts(decoder, Bytes(), [prompt], count, temperature=0, **settings)
    pieces = list(stream_text(decoder, Bytes(), prompt, count, temperature=0, **settings))
    assert "".join(pieces) == whole
    return whole, pieces


def test_a_text_ends_with_its_document(decoder):
    whole, pieces = both(decoder, "A", 30)
    assert whole == TEXT[1:]
    assert pieces == list(TEXT[1:])  # no half character


def test_some_texts_of_a_batch_end_before_others(decoder):
    got = continue_texts(decoder, Bytes(), ["A", "X", "é"], 30, temperature=0, stop=["z", "€"])
    assert got == ["é", "Y", ""]


@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        (["XY"], "é€𝄞b. "),
        (["€𝄞"], "é"),
        (["nowhere", ". X"], "é€𝄞b"),
        (["Yz", "b. XY"], "é€𝄞"),
        (["é"], ""),
        ([". XX"], TEXT[1:]),
    ],
)
def test_stop_strings_straddle_tokens(decoder, stop, expected):
    assert both(decoder, "A", 30, stop=stop)[0] == expected


def test_what_a_stop_string_may_swallow_is_held_back(decoder):
    _, pieces = both(decoder, "b", 30, stop=[". XX"])
    assert pieces == [". XY", "z", "\n"]


def test_a_text_that_is_cut_within_a_character_says_so(decoder):
    assert both(decoder, "€", 2)[0] == "\N{REPLACEMENT CHARACTER}"


def test_documents_may_go_on(decoder):
    """After the separator any token may come; it has no text itself."""
    assert both(decoder, "z", 2, eos=False)[0] == "\n"


def test_tokens_that_the_tokenizer_lacks_have_no_text(decoder, monkeypatch):
    monkeypatch.setattr(Bytes, "vocab_size", ord("Y"))
    assert both(decoder, " ", 3)[0] == "X"


def test_an_empty_prompt_begins_a_document(decoder, monkeypatch):
    assert len(continue_texts(decoder, Bytes(), [""], 1, temperature=0)) == 1
    monkeypatch.setattr(Bytes, "eos_id", -1)
    with pytest.raises(ConfigError, match="prompt='': must not be empty"):
        continue_texts(decoder, Bytes(), [""], 1)


def test_a_long_prompt_loses_its_beginning(decoder):
    said = []
    prompt = "-" * 40 + "b"
    assert both(decoder, prompt, 6, notify=said.append)[0] == ". XYz\n"
    have = "its 41 tokens and 6 new ones exceed the model's context of 32"
    assert said == [f"prompt '{'-' * 20}...': {have}; the first 15 are left out"] * 2
    with pytest.raises(ConfigError, match=have):
        continue_texts(decoder, Bytes(), ["A", prompt], 6, truncate=False)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"max_new_tokens": 32}, ConfigError, "max_new_tokens=32: must be at least 1 and leave room"),
        ({"max_new_tokens": 0}, ConfigError, "max_new_tokens=0"),
        ({"stop": [""]}, ConfigError, "stop=.*must not have an empty text"),
        ({"stop": "end"}, ConfigError, "stop='end': must be several texts"),
        ({"top_p": 2.0}, ValueError, "top_p=2.0"),
    ],
)
def test_wrong_settings(decoder, settings, error, message):
    """Of a stream too before anything is asked of it."""
    count = {"max_new_tokens": 4} | settings
    for function, prompt in ((continue_texts, ["A"]), (stream_text, "A")):
        with pytest.raises(error, match=message):
            function(decoder, Bytes(), prompt, **count)


def test_no_prompts(decoder):
    assert continue_texts(decoder, Bytes(), [], 4) == []


# The program.


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    return write_gpt2(
        tmp_path_factory.mktemp("gpt2"),
        {"model_type": "gpt2", "n_positions": 32, "n_embd": 16, "n_head": 2, "n_layer": 2},
    )


def program(capsys, folder, *flags):
    return call(capsys, generate.main, "--checkpoint", folder, *flags)


def test_the_program_draws_streams_and_stops(gpt2, capsys):
    flags = ("--prompt", "alpha", "--tokens", 12, "--temperature", 3, "--top-p", 0.95, "--repetition-penalty", 1.2)
    code, first, err = program(capsys, gpt2, *flags, "--seed", 1)
    assert code == 0, err
    assert first.startswith("alpha")
    assert program(capsys, gpt2, *flags, "--seed", 1)[1] == first
    assert program(capsys, gpt2, *flags, "--seed", 2)[1] != first
    rest = first.removeprefix("alpha").removesuffix("\n")
    stop = rest[3:5]
    _, out, _ = program(capsys, gpt2, *flags, "--seed", 1, "--stop", stop, "no such text")
    assert out == f"alpha{rest[: rest.index(stop)]}\n"


def test_the_program_searches_with_beams(gpt2, capsys):
    flags = ("--prompt", "alpha", "--tokens", 6, "--beams", 2, "--length-penalty", 0.5, "--early-stopping", "never")
    code, out, err = program(capsys, gpt2, *flags)
    assert code == 0, err
    assert out.startswith("alpha")


def test_several_samples_of_a_prompt(gpt2, capsys):
    code, out, err = program(capsys, gpt2, "--prompt", "alpha", "--tokens", 5, "--samples", 3, "--temperature", 3)
    assert code == 0, err
    samples = out.split("--- ")
    assert [sample.split("\n")[0] for sample in samples[1:]] == ["1 of 3", "2 of 3", "3 of 3"]
    assert len({sample.split("\n", 1)[1] for sample in samples[1:]}) > 1


def test_a_prompt_longer_than_the_context(gpt2, capsys):
    prompt = "Q" * 50
    code, out, err = program(capsys, gpt2, "--prompt", prompt, "--tokens", 4)
    assert code == 0
    assert out.startswith(prompt)
    assert "exceed the model's context of 32" in err
    code, out, err = program(capsys, gpt2, "--prompt", "Q" * 30, "--tokens", 4, "--no-eos")
    assert code == 0
    assert err == "the context of 32 tokens has room for 2 after the prompt, not for 4\n"
    code, out, err = program(capsys, gpt2, "--prompt", prompt, "--no-truncate")
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert err.startswith("error: prompt='QQQQ")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (("--tokens", 0), "tokens=0: must be at least 1"),
        (("--top-p", 1.5), "top_p=1.5: must lie above 0"),
        (("--repetition-penalty", 0), "repetition_penalty=0.0: must be positive"),
        (("--beams", 0), "beams=0"),
        (("--beams", 2, "--temperature", 0.5), "temperature=0.5: has no meaning with beams=2"),
        (("--beams", 2, "--samples", 2), "samples=2: are all alike with beams=2"),
        (("--stop", ""), "stop=('',): must not have an empty text"),
        (("--length-penalty", "nan", "--beams", 2), "length_penalty=nan: must be finite"),
        (("--seed", -1), "seed=-1"),
    ],
    ids=str,
)
def test_wrong_flags(gpt2, capsys, flags, expected):
    code, out, err = program(capsys, gpt2, *flags)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {expected}")
    assert len(err.splitlines()) == 1
