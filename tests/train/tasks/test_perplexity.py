"""Perplexity of documents against a plain loop over tokens, for vanilla and MoM, and how documents are found."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from letters import Letters
from small import SMALL, random_params

from mom_jax.config import ChoiceConfig
from mom_jax.fields import ConfigError
from mom_jax.model import with_parameters
from train.data.documents import is_held_out
from train.data.texts import Text, documents_of
from train.tasks.perplexity import by_document, scores
from train.tasks.perplexity.by_document import PerplexityConfig
from train.tasks.perplexity.scores import Scorer, Window

MOM = dataclasses.replace(SMALL, vocab_size=600)
ORDERED = ChoiceConfig(choice="ordered")
VANILLA = dataclasses.replace(MOM, attention=ORDERED, ffn=ORDERED)
CONTEXT = MOM.context_length
WORDS = "\x01\x02 \x03\u0101\u01ff\n\x04  \x05"  # of one and two bytes, with words


class Small(Letters):
    vocab_size = 600


def texts(*lengths):
    return [Text(f"{i}.txt", (WORDS * 9)[i : i + length]) for i, length in enumerate(lengths)]


@pytest.fixture(scope="module", params=[VANILLA, MOM], ids=["vanilla", "mom"])
def setting(request):
    """(a scorer, the log-probabilities [n, V] of what follows each of n <= CONTEXT tokens, alone in its row)."""
    params = random_params(request.param)
    forward = jax.jit(lambda ids: with_parameters(request.param, params)(ids).logits[0])

    def after(ids):
        logits = np.asarray(forward(jnp.asarray([ids + [0] * (CONTEXT - len(ids))], jnp.int32)), np.float64)[: len(ids)]
        return logits - np.log(np.exp(logits).sum(-1, keepdims=True))

    return Scorer(request.param, params, batch_size=4), after


def plain_nll(after, text, length, stride):
    """The documented definition, token by token."""
    ids = [Small.eos_id, *map(ord, text)]
    total = 0.0
    for k in range(1, len(ids)):
        window = 0 if k <= length else math.ceil((k - length) / stride)
        total -= after(ids[window * stride : k])[-1][ids[k]]
    return total


@pytest.mark.parametrize(("length", "stride"), [(0, 0), (0, 1), (0, 4), (5, 5), (5, 3), (1, 1)])
def test_every_token_is_scored_once_in_its_window(setting, length, stride):
    scorer, after = setting
    # Shorter than a window, a window and one more, several; empty.
    documents = texts(1, CONTEXT - 1, CONTEXT, CONTEXT + 1, 31, 0, 20)
    got = by_document.perplexity(scorer, Small(), documents, PerplexityConfig(length, stride))
    span = length or CONTEXT
    want = [plain_nll(after, text.text, span, stride or span) for text in documents]
    assert [d.name for d in got.documents] == [text.name for text in documents if text.text]
    np.testing.assert_allclose([d.nll for d in got.documents], [nll for nll in want if nll], rtol=1e-5, atol=1e-4)
    tokens, size = sum(len(t.text) for t in documents), sum(len(t.text.encode()) for t in documents)
    words = sum(len(t.text.split()) for t in documents)
    each = [n / len(t.text) for n, t in zip(want, documents, strict=True) if n]
    record = got.record()
    assert (record["tokens"], record["documents"], record["bytes"]) == (tokens, 6, size)
    assert record["loss"] == pytest.approx(sum(want) / tokens, rel=1e-5)
    assert record["perplexity"] == pytest.approx(math.exp(sum(want) / tokens), rel=1e-4)
    assert record["document_perplexity"] == pytest.approx(np.exp(each).mean(), rel=1e-4)
    assert record["bits_per_byte"] == pytest.approx(sum(want) / math.log(2) / size, rel=1e-5)
    assert record["byte_perplexity"] == pytest.approx(math.exp(sum(want) / size), rel=1e-4)
    assert record["word_perplexity"] == pytest.approx(math.exp(sum(want) / record["words"]), rel=1e-4)
    assert words <= record["words"] <= words + 2 * 6  # lm-eval counts what is before a first space, too


def test_windows():
    ids = list(range(1, 8))
    assert list(by_document.windows(ids, 0, 3, 3)) == [
        Window([0, 1, 2, 3], 3),
        Window([3, 4, 5, 6], 3),
        Window([6, 7], 1),
    ]
    assert list(by_document.windows(ids, 0, 3, 2)) == [
        Window([0, 1, 2, 3], 3),
        Window([2, 3, 4, 5], 2),
        Window([4, 5, 6, 7], 2),
    ]
    assert list(by_document.windows([], 0, 3, 2)) == []


def test_batches_change_nothing_and_few_programs_are_compiled(setting):
    scorer, _ = setting
    many = [Window(list(range(1, n + 1)), s) for n in range(2, CONTEXT + 2) for s in range(1, n)]
    together = scorer.score(many)
    compiled = scores._scores._cache_size()
    alone = [score for window in reversed(many) for score in scorer.score([window, window])[:1]]
    assert scores._scores._cache_size() == compiled + 1  # two rows instead of four
    np.testing.assert_allclose(
        [s.log_likelihood for s in together], [s.log_likelihood for s in reversed(alone)], rtol=1e-5, atol=1e-4
    )
    assert [s.greedy for s in together] == [s.greedy for s in reversed(alone)]
    assert scorer.score([]) == []
    for wrong in (Window([1, 2], 2), Window([1, 2], 0), Window([1] * (CONTEXT + 2), 1)):
        with pytest.raises(ValueError, match="1 to 9 inputs"):
            scorer.score([wrong])


def test_what_cannot_be(setting):
    scorer, _ = setting
    for config, expected in (
        (PerplexityConfig(length=10), "length=10: must be at most the model's context of 9"),
        (PerplexityConfig(stride=10), "stride=10: must be at most the windows' length of 9"),
    ):
        with pytest.raises(ConfigError, match=expected):
            by_document.perplexity(scorer, Small(), texts(3), config)
    with pytest.raises(ConfigError, match="has no document with a token"):
        by_document.perplexity(scorer, Small(), texts(0), PerplexityConfig())
    with pytest.raises(ConfigError, match="stride=-1: must be at least 0"):
        PerplexityConfig(stride=-1)


def test_documents_of_a_source(tmp_path):
    lines = [json.dumps({"text": f"text {i}"}) for i in range(40)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    long = "word " * 600_000  # read in pieces
    (tmp_path / "b.txt").write_text(long)
    source = f"text:{tmp_path}/*"
    whole = list(documents_of(source))
    assert [t.text for t in whole] == [*(f"text {i}" for i in range(40)), long]
    assert list(documents_of(source, limit=3)) == whole[:3]
    held = list(documents_of(source, held_out=0.3))
    assert held == [text for text in whole if is_held_out(text.name, 0.3)]
    assert 0 < len(held) < len(whole)
    mixture = f"mix:0.5=text:{tmp_path}/a.jsonl,0.5=text:{tmp_path}/b.txt"
    assert list(documents_of(mixture)) == whole
    with pytest.raises(ConfigError, match="is no source of documents"):
        list(documents_of(f"bin:{tmp_path}"))
