"""Where a phase's state comes from. The precedence, in one place:

1. the phase's own checkpoint: the same command was run before and was interrupted;
2. `resume`: another run's checkpoint of the phase of the same name, optimizer and position in the data included;
3. `init_from`: parameters only, of the phase before, or of any run;
4. scratch.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import optax
from flax import nnx
from jax.sharding import Mesh

from mom_jax.config import ModelConfig
from mom_jax.fields import ConfigError, require
from mom_jax.interop.phases import from_vanilla
from mom_jax.model import MoM, parameters
from train.checkpoints.locate import FOLDER, check_tokenizer, find, last_step, source_of
from train.checkpoints.manager import Checkpoints
from train.checkpoints.run_config import read_config
from train.config import Config, Phase
from train.numbers import Remembered
from train.steps.numbers.finite import check_finite
from train.steps.optimizer import check_patterns
from train.steps.optimizer.names import path_name
from train.steps.state import TrainState, abstract_params, abstract_state, init_state


@dataclasses.dataclass(frozen=True)
class InitialState:
    """examples_seen: how many examples of the data were used before. messages: for the user. remembered: what is known
    of the numbers up to here."""

    state: TrainState
    examples_seen: int
    messages: list[str]
    remembered: Remembered = Remembered()


def fresh_params(config: ModelConfig, seed: int, mesh: Mesh) -> dict[Any, Any]:
    """Newly initialised parameters, the same on every mesh; each device makes its part."""
    return _jit_placed(lambda: parameters(MoM(config, rngs=nnx.Rngs(seed))), abstract_params(config, mesh))()


def completed(params: dict[Any, Any], config: ModelConfig, seed: int) -> dict[Any, Any]:
    """Parameters of which some are shapes only: these are initialised, no others."""
    leaves, structure = jax.tree.flatten(params)
    missing = [i for i, leaf in enumerate(leaves) if isinstance(leaf, jax.ShapeDtypeStruct)]

    @jax.jit
    def fresh() -> list[jax.Array]:
        whole = jax.tree.leaves(parameters(MoM(config, rngs=nnx.Rngs(seed))))
        return [whole[i] for i in missing]

    for i, leaf in zip(missing, fresh(), strict=True):
        leaves[i] = leaf
    return jax.tree.unflatten(structure, leaves)


def _jit_placed(function: Callable, like: Any) -> Any:
    """`function` compiled, its results where `like` lies."""
    return jax.jit(function, out_shardings=jax.tree.map(lambda leaf: leaf.sharding, like))


def initial_state(
    config: Config,
    phase: Phase,
    optimizer: optax.GradientTransformation,
    own: Checkpoints,
    tokenizer: str,
    mesh: Mesh,
) -> InitialState:
    """The state from which the phase goes on, on `mesh`, wherever a checkpoint comes from.

    tokenizer: the fingerprint that a checkpoint must have been trained with.

    Raises ConfigError for a checkpoint of another model or another tokenizer, or with numbers that are none.
    """
    model = config.model_of(phase.name)
    latest = own.latest()
    if latest is not None:
        meta = own.meta(latest)
        check_tokenizer(tokenizer, meta, f"data.source={config.data.source!r}")
        state = own.restore(latest, abstract_state(model, optimizer, mesh))
        check_finite(state, f"{own.folder / str(latest)}")
        own.seal(latest)  # of an older version, or of a run that was killed just before it would have been
        return InitialState(state, meta.examples_seen, [f"resuming at step {latest}"], meta.watch)
    if config.resume is not None:
        folder = Path(config.resume).expanduser() / FOLDER / phase.name
        if last_step(folder) is not None:
            return _resumed(config, phase, model, abstract_state(model, optimizer, mesh), folder, tokenizer)
    params, messages, seen = fresh_params(model, config.seed, mesh), ["starting from scratch"], 0
    if phase.init_from != "scratch":
        source = source_of(config, phase, phase.init_from)
        params, seen, messages = _initialised(source, phase, model, params, tokenizer, mesh)
    return InitialState(first_state(params, model, optimizer, mesh), seen, messages)


def first_state(
    params: dict[Any, Any], model: ModelConfig, optimizer: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
    """A state before its first step, placed like a restored one, all of it: a state that is placed in part compiles the
    step twice."""
    return _jit_placed(lambda params: init_state(params, optimizer), abstract_state(model, optimizer, mesh))(params)


def check_sources(config: Config, tokenizer: str) -> None:
    """Raises ConfigError for a `resume`, an `init_from` or parameter patterns that cannot be; nothing is written."""
    if config.resume is not None:
        theirs = read_config(Path(config.resume).expanduser(), "resume")
        names = [row.name for row in config.phases]
        if not {row.name for row in theirs.phases} & set(names):
            raise ConfigError(f"resume={config.resume!r}: has none of the phases {names}")
    for i, phase in enumerate(config.phases):
        model = config.model_of(phase.name)
        leaves = jax.tree_util.tree_leaves_with_path(abstract_params(model))
        check_patterns(phase.optim, [path_name(path) for path, _ in leaves], f"phases.{phase.name}.optim")
        own = Path(config.run).expanduser() / FOLDER / phase.name
        if phase.init_from == "scratch" or own.is_dir():
            continue
        name = f"phases.{phase.name}.init_from"
        if phase.init_from == "previous":
            source = config.model_of(config.phases[i - 1].name)
        else:
            meta = find(phase.init_from, field=name).meta()
            check_tokenizer(tokenizer, meta, f"{name}={phase.init_from!r}")
            source = meta.model
        if not _same_model(source, model):
            shapes = abstract_params(source), abstract_params(model)
            jax.eval_shape(lambda a, b, theirs=source, ours=model: from_vanilla(theirs, a, ours, b)[0], *shapes)


def _resumed(
    config: Config,
    phase: Phase,
    model: ModelConfig,
    like: TrainState,
    folder: Path,
    tokenizer: str,
) -> InitialState:
    found = find(folder, field="resume")
    meta = found.meta()
    check_tokenizer(tokenizer, meta, f"resume={config.resume!r}")
    theirs = meta.config.model_of(meta.phase)
    if theirs != model:
        raise ConfigError(f"resume={config.resume!r}: phase {phase.name!r} there trains another model")
    [row] = [row for row in meta.config.phases if row.name == meta.phase]
    # What the optimizer's state consists of.
    fields = ("optimizer", "freeze", "freeze_until", *(["beta1"] if phase.optim.optimizer == "adafactor" else []))
    for field in fields:
        theirs_is, ours_is = getattr(row.optim, field), getattr(phase.optim, field)
        allowed = f"must be as in resume={config.resume!r}, {theirs_is!r}"
        require(theirs_is == ours_is, f"phases.{phase.name}.optim.{field}", ours_is, allowed)
    if meta.step > phase.steps:
        raise ConfigError(f"resume={config.resume!r}: is at step {meta.step}, past this phase's {phase.steps} steps")
    checkpoints = Checkpoints(folder, read_only=True)
    try:
        state = checkpoints.restore(meta.step, like)
    finally:
        checkpoints.close()
    check_finite(state, f"{found}")
    return InitialState(state, meta.examples_seen, [f"resuming from {found}"], meta.watch)


def _initialised(
    source: str, phase: Phase, model: ModelConfig, fresh: dict[Any, Any], tokenizer: str, mesh: Mesh
) -> tuple[dict[Any, Any], int, list[str]]:
    """(parameters, examples seen, messages) from the checkpoint that `source` names."""
    name = f"phases.{phase.name}.init_from={phase.init_from!r}"
    found = find(source, field=name.split("=")[0])
    meta = found.meta()
    check_tokenizer(tokenizer, meta, name)
    params = found.params(meta.model, mesh)
    messages = [f"starting from {found}"]

    def take(params: dict[Any, Any], fresh: dict[Any, Any]) -> dict[Any, Any]:
        taken, dropped = taken_over(meta.model, params, model, fresh)
        messages.extend(dropped)
        return taken

    same = _same_model(meta.model, model)
    taken = params if same else _jit_placed(take, abstract_params(model, mesh))(params, fresh)
    # The data goes on where the phase before left it; another run's position means nothing here.
    return taken, meta.examples_seen if phase.init_from == "previous" else 0, messages


def taken_over(
    theirs: ModelConfig, params: dict[Any, Any], ours: ModelConfig, fresh: dict[Any, Any]
) -> tuple[dict[Any, Any], list[str]]:
    """(the parameters with which `ours` begins, messages) from those of `theirs`, which is the same model or its
    vanilla counterpart. fresh: new parameters of `ours`, for what the other lacks."""
    return (params, []) if _same_model(theirs, ours) else from_vanilla(theirs, params, ours, fresh)


def _same_model(theirs: ModelConfig, ours: ModelConfig) -> bool:
    """Whether parameters can be taken over as they are."""
    fields = ("num_heads", "activation", "layer_norm_epsilon")
    same = all(getattr(theirs, field) == getattr(ours, field) for field in fields)
    return same and abstract_params(theirs) == abstract_params(ours)
