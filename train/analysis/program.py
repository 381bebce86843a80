"""What `train.analyse` does: measures checkpoints, and puts the figures into records, tables and pictures."""

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from mom_jax.analysis import paths
from mom_jax.analysis.routes import Routes
from mom_jax.analysis.specialisation import Specialisation, measure
from mom_jax.config import Side
from mom_jax.fields import require
from train.analysis import prune_curve
from train.analysis.opened import Opened, TextFlags, open_checkpoint
from train.analysis.prune_curve import PruneCurve
from train.analysis.removal import Removal, first_tokens
from train.cli import notify
from train.data.tokenizers import Tokenizer, pieces
from train.files import write_whole, writing

PATHS = 10  # how many of the frequent paths are listed


@dataclasses.dataclass(frozen=True)
class Analysed:
    """A checkpoint's figures: `facts` and plain numbers in `record`, and what they were made of. curve: where it was
    asked for."""

    name: str
    record: dict[str, Any]
    found: Specialisation
    curve: PruneCurve | None = None


def analyse(
    checkpoints: Sequence[str], flags: TextFlags, *, best: bool, mesh: Mesh, curves: bool = False
) -> list[Analysed]:
    """Measures checkpoints one after the other, so that one at a time is in memory.

    curves: also the loss against the modules that are cut. What is wrong with any of them raises ConfigError before the
    first is measured.
    """
    if len(checkpoints) > 1:
        for name in checkpoints:
            _check_routed(open_checkpoint(name, flags, best=best, mesh=mesh), curves)
    result: list[Analysed] = []
    for name in checkpoints:
        opened = open_checkpoint(name, flags, best=best, mesh=mesh)
        _check_routed(opened, curves)
        notify(f"{name}: {opened.facts['description']}")
        if not opened.config.routed_sides:
            notify(f"{name}: has no routers: only the similarity of its layers can be told")
        result.append(_analyse(opened, flags, mesh, curves))
    for before, after in itertools.pairwise(result):
        if (shares := agreement(before.found.routes, after.found.routes)) is not None:
            after.record["differs_from_the_one_before"] = shares
    return result


def _check_routed(opened: Opened, curves: bool) -> None:
    routed = bool(opened.config.routed_sides) or not curves
    require(routed, "checkpoint", opened.name, "has no routers, and so no modules to cut for --prune-curve")


def _analyse(opened: Opened, flags: TextFlags, mesh: Mesh, curves: bool) -> Analysed:
    batches = first_tokens(opened.text, flags.tokens) if curves else []  # the curve reads the text again and again
    step = opened.facts.get("step")
    found = measure(opened.params, opened.config, batches or opened.text, limit=flags.tokens, mesh=mesh, step=step)
    routes = found.routes
    losses = routes.loss_T[~np.isnan(routes.loss_T)]
    record = {
        **opened.facts,
        "tokens": routes.tokens,
        "loss": float(losses.mean()) if len(losses) else None,
        **found.record(),
    }
    record.pop("churn", None)  # of one checkpoint there is none
    if routes.sides:
        record |= _of_routes(routes, opened.tokenizer)
    curve = None
    if curves:
        notify(f"{opened.name}: the loss with modules removed")
        # Ranked on one half of the text and measured on the other.
        halves = (batches[::2], batches[1::2]) if len(batches) > 1 else (batches, batches)
        ranked, removal = (Removal(opened.params, opened.config, half, mesh=mesh) for half in halves)
        curve = prune_curve.measure(removal, ranked=ranked)
        record["prune_curve"] = curve.record()
    return Analysed(opened.name, record, found, curve)


def _of_routes(routes: Routes, tokenizer: Tokenizer | None) -> dict[str, Any]:
    """What paths.py tells."""
    distribution = dataclasses.asdict(paths.path_distribution(routes, most=PATHS))
    texts = None if tokenizer is None else pieces(tokenizer, routes.ids_T.tolist())
    classes = {"frequency": paths.frequency_bands(routes), "position": paths.position_bands(routes)}
    if texts is not None:
        classes["kind"] = paths.token_kinds(routes, texts)
    return {
        "usage": {side: np.round(table, 4).tolist() for side, table in paths.usage(routes).items()},
        "paths": distribution,
        "transitions": {side: np.round(table, 4).tolist() for side, table in paths.transitions(routes).items()},
        "token_classes": {name: paths.usage_by_class(routes, own) for name, own in classes.items()},
    }


def agreement(before: Routes, after: Routes) -> dict[Side, float] | None:
    """The shares of best choices that differ between two models on the same tokens; None where the tokens or the pools
    are not the same, so that there is nothing to compare."""
    shape = {side: (own.top.shape, own.modules) for side, own in before.sides.items()}
    same = shape == {side: (own.top.shape, own.modules) for side, own in after.sides.items()}
    if not before.sides or not same or not np.array_equal(before.ids_T, after.ids_T):
        return None
    return paths.churn(before.tops, after.tops)


def write_pictures(analysed: Sequence[Analysed], output: Path) -> list[Path]:
    """Draws the figures into the folder. Raises ConfigError where files cannot be written."""
    from train.analysis import pictures  # and matplotlib, which takes a second

    drawn = {"analysis_modules.png": pictures.modules(analysed)}
    routed = [own for own in analysed if own.found.routes.sides]
    if routed:
        drawn["analysis_routing.png"] = pictures.routing(routed)
    cut = [own.curve for own in analysed if own.curve is not None]
    if cut:
        drawn["analysis_pruning.png"] = pictures.pruning(cut)
    with writing(output):
        output.mkdir(parents=True, exist_ok=True)
        for name, content in drawn.items():
            write_whole(output / name, content)
    return [output / name for name in drawn]
