"""What a forward pass reports about its routing: sums over tokens, which add up over micro-batches and devices."""

import dataclasses

import jax
import jax.numpy as jnp

from mom_jax.checks import check_array
from mom_jax.config import SIDES, ModelConfig, Side
from mom_jax.routers import Scores, Selection
from mom_jax.sharding import AXES, size


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SideStats:
    """Sums over the real (unmasked) tokens of one side, per chunk and step: [S, H, ...] in a model's output.

    probability_C: what the balance loss calls P, before the division by the number of tokens. top1_C: tokens whose best
    class it is by what is reported, whatever noise or bias ranked. choices_C: how often a class was among the K chosen.
    dropped: choices of a module that had no room for them (only with `capacity_factor`). off_diagonal: real modules
    other than the step's own that were chosen. entropy: of the reported distribution, nats. z: of logsumexp(logits)².
    tokens: how many. within: -log p, nats, of whether a token is within the side's capacity, by its own scores; None
    without one.
    further_rounds: rounds after the first in which rows travelled along the mesh's `module` axis in the step, the mean
    over devices; of micro-batches they add up. All float32.
    """

    probability_C: jax.Array
    top1_C: jax.Array
    choices_C: jax.Array
    dropped: jax.Array
    off_diagonal: jax.Array
    entropy: jax.Array
    z: jax.Array
    tokens: jax.Array
    further_rounds: jax.Array
    within: jax.Array | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Routing:
    """The statistics of both sides; a side that is not routed has none."""

    attention: SideStats | None
    ffn: SideStats | None

    def sides(self) -> dict[Side, SideStats]:
        """The routed sides by name."""
        return {side: stats for side in SIDES if (stats := getattr(self, side)) is not None}


def collect(
    selection: Selection,
    scores: Scores,
    dropped_T: jax.Array,
    further_rounds: jax.Array,
    step: jax.Array,
    valid_T: jax.Array,
    config: ModelConfig,
    side: Side,
) -> SideStats:
    """The sums of one step. dropped_T: choices that found no room. further_rounds: of the rows' exchange. step: h.
    valid_T: bool, the tokens that count."""
    reported = scores.reported_TxC
    check_array("collect: valid_T", valid_T, reported.shape[:1], bool)
    check_array("collect: dropped_T", dropped_T, reported.shape[:1], jnp.float32)
    raw = config.router.scoring == "raw"
    distribution = jax.nn.softmax(reported, -1) if raw else reported
    probability = jax.nn.softmax(reported, -1) if config.balance.softmax_again and not raw else distribution
    classes = jnp.arange(reported.shape[1], dtype=jnp.int32)
    weight = valid_T.astype(jnp.float32)

    def total(x: jax.Array) -> jax.Array:
        return jnp.tensordot(weight, x, axes=1)

    top1 = jnp.argmax(reported, -1)[:, None] == classes[None]
    chosen = selection.index_TxK[:, :, None] == classes[None, None]
    chosen_C = total(chosen.sum(1).astype(jnp.float32))
    own = step if getattr(config, side).schedule is None else jnp.array(config.schedule(side))[step]
    elsewhere = (classes < config.modules(side)) & (classes // config.grain(side) != own)
    return SideStats(
        probability_C=total(probability),
        top1_C=total(top1.astype(jnp.float32)),
        choices_C=chosen_C,
        dropped=total(dropped_T),
        off_diagonal=chosen_C @ elsewhere.astype(jnp.float32),
        entropy=total(jax.lax.stop_gradient(jax.scipy.special.entr(distribution).sum(-1))),
        z=total(jnp.square(jax.nn.logsumexp(scores.logits_TxC, -1))),
        tokens=weight.sum(),
        further_rounds=further_rounds / size(*AXES),
        within=None if scores.margin_T is None else total(_surprise(scores.margin_T, selection, config, side)),
    )


def _surprise(margin_T: jax.Array, selection: Selection, config: ModelConfig, side: Side) -> jax.Array:
    """-log sigmoid(±margin), [T]: plus for tokens within the capacity; 0 where the prior leaves nothing to tell."""
    within = selection.index_TxK[:, 0] != config.classes(side) - 1
    open_ = jnp.isfinite(margin_T)
    ahead = jnp.where(open_, jnp.where(within, margin_T, -margin_T), 0.0)
    return jnp.where(open_, jax.nn.softplus(-ahead), 0.0)


def stack(chunks: list[Routing]) -> Routing:
    """The chunks' statistics [H, ...] as one [S, H, ...]."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *chunks) if chunks else Routing(None, None)


def exchange(selection: Selection, key: jax.Array, valid_T: jax.Array) -> Selection:
    """The same choices dealt to other tokens: counts stay, what the router knew about a token is lost.

    valid_T: bool, the tokens that exchange among themselves; padding is left out of it.
    """
    # The valid tokens in random order, then the padding; the i-th valid token takes the i-th one's choices.
    donors = jnp.argsort(jnp.where(valid_T, jax.random.uniform(key, valid_T.shape), 2.0))
    order = jnp.zeros_like(donors).at[jnp.argsort(~valid_T)].set(donors)
    return Selection(selection.index_TxK[order], selection.weight_TxK[order])
