"""`train.evaluate` as a user runs it: perplexity of runs and of other models, tables, and what is refused."""

import json
import math
import shutil

import jax
import numpy as np
import pytest
import tiny
from programs import call
from small_tasks import write_gpt2

from train import analyse, evaluate
from train.checkpoints import single_file


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return tiny.write_corpus(tmp_path_factory.mktemp("data") / "corpus", 24)


@pytest.fixture(scope="module")
def run(tmp_path_factory, corpus):
    """A run whose only checkpoint is a random MoM."""
    return tiny.store(tiny.config(tmp_path_factory.mktemp("run"), source=corpus), "mom")


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    return write_gpt2(tmp_path_factory.mktemp("models") / "gpt2")


def test_a_run_is_evaluated_on_its_held_out_data(run, capsys):
    code, out, err = call(capsys, evaluate.main, "--checkpoint", run, "--json")
    assert code == 0
    record = json.loads(out)
    assert record["perplexity"] == pytest.approx(math.exp(record["loss"]))
    assert json.loads((run / "evaluation" / "perplexity.json").read_text()) == [record]
    [head, _, row] = (run / "evaluation" / "perplexity.md").read_text().splitlines()
    columns = [cell.strip() for cell in head.strip("|").split("|")]
    assert columns == ["checkpoint", "phase", "step", "tokens", "nats/token", "perplexity"]
    assert f"{record['loss']:.4f}" in row
    assert str(run / "evaluation" / "perplexity.json") in err
    code, out, _ = call(capsys, evaluate.main, "--checkpoint", run)
    assert f"validation loss {record['loss']:.4f} nats/token over {record['tokens']:,} tokens" in out
    assert "ffn router: entropy" in out


def test_models_side_by_side_on_the_same_texts(run, gpt2, corpus, tmp_path, capsys):
    flags = ("--data.source", corpus, "--data.side", "validation", "--data.validation-fraction", 0.2)
    flags = (*flags, "--checkpoint", run, gpt2, "--stride", 16, "--length", 32, "--output", tmp_path / "out")
    code, out, _ = call(capsys, evaluate.main, *flags)
    assert code == 0
    ours, theirs = json.loads((tmp_path / "out" / "perplexity.json").read_text())
    assert ours["bytes"] == theirs["bytes"]
    assert ours["tokens"] != theirs["tokens"]  # each has its own tokenizer
    assert (ours["length"], ours["stride"], ours["side"]) == (32, 16, "validation")
    lines = [json.loads(line) for line in (tmp_path / "out" / "perplexity_documents.jsonl").read_text().splitlines()]
    for record in (ours, theirs):
        own = [line for line in lines if line["checkpoint"] == record["checkpoint"]]
        assert len(own) == record["documents"] > 1
        assert sum(line["nll"] for line in own) / sum(line["tokens"] for line in own) == pytest.approx(record["loss"])
        assert record["bits_per_byte"] * record["bytes"] * math.log(2) == pytest.approx(
            record["loss"] * record["tokens"]
        )
        assert f"{record['bits_per_byte']:.4f}" in out
    assert out.strip() == (tmp_path / "out" / "perplexity.md").read_text().strip()

    # A run's own held-out documents are those.
    flags = ("--checkpoint", run, "--output", tmp_path / "own")
    document = ("--by-document", "--stride", 16, "--length", 32, "--json")
    code, out, _ = call(capsys, evaluate.main, *flags, *document)
    assert code == 0
    assert (tmp_path / "own" / "perplexity_documents.jsonl").exists()
    assert call(capsys, evaluate.main, *flags, "--limit", 1)[0] == 0
    assert sorted(path.name for path in (tmp_path / "own").iterdir()) == ["perplexity.json", "perplexity.md"]
    same = {name: value for name, value in json.loads(out).items() if name != "checkpoint"}
    assert same == {name: value for name, value in ours.items() if name != "checkpoint"}


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (("--task", "perplexty"), "task='perplexty': unknown; did you mean 'perplexity'?"),
        (("--task", "glue/sst"), "task='glue/sst': unknown; did you mean 'glue/sst2'?"),
        (("--task", "glue/rte"), "'tfds:glue/rte'"),  # which is not there
        (("--task", "xsum"), "'tfds:xsum'"),
        (("--task", "xsum", "--glue.epochs", 2), "goes with --task glue only"),
        ((), "data.source=None: must name the texts to score with"),
        (("--by-document",), "data.source=None: must name the texts to score with"),
        (("--data.source", "txt:a"), "data.source='txt:a': unknown kind; did you mean 'text'?"),
        (("--data.source", "CORPUS", "--length", 99), "length=99: must be at most the model's context of 48"),
        (("--data.source", "CORPUS", "--exchange"), "exchange=True: goes with a run's own windows"),
        (("--data.source", "CORPUS", "--tasks", "a"), "tasks='a': goes with --task lm_eval only"),
        (("--data.source", "CORPUS", "--limit", -1), "limit=-1: must be at least 0"),
        (("--data.source", "CORPUS", "--batch-size", 0), "batch_size=0: must be at least 1"),
        (("--task", "lm_eval", "--stride", 3), "stride=3: goes with --task perplexity only"),
        (("--data.source", "CORPUS", "--tokenizer", "/no/such.model"), "tokenizer='/no/such.model': cannot be read"),
    ],
)
def test_wrong_input_is_one_line(gpt2, corpus, tmp_path, capsys, monkeypatch, flags, expected):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "none"))
    flags = [corpus if flag == "CORPUS" else flag for flag in flags]
    code, out, err = call(capsys, evaluate.main, "--checkpoint", gpt2, "--output", tmp_path / "out", *flags)
    assert (code, out) == (2, "")
    assert expected in err.splitlines()[-1]
    assert not list(tmp_path.iterdir())


def test_what_belongs_to_documents_is_refused_for_a_run_s_windows(run, tmp_path, capsys):
    code, _, err = call(capsys, evaluate.main, "--checkpoint", run, "--stride", 4, "--output", tmp_path / "out")
    assert code == 2
    assert "stride=4: goes with --by-document or --data.source" in err


def test_an_output_that_cannot_be_is_refused_before_any_work(gpt2, corpus, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    flags = ("--checkpoint", gpt2, "--data.source", corpus, "--output", tmp_path / "file" / "out")
    code, out, err = call(capsys, evaluate.main, *flags)
    assert (code, out) == (2, "")
    assert err.startswith("error: output=")


def test_a_checkpoint_without_a_tokenizer(gpt2, corpus, tmp_path, capsys):
    from train.checkpoints.models import open_model

    model = open_model(gpt2, field="checkpoint")
    single_file.save(tmp_path / "alone.safetensors", model.config, jax.tree.map(np.asarray, model.params))
    flags = ("--checkpoint", tmp_path / "alone.safetensors", "--data.source", corpus, "--output", tmp_path / "out")
    code, _, err = call(capsys, evaluate.main, *flags)
    assert code == 2
    assert "alone.safetensors': has no tokenizer beside it; give one with --tokenizer" in err
    assert err.count("\n") == 1
    assert call(capsys, evaluate.main, *flags, "--tokenizer", gpt2, "--limit", 1)[0] == 0
    assert (tmp_path / "out" / "perplexity.md").is_file()


def test_a_strangers_link_leads_no_output_elsewhere(run, tmp_path, capsys):
    copy = shutil.copytree(run, tmp_path / "copy", ignore=shutil.ignore_patterns("evaluation"))
    (tmp_path / "other").mkdir()
    for name, program in (("evaluation", evaluate.main), ("analysis", analyse.main)):
        (copy / name).symlink_to(tmp_path / "other")
        code, _, err = call(capsys, program, "--checkpoint", copy)
        assert code == 2
        assert f"{name}' must be a folder of its own, not a link" in err
    assert not any((tmp_path / "other").iterdir())


def test_paths_that_lead_nowhere(tmp_path, capsys):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for path in ("~nobody-of-that-name/run", tmp_path / "loop"):
        code, _, err = call(capsys, evaluate.main, "--checkpoint", path)
        assert code == 2
        assert len(err.splitlines()) == 1
