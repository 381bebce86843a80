"""Pruning: the modules of a pool that can go, and the smaller model without them.

The paper finds that half of the attention modules and a quarter of the FFN modules can be removed with comparable
quality. What is removed is what a prior of -inf forbids: with the modules forbidden, the full model's choices, weights
and losses are those of the pruned model, which has smaller pools, routers with fewer classes, and the same parameters
otherwise (`forbidden`, `prune`). Only the balance loss counts the classes that are there, and a `capacity_factor` room
by the modules that are there.

What stays is said by side and chunk: `Keep`. A side's pools have one size in all chunks: in a smaller model each has
lost as many.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from flax import nnx

from mom_jax.config import ChoiceConfig, ModelConfig, Side
from mom_jax.fields import ConfigError, require
from mom_jax.model import MoM, parameters, with_parameters
from mom_jax.routers import make_router, prior_table, router_class

Keep = Mapping[Side, Sequence[Sequence[int]]]  # by side, for each chunk: the modules that stay, ascending
Params = dict[Any, Any]


def everything(config: ModelConfig) -> dict[Side, list[list[int]]]:
    """The `Keep` that removes nothing."""
    return {side: [list(range(config.modules(side)))] * config.num_chunks for side in config.routed_sides}


def check_keep(config: ModelConfig, keep: Keep) -> None:
    """Raises ConfigError for a side without a router, a chunk too many or too few, modules that are not there, and
    pools of which nothing stays."""
    for side, chunks in keep.items():
        require(side in config.routed_sides, "keep", side, f"is not routed; {_routed(config)}")
        must = f"must name modules for each of {config.num_chunks} chunks"
        require(len(chunks) == config.num_chunks, f"keep.{side}", chunks, must)
        for modules in chunks:
            known = range(config.modules(side))
            good = list(modules) == sorted(set(modules)) and set(modules) <= set(known)
            require(good, f"keep.{side}", modules, f"must be modules from 0 to {len(known) - 1}, ascending")
            require(len(modules) > 0, f"keep.{side}", modules, "must leave a module")


def forbidden(config: ModelConfig, keep: Keep) -> dict[Side, np.ndarray]:
    """The prior that forbids all but `keep`, [S, H, C] float32 a routed side: `prior` of a model's call.

    Sides that `keep` does not name lose nothing. Raises ConfigError where a step would be left without any class.
    """
    check_keep(config, keep)
    priors = {}
    for side in config.routed_sides:
        modules, classes = config.modules(side), config.classes(side)
        tables = np.zeros((config.num_chunks, config.num_steps, classes), np.float32)
        for table, kept in zip(tables, keep.get(side, everything(config)[side]), strict=True):
            table[:, sorted(set(range(min(modules, classes))) - set(kept))] = -np.inf
        _check_allowed(side, tables if (own := _table(config, side)) is None else tables + own[None])
        priors[side] = tables
    return priors


def prune(config: ModelConfig, params: Params, keep: Keep) -> tuple[ModelConfig, Params]:
    """(configuration, parameters) of the model that has only the modules of `keep`.

    params: nested dictionaries as from `mom_jax.parameters`; arrays that lose nothing are taken as they are. Raises
    ConfigError for a `keep` that cannot be, and for models that only forbidding expresses (`pruned_config`).
    """
    small = pruned_config(config, keep)
    chunks = {}
    for s, chunk in params["chunks"].items():
        chunks[s] = dict(chunk)
        for side in config.routed_sides:
            kept = list(keep.get(side, everything(config)[side])[s])
            if kept != list(range(config.modules(side))):
                chunks[s][side] = {name: array[np.array(kept)] for name, array in chunk[side].items()}
            router = chunks[s].pop(f"{side}_router")
            if small.kind(side) == "routed":
                source = _sources(config, side, kept, small.classes(side))
                chunks[s][f"{side}_router"] = _cut(config, small, side, router, source)
    return small, {**params, "chunks": chunks}


def prune_model(model: MoM, keep: Keep) -> MoM:
    """`prune` of a model."""
    return with_parameters(*prune(model.config, parameters(model), keep))


def pruned_config(config: ModelConfig, keep: Keep) -> ModelConfig:
    """The configuration of the model that has only the modules of `keep`.

    SKIP and null classes stay, behind the modules. A prior, a preference and `ordered_or_skip` become an explicit table
    of the classes that stay. `top_k` is cut to the classes that are left. Where both sides' routers must have as many
    classes for that, or for the nulls of `router.classes`, the table forbids what is too many.

    Raises ConfigError where a side's pool of one module would lose its router and that changes the model, where chunks
    would need different tables, for annealed preferences (`config.at_step` fixes them), where there are more null
    classes than the smaller routers could have, and for kinds of routers in which a module's logit depends on which
    others there are.
    """
    check_keep(config, keep)
    for side, chunks in keep.items():
        alike = len({len(modules) for modules in chunks}) == 1
        require(alike, f"keep.{side}", chunks, "must leave as many in every chunk")
    prunable = not config.routed_sides or router_class(config).prunable
    allowed = "gives a module that goes to the others and not to SKIP, which forbidding it does not"
    require(prunable, "router.kind", config.router.kind, allowed)
    counts = {side: len(keep[side][0]) if side in keep else config.modules(side) for side in config.routed_sides}
    left = {side: n + config.classes(side) - config.modules(side) for side, n in counts.items()}  # classes
    for side, n in counts.items():
        anneal = getattr(config, side).anneal_steps
        require(not anneal, f"{side}.anneal_steps", anneal, "must be 0 for pruning (config.at_step)")
        # The queries and keys of a module that goes would have to stay.
        values = side == "attention" and config.routes_values and n < config.modules(side)
        require(not values, "attention.routes", config.attention.routes, "must be 'all' for pruning attention modules")
        # Where no other class is left, its weight is 1 all the same, but for a raw score or a scale.
        unscaled = config.weights(side) != "raw" and getattr(config, side).scale == 1
        alone = n > 1 or (left[side] == 1 and unscaled)
        allowed = f"must be at least 2 of {config.modules(side)}: a pool of one module has no router, SKIP or weight"
        require(alone, f"modules of {side}", n, allowed)
    routed = {side: count for side, count in left.items() if counts[side] > 1}
    top_k = config.top_k if config.router.all_modules else min(config.top_k, max(routed.values(), default=1))
    small = _sized(config, counts, routed, top_k)
    choices: Any = {side: _choice(config, keep, side, small.classes(side)) for side in routed}
    return dataclasses.replace(small, top_k=top_k, **choices)


def _sized(config: ModelConfig, counts: Mapping[Side, int], left: Mapping[Side, int], top_k: int) -> ModelConfig:
    """`config` with so many modules, and routers that have the classes `left` and `top_k`, and as few more as can be;
    priors and `top_k` are still to be set."""
    fields: Any = dict.fromkeys(counts, ChoiceConfig()) | {_FIELD[side]: n for side, n in counts.items()} | {"top_k": 1}
    options = []
    for classes in dict.fromkeys((config.router.classes, "own", "max", "ffn")):
        try:
            option = dataclasses.replace(config, **fields, router=dataclasses.replace(config.router, classes=classes))
        except ConfigError:  # too few classes for the modules
            continue
        more = [option.classes(side) - own for side, own in left.items()]
        room = config.router.all_modules or all(option.classes(side) >= top_k for side in left)
        if room and min(more, default=0) >= 0:
            options.append((sum(more), option))
    if not options:
        have = ", ".join(f"{own} for {side}'s {counts[side]} modules" for side, own in left.items())
        allowed = f"no smaller routers have the classes that are left: {have}"
        raise ConfigError(f"router.classes={config.router.classes!r}: {allowed}")
    return min(options, key=lambda option: option[0])[1]


# Which modules go first.


def needs_same(config: ModelConfig, side: Side) -> bool:
    """Whether all chunks must keep the same modules: they share the side's prior."""
    return config.num_chunks > 1 and _table(config, side) is not None


def lowest_first(scores_SxN: np.ndarray, *, same: bool = False) -> list[list[int]]:
    """For each chunk its modules in the order in which they go, the lowest score first. same: one order for all chunks,
    by the sums."""
    scores = np.asarray(scores_SxN, np.float64)
    if same:
        scores = np.broadcast_to(scores.sum(0, keepdims=True), scores.shape)
    return [[int(m) for m in np.argsort(row, kind="stable")] for row in scores]


def most_redundant_first(similarity_SxNxN: np.ndarray, *, same: bool = False) -> list[list[int]]:
    """The same by similarity (symmetric, larger is more alike): of the two modules that are the most alike the one goes
    that is more like all others that are left, and so on. same: by the mean over chunks."""
    similarity = np.asarray(similarity_SxNxN, np.float64)
    if same:
        similarity = np.broadcast_to(similarity.mean(0, keepdims=True), similarity.shape)
    return [_most_redundant_first(matrix) for matrix in similarity]


def keep_after(orders: Sequence[Sequence[int]], cut: int) -> list[list[int]]:
    """For each chunk what stays when the first `cut` modules of its order go, ascending."""
    return [sorted(order[cut:]) for order in orders]


def _most_redundant_first(similarity: np.ndarray) -> list[int]:
    order, rest = [], list(range(len(similarity)))
    while len(rest) > 1:
        own = similarity[np.ix_(rest, rest)].copy()
        np.fill_diagonal(own, -np.inf)
        pair = np.unravel_index(np.argmax(own), own.shape)
        np.fill_diagonal(own, 0.0)
        order.append(rest.pop(max(pair, key=lambda i: (own[i].sum(), i))))
    return order + rest


# What the smaller model's routers have.

_FIELD: dict[Side, str] = {"attention": "num_attn_modules", "ffn": "num_ffn_modules"}


def _routed(config: ModelConfig) -> str:
    sides = " and ".join(config.routed_sides)
    return f"routers have {sides} only" if sides else "this model has no routers"


def _table(config: ModelConfig, side: Side) -> np.ndarray | None:
    """The side's own prior, [H, C]; None where it is 0."""
    table = prior_table(config, side)
    return None if table is None or not np.any(table) else np.asarray(table)


def _sources(config: ModelConfig, side: Side, kept: Sequence[int], classes: int) -> list[int]:
    """For each of the smaller router's classes the class that it was, or -1: the modules, then what is too many, then
    the null classes, of which SKIP is the last."""
    nulls = list(range(config.modules(side), config.classes(side)))
    return [*kept, *[-1] * (classes - len(kept) - len(nulls)), *nulls]


def _cut(config: ModelConfig, small: ModelConfig, side: Side, router: Params, source: Sequence[int]) -> Params:
    """A router's parameters with the classes `source` along every axis of that name.

    Raises ConfigError where the smaller router has other shapes, as where an axis of classes has another name.
    """

    def abstract(config: ModelConfig) -> dict[Any, nnx.Param]:
        made = nnx.eval_shape(lambda: make_router(config, side, rngs=nnx.Rngs(0)))
        return dict(nnx.to_flat_state(nnx.state(made, nnx.Param)))

    now, later = abstract(config), abstract(small)
    flat = dict(nnx.traversals.flatten_mapping(router))
    for path, array in flat.items():
        for axis, name in enumerate(now[path].axes):
            if name == "classes":
                array = _take(array, axis, source)
        shape, allowed = later[path].whole, "its axis of classes must have the name 'classes' for pruning"
        require(array.shape == shape, f"router.kind={config.router.kind!r}, {'.'.join(path)}", array.shape, allowed)
        flat[path] = array
    # A step's own module or SKIP has become a table of what is free to choose.
    flat |= {path: np.zeros(param.whole, np.float32) for path, param in later.items() if path not in flat}
    return dict(nnx.traversals.unflatten_mapping(flat))


def _take(array: Any, axis: int, source: Sequence[int]) -> Any:
    """The entries `source` along an axis, 0 where it is -1."""
    index = np.array(source)
    taken = array.take(np.maximum(index, 0), axis)
    if min(source) >= 0:
        return taken
    there = np.asarray(index >= 0, taken.dtype)
    return taken * there.reshape((1,) * axis + (-1,) + (1,) * (taken.ndim - 1 - axis))


def _choice(config: ModelConfig, keep: Keep, side: Side, classes: int) -> ChoiceConfig:
    """The choice of the smaller model's side, whose router has so many classes."""
    choice: ChoiceConfig = getattr(config, side)
    chunks = [list(kept) for kept in keep.get(side, everything(config)[side])]
    if classes == config.classes(side) and chunks == everything(config)[side]:
        return choice
    if choice.top_k is not None:
        choice = dataclasses.replace(choice, top_k=min(choice.top_k, classes))
    own = _table(config, side)
    if own is None:
        own = np.zeros((config.num_steps, config.classes(side)), np.float32)
    tables = []
    for kept in chunks:
        source = np.array(_sources(config, side, kept, classes))
        tables.append(np.where(source[None] >= 0, own[:, np.maximum(source, 0)], -np.inf))
    _check_allowed(side, np.stack(tables))
    alike = all(np.array_equal(table, tables[0]) for table in tables)
    require(alike, f"keep.{side}", chunks, "must be the same modules in all chunks, which share a prior")
    prior = tuple(map(tuple, tables[0].tolist())) if np.any(tables[0]) else None
    # What a schedule says of choices is in the table.
    schedule = choice.schedule if choice.routes == "values" else None
    free: dict[str, Any] = {"choice": "free", "schedule": schedule, "preference": 0.0, "skip_preference": 0.0}
    return dataclasses.replace(choice, **free, prior=prior)


def _check_allowed(side: Side, tables: np.ndarray) -> None:
    """Raises ConfigError where a row of the tables [S, H, C] forbids all."""
    for h in np.flatnonzero(np.isneginf(tables).all(-1).any(0)):
        raise ConfigError(f"keep.{side}: leaves step {h} no class that the prior allows")
