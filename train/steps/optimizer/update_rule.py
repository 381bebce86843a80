"""The optimizers by name: what each makes of a gradient, before weight decay and the learning rate."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from train.config import OptimConfig
from train.steps.optimizer.names import named

# Moonlight (arXiv 2502.16982, section 2.2): so large is the root mean square of AdamW's updates.
MUON_RMS = 0.2
# Adafactor (arXiv 1804.04235): the decay of the second moment is 1 - step^-0.8, an update's root mean square at most 1.
ADAFACTOR_POWER, ADAFACTOR_CLIP = 0.8, 1.0


def update_rule(optim: OptimConfig) -> optax.GradientTransformation:
    """Gradients to updates of about the size that AdamW's have, but for Lion's, which are signs."""
    adam = optax.scale_by_adam(optim.beta1, optim.beta2, optim.epsilon)
    if optim.optimizer == "adamw":
        return adam
    if optim.optimizer == "lion":
        return optax.scale_by_lion(optim.beta1, optim.beta2)
    if optim.optimizer == "adafactor":
        return _adafactor(optim)
    muon = optax.chain(
        scale_by_muon(beta=optim.momentum, weight_dimension_numbers=muon_axes),
        optax.stateless(lambda updates, _: jax.tree.map(_muon_scaled, updates, muon_axes(updates))),
    )
    return optax.partition({"muon": muon, "adam": adam}, named(lambda name: "muon" if is_muon(name) else "adam"))


def _adafactor(optim: OptimConfig) -> optax.GradientTransformation:
    """Adafactor with absolute steps and a first moment, as Zhai et al. (arXiv 2106.04560, section 3.4) train large
    transformers; without a first moment where `beta1` is 0."""

    def decay(step: Any, power: Any) -> jax.Array:
        return jnp.minimum(optim.beta2, 1 - (jnp.asarray(step, jnp.float32) + 1) ** -power)

    parts = [
        optax.scale_by_factored_rms(decay_rate=ADAFACTOR_POWER, decay_rate_fn=decay),
        optax.clip_by_block_rms(ADAFACTOR_CLIP),
    ]
    return optax.chain(*parts, *([optax.ema(optim.beta1, debias=False)] if optim.beta1 else []))


def _muon_scaled(update: jax.Array, axes: MuonDimensionNumbers) -> jax.Array:
    """Of an orthogonal matrix [a, b] the root mean square is 1 / sqrt(max(a, b)): made `MUON_RMS`."""
    longer = max(update.shape[axes.reduction_axis], update.shape[axes.output_axis])
    return MUON_RMS * math.sqrt(longer) * update


def is_muon(name: str) -> bool:
    """Muon is for the matrices of attention and FFN sublayers, alone or stacked; Adam for embeddings, heads, biases,
    layer norms and routers."""
    parts = name.split("/")
    return parts[-1].endswith("kernel") and parts[-2] in ("attention", "ffn")


def muon_axes(tree: Any) -> Any:
    """Which axes of an array are a matrix that is made orthogonal by itself; a stack's modules, and queries, keys and
    values, are matrices of their own."""

    def axes(name: str) -> MuonDimensionNumbers:
        return MuonDimensionNumbers(-3 if name.endswith("qkv_kernel") else -2, -1)

    return named(axes)(tree)
