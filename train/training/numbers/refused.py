"""What follows a step that training has to wait for: its batch is kept, and the run stops or goes back."""

import dataclasses
import io
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from mom_jax.fields import ConfigError
from train.checkpoints import steps
from train.config import Phase
from train.files import read_json, to_json, write_whole
from train.numbers import FOLDER, NumbersError, Remembered, for_json
from train.training import processes
from train.training.context import Context
from train.training.initial_state import InitialState
from train.training.keeping.saving import Saver
from train.training.numbers.watcher import Trouble


@dataclasses.dataclass(frozen=True)
class Refused:
    """batch: of the step, on the devices. examples: how many were seen before it, and with it."""

    trouble: Trouble
    batch: dict[str, jax.Array]
    examples: tuple[int, int]


def stop(context: Context, phase: Phase, saver: Saver, refused: Refused) -> NumbersError:
    """The error that ends the run; the batch is kept, and the state before the step is saved."""
    trouble, file = refused.trouble, keep_batch(context, phase, saver, refused)
    before = f"the state before it is saved as step {trouble.step - 1}, its batch in {file}"
    return NumbersError(f"{phase.name} step {trouble.step}: {trouble.reason}; {before}")


def keep_batch(context: Context, phase: Phase, saver: Saver, refused: Refused) -> Path:
    """Writes the batch and what is known of the step into the run's folder; returns the file of the batch."""
    trouble = refused.trouble
    several = jax.process_count() > 1
    rows = multihost_utils.process_allgather(refused.batch, tiled=True) if several else jax.device_get(refused.batch)
    file = _batch_file(context.run, phase.name, trouble.step)
    if processes.is_first():
        content = io.BytesIO()
        np.savez(content, allow_pickle=False, **{name: np.asarray(array) for name, array in rows.items()})
        facts = {
            "phase": phase.name,
            "step": trouble.step,
            "seed": context.config.seed,
            "examples_seen": refused.examples[0],
            "fault": trouble.fault,
            "policy": trouble.policy,
            "reason": trouble.reason,
            "loss": for_json(trouble.loss),
            "grad_norm": for_json(trouble.grad_norm),
        }

        def write() -> None:
            file.parent.mkdir(exist_ok=True)
            write_whole(file, content.getvalue())
            write_whole(file.with_suffix(".json"), to_json(facts, indent=1))

        saver.insist(write)
    return file


def told_before(run: Path, phase: str, step: int) -> str | None:
    """What was said when the run stopped after `step`, if it was for its numbers."""
    file = _batch_file(run, phase, step + 1).with_suffix(".json")
    try:
        facts = read_json(file, str(file))
        stopped, reason = facts["policy"] == "stop", facts["reason"]
    except (ConfigError, LookupError, TypeError):
        return None
    return (
        f"stopped before at step {step + 1}: {reason}; its batch is in {file.with_suffix('.npz')}" if stopped else None
    )


def go_back(context: Context, phase: Phase, saver: Saver, refused: Refused, known: Remembered) -> None:
    """Returns to the last checkpoint that is far enough back, or the first one there is, or the phase's beginning.

    What came after goes, of the log too; damaged checkpoints are passed over and set aside. No save is under way. The
    log says where the data goes on; a run that is killed before it does comes to the same step again.
    """
    trouble, checkpoints = refused.trouble, saver.checkpoints
    keep_batch(context, phase, saver, refused)
    processes.wait_for_all(f"saves of {phase.name}")  # the first process deletes what they replace
    there = checkpoints.steps()
    first = processes.is_first()
    whole = processes.of_first([first and steps.problem(checkpoints.folder, step) is None for step in there])
    good = [step for step, is_whole in zip(there, whole, strict=True) if is_whole]
    enough = [step for step in good if step <= trouble.step - context.config.watch.rewind_steps]
    step = max(enough) if enough else min(good, default=0)
    for later in there:
        if later > step and later in good:
            checkpoints.remove(later)
        elif later > step and first:
            steps.set_aside(checkpoints.folder, later)
    processes.wait_for_all(f"rewind of {phase.name}")
    names = [row.name for row in context.config.phases]
    saver.insist(lambda: context.log.truncate(names, phase.name, step, offset=context.offsets[phase.name]))
    after = dataclasses.replace(
        known,
        rewinds=known.rewinds + 1,
        rewound_from=max(known.rewound_from, trouble.step),
    )
    record = {"phase": phase.name, **trouble.record(after), "step": step, "rewound_from": after.rewound_from}
    record |= {"at": trouble.step, "examples_seen": refused.examples[1]}
    context.log.write(record, offset=context.offsets[phase.name])
    saver.insist(context.log.flush)
    left_out = refused.examples[1] - (refused.examples[1] - refused.examples[0]) * (trouble.step - step)
    context.notify(
        f"{phase.name} step {trouble.step}: {trouble.reason}; back to step {step}, without the examples from "
        f"{left_out:,} to {refused.examples[1]:,}"
    )


def gone_back(context: Context, phase: Phase, start: InitialState) -> InitialState:
    """`start`, behind the examples that are left out where the log says that training has gone back to there."""
    step = int(start.state.step)
    found = [r for r in context.log.records(phase.name) if r.get("policy") == "rewind" and r.get("step") == step]
    names = ("examples_seen", "rewinds", "in_a_row", "rewound_from")
    values = [int(found[-1][name]) for name in names] if found else [-1] * len(names)
    values = processes.integers_of_first(values)
    if values[0] < 0:
        return start
    examples_seen, rewinds, in_a_row, rewound_from = values
    known = start.remembered
    known = dataclasses.replace(known, rewinds=rewinds, in_a_row=in_a_row, rewound_from=rewound_from)
    return dataclasses.replace(start, examples_seen=examples_seen, remembered=known)


def _batch_file(run: Path, phase: str, step: int) -> Path:
    return run / FOLDER / f"{phase}-{step}.npz"
