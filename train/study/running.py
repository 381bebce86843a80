"""Runs a study: every run an ordinary run's folder, which training resumes wherever it was left."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from mom_jax.fields import ConfigError
from train.checkpoints.locate import find
from train.numbers import NumbersError
from train.study.definition import Study
from train.study.outcome import final_record, result_of
from train.study.plan import Plan, Run
from train.study.records import Result, folder_of, found_elsewhere, key, read_results, write_result
from train.training import processes
from train.training.loop import train
from train.training.run import Busy

WAIT_SECONDS = 5.0

Say = Callable[[str], None]


def check_needs(study: Study) -> None:
    """Raises ConfigError, saying what to do, where something that the study needs is not there."""
    for path, advice in study.needs.items():
        if not Path(path).expanduser().exists():
            raise ConfigError(f"{path}: is not there, and study {study.name!r} needs it; {advice}")


def check_sources(runs: Sequence[Run]) -> None:
    """Raises ConfigError where a run starts from a checkpoint, or is taught by one, that is not there."""
    for run in runs:
        made = (None, "scratch", "previous", run.start and run.start.run)
        for config in filter(None, (run.start, run.config)):
            named = [(phase, field) for phase in config.phases for field in ("init_from", "distill")]
            for phase, field in named:
                if getattr(phase, field) in made:
                    continue
                try:
                    find(getattr(phase, field), field=f"phases.{phase.name}.{field}")
                except ConfigError as error:
                    raise ConfigError(f"arm {run.arm!r}: {error}") from None


def run_all(plan: Plan, runs: Sequence[Run], say: Say, *, anew: bool = False) -> int | None:
    """Trains whatever is not finished, and writes down each result when it is there.

    A run that another study below the same folder has trained is taken from there, unless all is made `anew`.

    What another process is training is left to it; when nothing else is left to do, it is waited for. Returns None
    when all is done, or the number of the signal that stopped it. Raises ConfigError, naming the run, for what cannot
    be trained, and NumbersError, after all others, where the numbers of runs made them stop.
    """
    pending = list(runs)
    broken: list[str] = []
    while pending:
        busy = []
        for run in pending:
            try:
                stopped = _run(plan, run, say, anew=anew)
            except Busy:
                busy.append(run)
                continue
            except ConfigError as error:
                raise ConfigError(f"arm {run.arm!r}, seed {run.seed}: {error}") from None
            except NumbersError as error:
                broken.append(f"arm {run.arm!r}, seed {run.seed}: {error}")
                say(broken[-1])
                continue
            if stopped is not None:
                return stopped
            # The programs of fifty arms would fill the memory; the next seed finds its own on disk.
            jax.clear_caches()
        if len(busy) == len(pending):
            say(f"waiting: {len(busy)} runs, or their first phase, are with another process")
            time.sleep(WAIT_SECONDS)
        pending = busy
    if broken:
        raise NumbersError("; ".join(broken))
    return None


def missing(plan: Plan, run: Run, results: Sequence[Result]) -> list[str] | None:
    """What a run's result lacks: names of `after`; None where there is no result, or where it lacks something and the
    run is not there any more: it is trained again, as if there were none."""
    found = next((row for row in results if key(row) == run.key), None)
    if found is None:
        return None
    have = found.get("after", {})
    lacking = [t.name for t in plan.study.after if have.get(t.name, {}).get("settings") != _plain(t.settings())]
    return None if lacking and not folder_of(plan, run, found).is_dir() else lacking


def _run(plan: Plan, run: Run, say: Say, *, anew: bool) -> int | None:
    """One run, to its result; returns the number of a signal that stopped it."""
    lacking = missing(plan, run, read_results(plan.folder))
    [finished, known] = processes.of_first([lacking == [], lacking is not None])
    if finished:
        return None
    same = None if known or anew else found_elsewhere(plan, run)
    [known_there] = processes.of_first([same is not None])
    if known_there:
        if processes.is_first():
            assert same is not None
            write_result(plan, same)
            say(f"{run}: the run {same['run']} is the same")
        processes.wait_for_all("result of another study")
    elif not known:
        for config in filter(None, (run.start, run.config)):
            [trained] = processes.of_first([final_record(config) is not None])
            if not trained:
                say(f"{run}: {config.run}")
                stopped = train(config)
                if stopped is not None:
                    return stopped
        result = result_of(run, plan.configs[run.arm], plan.root)
        if processes.is_first():
            write_result(plan, result)
        loss = "no number" if result["loss"] is None else f"{result['loss']:.4f} nats/token"
        say(f"{run}: {loss} over {result['evaluated_tokens']:,} held-out tokens")
    _do_after(plan, run, say)
    return None


def _do_after(plan: Plan, run: Run, say: Say) -> None:
    """What the study does with the run's last checkpoint, as far as it has not been done."""
    for task in plan.study.after:
        [result] = [row for row in read_results(plan.folder) if key(row) == run.key]
        if result["after"].get(task.name, {}).get("settings") == _plain(task.settings()):
            continue
        values = {name: float(value) for name, value in task(folder_of(plan, run, result), run.seed).items()}
        say(f"{run}: {task.name}: {', '.join(f'{name} {value:.2f}' for name, value in values.items())}")
        done = {"settings": _plain(task.settings()), "metrics": values}
        if processes.is_first():
            write_result(plan, {**result, "after": {**result["after"], task.name: done}})


def _plain(value: Any) -> Any:
    """As JSON gives it back."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
