"""`MoM`: embeddings, anchors, chunks of assembly steps, a final layer norm, and heads."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from mom_jax.assembly import Chunk, Noise, Prepared
from mom_jax.attention import KV, View, dropout, new_kv
from mom_jax.config import ModelConfig
from mom_jax.fields import require
from mom_jax.layers import INIT_STD, Layer, LayerWeights, normal, normalise, ones, zeros
from mom_jax.remat import remat
from mom_jax.routing import Routing, stack
from mom_jax.sharding import gather_tokens, gathered, own_key, size

CAPTURES = ("hidden", "routing")
LAYERS = ("bottom", "anchors", "top")  # the groups of layers that run once


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """Keys and values of everything seen so far: one pair per anchor, one per (chunk, step).

    kv: for each of `bottom`, `chunks`, `anchors`, `top` a list of KV [B, h, M, d]; for a chunk, a list of H of them.
    valid: [B, M] bool, the slots that hold a real token. length: int32, the slots in use; the number 0 in a new cache,
    so that a call that begins with it knows that there is nothing to attend to but its own tokens.
    """

    kv: dict[str, list[Any]]
    valid: jax.Array
    length: jax.Array | int


class Weights(NamedTuple):
    """All sublayers' weights, made ready for many calls (`MoM.prepared`): what a forward pass else does anew.

    layers: for each of `bottom`, `anchors`, `top` a list. chunks: the chunks'.
    """

    layers: dict[str, list[LayerWeights]]
    chunks: list[Prepared]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Output:
    """hidden: [B, L, D] after the final layer norm. routing: the routers' statistics. captured: what was asked for.

    `logits` [B, L, V] in float32 are computed when they are read, with the head's matrix `unembedding` [V, D].
    """

    hidden: jax.Array
    unembedding: jax.Array
    routing: Routing
    cache: Cache | None
    captured: dict[str, jax.Array]

    @property
    def logits(self) -> jax.Array:
        unembedding = self.unembedding.astype(self.hidden.dtype)
        return jnp.einsum("bld,vd->blv", self.hidden, unembedding, preferred_element_type=jnp.float32)


class Embedding(nnx.Module):
    """Learned token and position embeddings."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        # The vocabulary (29 x 1733) divides by no number of devices: the width does.
        self.tokens = normal(rngs, config.vocab_size, config.d_model, axes=("vocab", "width"))
        self.positions = normal(rngs, config.context_length, config.d_model, axes=("positions", "width"))


class FinalNorm(nnx.Module):
    """GPT-2's ln_f."""

    def __init__(self, config: ModelConfig):
        self.config = config
        self.scale = ones(config.d_model, axes=("width",))
        self.bias = zeros(config.d_model, axes=("width",))

    def __call__(self, x: jax.Array) -> jax.Array:
        y = normalise(x, self.config.layer_norm_epsilon).astype(jnp.float32)
        return (y * self.scale[...][None, None] + self.bias[...][None, None]).astype(x.dtype)


class Unembedding(nnx.Module):
    """The language model's head, where it is not the token embedding: a linear map to logits [V, D], without bias."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.kernel = normal(rngs, config.vocab_size, config.d_model, axes=("vocab", "width"))


class Head(nnx.Module):
    """A linear map to class logits, without bias."""

    def __init__(self, d_model: int, num_classes: int, *, rngs: nnx.Rngs):
        self.kernel = normal(rngs, d_model, num_classes, axes=("width", "classes"))


class MoM(nnx.Module):
    """A Mixture-of-Modules language model (arXiv 2407.06677), or, with ordered chunks, a GPT-2.

    >>> model = MoM(ModelConfig(), rngs=nnx.Rngs(0))
    >>> logits = model(jnp.zeros((1, 16), jnp.int32)).logits
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        require(config.vocab_size >= 1, "vocab_size", config.vocab_size, "must be at least 1 to make a model")
        self.config = config
        out_std = INIT_STD / (2 * max(1, config.num_layers)) ** 0.5  # GPT-2's, for layers that run once

        def layers(count: int) -> nnx.List:
            return nnx.List([Layer(config, out_std=out_std, rngs=rngs) for _ in range(count)])

        self.embed = Embedding(config, rngs=rngs)
        self.bottom = layers(config.num_bottom)
        self.chunks = nnx.List([Chunk(config, ordered_out_std=out_std, rngs=rngs) for _ in range(config.num_chunks)])
        self.anchors = layers(config.num_chunks if config.anchor_after_chunk else 0)
        self.top = layers(config.num_top)
        self.final_norm = FinalNorm(config)
        if config.num_classes is not None:
            self.head = Head(config.d_model, config.num_classes, rngs=rngs)
        if not config.tie_embeddings:
            self.lm_head = Unembedding(config, rngs=rngs)

    def __call__(
        self,
        ids: jax.Array,
        *,
        mask: jax.Array | None = None,
        positions: jax.Array | None = None,
        segment_ids: jax.Array | None = None,
        key: jax.Array | None = None,
        noise: Noise | None = None,
        step: jax.Array | int | None = None,
        exchange_key: jax.Array | None = None,
        cache: Cache | None = None,
        capture: tuple[str, ...] = (),
        weights: Weights | None = None,
    ) -> Output:
        """Runs the model on token ids [B, L].

        mask: [B, L], true (non-zero) for real tokens; padding is not attended to and not counted in statistics.
        positions: [B, L] for the position embedding; by default they count up (from the cache's length).
        segment_ids: [B, L]; tokens attend to their own segment only.
        key: draws dropout and router noise; without one the pass is deterministic.
        noise: the noise of `gru_random` routers, [S, H, B, L, R] a side, instead of drawing it.
        step: training steps taken, for priors that are annealed; without it they have their full strength.
        exchange_key: deals every step's choices to other tokens, to measure what the routing knows.
        cache: from `init_cache` or a previous output; `ids` are the tokens that follow.
        capture: `hidden` ([B, L, D] after the embedding and every layer, [H, B, L, D] per chunk) and/or `routing`
            (per side [S, H, B, L, ...]: scores, index, weight, state).
        weights: what `prepared` made, for calls with a cache: the sublayers' and routers' own parameters are not read.

        Raises ValueError where lengths do not fit or the routers need noise that is not there.
        """
        config, (batch, length) = self.config, ids.shape
        self._check(length, segment_ids, key, noise, cache, capture)
        valid = jnp.ones((batch, length), bool) if mask is None else mask.astype(bool)
        view, valid_slots = _view(valid, mask is not None, segment_ids, cache)
        if positions is None:
            start = 0 if cache is None else cache.length
            positions = start + jnp.arange(length, dtype=jnp.int32)[None]
        view = _view_of_group(view)
        key, exchange_key = own_key(key), own_key(exchange_key)
        keys = None if key is None else iter(jax.random.split(key, 1 + config.depth))

        def next_key() -> jax.Array | None:
            return None if keys is None else next(keys)

        embed = gathered(self.embed, config.dtype)
        # Rounded as they travel between devices, on one device too.
        tokens, places = (table[...].astype(config.dtype) for table in (embed.tokens, embed.positions))
        x = dropout(tokens[ids] + places[positions], config.dropout.embedding, next_key())
        captured = {"embed": x} if "hidden" in capture else {}
        kvs: dict[str, list[Any]] = {"bottom": [], "chunks": [], "anchors": [], "top": []}
        routing, traces = [], []

        def run(group: str, index: int, x: jax.Array) -> jax.Array:
            layer: Layer = getattr(self, group)[index]
            old = None if cache is None else cache.kv[group][index]
            own = None if weights is None else weights.layers[group][index]
            call = remat(lambda x, key, old: layer(x, view, key=key, cache=old, weights=own), config, scanned=False)
            x, kv = call(x, next_key(), old)
            kvs[group].append(kv)
            if "hidden" in capture:
                captured[f"{group}/{index}"] = x
            return x

        for i in range(config.num_bottom):
            x = run("bottom", i, x)
        for i, chunk in enumerate(self.chunks):
            x, outputs = chunk(
                x,
                view,
                valid,
                key=next_key(),
                noise=jax.tree.map(lambda n, i=i: n[i], noise),
                step=step,
                exchange_key=None if exchange_key is None else jax.random.fold_in(exchange_key, i),
                cache=None if cache is None else cache.kv["chunks"][i],
                capture=capture,
                weights=None if weights is None else weights.chunks[i],
            )
            kvs["chunks"].append(outputs.cache)
            routing.append(outputs.routing)
            if "hidden" in capture:
                captured[f"chunks/{i}"] = outputs.captured.pop("hidden")
            traces.append(outputs.captured)
            if config.anchor_after_chunk:
                x = run("anchors", i, x)
        for i in range(config.num_top):
            x = run("top", i, x)
        if traces:
            captured |= jax.tree.map(lambda *leaves: jnp.stack(leaves), *traces)
        if "hidden" in capture:
            captured["pre_norm"] = x
        cache = None if cache is None else Cache(kvs, valid_slots, jnp.int32(cache.length + length))
        unembedding = embed.tokens if config.tie_embeddings else gathered(self.lm_head, config.dtype).kernel
        return Output(gathered(self.final_norm)(x), unembedding[...], stack(routing), cache, captured)

    def classify(self, hidden: jax.Array, last_index: jax.Array) -> jax.Array:
        """Class logits [B, num_classes] in float32 from the hidden state [B, L, D] at each row's `last_index` [B]."""
        if self.config.num_classes is None:
            raise ValueError("num_classes=None: this model has no classification head")
        last = jnp.take_along_axis(hidden, last_index[:, None, None], axis=1)[:, 0]
        kernel = gathered(self.head).kernel[...].astype(last.dtype)
        return jnp.matmul(last, kernel, preferred_element_type=jnp.float32)

    def init_cache(self, batch: int, slots: int) -> Cache:
        """An empty cache for `slots` tokens of each of `batch` sequences."""
        config = self.config

        def kvs(count: int) -> list[KV]:
            return [new_kv(config, batch, slots) for _ in range(count)]

        kv: dict[str, list[Any]] = {group: kvs(len(getattr(self, group))) for group in LAYERS}
        kv["chunks"] = [kvs(config.num_steps) for _ in self.chunks]
        return Cache(kv, jnp.zeros((batch, slots), bool), 0)

    def prepared(self, backend: str) -> Weights:
        """The weights in the compute dtype with the layer norms folded in, for many calls with a cache and `weights=`.

        backend: of the routed computation (mom_jax/dispatch); with `switched` every module's weights are arrays of
        their own.
        """
        dtype = self.config.dtype

        def cast(weights: LayerWeights) -> LayerWeights:
            return LayerWeights(weights.attention.cast(dtype), weights.ffn.cast(dtype))

        layers = {group: [cast(layer.weights()) for layer in getattr(self, group)] for group in LAYERS}
        return Weights(layers, [chunk.prepared(decoding=backend) for chunk in self.chunks])

    def _check(self, length: int, segment_ids: Any, key: Any, noise: Any, cache: Any, capture: tuple[str, ...]) -> None:
        config = self.config
        if length > config.context_length:
            raise ValueError(f"ids have {length} tokens, more than context_length={config.context_length}")
        if cache is not None and segment_ids is not None:
            raise ValueError("segment_ids cannot be used with a cache")
        if cache is not None and not isinstance(cache.length, jax.core.Tracer):
            used, slots = int(cache.length) + length, cache.valid.shape[1]
            if used > slots:
                raise ValueError(f"the cache has {slots} slots, {used} tokens do not fit")
        if unknown := set(capture) - set(CAPTURES):
            raise ValueError(f"capture={sorted(unknown)}: known are {CAPTURES}")
        routed = config.num_chunks and "routed" in (config.kind("attention"), config.kind("ffn"))
        random = routed and config.router.kind == "gru_random" and config.router.noise_in_evaluation
        if random and key is None and noise is None:
            raise ValueError("router.noise_in_evaluation=True: pass noise= or key=")


def _is_new(cache: Cache) -> bool:
    return isinstance(cache.length, int) and cache.length == 0


def _view(valid: jax.Array, masked: bool, segment_ids: jax.Array | None, cache: Cache | None) -> tuple[View, jax.Array]:
    """What the tokens of this call may see, and the cache's valid slots after it."""
    length = valid.shape[1]
    if cache is None or _is_new(cache):
        place = jnp.arange(length)
        visible = (place[None, :] <= place[:, None])[None] & valid[:, None, :]
        if segment_ids is not None:
            visible &= segment_ids[:, :, None] == segment_ids[:, None, :]
        if masked or segment_ids is not None:
            # Padding is a segment of its own.
            segment_ids = jnp.where(valid, 0 if segment_ids is None else segment_ids, -1)
        unused = 0 if cache is None else cache.valid.shape[1] - length
        return View(visible, segment_ids=segment_ids), jnp.pad(valid, ((0, 0), (0, unused)))
    slots = jax.lax.dynamic_update_slice(cache.valid, valid, (0, cache.length))
    place = cache.length + jnp.arange(length, dtype=jnp.int32)
    visible = (jnp.arange(slots.shape[1], dtype=jnp.int32)[None, :] <= place[:, None])[None] & slots[:, None, :]
    return View(visible, jnp.asarray(cache.length, jnp.int32)), slots


def _view_of_group(view: View) -> View:
    """What attention may see where it works for the sequences of all devices that divide the heads."""
    if size("tensor") == 1:
        return view
    segments = None if view.segment_ids is None else gather_tokens(view.segment_ids, "tensor")
    return View(gather_tokens(view.visible, "tensor"), view.start, segments)


def parameters(model: nnx.Module) -> dict[str, Any]:
    """The model's parameters as nested dictionaries of arrays."""
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))


def with_parameters(config: ModelConfig, params: dict[str, Any]) -> MoM:
    """A model with the given parameters (nested dictionaries as from `parameters`); nothing is initialised, and what
    is not given has no value."""
    graphdef, state = nnx.split(nnx.eval_shape(lambda: MoM(config, rngs=nnx.Rngs(0))))
    nnx.replace_by_pure_dict(state, params)
    return nnx.merge(graphdef, state)
