"""The teacher of a phase: a checkpoint that is found once, is named in the phase's own checkpoints, and is read again
where the phase is resumed."""

import dataclasses
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from mom_jax.config import ModelConfig
from mom_jax.fields import ConfigError, require
from train.checkpoints.locate import FOLDER, Found, check_tokenizer, find, last_step, source_of
from train.checkpoints.manager import Checkpoints, Meta
from train.config import Config, Phase
from train.steps.compiled import teaching_of
from train.steps.teaching import Teaching


@dataclasses.dataclass(frozen=True)
class Teacher:
    """name: `PHASE/STEP` of the checkpoint in its run. teaching: for the compiled step. params: on the mesh."""

    name: str
    teaching: Teaching
    params: dict[Any, Any]
    message: str


def check_teacher(config: Config, phase: Phase, tokenizer: str) -> None:
    """Raises ConfigError for a teacher that cannot be, unless it is the phase before, or the phase has ended."""
    own = Path(config.run).expanduser() / FOLDER / phase.name
    if phase.distill in (None, "previous") or last_step(own) == phase.steps:
        return
    found = _found(config, phase, _named(config, phase))
    _check(config, phase, found.meta(), tokenizer)


def teacher_of(config: Config, phase: Phase, own: Checkpoints | None, tokenizer: str, mesh: Mesh) -> Teacher | None:
    """The teacher of a phase: the one that its checkpoints name, if there are any, else the latest of `distill`.

    own: the phase's checkpoints; None where it has not begun. tokenizer: the fingerprint that it must have been trained
    with. Raises ConfigError where it is gone, or has another vocabulary or a shorter context.
    """
    if phase.distill is None:
        return None
    latest = None if own is None else own.latest()
    found = _found(config, phase, None if own is None or latest is None else own.meta(latest).teacher)
    meta = found.meta()
    _check(config, phase, meta, tokenizer)
    teaching = teaching_of(config, phase, meta.model)
    assert teaching is not None
    name = f"{found.phase.name}/{found.step}"
    return Teacher(name, teaching, found.params(meta.model, mesh), f"taught by {found}")


def teacher_model(config: Config, phase: Phase) -> ModelConfig | None:
    """The model of a teacher that is another run's; None where there is none, or the configuration says it."""
    if phase.distill in (None, "previous"):
        return None
    return _found(config, phase, None).meta().model


def _named(config: Config, phase: Phase) -> str | None:
    """What the phase's latest checkpoint, if it has one, says of its teacher."""
    folder = Path(config.run).expanduser() / FOLDER / phase.name
    step = last_step(folder)
    return None if step is None else Found(folder.parents[1], folder, step).meta().teacher


def _found(config: Config, phase: Phase, name: str | None) -> Found:
    """The checkpoint `name`, or else the latest, of what the phase's `distill` names."""
    assert phase.distill is not None
    field = f"phases.{phase.name}.distill"
    found = find(source_of(config, phase, phase.distill), field=field)
    if name is None:
        return found
    row, step = name.split("/")
    found = Found(found.run, found.phase.parent / row, int(step))
    if not (found.phase / step).is_dir():
        raise ConfigError(f"{field}={phase.distill!r}: {found}, which has taught this phase so far, is gone")
    return found


def _check(config: Config, phase: Phase, meta: Meta, tokenizer: str) -> None:
    field = f"phases.{phase.name}.distill"
    check_tokenizer(tokenizer, meta, f"{field}={phase.distill!r}")
    theirs, ours = meta.model, config.model_of(phase.name)
    allowed = f"is a model of {theirs.vocab_size} token ids; model.vocab_size is {ours.vocab_size}"
    require(theirs.vocab_size == ours.vocab_size, field, phase.distill, allowed)
    allowed = f"sees {theirs.context_length} tokens, fewer than data.length={config.data.length}"
    require(theirs.context_length >= config.data.length, field, phase.distill, allowed)
    require(theirs.num_classes is None, field, phase.distill, "is a classifier, which predicts no tokens")
