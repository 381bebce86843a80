"""Which modules of a checkpoint to cut, from what a user says: shares of each side, and what they are ranked by."""

import dataclasses
import re
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from mom_jax.analysis.pruning import keep_after, prune, pruned_config
from mom_jax.config import ModelConfig, Side
from mom_jax.fields import ConfigError, nearest, require
from train.analysis.opened import Opened, TextFlags, open_checkpoint
from train.analysis.prune_curve import share_of
from train.analysis.removal import Rank, Ranking, Removal, first_tokens
from train.batch import Rows
from train.checkpoints.formats import is_run
from train.checkpoints.locate import find
from train.checkpoints.models import open_model
from train.cli import notify
from train.config import Config
from train.data.tokenizers import Tokenizer

SIDE_NAMES: dict[str, Side] = {"attn": "attention", "attention": "attention", "ffn": "ffn"}
_FORM = "must be shares to cut, as in attn=0.5,ffn=0.25"


@dataclasses.dataclass(frozen=True)
class Pruned:
    """A smaller model. before: how many parameters the larger one had. origin: the experiment of a run that it was made
    of. messages: what was cut, for the user."""

    config: ModelConfig
    params: dict[Any, Any]
    before: int
    tokenizer: Tokenizer
    origin: Config | None
    messages: list[str]


def prune_checkpoint(path: str, text: str, rank: Rank, flags: TextFlags, *, best: bool, mesh: Mesh) -> Pruned:
    """The model of a checkpoint without the shares `text` of its modules, ranked on the text of `flags`.

    best: of a run's phase the step with the lowest validation loss. Raises ConfigError naming `input` or `prune`.
    """
    shares = parse_shares(text)
    origin, config = None, None
    if is_run(path, "input"):
        meta = find(path, field="input", best=best).meta()
        origin, config = meta.config, meta.model
    else:
        model = open_model(path, field="input", best=best)
        known = model.tokenizer is not None or flags.tokenizer is not None
        require(known, "input", path, "has no tokenizer; give one with --tokenizer")
        config = model.config
    require(bool(config.routed_sides), "input", path, "has no routers, and so no modules to prune")
    cuts = count_cuts(text, shares, config)
    opened = open_checkpoint(path, flags, best=best, mesh=mesh)
    assert opened.tokenizer is not None, "it has encoded the text"
    notify(f"{path}: {opened.facts['description']}")
    config, params, messages = _without(text, cuts, rank, opened, first_tokens(opened.text, flags.tokens), mesh)
    before = sum(leaf.size for leaf in jax.tree.leaves(opened.params))
    return Pruned(config, jax.tree.map(np.asarray, params), before, opened.tokenizer, origin, messages)


def parse_shares(text: str) -> dict[Side, float]:
    """`attn=0.5,ffn=0.25` by side. Raises ConfigError naming `prune` for what is no such text."""
    shares: dict[Side, float] = {}
    for part in text.split(","):
        name, equals, number = (piece.strip() for piece in part.partition("="))
        require(bool(name and equals and number), "prune", text, _FORM)
        require(name in SIDE_NAMES, "prune", text, f"unknown side {name!r}; {nearest(name, SIDE_NAMES)}")
        require(re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", number) is not None, "prune", text, _FORM)
        require(0 <= float(number) <= 1, "prune", text, f"the share of {name} must lie between 0 and 1")
        require(SIDE_NAMES[name] not in shares, "prune", text, f"names {name} twice")
        shares[SIDE_NAMES[name]] = float(number)
    return shares


def count_cuts(text: str, shares: dict[Side, float], config: ModelConfig) -> dict[Side, int]:
    """How many modules of each pool go. Raises ConfigError naming `prune` (`text`) where a side has no routers, where
    nothing or everything would go, and where there is no smaller model of that size."""
    cuts = {}
    for side, share in shares.items():
        have = " and ".join(config.routed_sides)
        has = f"the model's routers choose {have} modules only" if have else "the model has no routers"
        require(side in config.routed_sides, "prune", text, f"{side} is not routed: {has}")
        n = config.modules(side)
        cuts[side] = share_of(n, share)
        require(cuts[side] < n, "prune", text, f"would cut all {n} {side} modules; at least one must stay")
    sizes = ", ".join(f"1/{config.modules(side)} of {side}" for side in cuts)
    require(any(cuts.values()), "prune", text, f"cuts no module: the least that can go is {sizes}")
    # Which modules stay is not known yet, but what depends on their number only can be refused.
    try:
        first = {side: keep_after([range(config.modules(side))] * config.num_chunks, cut) for side, cut in cuts.items()}
        pruned_config(config, first)
    except ConfigError as error:
        if not str(error).startswith("keep."):
            raise ConfigError(f"prune={text!r}: {error}") from None
    return cuts


def _without(
    text: str, cuts: dict[Side, int], rank: Rank, opened: Opened, batches: list[Rows], mesh: Mesh
) -> tuple[ModelConfig, dict[Any, Any], list[str]]:
    """(configuration, parameters, what was cut in words) without the modules that go first. text: what the user said,
    for complaints."""
    notify(f"ranking modules by {rank}")
    config = opened.config
    removal = Removal(opened.params, config, batches, mesh=mesh)
    ranking = removal.ranking(rank)
    keep = {side: keep_after(ranking.order[side], cut) for side, cut in cuts.items()}
    try:
        small, smaller = prune(config, opened.params, keep)
        losses = removal.loss(), removal.loss(keep)
    except ConfigError as error:
        raise ConfigError(f"prune={text!r}: {error}") from None
    messages = [_describe(side, cut, config, ranking) for side, cut in cuts.items() if cut]
    if small.top_k != config.top_k:
        messages.append(f"top_k: {config.top_k} -> {small.top_k}, as many classes as are left")
    if small.router.classes != config.router.classes:
        messages.append(f"router.classes: {config.router.classes!r} -> {small.router.classes!r}")
    of = f"over {removal.tokens:,} tokens"
    messages.append(f"loss {losses[0]:.4f} -> {losses[1]:.4f} nats/token ({losses[1] - losses[0]:+.4f}), {of}")
    return small, smaller, messages


def _describe(side: Side, cut: int, config: ModelConfig, ranking: Ranking) -> str:
    """Which modules of a side have gone, with what they were ranked by."""
    chunks = []
    for s, order in enumerate(ranking.order[side]):
        gone = ", ".join(f"{m} ({ranking.scores[side][s, m]:.4g})" for m in sorted(order[:cut]))
        chunks.append(gone if config.num_chunks == 1 else f"chunk {s}: {gone}")
    n = config.modules(side)
    return f"{side}: {cut} of {n} modules cut, by {ranking.rank}: {'; '.join(chunks)}"
