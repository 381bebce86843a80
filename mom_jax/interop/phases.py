"""Phase 2 from phase 1: a vanilla transformer's layers become the anchors and modules of a Mixture-of-Modules.

Vanilla layers are consumed in order: bottom anchors, then per chunk M = max(N_A, N_F) layers that become modules
0..M-1 (attention and FFN of layer j both go to module j) and one for the chunk's anchor, then top anchors (official
init_from_vanilla). Nothing is skipped silently, and the final layer norm is copied, unlike there.
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
    return once and in_order and "routed" not in (config.kind("attention"), config.kind("ffn"))


def from_vanilla(
    vanilla_config: ModelConfig, vanilla: Params, config: ModelConfig, params: Params
) -> tuple[Params, list[str]]:
    """The parameters of phase 2's model: `params` (freshly initialised) with every layer taken from `vanilla`.

    Routers and a classification head that the vanilla model lacks stay as they are in `params`; of all others shapes
    do. Returns the parameters, views of numpy arrays wherever layers of one stack stay neighbours, and messages for the
    user: sublayers that have no place because N_A and N_F differ.
    Raises ConfigError naming whatever is missing, left over or of another shape.
    """
    if not is_vanilla(vanilla_config):
        raise ConfigError("init_from: the source is no vanilla transformer and has another structure than the model")
    for field in ("num_heads", "activation", "layer_norm_epsilon", "tie_embeddings"):
        old, new = getattr(vanilla_config, field), getattr(config, field)
        if old != new:
            raise ConfigError(f"model.{field}={new!r}: the vanilla model has {old!r}")
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
            elif module < config.modules(side):
                stacks.setdefault((index, side), []).append(source)
            else:
                room = config.modules(side)
                messages.append(f"{_name(*source)}/{side} is dropped: chunk {index} has {room} {side} modules")
                continue
            _check(theirs, _shapes(params, place, side), name)
    for (index, side), modules in stacks.items():
        result["chunks"][index][side] = _stacked(vanilla, modules, side)
    for name in ("embed", "final_norm", "head", "lm_head"):
        if name in vanilla and name not in params:
            raise ConfigError(f"init_from: {name} would be left over")
        if name in vanilla:
            theirs, ours = ({key: np.shape(value) for key, value in tree[name].items()} for tree in (vanilla, params))
            _check(theirs, ours, name)
            result[name] = vanilla[name]
    return result, messages


def preserving(config: ModelConfig, anneal_steps: int) -> ModelConfig:
    """The model that starts as the vanilla one: every step prefers the module of its own number, steps beyond the last
    module prefer SKIP, and the preference falls to 0 over `anneal_steps` training steps.

    With K = 2 a second module would disturb the first one's queries and keys, so that SKIP is the second preference;
    not so where weights multiply them too (`weighted_qkv`). Raises ConfigError naming the field with which a MoM cannot
    do what its vanilla counterpart does.
    """
    for side in SIDES:
        free = getattr(config, side) == ChoiceConfig()
        require(free, f"model.{side}", getattr(config, side), "must be free for a preserving start")
    same = config.num_attn_modules == config.num_ffn_modules
    allowed = f"must equal num_ffn_modules={config.num_ffn_modules} for a vanilla-preserving start"
    require(same, "model.num_attn_modules", config.num_attn_modules, allowed)
    allowed = f"must be at least the {config.pool_size} modules for a vanilla-preserving start"
    require(config.num_steps >= config.pool_size, "model.num_steps", config.num_steps, allowed)
    require(
        config.num_steps == config.pool_size or config.skip, "model.skip", config.skip, "must skip the steps beyond"
    )
    router = config.router
    require(router.scoring == "softmax", "model.router.scoring", router.scoring, "must be 'softmax' to preserve")
    require(not router.all_modules, "model.router.all_modules", router.all_modules, "preserves nothing")
    require(config.capacity_factor is None, "model.capacity_factor", config.capacity_factor, "must be None to preserve")
    single = config.top_k == 1 or config.weighted_qkv or (config.top_k == 2 and config.skip)
    allowed = "must be 1, or 2 with SKIP, or model.weighted_qkv set, for a vanilla-preserving start"
    require(single, "model.top_k", config.top_k, allowed)
    second = PREFERENCE / 2 if config.top_k == 2 and not config.weighted_qkv else 0.0
    choice = ChoiceConfig(preference=PREFERENCE, skip_preference=second, anneal_steps=anneal_steps)
    return dataclasses.replace(config, attention=choice, ffn=choice)


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


def _check(source: dict[str, tuple[int, ...]], target: dict[str, tuple[int, ...]], name: str) -> None:
    """Raises `ConfigError` unless arrays have the same names and shapes."""
    for key in sorted(source.keys() ^ target.keys()):
        raise ConfigError(f"init_from: {name}/{key} is {'missing' if key in target else 'left over'}")
    for key, shape in source.items():
        if shape != target[key]:
            shapes = f"{shape} in the vanilla model, {target[key]} here"
            raise ConfigError(f"init_from: {name}/{key} has the shape {shapes}")
