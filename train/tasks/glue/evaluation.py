"""GLUE: fine-tunes models on its tasks and compares them: tables, and test predictions for gluebenchmark.com."""

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mom_jax.fields import require
from mom_jax.sharding import make_mesh
from train.cli import notify
from train.data.sources.tfds_builder import download_tfds, prepared_builder
from train.files import write_whole, writing
from train.tasks import metrics, results
from train.tasks.finetune import finetune, predict, with_head
from train.tasks.glue import summary
from train.tasks.glue.examples import Split, read_split
from train.tasks.glue.settings import GlueConfig
from train.tasks.glue.tasks import DIAGNOSTICS, TASKS, Task, choose
from train.tasks.models import Model, inspect


def evaluate(
    checkpoints: Sequence[str], tasks: Sequence[str], config: GlueConfig, output: Path, *, best: bool = False
) -> None:
    """Fine-tunes every model on every task with every seed, prints the table, and writes into `output`:

    `results/MODEL/TASK/seed-N.json`  one fine-tuning: metrics, losses, test predictions; what is finished is not done
                                      again, and a fine-tuning that was interrupted begins again
    `glue.json`, `glue.md`            the table of all finished results of these models, seeds and settings
    `submission/MODEL/*.tsv`          test predictions of the seed with the median score of each task

    checkpoints: whatever `train.checkpoint.open_model` reads. tasks: names of `glue_tasks.NAMES`; all if there are
    none. best: of a run's phase take the step with the lowest validation loss. Raises ConfigError, mostly before
    anything is trained, for an unknown task, a model without a tokenizer, data that is not there or lacks labels, and
    for finished results of other settings.
    """
    chosen, diagnostics = choose(tasks)
    results.check_output(output)
    metrics.check_libraries(("sklearn.metrics", "scikit-learn"), ("scipy.stats", "scipy"))
    builders = {task.name: _builder(task, config) for task in (*chosen, *([DIAGNOSTICS] if diagnostics else []))}
    models = inspect(checkpoints, config.length, "glue.length", best, notify)
    for model in models:
        tokens, room = len(model.tokenizer.encode(config.separator)), config.length - 2
        require(1 <= tokens <= room, "glue.separator", config.separator, f"must be 1 to {room} tokens, not {tokens}")
    todo = {model.name: list(_unfinished(model, chosen, diagnostics, config, output)) for model in models}
    for model in models:
        if todo[model.name]:
            _run(model, todo[model.name], builders, config, output)
    found = {model.name: _finished(model, config, output) for model in models}
    report = summary.report(found, {model.name: model.path for model in models}, config.seeds, config.settings())
    text = summary.text(report)
    with writing(output):
        for model in models:
            summary.write_submission(output / "submission" / model.folder, found[model.name])
        write_whole(output / "glue.json", (json.dumps(report, indent=1) + "\n").encode())
        write_whole(output / "glue.md", text.encode())
    print(text)
    notify(f"written: {output / 'glue.json'}, {output / 'glue.md'}, {output / 'submission'}")


def result_file(output: Path, model: Model, task: Task, seed: int) -> Path:
    """Where the result of one fine-tuning is."""
    return output / "results" / model.folder / task.name / f"seed-{seed}.json"


def _read(output: Path, model: Model, task: Task, seed: int) -> dict[str, Any] | None:
    """The result of one fine-tuning, if there is one."""
    return results.read_own(result_file(output, model, task, seed), model.digest, task=task.name, seed=seed)


def _builder(task: Task, config: GlueConfig) -> Any:
    if config.download:
        download_tfds(task.source, notify)
    return prepared_builder(task.source, "add --glue.download to download it")


def _unfinished(
    model: Model, tasks: Sequence[Task], diagnostics: bool, config: GlueConfig, output: Path
) -> Iterator[tuple[Task, list[int], bool]]:
    """The tasks that are not finished, with the seeds that lack. Raises ConfigError for results of other settings."""
    for task in tasks:
        with_diagnostics = diagnostics and task.name == "mnli"
        seeds = []
        for seed in config.seeds:
            file = result_file(output, model, task, seed)
            record = _read(output, model, task, seed)
            if record is not None:
                results.check_same(file, record["settings"], config.settings(), "glue")
            if record is None or (with_diagnostics and DIAGNOSTICS.submission[0] not in record["test"]):
                seeds.append(seed)
            else:
                notify(f"{model.name}: {task.title}, seed {seed}: finished before")
        if seeds:
            yield task, seeds, with_diagnostics


def _finished(model: Model, config: GlueConfig, output: Path) -> dict[str, list[dict[str, Any]]]:
    """By task the results of all seeds, whenever they were made, in the order of the seeds."""
    found = {}
    settings = json.loads(json.dumps(config.settings()))
    for task in TASKS.values():
        records = [_read(output, model, task, seed) for seed in config.seeds]
        whole = [record for record in records if record is not None and record["settings"] == settings]
        if len(whole) == len(config.seeds):
            found[task.name] = whole
    return found


def _run(
    model: Model,
    todo: list[tuple[Task, list[int], bool]],
    builders: dict[str, Any],
    config: GlueConfig,
    output: Path,
) -> None:
    params = model.open()
    for task, seeds, diagnostics in todo:

        def read(task: Task, split: str, limit: int) -> Split:
            return read_split(
                task,
                builders[task.name],
                split,
                model.tokenizer,
                separator=config.separator,
                length=config.length,
                limit=limit,
            )

        training = read(task, "train", config.train_limit)
        held_out = {name: read(task, split, config.evaluation_limit) for name, split in task.validation.items()}
        tests = {
            file: read(task, split, config.evaluation_limit)
            for file, split in zip(task.submission, task.test, strict=True)
        }
        if diagnostics:
            tests[DIAGNOSTICS.submission[0]] = read(DIAGNOSTICS, DIAGNOSTICS.test[0], config.evaluation_limit)
        for seed in seeds:
            record = _result(model, params, task, training, held_out, tests, config, seed)
            results.write(result_file(output, model, task, seed), record)
            scores = ", ".join(f"{name} {value:.2f} %" for name, value in record["metrics"].items())
            notify(f"{model.name}: {task.title}, seed {seed}: {scores} ({record['seconds']:.0f} s)")


def _result(
    model: Model,
    params: dict[Any, Any],
    task: Task,
    training: Split,
    held_out: dict[str, Split],
    tests: dict[str, Split],
    config: GlueConfig,
    seed: int,
) -> dict[str, Any]:
    """One fine-tuning, evaluated."""
    start, mesh = time.monotonic(), make_mesh()
    network, first = with_head(model.config, params, len(task.classes) or 1, seed)
    tuned = finetune(
        network,
        first,
        training.examples,
        config,
        seed,
        mesh,
        label=f"{model.name}: {task.title}, seed {seed}",
        unit="example_loss" if task.classes else "squared_error",
    )

    def answers(split: Split) -> np.ndarray:
        outputs = predict(network, tuned.params, split.examples, config, mesh)
        return outputs.argmax(1) if task.classes else outputs[:, 0]

    values = {}
    for part, split in held_out.items():
        predictions = answers(split)
        for name, metric in task.metrics.items():
            assert split.labels is not None
            values[f"{name} {part}".strip()] = metric(split.labels, predictions)
    return {
        "model": {"path": model.path, "description": model.description, "digest": model.digest},
        "task": task.name,
        "seed": seed,
        "settings": config.settings(),
        "metrics": values,
        "score": float(np.mean(list(values.values()))),
        "steps": tuned.steps,
        "losses": tuned.losses,
        "examples": {
            "train": len(training.examples),
            **{k or "validation": len(s.examples) for k, s in held_out.items()},
        },
        "seconds": time.monotonic() - start,
        "test": {
            file: {"index": split.indices, "prediction": answers(split).tolist()} for file, split in tests.items()
        },
    }
