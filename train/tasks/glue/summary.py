"""GLUE's table and average, and the files of a submission, from finished results."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from train.files import write_whole
from train.reporting.tables import markdown, spread
from train.tasks.glue.tasks import AVERAGED, DIAGNOSTICS, HIGHEST_SIMILARITY, TASKS, Task
from train.tasks.results import statistics

Results = Mapping[str, Sequence[Mapping[str, Any]]]  # by task, a result for each seed in the same order

RULE = (
    "The average is over eight tasks ({tasks}): a task with several metrics, or with two validation splits (MNLI m and "
    "mm), counts with their mean; WNLI is left out. It is made for each seed."
)


def report(found: Mapping[str, Results], paths: Mapping[str, str], seeds: Sequence[int], settings: Any) -> dict:
    """The table as JSON. found: by model's name its results; a task that is not finished is left out."""
    titles = ", ".join(TASKS[name].title for name in AVERAGED)
    models = {}
    for name, own in found.items():
        rows = {}
        for task, records in own.items():
            values = {key: statistics([r["metrics"][key] for r in records]) for key in records[0]["metrics"]}
            rows[task] = {
                "metrics": values,
                "score": statistics([r["score"] for r in records]),
                "submitted_seed": median(records)["seed"],
                "examples": records[0]["examples"],
                "steps": records[0]["steps"],
            }
        lacking = [task for task in AVERAGED if task not in own]
        average = None
        if not lacking:
            scores = [[float(r["score"]) for r in own[task]] for task in AVERAGED]
            average = statistics([sum(of_seed) / len(AVERAGED) for of_seed in zip(*scores, strict=True)])
        models[name] = {"checkpoint": paths[name], "tasks": rows, "average": average, "lacking": lacking}
    return {"rule": RULE.format(tasks=titles), "seeds": list(seeds), "settings": settings, "models": models}


def text(report: Mapping[str, Any]) -> str:
    """The same as Markdown: models side by side."""
    models = report["models"]
    tasks = [task for task in TASKS.values() if any(task.name in own["tasks"] for own in models.values())]
    seeds = report["seeds"]
    spread_of = f"mean ± standard deviation (n - 1) over {len(seeds)} seeds" if len(seeds) > 1 else "one seed"
    parts = [
        "# GLUE\n",
        f"On the validation splits, after the last epoch; all numbers in %: {spread_of} ({_listed(seeds)}).\n",
        markdown(
            ["model", *(_column(task, models) for task in tasks), "average of 8"],
            [[name, *(_cell(own, task) for task in tasks), spread(own["average"])] for name, own in models.items()],
        ),
        report["rule"] + "\n",
    ]
    for name, own in models.items():
        if own["lacking"]:
            titles = ", ".join(TASKS[task].title for task in own["lacking"])
            parts.append(f"{name} has no average: {titles} not finished with these settings.\n")
    settings = report["settings"]
    limits = {name: settings[name] for name in ("train_limit", "evaluation_limit") if settings[name]}
    if limits:
        what = ", ".join(f"{name}={value}" for name, value in limits.items())
        parts.append(f"A trial on few examples ({what}): not GLUE's numbers, and no submission.\n")
    parts.append("Settings: " + ", ".join(f"{name} {value!r}" for name, value in settings.items()) + ".\n")
    parts.append("Models: " + "; ".join(f"{name} is {own['checkpoint']}" for name, own in models.items()) + ".\n")
    chosen = []
    for name, own in models.items():
        of_tasks = ", ".join(f"{TASKS[task].title} {row['submitted_seed']}" for task, row in own["tasks"].items())
        chosen.append(f"{name}: {of_tasks or 'none'}")
    parts.append("Test predictions are of the seed with the median score of each task. " + "; ".join(chosen) + ".\n")
    return "\n".join(parts)


def _listed(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))


def _column(task: Task, models: Mapping[str, Any]) -> str:
    own = next(own for own in models.values() if task.name in own["tasks"])
    return f"{task.title} {' / '.join(own['tasks'][task.name]['metrics'])}"


def _cell(model: Mapping[str, Any], task: Task) -> str:
    row = model["tasks"].get(task.name)
    return "-" if row is None else " / ".join(spread(values) for values in row["metrics"].values())


def median(records: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The result whose score is the median; of an even number the lower one of the two in the middle."""
    return sorted(records, key=lambda record: (record["score"], record["seed"]))[(len(records) - 1) // 2]


def write_submission(folder: Path, found: Results) -> None:
    """Writes a file for each test split, as gluebenchmark.com wants them (in a zip): `index` and `prediction`; no
    others of its files stay."""
    files = {}
    for name, records in found.items():
        for file, predictions in median(records)["test"].items():
            task = DIAGNOSTICS if file in DIAGNOSTICS.submission else TASKS[name]
            rows = zip(predictions["index"], predictions["prediction"], strict=True)
            lines = [f"{index}\t{_answer(task, value)}\n" for index, value in rows]
            files[file] = "index\tprediction\n" + "".join(lines)
    if files:
        folder.mkdir(parents=True, exist_ok=True)
    for file, content in files.items():
        write_whole(folder / file, content.encode())
    # What another call left would go into the same zip.
    known = {file for task in (*TASKS.values(), DIAGNOSTICS) for file in task.submission}
    for file in known - files.keys():
        (folder / file).unlink(missing_ok=True)


def _answer(task: Task, value: float) -> str:
    if not task.classes:
        return f"{min(max(value, 0.0), HIGHEST_SIMILARITY):.3f}"
    return task.classes[int(value)] if task.words else str(int(value))
