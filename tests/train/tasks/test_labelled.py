"""Labelled texts of one's own, from the file to the metrics."""

import random

import pytest
import task_models
from glue_files import BAD, GOOD, NEUTRAL

from mom_jax.fields import ConfigError
from train.tasks.labelled import Labelled
from train.tasks.settings import FineTuneConfig


def write(folder, rows, name="texts.txt"):
    file = folder / name
    file.write_bytes("".join("\t".join(map(str, row)) + "\r\n" for row in rows).encode())
    return str(file)


def rated(count):
    """Texts whose rating is the number of good words less that of bad ones."""
    rng = random.Random(0)
    for i in range(count):
        rating = rng.choice((-2, -1, 1, 2))
        words = [rng.choice(GOOD if rating > 0 else BAD) for _ in range(abs(rating))]
        words += [rng.choice(NEUTRAL) for _ in range(4)]
        rng.shuffle(words)
        yield f"{i}_1", float(rating), " ".join(words)


def test_groups_stay_together_on_one_side(tmp_path):
    rows = [
        (f"{review}_{i}", review % 3 - 1, f"“text” {review} {i}\twith a tab") for review in range(200) for i in "ab"
    ]
    lines = Labelled("task", write(tmp_path, rows)).lines()
    assert [line.text for line in lines] == [row[2] for row in rows]
    assert [line.held_out for line in lines[::2]] == [line.held_out for line in lines[1::2]]
    assert 25 < sum(line.held_out for line in lines[::2]) < 55
    # The hash is of the name: what else is in the file changes nothing.
    again = Labelled("task", write(tmp_path, rows[100:], "other.txt")).lines()
    assert again == lines[100:]
    # Zeros are neither above nor below 0.
    signs = Labelled("task", write(tmp_path, rows), "sign").lines()
    assert [line.label for line in signs] == [str(row[1]) for row in rows if row[1]]


def test_results_depend_on_the_file_and_the_recipe(tmp_path):
    rows = list(rated(40))
    task = Labelled("task", write(tmp_path, rows))
    assert task.settings() == Labelled("other name", write(tmp_path, rows, "copy.txt")).settings()
    different = [
        Labelled("task", write(tmp_path, rows[1:], "less.txt")),
        Labelled("task", task.file, "sign"),
        Labelled("task", task.file, fraction=0.3),
        Labelled("task", task.file, tuning=FineTuneConfig(epochs=5)),
    ]
    assert all(other.settings() != task.settings() for other in different)


@pytest.mark.parametrize(
    ("rows", "labels", "problem"),
    [
        ([("1", "0.5", "x"), ("2", "good", "x")], "number", "line 2 must be an id, a label and a text"),
        ([("1", "nan", "x")], "sign", "line 1 must be"),
        ([("1", "0.5")], "class", "line 1 must be"),
        ([("1", "0.5", "x")], "number", "has no text for"),
        ([(str(i), "0", "x") for i in range(50)], "sign", "has no text for training"),
    ],
)
def test_files_that_cannot_be(tmp_path, rows, labels, problem):
    with pytest.raises(ConfigError, match=problem):
        Labelled("task", write(tmp_path, rows), labels).lines()


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        Labelled("task", str(tmp_path / "none.txt")).settings()
    (tmp_path / "latin.txt").write_bytes("1\t1\tcaf\xe9\n".encode("latin-1"))
    with pytest.raises(ConfigError, match="must be UTF-8"):
        Labelled("task", str(tmp_path / "latin.txt")).lines()


@pytest.mark.slow
def test_a_tiny_model_learns_ratings_signs_and_classes(tmp_path):
    model = task_models.config(tmp_path, dispatch="dense")
    run = tmp_path / "mom"
    task_models.write(run, model)
    tuning = FineTuneConfig(epochs=6, batch_size=16, length=32, learning_rate=3e-3)
    file = write(tmp_path, rated(300))
    found = {labels: Labelled("task", file, labels, tuning=tuning)(run, 0) for labels in ("number", "sign", "class")}
    assert found["sign"]["accuracy"] > 95
    assert found["class"]["accuracy"] > 60  # of four
    assert found["number"]["Pearson"] > 90
    assert Labelled("task", file, "sign", tuning=tuning)(run, 0) == found["sign"]
    with pytest.raises(ConfigError, match=r"tuning.length=128: must be at most the model's 64"):
        Labelled("task", file)(run, 0)
