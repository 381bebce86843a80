"""`MoM`: embeddings, anchors, chunks of assembly steps, a final layer norm, and heads."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from mom_jax.assembly import CAPTURES, Chunk, ChunkWeights, Noise, Observation
from mom_jax.attention import KV, dropout, new_kv
from mom_jax.cache import Cache, view_of, view_of_group
from mom_jax.checks import check_array
from mom_jax.config import ModelConfig, Side
from mom_jax.embeddings import Embedding, FinalNorm, Head, Unembedding
from mom_jax.fields import require
from mom_jax.layers import INIT_STD, Layer, LayerWeights
from mom_jax.remat import remat
from mom_jax.routing import Routing, stack
from mom_jax.sharding import gathered, own_key

LAYERS = ("bottom", "anchors", "top")  # the groups of layers that run once


class ModelWeights(NamedTuple):
    """All sublayers' weights, made ready for many calls (`MoM.prepared`): what a forward pass else does anew.

    layers: for each of `bottom`, `anchors`, `top` a list. chunks: the chunks'.
    """

    layers: dict[str, list[LayerWeights]]
    chunks: list[ChunkWeights]


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
        """[B, L, V] float32."""
        unembedding = self.unembedding.astype(self.hidden.dtype)
        return jnp.einsum("bld,vd->blv", self.hidden, unembedding, preferred_element_type=jnp.float32)


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
        prior: Mapping[Side, jax.Array] | None = None,
        exchange_key: jax.Array | None = None,
        cache: Cache | None = None,
        capture: tuple[str, ...] = (),
        weights: ModelWeights | None = None,
    ) -> Output:
        """Runs the model on token ids [B, L], int32 from 0 to V - 1.

        mask: [B, L], true (non-zero) for real tokens; padding is not attended to and not counted in statistics.
        positions: [B, L] for the position embedding; by default they count up (from the cache's length).
        segment_ids: [B, L]; tokens attend to their own segment only.
        key: draws dropout and router noise; without one the pass is deterministic.
        noise: the noise of `gru_random` routers, [S, H, B, L, R] a side, instead of drawing it.
        step: training steps taken, for priors that are annealed; without it they have their full strength.
        prior: of routed sides, [S, H, C] float32, added to the prior that the configuration has: -inf forbids a class.
        exchange_key: deals every step's choices to other tokens, to measure what the routing knows.
        cache: from `init_cache` or a previous output; `ids` are the tokens that follow.
        capture: `hidden` ([B, L, D] after the embedding and every layer, [H, B, L, D] per chunk) and/or `routing`
            (per side [S, H, B, L, ...]: scores, index, weight, state) and/or `faults` (`faults/...` [S, H] int32: how
            often something was wrong with the routing, mom_jax/checks.py).
        weights: what `prepared` made, for calls with a cache: the sublayers' and routers' own parameters are not read.

        Raises ValueError where lengths do not fit or the routers need noise that is not there, and AssertionError for
        arrays of other shapes or dtypes.
        """
        check_array("MoM: ids", ids, (None, None), int)
        for name, array in {"mask": mask, "segment_ids": segment_ids, "positions": positions}.items():
            if array is not None:
                # One row of positions may do for all.
                rows = None if name == "positions" else ids.shape[0]
                check_array(f"MoM: {name}", array, (rows, ids.shape[1]))
        config, (batch, length) = self.config, ids.shape
        for side, table in (prior or {}).items():
            if side not in config.routed_sides:
                raise ValueError(f"prior: {side!r} is no routed side; these are {config.routed_sides}")
            shape = (config.num_chunks, config.num_steps, config.classes(side))
            check_array(f"MoM: prior[{side!r}]", table, shape, jnp.float32)
        self._check(length, segment_ids, key, noise, cache, capture)
        valid = jnp.ones((batch, length), bool) if mask is None else mask.astype(bool)
        view, valid_slots = view_of(valid, mask is not None, segment_ids, cache)
        if positions is None:
            start = 0 if cache is None else cache.length
            positions = start + jnp.arange(length, dtype=jnp.int32)[None]
        view = view_of_group(view)
        key, observation = own_key(key), Observation(valid, capture, own_key(exchange_key))
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
                observation.of_chunk(i),
                key=next_key(),
                noise=jax.tree.map(lambda n, i=i: n[i], noise),
                step=step,
                segment_ids=segment_ids,
                prior=jax.tree.map(lambda table, i=i: table[i], prior),
                cache=None if cache is None else cache.kv["chunks"][i],
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

    def prepared(self, backend: str) -> ModelWeights:
        """The weights in the compute dtype with the layer norms folded in, for many calls with a cache and `weights=`.

        backend: of the routed computation (mom_jax/dispatch); with `branched` every module's weights are arrays of
        their own.
        """
        dtype = self.config.dtype

        def cast(weights: LayerWeights) -> LayerWeights:
            return LayerWeights(weights.attention.cast(dtype), weights.ffn.cast(dtype))

        layers = {group: [cast(layer.weights()) for layer in getattr(self, group)] for group in LAYERS}
        return ModelWeights(layers, [chunk.prepared(decoding=backend) for chunk in self.chunks])

    def _check(self, length: int, segment_ids: Any, key: Any, noise: Any, cache: Any, capture: tuple[str, ...]) -> None:
        config = self.config
        if length > config.context_length:
            raise ValueError(f"ids have {length} tokens, more than context_length={config.context_length}")
        if cache is not None and segment_ids is not None:
            raise ValueError("segment_ids cannot be used with a cache")
        if cache is not None and config.has_capacity:
            shares = ", ".join(f"{side}.capacity={getattr(config, side).capacity}" for side in config.routed_sides)
            raise ValueError(f"{shares}: cannot be used with a cache; config.causal() goes without")
        if cache is not None and not isinstance(cache.length, jax.core.Tracer):
            used, slots = int(cache.length) + length, cache.valid.shape[1]
            if used > slots:
                raise ValueError(f"the cache has {slots} slots, {used} tokens do not fit")
        if unknown := set(capture) - set(CAPTURES):
            raise ValueError(f"capture={sorted(unknown)}: known are {CAPTURES}")
        random = config.routed_sides and config.router.kind == "gru_random" and config.router.noise_in_evaluation
        if random and key is None and noise is None:
            raise ValueError("router.noise_in_evaluation=True: pass noise= or key=")


def parameters(model: nnx.Module) -> dict[str, Any]:
    """The model's parameters as nested dictionaries of arrays."""
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))


def with_parameters(config: ModelConfig, params: dict[str, Any]) -> MoM:
    """A model with the given parameters (nested dictionaries as from `parameters`); nothing is initialised, and what
    is not given has no value."""
    graphdef, state = nnx.split(nnx.eval_shape(lambda: MoM(config, rngs=nnx.Rngs(0))))
    nnx.replace_by_pure_dict(state, params)
    return nnx.merge(graphdef, state)


def gathered_parameters(config: ModelConfig, params: dict[str, Any]) -> dict[str, Any]:
    """All parameters as a device of a mesh computes with them, float32, of those that it has at rest."""
    return parameters(gathered(with_parameters(config, params)))
