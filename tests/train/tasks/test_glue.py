"""GLUE from the downloaded files to the table and the submission."""

import csv
import dataclasses
import json
import os
import shutil

import downloads
import glue_files
import numpy as np
import pytest
import task_models
import tensorflow_datasets as tfds

from mom_jax.fields import ConfigError
from train.tasks import finetune, results
from train.tasks.glue import evaluation
from train.tasks.glue.settings import GlueConfig
from train.tasks.glue.tasks import AVERAGED, NAMES, TASKS

TRIAL = GlueConfig(seeds=(0, 1), epochs=1, batch_size=16, length=32, download=True)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with two MoMs, which share the compiled programs, and a vanilla model; all of GLUE can be downloaded
    into it."""
    folder = tmp_path_factory.mktemp("glue")
    model = task_models.config(folder, dispatch="dense")
    task_models.write(folder / "mom", model)
    task_models.write(folder / "other", model, seed=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TFDS_DATA_DIR", str(folder / "tfds"))
        content = glue_files.everything() | glue_files.sst2(240, 40)
        patch.setattr(tfds.download.DownloadManager, "download", downloads.from_table(content))
        yield folder


def run(place, capsys, *, tasks, config, models=("mom", "other"), output="output"):
    """(what is printed, what is said) of an evaluation."""
    evaluation.evaluate([str(place / name) for name in models], tasks, config, place / output)
    captured = capsys.readouterr()
    return captured.out, captured.err


def read(path):
    return json.loads(path.read_text())


def records(place, output="output"):
    return {tuple(path.parts[-3:]): path for path in (place / output / "results").rglob("seed-*.json")}


def submitted(file):
    with open(file, newline="") as text:
        return list(csv.DictReader(text, delimiter="\t"))


@pytest.fixture(scope="module")
def finished(place):
    """Both models on two tasks with two seeds; and how often the steps were compiled."""
    config = dataclasses.replace(TRIAL, train_limit=24, evaluation_limit=8)
    evaluation.evaluate([str(place / name) for name in ("other", "mom")], ("sst2", "rte"), config, place / "finished")
    return place, config


def test_a_tiny_model_learns_from_text_to_metric(place, capsys):
    finetune.compiled.cache_clear()
    config = dataclasses.replace(TRIAL, seeds=(0,), epochs=6, learning_rate=3e-3)
    out, err = run(place, capsys, tasks=("sst2",), config=config, models=("mom",), output="learned")
    table = read(place / "learned" / "glue.json")
    row = table["models"]["mom"]["tasks"]["sst2"]
    assert row["metrics"]["accuracy"]["mean"] > 95
    assert row["examples"] == {"train": 240, "validation": 40}
    assert row["steps"] == 6 * 15
    assert "loss" in err
    assert "SST-2 accuracy" in out
    # The test split is answered as well as the validation split: 1 is what has a good word.
    [folder] = (place / "learned" / "submission").iterdir()
    answers = submitted(folder / "SST-2.tsv")
    truth = [label for label, _ in glue_files.rows(4, 2, "test", glue_files.sentence)]
    assert answers == [{"index": str(n), "prediction": str(label)} for n, label in enumerate(truth)]


def test_models_and_seeds_side_by_side(finished):
    place, _ = finished
    table = read(place / "finished" / "glue.json")
    assert list(table["models"]) == ["other", "mom"]
    assert table["seeds"] == [0, 1]
    for name, own in table["models"].items():
        assert list(own["tasks"]) == ["sst2", "rte"]
        assert own["average"] is None
        assert own["lacking"] == ["cola", "mrpc", "qqp", "stsb", "mnli", "qnli"]
        for task, row in own["tasks"].items():
            [folder] = [f for f in (place / "finished" / "results").iterdir() if f.name.startswith(f"{name}-")]
            scores = [read(folder / task / f"seed-{seed}.json")["metrics"]["accuracy"] for seed in (0, 1)]
            values = row["metrics"]["accuracy"]
            assert values["values"] == scores
            assert values["mean"] == pytest.approx(sum(scores) / 2)
            assert values["deviation"] == pytest.approx(abs(scores[0] - scores[1]) / 2**0.5)
    text = (place / "finished" / "glue.md").read_text()
    assert "mean ± standard deviation" in text
    assert "A trial on few examples (train_limit=24, evaluation_limit=8)" in text


def test_seeds_differ_and_repeat(finished, capsys):
    place, config = finished
    losses = {path: read(file)["losses"] for path, file in records(place, "finished").items()}
    for model, task, _ in losses:
        assert losses[model, task, "seed-0.json"] != losses[model, task, "seed-1.json"]
    again = dataclasses.replace(config, seeds=(1,))
    run(place, capsys, tasks=("rte",), config=again, models=("mom",), output="again")
    [(key, file)] = records(place, "again").items()
    assert read(file)["losses"] == losses[key]
    assert read(file)["test"] == read(records(place, "finished")[key])["test"]


def test_what_is_finished_is_not_done_again(finished, capsys, monkeypatch):
    place, config = finished
    output = shutil.copytree(place / "finished", place / "gone-on")
    files = records(place, "gone-on")
    times = {key: os.stat(file).st_mtime_ns for key, file in files.items()}
    lost = next(key for key in files if key[0].startswith("mom") and key[1:] == ("sst2", "seed-1.json"))
    before = read(files[lost])
    files[lost].unlink()
    (output / "glue.json").unlink()
    done = []
    monkeypatch.setattr(
        evaluation, "finetune", lambda *args, **named: done.append(args[4]) or finetune.finetune(*args, **named)
    )
    _, err = run(place, capsys, tasks=("sst2", "rte"), config=config, models=("other", "mom"), output="gone-on")
    assert done == [1]
    assert err.count("finished before") == 7
    assert {key: os.stat(file).st_mtime_ns for key, file in files.items() if key != lost} == {
        key: time for key, time in times.items() if key != lost
    }
    assert read(files[lost])["metrics"] == before["metrics"]
    assert read(output / "glue.json") == read(place / "finished" / "glue.json")
    # Other tasks' results are in the table too, whoever made them.
    run(place, capsys, tasks=("rte",), config=config, models=("other", "mom"), output="gone-on")
    assert read(output / "glue.json") == read(place / "finished" / "glue.json")


def test_an_interrupted_fine_tuning_leaves_nothing(finished, capsys, monkeypatch):
    place, config = finished

    def stop(*args, **named):
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluation, "predict", stop)
    with pytest.raises(KeyboardInterrupt):
        run(place, capsys, tasks=("rte",), config=config, models=("mom",), output="stopped")
    assert not (place / "stopped").exists()


def test_results_of_other_settings_are_refused(finished, capsys):
    place, config = finished
    other = dataclasses.replace(config, learning_rate=1e-4)
    with pytest.raises(ConfigError, match=r"^glue\.learning_rate=0\.0001: .*seed-0\.json was made with 5e-05; choose "):
        run(place, capsys, tasks=("sst2",), config=other, models=("mom",), output="finished")


def test_one_program_for_all_tasks_and_seeds(finished):
    place, config = finished
    # Heads of two classes only; every batch fits the shortest bucket. Other rates and seeds have no other program.
    assert finetune.compiled.cache_info().currsize == 1
    model = task_models.config(place, dispatch="dense", num_classes=2)
    optim = dataclasses.replace(config.optim, learning_rate=1.0)
    start, step = finetune.compiled(model, optim, evaluation.make_mesh())
    assert finetune.compiled.cache_info().currsize == 1
    assert (start._cache_size(), step._cache_size()) == (1, 1)


@pytest.mark.slow
def test_all_of_glue(place, capsys):
    task_models.write(place / "vanilla", task_models.config(place).vanilla())
    config = dataclasses.replace(TRIAL, train_limit=8, evaluation_limit=8)
    out, _ = run(place, capsys, tasks=(), config=config, models=("vanilla", "mom"), output="all")
    table = read(place / "all" / "glue.json")
    for own in table["models"].values():
        assert list(own["tasks"]) == list(TASKS)
        metrics = {task: list(row["metrics"]) for task, row in own["tasks"].items()}
        assert metrics == {
            "cola": ["Matthews"],
            "sst2": ["accuracy"],
            "mrpc": ["accuracy", "F1"],
            "qqp": ["accuracy", "F1"],
            "stsb": ["Pearson", "Spearman"],
            "mnli": ["accuracy m", "accuracy mm"],
            "qnli": ["accuracy"],
            "rte": ["accuracy"],
            "wnli": ["accuracy"],
        }
        means = [np.mean([v["mean"] for v in own["tasks"][task]["metrics"].values()]) for task in AVERAGED]
        assert len(means) == 8
        assert own["average"]["mean"] == pytest.approx(np.mean(means))
    assert "WNLI is left out" in out
    folders = list((place / "all" / "submission").iterdir())
    assert len(folders) == 2
    official = "AX CoLA MNLI-m MNLI-mm MRPC QNLI QQP RTE SST-2 STS-B WNLI"
    labels = {"QNLI": {"entailment", "not_entailment"}, "AX": {"entailment", "neutral", "contradiction"}}
    labels |= {"RTE": labels["QNLI"], "MNLI-m": labels["AX"], "MNLI-mm": labels["AX"]}
    for folder in folders:
        assert sorted(path.name for path in folder.iterdir()) == [f"{name}.tsv" for name in official.split()]
        for path in folder.iterdir():
            rows = submitted(path)
            assert [row["index"] for row in rows] == [str(n) for n in range(len(rows))]
            assert len(rows) == {"AX": 5, "MRPC": 3}.get(path.stem, 4)
            if path.stem == "STS-B":
                assert all(0 <= float(row["prediction"]) <= 5 for row in rows)
            else:
                assert {row["prediction"] for row in rows} <= labels.get(path.stem, {"0", "1"})
    files = records(place, "all")
    assert {path.parent.name for path in files.values()} == set(NAMES) - {"ax"}
    # MNLI is done again where it was finished without the diagnostics and they are asked for.
    [file] = [path for key, path in files.items() if key[0].startswith("mom") and key[1:] == ("mnli", "seed-1.json")]
    whole = results.read(file)
    results.write(file, whole | {"test": {k: v for k, v in whole["test"].items() if k != "AX.tsv"}})
    _, err = run(place, capsys, tasks=("ax",), config=config, models=("vanilla", "mom"), output="all")
    assert err.count("MNLI, seed") - err.count("steps (") == 4
    assert err.count("finished before") == 3
    assert {**results.read(file), "seconds": 0} == {**whole, "seconds": 0}


def test_an_unknown_task(place, capsys):
    with pytest.raises(ConfigError, match="task='glue/sst-2': unknown task; did you mean 'sst2'"):
        run(place, capsys, tasks=("sst-2",), config=TRIAL)


def test_a_checkpoint_without_tokenizer(place, capsys):
    bare = shutil.copytree(place / "mom", place / "bare")
    (bare / "tokenizer.model").unlink()
    with pytest.raises(ConfigError, match=r"checkpoint='.*bare': has no tokenizer beside it"):
        run(place, capsys, tasks=("rte",), config=TRIAL, models=("mom", "bare"), output="bare-output")
    assert not (place / "bare-output").exists()


def test_data_that_is_not_there(place, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    config = dataclasses.replace(TRIAL, download=False)
    with pytest.raises(ConfigError, match=r"tfds:glue/rte': is not prepared in .*; add --glue.download"):
        run(place, capsys, tasks=("rte",), config=config)


def test_an_example_without_label(place, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    unlabelled = {"train": "sentence\tlabel\na film\t1\nthe day\t-1\n", "dev": "sentence\tlabel\nfine\t1\n"}
    unlabelled["test"] = "index\tsentence\n0\tunknown\n"
    content = {glue_files.URL.format("SST-2"): glue_files.archive("SST-2", unlabelled)}
    monkeypatch.setattr(tfds.download.DownloadManager, "download", downloads.from_table(content))
    problem = r"data\.source='tfds:glue/sst2': split 'train' has 1 of 2 examples without a label \(-1\), index 1 first"
    with pytest.raises(ConfigError, match=problem):
        run(place, capsys, tasks=("sst2",), config=TRIAL, output="unlabelled")
    assert not (place / "unlabelled").exists()


@pytest.mark.parametrize(
    ("checkpoints", "fields", "problem"),
    [
        (("mom",), {"length": 65}, r"glue\.length=65: must be at most .*mom's 64"),
        (("mom", "mom"), {}, r"checkpoint=.*: names a model twice"),
        (("mom", "copy"), {}, r"checkpoint='.*copy': is the same model as '.*mom'"),
        ((), {}, r"checkpoint=.*: must name at least one"),
    ],
)
def test_what_cannot_be_compared(place, capsys, checkpoints, fields, problem):
    if not (place / "copy").exists():
        shutil.copytree(place / "mom", place / "copy")
    config = dataclasses.replace(TRIAL, **fields)
    with pytest.raises(ConfigError, match=problem):
        run(place, capsys, tasks=("rte",), config=config, models=checkpoints)


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"seeds": ()}, "seeds"),
        ({"seeds": (1, 1)}, "seeds"),
        ({"epochs": 0}, "epochs"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"warmup": 1.0}, "warmup"),
        ({"separator": ""}, "separator"),
        ({"train_limit": -1}, "train_limit"),
    ],
)
def test_settings_that_cannot_be(fields, problem):
    with pytest.raises(ConfigError, match=f"^{problem}="):
        GlueConfig(**fields)


@pytest.mark.parametrize(
    ("epochs", "problem"),
    [(1, "what the fine-tuned model says is no number"), (2, r"mom: RTE, seed 0: the loss of step 2 is .*")],
)
def test_a_model_that_breaks(place, capsys, epochs, problem):
    config = dataclasses.replace(TRIAL, learning_rate=3e38, epochs=epochs)
    with pytest.raises(ConfigError, match=rf"^learning_rate=3e\+38: {problem}; lower it"):
        run(place, capsys, tasks=("rte",), config=config, models=("mom",), output="broken")
    assert not (place / "broken").exists()
