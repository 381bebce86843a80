"""Train steps of a small MoM on meshes of eight simulated devices, and how far their numbers are from one device's.

What is compared runs in a process with eight devices: see devices.on_eight.
"""

import dataclasses
import functools

import jax
import numpy as np
import optax
from flax import nnx
from small import change

from mom_jax.config import ChoiceConfig, ModelConfig, RouterConfig
from mom_jax.model import MoM, parameters
from mom_jax.sharding import MeshConfig, batch_sharding, make_mesh
from train.config import OptimConfig
from train.data.packing import pack
from train.steps.optimizer import make_optimizer
from train.steps.state import abstract_state, init_state
from train.steps.train_step import jit_train_step

MODEL = ModelConfig(
    vocab_size=61,
    context_length=16,
    d_model=32,
    num_heads=8,
    d_ff=64,
    num_attn_modules=4,
    num_ffn_modules=4,
    num_steps=3,
    top_k=1,
    anchor_after_chunk=True,
    router=RouterConfig(dim=16, temperature=0.5),
)
# name -> fields that differ, and a seed whose routing has gaps that rounding does not cross in five steps.
MODELS = {
    "k1": ({}, 3),
    "k3": ({"top_k": 3}, 3),
    "uneven": ({"num_attn_modules": 3, "num_ffn_modules": 5, "top_k": 2, "d_ff": 40}, 3),
    "capacity": ({"capacity_factor": 8.0, "top_k": 2}, 3),
    "straight-through": ({"router": {"straight_through": True, "scoring": "raw"}, "weighted_qkv": True}, 3),
    "shared": ({"num_attn_modules": 1, "num_chunks": 2}, 3),
    "megablox": ({"dispatch": "megablox"}, 3),
    "splash": ({"attention_kernel": "splash", "context_length": 128, "num_steps": 2}, 3),
    "untied": ({"tie_embeddings": False, "remat": "none"}, 3),
    "special": (
        {
            "attention": ChoiceConfig("ordered_or_skip", schedule=(3, 0, 3), exit=True),
            "ffn": ChoiceConfig(capacity=0.5),
        },
        3,
    ),
    "sigmoid": (
        {
            "router": {"kind": "transformer", "heads": 2, "scoring": "sigmoid", "norm": "layer", "step_bias": 1.0},
            "balance": {"bias_rate": 0.1},
            "attention": ChoiceConfig(preference=0.5),
        },
        3,
    ),
    "wide": ({"d_model": 128, "d_ff": 128}, 3),
    "narrow-values": (
        {
            "num_attn_modules": 3,
            "attention": ChoiceConfig(routes="values"),
            "module_d_ff": 32,
            "num_ffn_modules": 6,
            "ffn": ChoiceConfig(top_k=2, scale=2.0),
        },
        3,
    ),
    "scheduled": ({"attention": ChoiceConfig("ordered", schedule=(3, 0, 3)), "remat": "full"}, 3),
}
STEPS = 5


def model_of(name):
    if name == "vanilla":
        return MODEL.vanilla()
    return change(MODEL, **MODELS[name][0])


def seed_of(name):
    return MODELS.get(name, ({}, 3))[1]


def setting(config, optimizer, mesh, seed, force=None):
    """(a state with parameters large enough that routing spreads, where it lies). force: the class that all tokens
    choose first."""

    def make():
        params = parameters(MoM(config, rngs=nnx.Rngs(seed)))
        params = jax.tree.map(lambda x: 3 * x if x.ndim > 1 else x, params)
        if force is not None:
            for side in ("attention", "ffn"):
                router = params["chunks"][0][f"{side}_router"]
                router["score_bias"] = router["score_bias"].at[force].add(50.0)
        return init_state(params, optimizer)

    placed = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(config, optimizer, mesh))
    return jax.jit(make, out_shardings=placed)(), placed


def batch(step, mesh, size=16):
    tokens = np.random.default_rng(step).integers(0, MODEL.vocab_size, (size, 16)).astype(np.int32)
    mask = np.ones(tokens.shape, np.bool_)
    mask[1, 5:] = mask[6, 11:] = mask[size - 1] = False
    return jax.device_put({"tokens": tokens, "mask": mask}, batch_sharding(mesh))


def packed_batch(mesh, length):
    """Documents in windows with some padding; the last row is all padding, as where there are too few windows."""
    rng = np.random.default_rng(0)
    starts = np.concatenate([[0], np.cumsum(rng.choice([3, 5, 7, 9], 48) * length // 16)])
    packing, tokens = pack(starts, length), rng.integers(0, MODEL.vocab_size, starts[-1])
    windows = [packing.window(i, tokens) for i in range(16)]
    rows = {name: np.stack([window[name] for window in windows]) for name in windows[0]}
    for row in rows.values():
        row[-1] = 0
    segments = rows["segment_ids"]
    assert (segments[:-1].max(1) > 1).all()
    assert (segments[:-1] == 0).any()
    return jax.device_put(rows, batch_sharding(mesh))


def train(name, shape, rule="adamw"):
    """(losses of five steps, parameters after them, how often the step was compiled)."""
    config, mesh = model_of(name), make_mesh(None if shape is None else MeshConfig(*shape))
    optimizer = make_optimizer(OptimConfig(optimizer=rule, learning_rate=3e-4), 100)
    state, placed = setting(config, optimizer, mesh, seed_of(name))
    step, losses = jit_train_step(config, optimizer, 1, 0, mesh), []
    for i in range(STEPS):
        state, report = step(state, batch(i, mesh))
        losses.append(jax.device_get(report.losses))
    assert jax.tree.map(lambda leaf: leaf.sharding, state) == placed
    return losses, jax.tree.map(np.asarray, state.params), step._cache_size()


def gradient(name, shape, accumulation=1, packed=False, force=None, gather="chunk"):
    """(the report of one step, the gradient): SGD with a rate of 1 subtracts it."""
    config, mesh = model_of(name), make_mesh(None if shape is None else MeshConfig(*shape))
    optimizer = optax.sgd(1.0)
    state, _ = setting(config, optimizer, mesh, seed_of(name), force)
    before = jax.tree.map(np.asarray, state.params)
    step = jit_train_step(config, optimizer, accumulation, 0, mesh, gather=gather)
    state, report = step(state, packed_batch(mesh, config.context_length) if packed else batch(0, mesh))
    return jax.device_get(report), jax.tree.map(lambda a, b: a - np.asarray(b), before, state.params)


def worst(a, b):
    """The largest difference of two trees, each array's in units of its largest value where that is above 1."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return float(max(np.max(np.abs(x - y)) / max(1, np.max(np.abs(x))) for x, y in pairs))


@functools.cache
def gradient_on_one(name, packed, force):
    """The same on one device, where micro-batches change nothing."""
    return gradient(name, None, packed=packed, force=force)


def compare_training(name, shapes, rule="adamw"):
    """(the first and the last loss; for each mesh the largest differences of losses and parameters, compilations)."""
    losses, params, _ = train(name, None, rule)
    result = []
    for shape in shapes:
        other_losses, other_params, compiled = train(name, shape, rule)
        result.append([worst(losses, other_losses), worst(params, other_params), compiled])
    return [losses[0].total.item(), losses[-1].total.item(), result]


def compare_gradients(name, shapes, accumulation=1, packed=False, force=None, gather="chunk"):
    """For each mesh the largest differences of reports and of gradients, and how often rows travelled, by side."""
    report, want = gradient_on_one(name, packed, force)
    result = []
    for shape in shapes:
        other, got = gradient(name, shape, accumulation, packed, force, gather)
        rounds = {side: (1 + stats.further_rounds.sum(0)).tolist() for side, stats in other.routing.sides().items()}
        result.append([worst(without_rounds(report), without_rounds(other)), worst(want, got), rounds])
    return result


def without_rounds(report):
    """A single device has no further ones."""
    sides = {side: dataclasses.replace(stats, further_rounds=0.0) for side, stats in report.routing.sides().items()}
    return dataclasses.replace(report, routing=sides)
