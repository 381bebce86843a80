"""`train.analyse` as a user runs it, what it reads, what is refused; and what training logs by the same measures."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import tiny
from programs import call
from small import random_params

from mom_jax.analysis.specialisation import measure
from mom_jax.config import ModelConfig
from mom_jax.sharding import make_mesh
from train import analyse
from train.analysis.text import held_out, of_source
from train.analysis.watch import Watch
from train.checkpoints import single_file
from train.config import AnalysisConfig
from train.data import tokenizers
from train.data.prepared import prepare
from train.numbers import for_json
from train.reporting import metrics
from train.training.loop import train

SIZES = ("--tokens", 100, "--batch-size", 4)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    # Four rows of 16 tokens are what the tests' programs read at a time.
    return tiny.config(tmp_path_factory.mktemp("run"), analysis=AnalysisConfig(every=4, tokens=64))


@pytest.fixture(scope="module")
def run(config):
    return tiny.store(config, "pretrain", "mom")


def test_a_run_is_analysed_on_its_held_out_data(run, config, capsys):
    code, out, err = call(capsys, analyse.main, "--checkpoint", run, *SIZES, "--json")
    assert code == 0
    record = json.loads(out)
    assert json.loads((run / "analysis" / "analysis.json").read_text()) == [record]
    assert (record["phase"], record["step"], record["tokens"]) == ("mom", 6, 100)
    data = dataclasses.replace(config.data, batch_size=4)
    batches = held_out(prepare(config.data), data, 100)
    found = measure(random_params(config.model), config.model, batches, limit=100, step=6)
    assert record["loss"] == pytest.approx(np.nanmean(found.routes.loss_T))
    for side, modules in (("attention", 2), ("ffn", 3)):
        top = np.minimum(found.routes.sides[side].index, modules)
        usage = [[(row == i).mean() for i in range(modules + 1)] for row in top]
        np.testing.assert_allclose(record["usage"][side], usage, atol=1e-4)
        assert record["dependence"][side]["entropy"] == pytest.approx(found.dependence[side].entropy)
        np.testing.assert_allclose(record["similarity"][side]["outputs_NxN"], found.similarity[side].outputs, atol=1e-4)
    assert np.dot(record["depth"]["histogram"], range(13)) == pytest.approx(record["depth"]["mean"])
    kinds = record["token_classes"]["kind"]
    assert sum(row["tokens"] for row in kinds.values()) == 100
    assert {"word start", "whitespace"} <= set(kinds)
    text = (run / "analysis" / "analysis.md").read_text()
    for heading in ("Similarity of modules", "What the choices depend on", "Usage by step", "Most frequent paths"):
        assert f"## {heading}\n" in text
    assert f"| {run} |" in text
    for name in ("analysis_modules.png", "analysis_routing.png"):
        assert (run / "analysis" / name).read_bytes().startswith(b"\x89PNG")
    assert str(run / "analysis" / "analysis.json") in err


def test_checkpoints_side_by_side_and_a_model_without_routers(run, config, tmp_path, capsys):
    source = ("--data.source", config.data.source)
    vanilla = run / "checkpoints" / "pretrain"
    code, out, err = call(capsys, analyse.main, "--checkpoint", run, run, vanilla, *SIZES, *source, "--out", tmp_path)
    assert code == 0
    first, second, last = json.loads((tmp_path / "analysis.json").read_text())
    assert first["source"] == config.data.source
    assert second.pop("differs_from_the_one_before") == {"attention": 0.0, "ffn": 0.0}
    assert second == first
    assert f"differs from {run} in 0.0 % of the best choices of attention" in out
    assert "differs_from_the_one_before" not in last
    assert set(last["similarity"]) == {"attention", "ffn"}
    assert len(last["similarity"]["attention"]["weights_NxN"]) == 3  # the layers, all of them
    assert "dependence" not in last
    assert f"{vanilla}: has no routers: only the similarity of its layers can be told" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--tokens", 0), "error: tokens=0: must be at least 1\n"),
        (("--batch-size", 0), "error: batch_size=0: must be at least 1\n"),
        (("--length", 33), "error: length=33: must be at most the model's context of 32\n"),
        (("--length", 1), "error: length=1: must be 0 for the model's own, or at least 2\n"),
        (("--tokenizer", "x"), "error: tokenizer='x': goes with --data.source\n"),
        (("--data.source", "nonsense:x"), "error: data.source='nonsense:x': unknown kind; known names:"),
        (("--mesh.data", 3), "error: mesh='data 3 x fsdp 1 x module 1 x tensor 1': is 3 devices, there are 1\n"),
    ],
)
def test_wrong_input_is_one_line(run, tmp_path, arguments, message, capsys):
    output = tmp_path / "out"
    code, _, err = call(capsys, analyse.main, "--checkpoint", run, *arguments, "--out", output)
    assert code == 2
    [line] = [line for line in err.splitlines() if line.startswith("error")]
    assert f"{line}\n".startswith(message)
    assert not output.exists()


def test_what_cannot_be_analysed_is_refused(tmp_path, config, capsys):
    code, _, err = call(capsys, analyse.main, "--checkpoint", tmp_path / "nowhere")
    assert (code, err) == (2, f"error: checkpoint={str(tmp_path / 'nowhere')!r}: no such folder\n")
    model = ModelConfig(vocab_size=300, context_length=32, d_model=16, num_heads=2, num_chunks=0)
    plain = tmp_path / "plain.safetensors"
    single_file.save(plain, model, jax.tree.map(np.asarray, random_params(model)))
    code, _, err = call(capsys, analyse.main, "--checkpoint", plain)
    assert code == 2
    assert err.startswith("error: data.source=None: must name the text to analyse")
    code, _, err = call(capsys, analyse.main, "--checkpoint", plain, "--data.source", config.data.source)
    assert (code, err) == (
        2,
        f"error: checkpoint={str(plain)!r}: its model has no modules (num_chunks=0): there is nothing to analyse\n",
    )


def test_a_source_is_one_stream_of_documents(tmp_path):
    texts = ["alpha beta", "gamma", "delta epsilon zeta eta"]
    for i, text in enumerate(texts):
        (tmp_path / f"{i}.txt").write_text(text)

    class Bytes:
        eos_id = 0

        def encode(self, text):
            return list(text.encode())

    stream = np.array([token for text in texts for token in [*text.encode(), 0]])
    source = f"text:{tmp_path}/*.txt"
    batches = list(of_source(source, Bytes(), length=8, rows=2, packed=False))
    assert len(batches) == 3
    tokens = np.concatenate([batch["tokens"].ravel() for batch in batches])
    mask = np.concatenate([batch["mask"].ravel() for batch in batches])
    np.testing.assert_array_equal(tokens[mask], stream)
    assert mask.sum() == len(stream)
    packed = list(of_source(source, Bytes(), length=8, rows=2, packed=True))
    first = packed[0]
    np.testing.assert_array_equal(first["segment_ids"], [[1] * 8, [1] * 3 + [2] * 5])
    np.testing.assert_array_equal(first["positions"], [[0, 1, 2, 3, 4, 5, 6, 7], [0, 1, 2, 0, 1, 2, 3, 4]])
    np.testing.assert_array_equal(packed[-1]["segment_ids"][-1], [0] * 8)


def test_pieces_of_a_text_make_it_whole(config):
    tokenizer = prepare(config.data).tokenizer
    text = " alpha  beta\nomicron \N{SNOWMAN}"
    ids = tokenizer.encode(text)
    parts = tokenizers.pieces(tokenizer, [*ids, tokenizer.eos_id])
    assert parts[-1] == ""
    whole = "".join(parts)
    assert whole.split("\N{REPLACEMENT CHARACTER}")[0] == text[:-1]
    assert whole.count("\N{REPLACEMENT CHARACTER}") == 3  # the bytes of a character that is no piece
    assert tokenizers.pieces(tokenizers.IdsTokenizer(9), [1, 2]) is None


def test_training_measures_the_same_tokens_again_and_again(run, config, tmp_path):
    config = dataclasses.replace(config, run=str(tmp_path))
    watch = Watch(config, config.phases[1], prepare(config.data), make_mesh())
    assert [step for step in range(1, 7) if watch.wanted(step)] == [1, 4, 6]
    params = random_params(config.model)
    first, again = watch.record(params, 1), watch.record(params, 4)
    assert (first["kind"], first["phase"], first["step"]) == ("analysis", "mom", 1)
    assert first["churn"] == {"attention": None, "ffn": None}
    assert again["churn"] == {"attention": 0.0, "ffn": 0.0}
    assert again["dependence"] == first["dependence"]
    other = watch.record(random_params(config.model, seed=1), 6)
    assert 0 < other["churn"]["ffn"] <= 1
    assert other["similarity"]["ffn"]["weights"] != first["similarity"]["ffn"]["weights"]
    names = {"/".join(path) for path, _ in metrics._scalars(for_json(first))}
    assert {"similarity/attention/attention_patterns", "dependence/ffn/token", "depth/mean"} <= names
    assert not any("NxN" in name or "histogram" in name for name in names)
    # A run that was interrupted between two analyses knows what was chosen at the one before, unless that is damaged.
    for damage, expected in ((None, other["churn"]), (b"PK", {"attention": None, "ffn": None})):
        if damage is not None:
            (tmp_path / "routes" / "mom-4.npz").write_bytes(damage)
        later = Watch(config, config.phases[1], prepare(config.data), make_mesh())
        assert later.record(random_params(config.model, seed=1), 6)["churn"] == expected
    never = Watch(dataclasses.replace(config, analysis=AnalysisConfig(every=0)), config.phases[1], None, make_mesh())
    assert not any(never.wanted(step) for step in range(1, 7))


@pytest.mark.slow
@pytest.mark.usefixtures("shared_steps")
def test_a_training_run_logs_its_analyses_and_is_analysed(tmp_path, capsys):
    config = tiny.config(tmp_path, analysis=AnalysisConfig(every=3, tokens=64))
    assert train(config) is None
    records = [r for r in metrics.read(tmp_path / "run" / "metrics.jsonl") if r["kind"] == "analysis"]
    assert [(r["phase"], r["step"]) for r in records] == [
        (name, step) for name in ("pretrain", "mom") for step in (1, 3, 6)
    ]
    assert all(set(r["similarity"]) == {"attention", "ffn"} for r in records)
    assert "dependence" not in records[0]
    assert records[-1]["churn"]["ffn"] is not None
    code, out, _ = call(capsys, analyse.main, "--checkpoint", tmp_path / "run", "--json", *SIZES)
    assert code == 0
    assert json.loads(out)["similarity"]["ffn"]["weights"] == pytest.approx(records[-1]["similarity"]["ffn"]["weights"])
