"""What a model costs before it is built: parameters, FLOPs per token, memory. Pure arithmetic on a `ModelConfig`.

Letters as in mom_jax/config: D width, F inner width, V vocabulary, K modules taken, H steps, S chunks, R router
width, C router classes. Only matrix products are counted as FLOPs, a multiply-add being two.
"""

import dataclasses
import math

from mom_jax.analysis.router_cost import router_cost
from mom_jax.config import SIDES, ModelConfig, Side
from mom_jax.losses.chunked import DEFAULT_CHUNK_LOGITS


@dataclasses.dataclass(frozen=True)
class ParameterCount:
    """Numbers of parameters; `total` is the sum of the parts, `active` is not one of them.

    embedding: tokens [V, D] (a tied language model's head too) and positions [P, D].
    anchors: bottom, top and after chunks. modules: of all pools. routers: of both sides and all chunks.
    head: the final layer norm; where it is not tied, the language model's matrix [V, D]; a classifier's [D, classes].
    active: what the forward pass of one token multiplies with: the head in use, rows of the embeddings, every anchor,
        and at each step the routers and the modules taken, counted again each time they are used. It can exceed
        `total`.
    """

    total: int
    embedding: int
    anchors: int
    modules: int
    routers: int
    head: int
    active: int


def _sublayer(config: ModelConfig, side: Side, *, biases: bool = True, anchor: bool = False) -> int:
    """Parameters of one module, or of an anchor's sublayer; without `biases`, of its matrices only."""
    d, f = config.d_model, config.inner_width if anchor else config.module_width
    if side == "attention":
        matrices, rest = 4 * d * d, 2 * d + 3 * d + d
    else:
        matrices, rest = 2 * d * f, 2 * d + f + d
    return matrices + rest * biases


def _own(config: ModelConfig, side: Side, *, biases: bool = True) -> int:
    """Parameters of a module that its step multiplies with whatever is chosen: of attention whose values alone are
    routed, those of queries and keys (its layer norm is counted with the values)."""
    if side == "ffn" or not config.routes_values:
        return 0
    return 2 * config.d_model**2 + 2 * config.d_model * biases


def _used(config: ModelConfig, side: Side, taken: float, *, biases: bool = True) -> float:
    """Parameters that a token multiplies with at a step, routers aside, where it takes so many modules."""
    own = _own(config, side, biases=biases)
    return own + taken * (_sublayer(config, side, biases=biases) - own)


def _taken(config: ModelConfig, side: Side) -> float:
    """The most modules that tokens can take at a step of that side, the mean over steps and, where a side has a
    capacity, over tokens."""
    if config.kind(side) != "routed":
        return 1
    choice, modules = getattr(config, side), config.modules(side)
    allowed = config.grain(side) if choice.choice == "ordered_or_skip" else modules
    most: int = min(config.choices(side), allowed)
    if choice.prior is None:
        return most * (choice.capacity or 1)
    steps = (
        (sum(p > -math.inf for p in row[:modules]), not config.skip or row[-1] > -math.inf) for row in choice.prior
    )
    shares = (min(most, open_) * ((choice.capacity or 1) if may_skip else 1) for open_, may_skip in steps)
    return sum(shares) / config.num_steps


def _anchors(config: ModelConfig) -> int:
    return config.num_bottom + config.num_chunks * config.anchor_after_chunk + config.num_top


def parameter_count(config: ModelConfig) -> ParameterCount:
    """The exact number of parameters of a model of this configuration."""
    d, s = config.d_model, config.num_chunks
    layer = sum(_sublayer(config, side, anchor=True) for side in SIDES)
    tokens, positions = config.vocab_size * d, config.context_length * d
    anchors = _anchors(config) * layer
    modules = s * sum(config.modules(side) * _sublayer(config, side) for side in SIDES)
    routers = s * sum(router_cost(config, side).parameters for side in SIDES)
    classifier = d * (config.num_classes or 0)
    untied = 0 if config.tie_embeddings else tokens
    steps = s * config.num_steps
    executed = sum(
        steps * (_used(config, side, _taken(config, side)) + router_cost(config, side).active) for side in SIDES
    )
    # A language model's tied head uses the whole table of tokens; otherwise a token uses one row of it.
    lookup = (tokens if config.tie_embeddings and not config.num_classes else d) + d
    used_head = 2 * d + (classifier or untied)
    return ParameterCount(
        total=tokens + positions + anchors + modules + routers + 2 * d + untied + classifier,
        embedding=tokens + positions,
        anchors=anchors,
        modules=modules,
        routers=routers,
        head=2 * d + untied + classifier,
        active=lookup + anchors + round(executed) + used_head,
    )


def forward_flops_by_part(
    config: ModelConfig,
    length: int,
    *,
    attn_taken: float | None = None,
    ffn_taken: float | None = None,
    causal: bool = True,
) -> dict[str, float]:
    """FLOPs of the forward pass per token, as {anchors, modules, scores, routers, head}; for the arguments see
    `forward_flops_per_token`.

    `scores` are the products of queries with keys and of probabilities with values. A step runs attention once
    whatever K is: K modules' projections, but one set of scores.
    """
    d, steps, anchors = config.d_model, config.num_chunks * config.num_steps, _anchors(config)
    taken = {
        "attention": _taken(config, "attention") if attn_taken is None else attn_taken,
        "ffn": _taken(config, "ffn") if ffn_taken is None else ffn_taken,
    }
    context = length / 2 if causal else length
    # A classifier's head sees one position of the sequence.
    head = 2 * d * config.vocab_size if config.num_classes is None else 2 * d * config.num_classes / length
    return {
        "anchors": float(anchors * sum(2 * _sublayer(config, side, biases=False, anchor=True) for side in SIDES)),
        "modules": float(steps * sum(2 * _used(config, side, taken[side], biases=False) for side in SIDES)),
        "scores": float((anchors + steps) * 4 * d * context),
        "routers": float(steps * sum(2 * router_cost(config, side).products for side in SIDES)),
        "head": float(head),
    }


def forward_flops_per_token(
    config: ModelConfig,
    length: int,
    *,
    attn_taken: float | None = None,
    ffn_taken: float | None = None,
    causal: bool = True,
) -> float:
    """FLOPs of the forward pass per token of a sequence of `length` tokens: all matrix products, head included.

    attn_taken, ffn_taken: the mean number of real modules (neither SKIP nor null) that a token takes at a step, as
        measured. Default: as many as it can, without SKIP.
    causal: a token attends to half of the sequence on average, which is what the mathematics needs and what kernels
        that leave out the masked half do. False counts the whole square, as plain attention computes it and as
        PaLM's MFU counts it (arXiv 2204.02311, appendix B).
    """
    parts = forward_flops_by_part(config, length, attn_taken=attn_taken, ffn_taken=ffn_taken, causal=causal)
    return sum(parts.values())


def busiest_share(config: ModelConfig, devices: int) -> float:
    """How many rows the device with the most modules computes with balanced routing, over an even share, where so many
    devices divide the pools: 17 modules on 4 devices are 5 at most, 5 · 4 / 17 of the share. 1 without routing."""
    sizes = map(config.modules, config.routed_sides)
    return max((math.ceil(size / devices) * devices / size for size in sizes), default=1.0)


def train_flops_per_token(
    config: ModelConfig,
    length: int,
    *,
    attn_taken: float | None = None,
    ffn_taken: float | None = None,
    causal: bool = True,
) -> float:
    """FLOPs of forward and backward per token: three times the forward pass.

    What `remat` computes again is not counted, as usual for MFU. Arguments as in `forward_flops_per_token`.
    """
    return 3 * forward_flops_per_token(config, length, attn_taken=attn_taken, ffn_taken=ffn_taken, causal=causal)


def training_memory_bytes(
    config: ModelConfig,
    batch: int,
    length: int,
    *,
    logits_tokens: int | None = None,
    optimizer_bytes: int | None = None,
) -> dict[str, int]:
    """An estimate of the bytes that training on `batch` sequences of `length` tokens needs at its peak, one device.

    Returns {parameters, gradients, optimizer, activations, logits, total}: float32 parameters, gradients and the
    optimizer's state are exact. Activations are what the backward pass keeps, in `dtype` (router states and scores in
    float32):

    - `none`: inputs of all nonlinear operations and products: for a plain layer 8·D + 2·F numbers a token (Korthikanti
      et al., arXiv 2205.05198, section 4.1, without dropout), and with `plain` attention heads·length probabilities.
      A module of a routed side adds its normed input, hidden layer and output each time it is taken.
    - `dots`: the layer's input, the results of its products, attention's output, and the routers' gates.
    - `full`: each layer's input and router state, and all of one layer while that is computed again.

    Dispatch buffers, the compiler's temporaries and fragmentation are not in it: expect some ten percent more.

    Args:
        logits_tokens: tokens whose logits exist at a time; default: as many as the loss takes at once on accelerators.
        optimizer_bytes: of the optimizer's state; default: two float32 moments, Adam's.
    """
    tokens, d, v = batch * length, config.d_model, config.vocab_size
    width = 2 if config.dtype == "bfloat16" else 4
    steps, anchors = config.num_chunks * config.num_steps, _anchors(config)

    def everything(attn: float, ffn: float, f: int, routed_attn: bool, routed_ffn: bool) -> float:
        probabilities = config.num_heads * length if config.attention_kernel == "plain" else config.num_heads
        attention = 5 * d + attn * d * (1 + routed_attn) + probabilities
        return attention + d + ffn * (d + 2 * f + d * routed_ffn)

    def products(ffn: float, f: int) -> float:
        # The sum over modules needs no more than one q, k, v and one output, however many modules are taken.
        return d + 3 * d + d + config.num_heads + d + ffn * f

    k_attn, k_ffn = _taken(config, "attention"), _taken(config, "ffn")
    wide, narrow = config.inner_width, config.module_width
    full_anchor = everything(1, 1, wide, False, False)
    full_step = everything(k_attn, k_ffn, narrow, *(config.kind(side) == "routed" for side in SIDES))
    routers = [router_cost(config, side) for side in SIDES if config.kind(side) == "routed"]
    state = sum(router.scored for router in routers)
    if config.remat == "none":
        numbers = anchors * full_anchor + steps * full_step
        # A router's backward pass also needs its hidden layer: the gates, before and after.
        state += sum(router.kept for router in routers)
    elif config.remat == "dots":
        numbers = anchors * products(1, wide) + steps * products(k_ffn, narrow)
        state += sum(router.saved for router in routers)
    else:
        numbers = (anchors + steps) * d + max(full_anchor if anchors else 0, full_step if steps else 0)
    activations = round(tokens * (numbers * width + steps * state * 4))
    at_once = min(tokens, -(-DEFAULT_CHUNK_LOGITS // v) if logits_tokens is None else logits_tokens)
    # Logits and their gradient, in float32; a classifier's are one row a sequence.
    logits = 8 * (at_once * v if config.num_classes is None else batch * config.num_classes)
    parameters = 4 * parameter_count(config).total
    result = {
        "parameters": parameters,
        "gradients": parameters,
        "optimizer": 2 * parameters if optimizer_bytes is None else optimizer_bytes,
        "activations": activations,
        "logits": logits,
    }
    return {**result, "total": sum(result.values())}
