"""The explorer's data: the routes of a text as plain numbers and strings, which JSON can hold."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mom_jax.analysis.paths import depth
from mom_jax.analysis.routes import Routes, SideRoutes
from mom_jax.config import SIDES, ModelConfig, Side
from mom_jax.fields import require

VERSION = 1
_UNIT = 1000  # losses and weights are whole numbers of thousandths: short to write, and finer than anybody reads


def explorer_data(routes: Routes, pieces: Sequence[str], config: ModelConfig | None = None) -> dict[str, Any]:
    """The routes of a text and the text itself, for `Explorer`.

    pieces: the text of every token of `routes`, in its order. config: of the model that chose; with it the classes
    without a module have their names, else all of them are SKIP.

    Returns `version`; `tokens`, T; `vocabulary`, the different pieces, and `piece`, [T], which of them a token is;
    `position`, [T]; `windows`, the first token of every window; `loss`, [T], thousandths of a nat, None where unknown;
    `depth`, [T], modules taken over all steps, and `most_depth`; `steps`, how many a chunk has; and by side in `sides`:
    `modules`, N; `classes`, their names; `choices`, K; `index` and `weight` (thousandths), lists of S·H·T·K numbers, a
    step's after the other's and within a step a token's.

    Raises ConfigError where the numbers of pieces and tokens differ.
    """
    tokens = len(routes.ids_T)
    require(len(pieces) == tokens, "pieces", len(pieces), f"there must be one for each of the {tokens} tokens")
    places: dict[str, int] = {}
    depths = depth(routes)
    starts = [0, *(np.flatnonzero(np.diff(routes.window_T)) + 1).tolist()] if tokens else []
    return {
        "version": VERSION,
        "tokens": tokens,
        "piece": [places.setdefault(piece, len(places)) for piece in pieces],
        "vocabulary": list(places),
        "position": routes.position_T.tolist(),
        "windows": starts,
        "loss": [round(_UNIT * float(loss)) if np.isfinite(loss) else None for loss in routes.loss_T],
        "depth": depths.per_token.tolist(),
        "most_depth": depths.most,
        "steps": config.num_steps if config is not None else routes.steps,
        "sides": {side: _side(routes.sides[side], config, side) for side in SIDES if side in routes.sides},
    }


def _side(routes: SideRoutes, config: ModelConfig | None, side: Side) -> dict[str, Any]:
    return {
        "modules": routes.modules,
        "classes": class_names(routes, config, side),
        "choices": routes.index.shape[-1],
        "index": routes.index.ravel().tolist(),
        "weight": np.rint(_UNIT * np.nan_to_num(routes.weight.astype(np.float64))).astype(np.int64).ravel().tolist(),
    }


def class_names(routes: SideRoutes, config: ModelConfig | None, side: Side) -> list[str]:
    """Modules by number; SKIP, the last of a router's classes; `null` for others without a module, and for a choice
    that the prior forbade."""
    most = max(routes.modules, int(routes.index.max(initial=0)) + 1)
    names = [str(module) for module in range(routes.modules)]
    if config is None:
        return names + ["SKIP"] * (most - routes.modules)
    last = config.classes(side) - 1
    classes = range(routes.modules, max(most, last + 1))
    return names + ["SKIP" if config.skip and i == last else "null" for i in classes]


def is_explorer_data(value: object) -> bool:
    """Whether it is what `explorer_data` of this version returns, as far as its page relies on it."""
    if not isinstance(value, dict) or value.get("version") != VERSION:
        return False
    sides = value.get("sides")
    lists = all(
        isinstance(value.get(name), list) for name in ("piece", "vocabulary", "position", "windows", "loss", "depth")
    )
    numbers = all(type(value.get(name)) is int for name in ("tokens", "steps", "most_depth"))
    if not lists or not numbers or not isinstance(sides, dict):
        return False
    per_token = all(len(value[name]) == value["tokens"] for name in ("piece", "position", "loss", "depth"))
    return per_token and all(name in SIDES and _is_side(side, value["tokens"]) for name, side in sides.items())


def _is_side(side: object, tokens: int) -> bool:
    if not isinstance(side, dict) or type(side.get("modules")) is not int or type(side.get("choices")) is not int:
        return False
    index, weight = side.get("index"), side.get("weight")
    if not isinstance(side.get("classes"), list) or not isinstance(index, list) or not isinstance(weight, list):
        return False
    a_step = tokens * side["choices"]
    return len(index) == len(weight) and (len(index) % a_step == 0 if a_step else not index)


def same_text(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two models' data are of the same tokens, so that a token's paths can stand side by side."""
    return all(one[name] == other[name] for name in ("piece", "vocabulary", "windows"))
