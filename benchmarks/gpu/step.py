"""The train step of GPT-2-small shape, 16 x 1024 tokens in bfloat16: vanilla, MoM with K = 1, 2, 3, Hugging Face's.

A MoM is an anchor, a chunk of 10 steps over 10 + 10 modules, an anchor. `ratio`: time over our vanilla's; `flops`: the
FLOPs that the model needs over vanilla's, every choice a real module; MFU against the published peak and against the
product that this card was seen to make (`card`), of the choices that were no SKIP.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax

from benchmarks import reference, timing
from benchmarks.gpu.card import product_flops
from benchmarks.reference import SMALL, Size
from mom_jax import ModelConfig
from mom_jax.analysis import cost
from mom_jax.analysis.chips import peak_flops

FULL = dataclasses.replace(reference.GPT2_SMALL, batch=16, length=1024)
TOP_KS = (1, 2, 3)


def models(small: bool) -> tuple[Size, dict[str, ModelConfig]]:
    """The size, and vanilla and MoM with each K."""
    size = dataclasses.replace(SMALL, modules=3) if small else FULL
    moms = {f"K={k}": reference.config(size, top_k=k, dtype="bfloat16") for k in (TOP_KS[:1] if small else TOP_KS)}
    return size, {"vanilla": next(iter(moms.values())).vanilla(), **moms}


def needed(config: ModelConfig, size: Size, skips: dict[str, float] | None = None) -> float:
    """FLOPs of a step on the whole batch; skips: the shares of the choices that take no module."""
    taken: dict[str, Any] = {}
    if skips:
        taken = {
            f"{'attn' if side == 'attention' else 'ffn'}_taken": config.top_k * (1 - skips[side]) for side in skips
        }
    return size.batch * size.length * cost.train_flops_per_token(config, size.length, **taken)


def with_adamw(config: ModelConfig, work: reference.Work) -> Callable[[], Any]:
    """The same work and a step of AdamW; the state is donated."""
    optimizer = optax.adamw(1e-4)
    gradients = reference.loss_and_gradients(config)

    def step(params: Any, state: Any, batch: Any) -> tuple:
        (loss, _), gradient = gradients(params, batch)
        with jax.numpy_dtype_promotion("standard"):
            updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, loss

    run = jax.jit(step, donate_argnums=(0, 1))
    params = jax.tree.map(jnp.copy, work.params)
    held = [params, jax.jit(optimizer.init)(params)]

    def call() -> Any:
        *held[:], loss = run(*held, work.batch)
        return jax.block_until_ready(loss)

    return call


def rows(small: bool) -> Iterator[dict[str, Any]]:
    size, configs = models(small)
    peak, seen = peak_flops(jax.devices()[0].device_kind), product_flops(128 if small else 8192)
    layers = configs["vanilla"].num_layers
    works = {name: reference.prepare(config, size) for name, config in configs.items()}
    skips = {name: reference.skip_share(works[name].routing()) for name in works}
    for optimizer in (False, True):
        calls: dict[str, timing.Call] = {
            name: with_adamw(configs[name], work) if optimizer else work.call for name, work in works.items()
        }
        if (theirs := reference.torch_gpt2(size, layers, adamw=optimizer)) is not None:
            calls["hf_sdpa"] = theirs
        timing.warm_up(calls, 2)
        seconds = timing.interleaved(calls, 3 if small else 10, limit=8)
        middle = timing.medians(seconds)
        for name in calls:
            model = configs.get(name, configs["vanilla"])
            rate = needed(model, size, skips.get(name)) / middle[name]
            row: dict[str, Any] = {
                "model": name,
                "adamw": optimizer,
                "milliseconds": 1e3 * middle[name],
                "tokens_per_second": size.batch * size.length / middle[name],
                "mfu": None if peak is None else rate / peak,
                "mfu_of_seen": rate / seen,
                "over_vanilla": timing.ratio(seconds, name, "vanilla"),
            }
            if name in works:
                stats = jax.devices()[0].memory_stats() or {}
                row |= {
                    "flops_over_vanilla": needed(model, size) / needed(configs["vanilla"], size),
                    "temp_bytes": works[name].compiled.temp_bytes,
                    "peak_bytes": stats.get("peak_bytes_in_use"),
                    "skips": skips[name],
                    "vanilla_over_hf": timing.ratio(seconds, "vanilla", "hf_sdpa") if name == "vanilla" else None,
                }
            yield row
