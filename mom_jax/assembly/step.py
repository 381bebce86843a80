"""One assembly step (paper section 3.1): for every token the routers choose attention modules, and then FFN modules,
and the step is the layer assembled of them."""

from typing import NamedTuple

import jax

from mom_jax.assembly.observation import StepObserver
from mom_jax.assembly.sides import StepSide
from mom_jax.attention import KV, View


class StepKeys(NamedTuple):
    """The random keys of a step's dropout; None without it."""

    attention: jax.Array | None = None
    ffn: jax.Array | None = None


def assembly_step(
    x: jax.Array,
    left: jax.Array | None,
    attention: StepSide,
    ffn: StepSide,
    view: View,
    *,
    keys: StepKeys,
    cache: KV | None,
    observer: StepObserver,
) -> tuple[jax.Array, jax.Array | None, KV | None]:
    """The residual stream x [B, L, D] after one step, the tokens that have left then, and the step's keys and values.

    left: bool [T], the tokens that have left before; None where none can. A side that has nothing to choose
    (`PlainSide`) chooses None. cache: the keys and values of the tokens before these.
    """
    chosen, left = attention.choose(x, left, observer)
    y, cache = attention.attend(x, chosen, view, key=keys.attention, cache=cache)
    x = x + y
    chosen, left = ffn.choose(x, left, observer)
    y = ffn.feed_forward(x, chosen, key=keys.ffn)
    x = x + y
    observer.hidden(x)
    return x, left, cache
