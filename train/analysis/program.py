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
from train.analysis.opened import Opened, TextFlags, open_checkpoint
from train.cli import notify
from train.data.tokenizers import Tokenizer, pieces
from train.files import write_whole, writing

PATHS = 10  # how many of the frequent paths are listed


@dataclasses.dataclass(frozen=True)
class Analysed:
    """A checkpoint's figures: `facts` and plain numbers in `record`, and what they were made of."""

    name: str
    record: dict[str, Any]
    found: Specialisation


def analyse(checkpoints: Sequence[str], flags: TextFlags, *, best: bool, mesh: Mesh) -> list[Analysed]:
    """Measures checkpoints one after the other, so that one at a time is in memory.

    What is wrong with any of them raises ConfigError before the first is measured.
    """
    if len(checkpoints) > 1:
        for name in checkpoints:
            open_checkpoint(name, flags, best=best, mesh=mesh)
    result: list[Analysed] = []
    for name in checkpoints:
        opened = open_checkpoint(name, flags, best=best, mesh=mesh)
        notify(f"{name}: {opened.facts['description']}")
        if not opened.config.routed_sides:
            notify(f"{name}: has no routers: only the similarity of its layers can be told")
        result.append(_analyse(opened, flags, mesh))
    for before, after in itertools.pairwise(result):
        if (shares := agreement(before.found.routes, after.found.routes)) is not None:
            after.record["differs_from_the_one_before"] = shares
    return result


def _analyse(opened: Opened, flags: TextFlags, mesh: Mesh) -> Analysed:
    step = opened.facts.get("step")
    found = measure(opened.params, opened.config, opened.text, limit=flags.tokens, mesh=mesh, step=step)
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
    return Analysed(opened.name, record, found)


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
    return paths.churn(before, after)


def write_pictures(analysed: Sequence[Analysed], output: Path) -> list[Path]:
    """Draws the figures into the folder. Raises ConfigError where files cannot be written."""
    from train.analysis import pictures  # and matplotlib, which takes a second

    drawn = {"analysis_modules.png": pictures.modules(analysed)}
    routed = [own for own in analysed if own.found.routes.sides]
    if routed:
        drawn["analysis_routing.png"] = pictures.routing(routed)
    with writing(output):
        output.mkdir(parents=True, exist_ok=True)
        for name, content in drawn.items():
            write_whole(output / name, content)
    return [output / name for name in drawn]
