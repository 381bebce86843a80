"""A small model, and what tests of models need: other configurations, parameters, ids, losses."""

import dataclasses
import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import mom_jax as mom
from mom_jax import losses
from mom_jax.config import BalanceConfig, ChoiceConfig, ModelConfig, RouterConfig

NEVER = -math.inf
ORDERED = ChoiceConfig(choice="ordered")

# Further combinations of what slow tests test, for `make test-exhaustive`: for a change to what they combine.
EXHAUSTIVE = (pytest.mark.slow, pytest.mark.exhaustive)

SMALL = ModelConfig(
    vocab_size=29,
    context_length=9,
    d_model=16,
    num_heads=2,
    d_ff=24,
    num_bottom=0,
    num_top=0,
    num_attn_modules=3,
    num_ffn_modules=3,
    num_steps=3,
    top_k=2,
    router=RouterConfig(dim=8, temperature=0.7),
    balance=BalanceConfig(weight=0.5),
)


def change(config, **fields):
    """`config` with other fields; a dictionary changes fields of the part of that name."""
    parts = {k: dataclasses.replace(getattr(config, k), **v) for k, v in fields.items() if isinstance(v, dict)}
    return dataclasses.replace(config, **(fields | parts))


def random_params(config, seed=0):
    """Parameters large enough that routing spreads; layer norms are not near the identity."""
    rng = np.random.default_rng(seed)
    shapes = nnx.eval_shape(lambda: mom.MoM(config, rngs=nnx.Rngs(0)))

    def draw(path, leaf):
        name = path[-1].key
        size = 0.5 if name == "score_kernel" else 0.3
        return jnp.asarray(rng.normal(1.0 * (name in ("norm_scale", "scale")), size, leaf.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, mom.parameters(shapes))


def random_ids(batch=2, length=7, seed=0, config=SMALL):
    return jnp.asarray(np.random.default_rng(seed).integers(0, config.vocab_size, (batch, length)), jnp.int32)


def quick(function):
    """Jitted without most of XLA's optimisations, since compiling takes all the time here."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


@functools.partial(jax.jit, static_argnames=("config", "capture"))
def run(config, params, ids, **kwargs):
    """The model's output. Calls that differ in numbers only share what is compiled, over all tests of a file."""
    return mom.with_parameters(config, params)(ids, **kwargs)


def total_loss(config, params, ids, labels=None, **kwargs):
    output = run(config, params, ids, **kwargs)
    nll, count = losses.next_token(output, ids if labels is None else labels)
    return losses.finish(losses.LossSums(nll, count, output.routing), config).total


def assert_close(got, want, atol=1e-5, rtol=1e-5):
    chex.assert_trees_all_close(got, want, atol=atol, rtol=rtol)


def explicit(*rows):
    """A side's choice under an explicit prior."""
    return ChoiceConfig(prior=tuple(map(tuple, rows)))
