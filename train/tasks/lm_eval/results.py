"""The harness's results, and its tables as Markdown."""

import contextlib
import dataclasses
import json
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager
from lm_eval.utils import (
    handle_non_serializable,
    simple_parse_args_string,
)

from mom_jax.fields import ConfigError, nearest, require
from train.reporting.tables import markdown
from train.tasks.lm_eval.harness import Harness
from train.tasks.lm_eval.settings import Settings

# Resamplings for standard errors that have no formula: of so many the error is known to about 2 %.
BOOTSTRAPS = 1000


@dataclasses.dataclass(frozen=True)
class Request:
    """What to run, besides the tasks. num_fewshot: examples before each question, instead of the task's own number.
    limit: of each task the first so many documents; 0 is all. gen_kwargs: `name=value,...`, over the tasks' own
    generation settings."""

    num_fewshot: int | None = None
    limit: int = 0
    gen_kwargs: str | None = None


def find_tasks(names: Sequence[str], include_path: str | None) -> tuple[TaskManager, list[str]]:
    """(the harness's tasks and those of the folder, the ones of these names). names: of tasks or groups, also with `*`.
    include_path: a folder of the user's own tasks, as YAML files. Raises ConfigError for a name that none has,
    with the nearest one, and for a folder that is not there."""
    if include_path is not None:
        require(Path(include_path).expanduser().is_dir(), "include_path", include_path, "no such folder")
        include_path = str(Path(include_path).expanduser())
        # The harness takes ten seconds to read its own tasks: only where they are asked for.
        own = TaskManager(include_path=include_path, include_defaults=False)
        if all(own.match_tasks([name]) for name in names):
            return own, own.match_tasks(list(names))
    manager = TaskManager(include_path=include_path)
    for name in names:
        if not manager.match_tasks([name]):
            close = nearest(name, manager.all_tasks)
            hint = close if close.startswith("did") else "see `lm-eval ls tasks` for the names"
            raise ConfigError(f"tasks={name!r}: unknown; {hint}")
    return manager, manager.match_tasks(list(names))


def evaluate(model: Harness, request: Request, found: tuple[TaskManager, list[str]]) -> dict[str, Any]:
    """The harness's results, as plain values. found: from `find_tasks`.

    Raises ConfigError where a task's data set cannot be had.
    """
    from datasets.exceptions import DatasetsError

    manager, names = found
    if request.gen_kwargs:  # what cannot be is known before the model runs
        Settings.read(simple_parse_args_string(request.gen_kwargs), model.max_length)
    # Otherwise it forks this process for its bootstraps, and JAX is multithreaded.
    os.environ.setdefault("DISABLE_MULTIPROC", "1")
    logging.getLogger("lm_eval").setLevel(logging.WARNING)
    try:
        with contextlib.redirect_stdout(sys.stderr):  # it tells of its bootstraps there
            results = simple_evaluate(
                model,
                tasks=list(names),
                task_manager=manager,
                num_fewshot=request.num_fewshot,
                batch_size=model.batch_size,
                limit=request.limit or None,
                gen_kwargs=request.gen_kwargs,
                bootstrap_iters=BOOTSTRAPS,
                log_samples=False,
                torch_random_seed=None,
            )
    except (OSError, DatasetsError) as error:
        line = (str(error).splitlines() or [""])[0]
        raise ConfigError(f"tasks={','.join(names)!r}: cannot be read ({type(error).__name__}: {line})") from error
    return json.loads(json.dumps(results, default=handle_non_serializable))


def tables(results: dict[str, Any]) -> str:
    """Markdown tables as the harness prints them: of the tasks and, where there are any, of the groups.

    Not by its own `make_table`, whose library starts processes by forking this one, and JAX is multithreaded.
    """
    columns = {"results": "Tasks", "groups": "Groups"}
    return "\n".join(_table(results, column, title) for column, title in columns.items() if results.get(column))


def _table(results: dict[str, Any], column: str, title: str) -> str:
    """As `lm_eval.utils.make_table`: a row for each metric, with its filter, direction and standard error."""
    rows = []
    for task, metrics in results[column].items():
        name = [str(metrics.get("alias", task)), str(results["versions"].get(task, "N/A"))]
        higher_is_better = results.get("higher_is_better", {}).get(task, {})
        for key in sorted(key for key in metrics if "," in key):
            metric, _, chosen = key.partition(",")
            if metric.endswith("_stderr"):
                continue
            value, error = metrics[key], metrics.get(f"{metric}_stderr,{chosen}", "N/A")
            arrow = {True: "\u2191", False: "\u2193"}.get(higher_is_better.get(metric), "")
            shots = str(results.get("n-shot", {}).get(task, ""))
            rows.append((*name, chosen, shots, metric, arrow, _number(value), "\u00b1", _number(error)))
            name = ["", ""]
    return markdown((title, "Version", "Filter", "n-shot", "Metric", "", "Value", "", "Stderr"), rows)


def _number(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)
