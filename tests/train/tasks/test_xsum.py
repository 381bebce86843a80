"""XSUM from the downloaded archive to ROUGE."""

import dataclasses
import gzip
import json
import os
import shutil

import downloads
import numpy as np
import pytest
import task_models
import tensorflow_datasets as tfds
from rouge_score.rouge_scorer import RougeScorer

from mom_jax.fields import ConfigError
from train import generate
from train.checkpoints.models import open_model
from train.data.sources.builders import xsum as builder
from train.tasks.xsum import evaluation
from train.tasks.xsum.articles import Format
from train.tasks.xsum.settings import XsumConfig

TRIAL = XsumConfig(
    epochs=24,
    batch_size=8,
    learning_rate=1e-2,
    length=64,
    summary_length=16,
    generation_batch=4,
    samples=2,
    download=True,
)
NAMES = ("first", "second")
ANSWERS = {"lovely": "a bright day", "awful": "a dark day"}


def article(number: int) -> tuple[str, str]:
    """(document, summary): the document's first word tells the summary."""
    word = list(ANSWERS)[number % 2]
    return f"{word} {' '.join(['the film was it'] * (1 + number % 3))}", ANSWERS[word]


def archive(count: int) -> dict[str, bytes]:
    def file(number: int) -> bytes:
        document, summary = article(number)
        head = f"[SN]URL[SN]\nhttp://x/{number}\n\n[SN]TITLE[SN]\nT\n\n"
        return f"{head}[SN]FIRST-SENTENCE[SN]\n{summary}\n\n[SN]RESTBODY[SN]\nShare this with\n{document}\n".encode()

    names = {f"bbc-summary-data/{number}.summary": file(number) for number in range(count)}
    ids = [str(number) for number in range(count)]
    splits = {"train": ids[:-12], "validation": ids[-12:-6], "test": ids[-6:]}
    return {
        builder.ARTICLES: gzip.compress(downloads.tar(names, "w")),
        builder.SPLITS: json.dumps(splits).encode(),
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Two models, which share the compiled programs, fine-tuned on 28 articles and evaluated on 6."""
    folder = tmp_path_factory.mktemp("xsum")
    for seed, name in enumerate(NAMES):
        task_models.write(folder / name, task_models.config(folder).vanilla(), seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TFDS_DATA_DIR", str(folder / "tfds"))
        patch.setattr(tfds.download.DownloadManager, "download", downloads.from_table(archive(40)))
        evaluation.evaluate([str(folder / name) for name in NAMES], TRIAL, folder / "output")
        yield folder


def read(path):
    return json.loads(path.read_text())


def results(folder):
    return {path.parts[-3].split("-")[0]: path for path in (folder / "output" / "results").rglob("*.json")}


def test_models_learn_to_sum_up(finished):
    report = read(finished / "output" / "xsum.json")
    assert list(report["models"]) == ["first", "second"]
    for name, own in report["models"].items():
        assert own["metrics"]["ROUGE-1"]["mean"] == own["metrics"]["ROUGE-L"]["mean"] == pytest.approx(100)
        record = read(results(finished)[name])
        assert record["articles"] == len(record["summaries"]) == 6
        assert [row["id"] for row in record["summaries"]] == [str(number) for number in range(34, 40)]
        for row in record["summaries"]:
            document, summary = article(int(row["id"]))
            assert (row["document"], row["reference"], row["summary"]) == (document, summary, summary)
        losses = record["fine_tuning"]["losses"]
        assert len(losses) == TRIAL.epochs
        assert losses[-1] < 0.3 < losses[0]
        assert own["summaries"] == record["summaries"][:2]
    text = (finished / "output" / "xsum.md").read_text()
    assert "| model  | ROUGE-1 | ROUGE-2 | ROUGE-L |" in text
    assert "- reference: a bright day\n- first: a bright day\n- second: a bright day\n" in text


def test_a_finished_model_is_not_tuned_again(finished, capsys, monkeypatch):
    monkeypatch.setattr(evaluation, "finetune", None)
    before = {path: os.stat(path).st_mtime_ns for path in (finished / "output" / "models").rglob("*")}
    paths = [str(finished / name) for name in NAMES]
    report = read(finished / "output" / "xsum.json")
    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "summaries", None)
        evaluation.evaluate(paths, TRIAL, finished / "output")
    assert capsys.readouterr().err.count("finished before") == 2
    assert read(finished / "output" / "xsum.json") == report
    # Other articles and another search: written anew, by the models that are there.
    searched = dataclasses.replace(TRIAL, split="validation", evaluation_limit=4, beams=2, length_penalty=0.5)
    asked = []
    generate = evaluation.Decoder.generate
    with monkeypatch.context() as patch:
        patch.setattr(evaluation.Decoder, "generate", lambda *args, **how: asked.append(how) or generate(*args, **how))
        evaluation.evaluate(paths, searched, finished / "output")
    assert [(how["num_beams"], how["length_penalty"]) for how in asked] == [(2, 0.5)] * 2
    changed = read(finished / "output" / "xsum.json")
    for own in changed["models"].values():
        assert own["articles"] == 4
        assert own["metrics"]["ROUGE-L"]["mean"] == pytest.approx(100)
    assert {path: os.stat(path).st_mtime_ns for path in before} == before
    evaluation.evaluate(paths, TRIAL, finished / "output")
    assert read(finished / "output" / "xsum.json") == report


def test_the_fine_tuned_model_is_a_model(finished, capsys):
    [folder] = (finished / "output" / "models").glob("first-*")
    file = folder / "xsum" / "seed-0" / "model.safetensors"
    opened = open_model(file, field="checkpoint")
    assert opened.tokenizer.fingerprint == task_models.tokenizer().fingerprint
    prompt = article(0)[0] + TRIAL.separator
    # Fewer tokens than there is room for: the program generates as many as it is asked for.
    flags = ["--checkpoint", str(file), "--prompt", prompt, "--tokens", "16", "--temperature", "0"]
    assert generate.main(flags) == 0
    assert capsys.readouterr().out.strip() == (prompt + article(0)[1]).strip()


def test_another_fine_tuning_is_refused(finished):
    other = dataclasses.replace(TRIAL, epochs=2)
    with pytest.raises(ConfigError, match=r"^xsum\.epochs=2: .*seed-0 was made with 24; choose another --output"):
        evaluation.evaluate([str(finished / "first")], other, finished / "output")


def test_the_loss_is_of_the_summary_and_its_end_only():
    tokenizer = task_models.tokenizer()
    form = Format(tokenizer, "\n=> ", 40, 8)
    between = tokenizer.encode("\n=> ")
    for words, count in ((3, 2), (60, 2), (60, 30)):
        document = np.arange(words, dtype=np.int32) + 10
        summary = np.arange(count, dtype=np.int32) + 100
        example = form.example(document, summary)
        ending = [*summary[:7].tolist(), tokenizer.eos_id]
        prompt = [*document[: 40 - 8 - len(between)].tolist(), *between]
        assert example.tokens.tolist() == [*prompt, *ending]
        assert example.label.tolist() == [-100] * len(prompt) + ending
        assert len(example.tokens) <= 40
        # Generation continues what training had before the summary.
        assert form.prompt(document).tolist() == prompt


def test_metrics_are_those_of_rouge_score(finished):
    record = read(results(finished)["first"])
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    scores = [scorer.score(row["reference"], row["summary"]) for row in record["summaries"]]
    for name, key in (("ROUGE-1", "rouge1"), ("ROUGE-2", "rouge2"), ("ROUGE-L", "rougeL")):
        assert record["metrics"][name] == pytest.approx(100 * np.mean([score[key].fmeasure for score in scores]))


def test_an_interrupted_fine_tuning_leaves_nothing(finished, monkeypatch):
    def stop(*args, **named):
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluation.single_file, "save", stop)
    short = dataclasses.replace(TRIAL, epochs=1, train_limit=8)
    with pytest.raises(KeyboardInterrupt):
        evaluation.evaluate([str(finished / "first")], short, finished / "stopped")
    assert [path for path in (finished / "stopped").rglob("*") if path.is_file()] == []


def test_wrong_input(finished, tmp_path, monkeypatch):
    bare = shutil.copytree(finished / "first", tmp_path / "bare")
    (bare / "tokenizer.model").unlink()
    with pytest.raises(ConfigError, match=r"checkpoint='.*bare': has no tokenizer beside it"):
        evaluation.evaluate([str(bare)], TRIAL, tmp_path / "output")
    with pytest.raises(ConfigError, match=r"xsum\.length=128: must be at most .*first's 64"):
        evaluation.evaluate([str(finished / "first")], dataclasses.replace(TRIAL, length=128), tmp_path / "output")
    with pytest.raises(ConfigError, match=r"xsum\.length=64: leaves a document -\d+ tokens"):
        evaluation.evaluate(
            [str(finished / "first")], dataclasses.replace(TRIAL, summary_length=63), tmp_path / "output"
        )
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(ConfigError, match=r"tfds:xsum': is not prepared in .*; add --xsum.download"):
        evaluation.evaluate([str(finished / "first")], dataclasses.replace(TRIAL, download=False), tmp_path / "output")
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize(
    ("fields", "problem"),
    [({"summary_length": 512}, "summary_length"), ({"separator": ""}, "separator"), ({"split": "train"}, "split")],
)
def test_settings_that_cannot_be(fields, problem):
    with pytest.raises(ConfigError, match=f"^{problem}="):
        XsumConfig(**fields)
