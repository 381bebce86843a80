"""Metrics against values made by hand and against the libraries; tables; the average; the files of a submission."""

import sys

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

from mom_jax.fields import ConfigError
from train.reporting import tables
from train.tasks import metrics, models, results
from train.tasks.glue import summary
from train.tasks.glue.tasks import AVERAGED, TASKS

LABELS = np.array([1, 1, 1, 0, 0, 1, 0, 1])
ANSWERS = np.array([1, 0, 1, 0, 1, 1, 0, 0])  # 3 true positives, 2 true negatives, 1 false positive, 2 false negatives


def test_metrics_of_classes_by_hand():
    assert metrics.accuracy(LABELS, ANSWERS) == pytest.approx(100 * 5 / 8)
    assert metrics.f1(LABELS, ANSWERS) == pytest.approx(100 * 2 * 3 / (2 * 3 + 1 + 2))
    # (tp·tn - fp·fn) / sqrt((tp + fp)(tp + fn)(tn + fp)(tn + fn))
    assert metrics.matthews(LABELS, ANSWERS) == pytest.approx(100 * (3 * 2 - 1 * 2) / (4 * 5 * 3 * 4) ** 0.5)
    # The classes' roles are not the same.
    assert metrics.f1(1 - LABELS, 1 - ANSWERS) == pytest.approx(100 * 2 * 2 / (2 * 2 + 1 + 2))


def test_metrics_of_numbers_by_hand():
    labels, answers = np.array([0.0, 1.0, 2.0, 5.0]), np.array([1.0, 2.0, 3.0, 4.0])
    # Deviations from the means: (-2, -1, 0, 3) and (-1.5, -0.5, 0.5, 1.5).
    assert metrics.pearson(labels, answers) == pytest.approx(100 * 8 / (14 * 5) ** 0.5)
    assert metrics.spearman(labels, answers) == pytest.approx(100)
    # Ranks 1 2 3 4 against 2 1 3 4: 1 - 6·2 / (4·15).
    assert metrics.spearman(labels, np.array([2.0, 1.0, 3.0, 4.0])) == pytest.approx(80)


def test_metrics_are_those_of_the_libraries():
    rng = np.random.default_rng(0)
    labels, answers = rng.integers(0, 2, 200), rng.integers(0, 2, 200)
    assert metrics.accuracy(labels, answers) == 100 * sklearn.metrics.accuracy_score(labels, answers)
    assert metrics.f1(labels, answers) == 100 * sklearn.metrics.f1_score(labels, answers)
    assert metrics.matthews(labels, answers) == 100 * sklearn.metrics.matthews_corrcoef(labels, answers)
    scores = rng.uniform(0, 5, 200)
    noisy = (scores + rng.normal(size=200)).astype(np.float32)
    assert metrics.pearson(scores, noisy) == pytest.approx(100 * scipy.stats.pearsonr(scores, noisy).statistic)
    assert metrics.spearman(scores, noisy) == pytest.approx(100 * scipy.stats.spearmanr(scores, noisy).statistic)


def test_answers_that_are_all_the_same():
    same = np.zeros(8, np.int64)
    assert metrics.matthews(LABELS, same) == metrics.f1(LABELS, same) == 0
    assert metrics.pearson(LABELS, same) == metrics.spearman(LABELS, same) == 0


def test_rouge_by_hand():
    found = metrics.rouge(["the cats sat down", "no"], ["the cat sat", "yes"])
    # Stemmed "cats" is "cat": 3 of 4 words recalled, all of 3 right; 2 of 3 pairs, both right. The second has none.
    assert found["rouge1"] == found["rougeL"] == pytest.approx(100 * (2 * 3 / 7) / 2)
    assert found["rouge2"] == pytest.approx(100 * (2 * 2 / 5) / 2)


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)
    with pytest.raises(
        ConfigError, match=r"needs rouge-score, which cannot be imported .*pip install 'mom_jax\[eval\]'"
    ):
        metrics.check_libraries(("scipy.stats", "scipy"), ("rouge_score.rouge_scorer", "rouge-score"))


def test_an_output_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"^output='.*file/results': cannot be written: .*file is a file"):
        results.check_output(tmp_path / "file" / "results")
    results.check_output(tmp_path / "new" / "folder")
    assert not (tmp_path / "new").exists()


def test_statistics_and_their_look():
    assert results.statistics([1.0, 3.0]) == {"mean": 2.0, "deviation": pytest.approx(2**0.5), "values": [1.0, 3.0]}
    assert tables.spread(results.statistics([1.0, 3.0])) == "2.00 ± 1.41"
    assert tables.spread(results.statistics([1.0])) == "1.00"
    assert tables.spread(None) == "-"
    table = tables.markdown(["model", "x"], [["a|b", "1.00"], ["c", "-"]])
    assert table == "| model |    x |\n| ----- | ---: |\n| a/b   | 1.00 |\n| c     |    - |\n"


def record(task, seed, **values):
    score = float(np.mean(list(values.values())))
    test = {file: {"index": [0, 1], "prediction": [1, 0]} for file in TASKS[task].submission}
    return {"seed": seed, "metrics": values, "score": score, "examples": {}, "steps": 1, "test": test}


def full(shift=0.0):
    values = {"cola": {"Matthews": 10}, "sst2": {"accuracy": 20}, "mrpc": {"accuracy": 20, "F1": 40}}
    values |= {"qqp": {"accuracy": 30, "F1": 50}, "stsb": {"Pearson": 40, "Spearman": 60}, "qnli": {"accuracy": 70}}
    values |= {"mnli": {"accuracy m": 50, "accuracy mm": 70}, "rte": {"accuracy": 80}, "wnli": {"accuracy": 1000}}
    return {
        task: [record(task, seed, **{name: value + seed * shift for name, value in own.items()}) for seed in (0, 1)]
        for task, own in values.items()
    }


def test_the_average_is_of_eight_tasks():
    found = {"mom": full(2.0), "vanilla": {"sst2": full()["sst2"]}}
    report = summary.report(found, {"mom": "a", "vanilla": "b"}, (0, 1), {"train_limit": 0, "evaluation_limit": 0})
    # 10, 20, 30, 40, 50, 60, 70 and 80: tasks with several metrics count once, WNLI does not.
    assert report["models"]["mom"]["average"] == results.statistics([45.0, 47.0])
    assert report["models"]["vanilla"]["average"] is None
    assert report["models"]["vanilla"]["lacking"] == [task for task in AVERAGED if task != "sst2"]
    text = summary.text(report)
    [header] = [line for line in text.splitlines() if line.startswith("| model")]
    cells = [cell.strip() for cell in header.split("|")[1:-1]]
    assert cells[0::10] == ["model", "average of 8"]
    assert cells[3] == "MRPC accuracy / F1"
    assert "| 21.00 ± 1.41 / 41.00 ± 1.41 |" in text
    assert "46.00 ± 1.41" in text
    assert "WNLI is left out" in text
    assert "trial" not in text


def test_the_submission_is_of_the_median_seed(tmp_path):
    scores = {0: 50.0, 1: 90.0, 2: 70.0}
    records = [record("rte", seed, accuracy=score) for seed, score in scores.items()]
    assert summary.median(records)["seed"] == 2
    assert summary.median(records[:2])["seed"] == 0
    records[2]["test"]["RTE.tsv"] = {"index": [0, 1, 2], "prediction": [1, 0, 1]}
    stsb = record("stsb", 0, Pearson=1.0)
    stsb["test"]["STS-B.tsv"]["prediction"] = [-0.25, 5.5]
    ax = record("mnli", 0, accuracy=1.0)
    ax["test"]["AX.tsv"] = {"index": [0, 1], "prediction": [2, 1]}
    summary.write_submission(tmp_path, {"rte": records, "stsb": [stsb], "mnli": [ax]})
    assert (tmp_path / "RTE.tsv").read_text() == (
        "index\tprediction\n0\tnot_entailment\n1\tentailment\n2\tnot_entailment\n"
    )
    (tmp_path / "mine.txt").touch()
    summary.write_submission(tmp_path, {"stsb": [stsb]})  # of a call for this task only
    assert sorted(path.name for path in tmp_path.iterdir()) == ["STS-B.tsv", "mine.txt"]
    summary.write_submission(tmp_path, {"rte": records, "stsb": [stsb], "mnli": [ax]})
    assert (tmp_path / "STS-B.tsv").read_text() == "index\tprediction\n0\t0.000\n1\t5.000\n"
    assert (tmp_path / "AX.tsv").read_text() == "index\tprediction\n0\tcontradiction\n1\tneutral\n"
    assert (tmp_path / "MNLI-mm.tsv").read_text() == "index\tprediction\n0\tneutral\n1\tentailment\n"


@pytest.mark.parametrize("text", ["{", "[]", '{"version": 0}'])
def test_a_damaged_result_is_told(tmp_path, text):
    (tmp_path / "seed-0.json").write_text(text)
    with pytest.raises(ConfigError, match=r"seed-0\.json: .*; delete it to do that part again"):
        results.read(tmp_path / "seed-0.json")


def test_names_of_models():
    assert models._names(["runs/a", "runs/b"]) == ["a", "b"]
    assert models._names(["one/run", "two/run.safetensors"]) == ["one/run", "two/run"]
    alike = ["/runs/mom", "/runs/mom.safetensors", "/runs/checkpoints/mom"]
    assert models._names(alike) == alike
    with pytest.raises(ConfigError, match="names a model twice"):
        models._names(["/runs/mom", "/runs/../runs/mom"])
