"""Phase 2 from phase 1: a vanilla transformer's layers become the anchors and modules of a Mixture-of-Modules.

Vanilla layers are consumed in order: bottom anchors, then per chunk M = max(N_A, N_F) layers that become modules
0..M-1 (attention and FFN of layer j both go to module j) and one for the chunk's anchor, then top anchors (official
init_from_vanilla). Nothing is skipped silently, and the final layer norm is copied, unlike there.

Where modules are narrower than a layer's FFN, layer j's FFN is cut into G modules, j·G to j·G + G - 1. Each has the
layer's norm, its share of the inner units, and 1/G of the output bias. An FFN is a sum over its inner units, so that
the G modules add up to it with a weight of 1 each. G equal choices of renormalised weights weigh 1/G each: `ffn.scale`
= G makes the sum exact, and the bias also where they are not equal.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from mom_jax.config import SIDES, ChoiceConfig, ModelConfig, Side
from mom_jax.fields import ConfigError, require

Params = dict[Any, Any]
Place = tuple[str, int, int | None]  # group, index, module

# In logits after the temperature: a module that is not preferred has a probability of about exp(-24), or exp(-12)
# beside a second preference, times what the router says.
PREFERENCE = 24.0


def layer_names(config: ModelConfig) -> list[Place]:
    """Every layer's place, in the order in which vanilla layers fill them."""
    names: list[Place] = [("bottom", i, None) for i in range(config.num_bottom)]
    for s in range(config.num_chunks):
        names += [("chunks", s, j) for j in range(config.pool_size)]
        if config.anchor_after_chunk:
            names.append(("anchors", s, None))
    return names + [("top", i, None) for i in range(config.num_top)]


def is_vanilla(config: ModelConfig) -> bool:
    """Whether each of the model's sublayers runs exactly once, in order."""
    if not config.num_chunks:
        return True
    once = config.num_attn_modules == config.num_ffn_modules == config.num_steps
    in_order = all(config.schedule(side) == tuple(range(config.num_steps)) for side in SIDES)
    whole = config.grain("ffn") == 1
    return once and in_order and whole and "routed" not in (config.kind("attention"), config.kind("ffn"))


# What phase 2's model must have in common with the vanilla one.
_ALIKE = (
    *("d_model", "num_heads", "d_ff", "context_length", "vocab_size"),
    *("activation", "layer_norm_epsilon", "tie_embeddings"),
)


def _alike(config: ModelConfig) -> list[Any]:
    return [config.inner_width if field == "d_ff" else getattr(config, field) for field in _ALIKE]


def from_vanilla(
    vanilla_config: ModelConfig, vanilla: Params, config: ModelConfig, params: Params
) -> tuple[Params, list[str]]:
    """The parameters of phase 2's model: `params` (freshly initialised) with every layer taken from `vanilla`.

    Routers and a classification head that the vanilla model lacks stay as they are in `params`; of all others shapes
    do. Returns the parameters, views of numpy arrays wherever layers of one stack stay neighbours (of FFNs that are cut
    into narrow modules, the output kernels and inner biases only), and messages for the user: sublayers that have no
    place because N_A and N_F differ.
    Raises ConfigError naming whatever is missing, left over or of another shape.
    """
    if not is_vanilla(vanilla_config):
        raise ConfigError("init_from: the source is no vanilla transformer and has another structure than the model")
    if wrong := [
        f"model.{field}={new!r}: the vanilla model has {old!r}"
        for field, old, new in zip(_ALIKE, *map(_alike, (vanilla_config, config)), strict=True)
        if old != new
    ]:
        raise ConfigError("; ".join(wrong))
    if config.num_chunks:
        grain, count = config.grain("ffn"), config.num_ffn_modules
        allowed = f"must be a multiple of the {grain} modules that a vanilla layer is cut into"
        require(count % grain == 0, "model.num_ffn_modules", count, allowed)
    sources, places = layer_names(vanilla_config), layer_names(config)
    if len(sources) != len(places):
        which = sources[len(places) :] or places[len(sources) :]
        text = ", ".join(_name(*place) for place in which)
        problem = f"would be left over: {text}" if len(sources) > len(places) else f"are missing for: {text}"
        have = f"the vanilla model has {len(sources)} layers, {len(places)} fit"
        raise ConfigError(f"init_from: {have}; layers {problem}")

    result, messages = _copy(params), []
    stacks: dict[tuple[int, Side], list[Place]] = {}
    for place, source in zip(places, sources, strict=True):
        group, index, module = place
        for side in SIDES:
            theirs, name = _shapes(vanilla, source, side), f"{_name(*place)}/{side}"
            if module is None:
                result[group][index][side] = _layer(vanilla, source, side)
            elif module < config.layers(side):
                stacks.setdefault((index, side), []).append(source)
            else:
                room = config.modules(side)
                messages.append(f"{_name(*source)}/{side} is dropped: chunk {index} has {room} {side} modules")
                continue
            grain = 1 if module is None else config.grain(side)
            _check(theirs, _whole(_shapes(params, place, side), grain), name)
    for (index, side), layers in stacks.items():
        stacked = _stacked(vanilla, layers, side)
        result["chunks"][index][side] = _cut(stacked, config.grain(side)) if config.grain(side) > 1 else stacked
    for name in ("embed", "final_norm", "head", "lm_head"):
        if name in vanilla and name not in params:
            raise ConfigError(f"init_from: {name} would be left over")
        if name in vanilla:
            theirs, ours = ({key: np.shape(value) for key, value in tree[name].items()} for tree in (vanilla, params))
            _check(theirs, ours, name)
            result[name] = vanilla[name]
    return result, messages


def preserving(config: ModelConfig, anneal_steps: int) -> ModelConfig:
    """The model that starts as the vanilla one: every step prefers the modules of its own layer, steps beyond the last
    layer prefer SKIP, and the preference falls to 0 over `anneal_steps` training steps.

    A free side gets the preference, with its own K; a side that is ordered stays so. With K = 2 a second module would
    disturb the first one's queries and keys, so that SKIP is the second preference; not so where weights multiply all
    that a module gives (an FFN; attention with `weighted_qkv`). Of an FFN whose layers are cut into G modules, K must
    be G at least, and `scale` becomes G: the start is the vanilla model as far as the router's logits of a step's own
    modules are equal, for their renormalised weights must be. Raises ConfigError naming the field with which a MoM
    cannot do what its vanilla counterpart does.
    """
    router, layers = config.router, config.pool_size
    same = config.layers("attention") == config.layers("ffn")
    grain = config.grain("ffn")
    counted = f"num_ffn_modules={config.num_ffn_modules}" + (f" / {grain}" if grain > 1 else "")
    allowed = f"must equal {counted} for a vanilla-preserving start"
    require(same, "model.num_attn_modules", config.num_attn_modules, allowed)
    allowed = f"must be a multiple of the {grain} modules that a vanilla layer is cut into"
    require(config.num_ffn_modules % grain == 0, "model.num_ffn_modules", config.num_ffn_modules, allowed)
    what = "modules" if grain == 1 else "layers"
    allowed = f"must be at least the {layers} {what} for a vanilla-preserving start"
    require(config.num_steps >= layers, "model.num_steps", config.num_steps, allowed)
    require(config.num_steps == layers or config.skip, "model.skip", config.skip, "must skip the steps beyond")
    require(router.scoring == "softmax", "model.router.scoring", router.scoring, "must be 'softmax' to preserve")
    require(not router.all_modules, "model.router.all_modules", router.all_modules, "preserves nothing")
    require(config.capacity_factor is None, "model.capacity_factor", config.capacity_factor, "must be None to preserve")
    attention, ffn = (_preserving_side(config, side, anneal_steps) for side in SIDES)
    return dataclasses.replace(config, attention=attention, ffn=ffn)


def _preserving_side(config: ModelConfig, side: Side, anneal_steps: int) -> ChoiceConfig:
    choice: ChoiceConfig = getattr(config, side)
    if config.kind(side) != "routed":
        in_order = config.num_steps == config.pool_size and config.schedule(side) == tuple(range(config.num_steps))
        allowed = f"must have each of the {config.pool_size} layers once, in order, for a preserving start"
        require(in_order, f"model.{side}", choice, allowed)
        return choice
    free = dataclasses.replace(choice, top_k=None, scale=1.0, routes="all") == ChoiceConfig()
    require(free, f"model.{side}", choice, "must be free, or ordered, for a preserving start")
    own, k = config.grain(side), config.side_top_k(side)
    name = "model.top_k" if choice.top_k is None else f"model.{side}.top_k"
    allowed = f"must be at least the {own} modules of a layer for a vanilla-preserving start"
    require(k >= own, name, k, allowed)
    with_skip = k == own + 1 and config.skip
    # A sign would make whole modules of those that weigh next to nothing.
    signed = config.router.straight_through
    weighted = (side == "ffn" or config.weighted_qkv) and not signed
    unless = "model.router.straight_through=False" if signed else "model.weighted_qkv set"
    allowed = f"must be {own}, or {own + 1} with SKIP, or {unless}, for a vanilla-preserving start"
    require(k == own or with_skip or weighted, name, k, allowed)
    beyond = signed and k > 1 and config.num_steps > config.pool_size
    allowed = "must be False for a preserving start with more steps than layers and K > 1"
    require(not beyond, "model.router.straight_through", signed, allowed)
    require(choice.scale in (1, own), f"model.{side}.scale", choice.scale, f"must be 1 or {own} to preserve")
    second = PREFERENCE / 2 if with_skip and not config.weighted_qkv else 0.0
    return dataclasses.replace(
        choice, preference=PREFERENCE, skip_preference=second, anneal_steps=anneal_steps, scale=float(own)
    )


def _name(group: str, index: int, module: int | None) -> str:
    return f"{group}/{index}" + ("" if module is None else f"/module {module}")


def _copy(tree: Params) -> Params:
    return {key: _copy(value) if isinstance(value, dict) else value for key, value in tree.items()}


def _shapes(params: Params, place: Place, side: Side) -> dict[str, tuple[int, ...]]:
    """Of one sublayer's arrays."""
    group, index, module = place
    return {key: np.shape(value)[module is not None :] for key, value in params[group][index][side].items()}


def _layer(params: Params, place: Place, side: Side) -> Params:
    group, index, module = place
    arrays = params[group][index][side]
    return arrays if module is None else {key: value[module] for key, value in arrays.items()}


def _stacked(params: Params, places: list[Place], side: Side) -> Params:
    """The sublayers at `places`, one over the other."""
    (group, index, first), *_ = places
    if first is not None and places == [(group, index, first + i) for i in range(len(places))]:
        return {key: value[first : first + len(places)] for key, value in params[group][index][side].items()}
    layers = [_layer(params, place, side) for place in places]
    return {key: jnp.stack([layer[key] for layer in layers]) for key in layers[0]}


def _whole(shapes: dict[str, tuple[int, ...]], grain: int) -> dict[str, tuple[int, ...]]:
    """The shapes of a layer's FFN that is cut into `grain` modules of these shapes."""
    inner = {"in_kernel": -1, "in_bias": -1, "out_kernel": 0}

    def whole(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        axis = inner.get(name)
        if grain == 1 or axis is None:
            return shape
        return tuple(size * grain if i == axis % len(shape) else size for i, size in enumerate(shape))

    return {name: whole(name, shape) for name, shape in shapes.items()}


def _cut(layers: Params, grain: int) -> Params:
    """M stacked layers' FFNs as M·G modules, which have equal parts of the inner units in their order."""
    m, d, f = layers["in_kernel"].shape
    return {
        "norm_scale": layers["norm_scale"].repeat(grain, axis=0),
        "norm_bias": layers["norm_bias"].repeat(grain, axis=0),
        "in_kernel": layers["in_kernel"].reshape(m, d, grain, f // grain).swapaxes(1, 2).reshape(m * grain, d, -1),
        "in_bias": layers["in_bias"].reshape(m * grain, -1),
        "out_kernel": layers["out_kernel"].reshape(m * grain, -1, d),
        "out_bias": (layers["out_bias"] / grain).repeat(grain, axis=0),
    }


def _check(source: dict[str, tuple[int, ...]], target: dict[str, tuple[int, ...]], name: str) -> None:
    """Raises `ConfigError` unless arrays have the same names and shapes."""
    for key in sorted(source.keys() ^ target.keys()):
        raise ConfigError(f"init_from: {name}/{key} is {'missing' if key in target else 'left over'}")
    for key, shape in source.items():
        if shape != target[key]:
            shapes = f"{shape} in the vanilla model, {target[key]} here"
            raise ConfigError(f"init_from: {name}/{key} has the shape {shapes}")
