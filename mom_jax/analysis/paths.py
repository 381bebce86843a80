"""Paths: which modules tokens pass through from step to step, how deep they go, and which tokens go where."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mom_jax.analysis.dependence import entropy
from mom_jax.analysis.routes import Routes
from mom_jax.config import SIDES, Side


@dataclasses.dataclass(frozen=True)
class Choice:
    """One of a token's choices. module: None for a null, as SKIP."""

    module: int | None
    weight: float


@dataclasses.dataclass(frozen=True)
class Depth:
    """Effective depth: modules that a token takes over all steps, both sides together; a side that is not routed takes
    one a step. per_token: [T] int32. most: as many as a token could take."""

    per_token: np.ndarray
    most: int

    def record(self) -> dict[str, Any]:
        """mean, min, max, and `histogram`: the share of tokens with 0, 1, ..., `most` modules."""
        counts = np.bincount(self.per_token, minlength=self.most + 1)
        return {
            "mean": float(self.per_token.mean()),
            "min": int(self.per_token.min()),
            "max": int(self.per_token.max()),
            "histogram": (counts / counts.sum()).tolist(),
        }


@dataclasses.dataclass(frozen=True)
class Path:
    """A path and how many tokens take it. choices: of each step, in the order of the computation, one module a routed
    side (None for a null); count: tokens; share: of all tokens."""

    choices: tuple[int | None, ...]
    count: int
    share: float


@dataclasses.dataclass(frozen=True)
class PathDistribution:
    """sides: whose best choices a path is made of, at each step in this order. distinct: different paths among the
    tokens. entropy: of the distribution, nats, a plug-in estimate that is log(tokens) at most. top: the most frequent
    paths."""

    sides: tuple[Side, ...]
    distinct: int
    entropy: float
    tokens: int
    top: tuple[Path, ...]


def depth(routes: Routes) -> Depth:
    """How deep each token goes."""
    plain = routes.steps * (len(SIDES) - len(routes.sides))
    per_token = np.full(routes.tokens, plain, np.int32)
    most = plain
    for own in routes.sides.values():
        per_token = per_token + own.real.sum(0, dtype=np.int32)
        most += routes.steps * min(own.index.shape[-1], own.modules)
    return Depth(per_token, most)


def token_path(routes: Routes, token: int) -> list[dict[Side, list[Choice]]]:
    """What one token took at each step on each routed side, best first."""
    steps: list[dict[Side, list[Choice]]] = [{} for _ in range(routes.steps)]
    for side, own in routes.sides.items():
        for step, (index, weight) in enumerate(zip(own.index[:, token], own.weight[:, token], strict=True)):
            pairs = zip(index.tolist(), weight.tolist(), strict=True)
            steps[step][side] = [Choice(i if i < own.modules else None, w) for i, w in pairs]
    return steps


def path_distribution(routes: Routes, *, most: int = 10) -> PathDistribution:
    """How tokens spread over paths of best choices. most: how many of the frequent paths are listed."""
    sides = tuple(side for side in SIDES if side in routes.sides)
    tops = np.stack([routes.sides[side].top for side in sides], 1)  # [S·H, sides, T]
    modules = [routes.sides[side].modules for side in sides]
    found, inverse, counts = np.unique(
        tops.reshape(-1, routes.tokens).T, axis=0, return_inverse=True, return_counts=True
    )
    order = np.argsort(-counts, kind="stable")[:most]

    def path(row: np.ndarray) -> tuple[int | None, ...]:
        return tuple(int(c) if c < modules[i % len(sides)] else None for i, c in enumerate(row))

    top = tuple(Path(path(found[i]), int(counts[i]), float(counts[i] / routes.tokens)) for i in order)
    return PathDistribution(sides, len(found), entropy(inverse), routes.tokens, top)


def usage(routes: Routes) -> dict[Side, np.ndarray]:
    """Of each routed side, [S·H, N + 1]: the share of a step's choices, all K of them, that fall on each module and,
    last, on nulls."""
    return {side: np.stack([_shares(index, own.modules) for index in own.index]) for side, own in routes.sides.items()}


def _shares(index: np.ndarray, modules: int) -> np.ndarray:
    return np.bincount(np.minimum(index, modules).ravel(), minlength=modules + 1) / max(index.size, 1)


def transitions(routes: Routes) -> dict[Side, np.ndarray]:
    """Of each routed side, [S·H - 1, N + 1, N + 1]: of the tokens whose best choice at a step is the row, the share
    that takes the column at the next step; the last class stands for all nulls. Rows that no token takes are 0."""
    result: dict[Side, np.ndarray] = {}
    for side, own in routes.sides.items():
        classes, top = own.modules + 1, own.top
        pairs = top[:-1] * classes + top[1:]
        counts = np.array([np.bincount(row, minlength=classes**2) for row in pairs], np.float64)
        counts = counts.reshape(-1, classes, classes)
        result[side] = counts / np.maximum(counts.sum(-1, keepdims=True), 1)
    return result


def churn(before: Mapping[Side, np.ndarray], after: Mapping[Side, np.ndarray]) -> dict[Side, float]:
    """Of each routed side the share of best choices (`Routes.tops`) that differ between two captures of the same
    tokens."""
    return {side: float((top != after[side]).mean()) for side, top in before.items()}


@dataclasses.dataclass(frozen=True)
class TokenClasses:
    """A division of tokens. names: of the classes. of_token: [T] int, each token's class."""

    names: tuple[str, ...]
    of_token: np.ndarray


def frequency_bands(routes: Routes, counts_V: np.ndarray | None = None, *, bands: int = 4) -> TokenClasses:
    """Tokens by how frequent their ids are: the most frequent ids that make up the first of so many equal shares of the
    text, those of the next, and so on. counts_V: how often ids occur in a larger text; by default in this one."""
    if counts_V is None:
        counts_V = np.bincount(routes.ids_T)
    counts = np.asarray(counts_V, np.float64)[: int(routes.ids_T.max()) + 1]
    order = np.argsort(-counts, kind="stable")
    before = np.cumsum(counts[order]) - counts[order]
    band = np.empty(len(counts), np.int64)
    band[order] = np.minimum(before / max(counts.sum(), 1) * bands, bands - 1).astype(np.int64)
    names = [f"{100 * i // bands}-{100 * (i + 1) // bands} % of the text by frequent ids" for i in range(bands)]
    return TokenClasses(tuple(names), band[routes.ids_T])


def position_bands(routes: Routes) -> TokenClasses:
    """Tokens by their place in the sequence: 0, 1, 2-3, 4-7, ..."""
    band = np.where(routes.position_T > 0, np.floor(np.log2(np.maximum(routes.position_T, 1))) + 1, 0).astype(int)
    starts = [0, *(2**i for i in range(int(band.max(initial=0))))]
    names = [f"{start}" if start < 2 else f"{start}-{2 * start - 1}" for start in starts]
    return TokenClasses(tuple(names), band)


KINDS = ("word start", "continuation", "number", "punctuation", "whitespace", "other")


def token_kinds(routes: Routes, pieces: Sequence[str]) -> TokenClasses:
    """Tokens by what they are of a text. pieces: each of the T tokens' own text, white space included (not a
    tokenizer's marks for it).

    A piece of letters starts a word where white space is in front of it, or where the piece before in its sequence ends
    with no letter; else it continues one. `other`: without text, as the end of a document, or bytes of a character.
    """
    kinds = np.empty(len(pieces), np.int64)
    for t, piece in enumerate(pieces):
        text = piece.strip()
        first = t == 0 or routes.window_T[t] != routes.window_T[t - 1] or not pieces[t - 1][-1:].isalpha()
        if not piece or "\N{REPLACEMENT CHARACTER}" in piece:
            kind = "other"
        elif not text:
            kind = "whitespace"
        elif text[0].isdigit():
            kind = "number"
        elif any(c.isalpha() for c in text):
            kind = "word start" if first or piece[0].isspace() else "continuation"
        else:
            kind = "punctuation"
        kinds[t] = KINDS.index(kind)
    return TokenClasses(KINDS, kinds)


def usage_by_class(routes: Routes, classes: TokenClasses) -> dict[str, dict[str, Any]]:
    """Of each class that has tokens: `tokens`; `loss`, nats per predicted token (None where there is none); `depth`,
    modules per token; and of each routed side the shares of its choices that fall on each module and, last, on nulls,
    over all steps and all K choices."""
    deep = depth(routes).per_token
    result: dict[str, dict[str, Any]] = {}
    for number, name in enumerate(classes.names):
        own = classes.of_token == number
        if not own.any():
            continue
        losses = routes.loss_T[own]
        losses = losses[~np.isnan(losses)]
        row: dict[str, Any] = {"tokens": int(own.sum()), "loss": float(losses.mean()) if len(losses) else None}
        row["depth"] = float(deep[own].mean())
        for side, chosen in routes.sides.items():
            row[side] = _shares(chosen.index[:, own], chosen.modules).tolist()
        result[name] = row
    return result
