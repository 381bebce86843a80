"""The train step of GPT-2-small shape, 16 x 1024 tokens in bfloat16: vanilla, MoM with K = 1, 2, 3, Hugging Face's.

A MoM is an anchor, a chunk of 10 steps over 10 + 10 modules, an anchor; `K=1 triton` has that dispatch, others what
`auto` is here. Hugging Face's parameters are float32 as ours, and its products bfloat16 by autocast; `hf_sdpa_half` has
bfloat16 parameters.

`over_vanilla`: time over our vanilla's. `flops_over_vanilla`: the FLOPs that the model needs over vanilla's, every
choice a real module, and `active_...` without the choices that were SKIP. `over_flops`, `over_active_flops`: the first
over one of these. `mfu`: of the active FLOPs, against the published peak, and `mfu_of_seen` against the product that
this card was seen to make. `temp_bytes`, `total_bytes`: of the compiled program; `peak_bytes`: of the process so far,
which has all models.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from benchmarks.gpu.card import product_flops
from benchmarks.gpu.process import reason
from benchmarks.kernels import measurable
from benchmarks.measuring import reference, timing
from benchmarks.measuring.reference import SMALL, Size, Work
from mom_jax import ModelConfig, dispatch
from mom_jax.analysis.chips import peak_flops

FULL = dataclasses.replace(reference.GPT2_SMALL, batch=16, length=1024)
TOP_KS = (1, 2, 3)
SLOW = ("dense", "ragged", "blocked", "capacity")  # on GPUs, not to be compared in a whole step


def models(small: bool) -> tuple[Size, dict[str, ModelConfig]]:
    """The size, and vanilla and MoM with each K."""
    size = dataclasses.replace(SMALL, modules=3) if small else FULL
    moms = {f"K={k}": reference.config(size, top_k=k, dtype="bfloat16") for k in (TOP_KS[:1] if small else TOP_KS)}
    return size, {"vanilla": next(iter(moms.values())).vanilla(), **moms}


def by_other_kernels(configs: Mapping[str, ModelConfig]) -> dict[str, ModelConfig]:
    """Some MoMs with the kernels that `auto` does not choose here."""
    found = {}
    for name in ("K=1", "K=3"):
        for backend in dispatch.BACKENDS:
            if name in configs and measurable(backend) and backend not in (*SLOW, dispatch.resolve(configs[name])):
                fields: Any = {"dispatch": backend}
                found[f"{name} {backend}"] = dataclasses.replace(configs[name], **fields)
    return found


def compile_models(configs: Mapping[str, ModelConfig], size: Size) -> tuple[dict[str, Work], list[dict[str, Any]]]:
    """The work of each, and a row for each that cannot be compiled."""
    batch = {"tokens": jnp.asarray(reference.tokens(size))}
    arguments = {name: (reference.params(config), batch) for name, config in configs.items()}
    programs = {name: (reference.loss_and_gradients(config), *arguments[name]) for name, config in configs.items()}
    works, failed = {}, []
    for name, compiled in timing.compile_together(programs):
        if isinstance(compiled, Exception):
            failed.append({"failed": f"{name}: {reason(compiled)}"})
        else:
            works[name] = Work(compiled, *arguments[name])
    return {name: works[name] for name in configs if name in works}, failed


def timed(calls: Mapping[str, timing.Call], small: bool) -> tuple[timing.Seconds, list[dict[str, Any]]]:
    """Seconds of all in turn, and a row for each that does not run."""
    good, failed = {}, []
    for name, call in calls.items():
        try:
            timing.warm_up({name: call})
            good[name] = call
        except Exception as problem:
            failed.append({"failed": f"{name}: {reason(problem)}"})
    return timing.interleaved(good, 3 if small else 10, limit=6), failed


def needed(config: ModelConfig, size: Size, skips: Mapping[str, float] | None = None) -> float:
    """FLOPs of a step on the whole batch; skips: the shares of the choices that take no module."""
    return size.batch * size.length * reference.train_flops(config, size, skips)


def with_adamw(config: ModelConfig) -> tuple[Any, Any]:
    """(a step of AdamW as a jitted function of params, state, batch, of which the first two are donated; its state's
    initialisation)."""
    optimizer = optax.adamw(1e-4)
    gradients = reference.loss_and_gradients(config)

    def step(params: Any, state: Any, batch: Any) -> tuple:
        (loss, _), gradient = gradients(params, batch)
        with jax.numpy_dtype_promotion("standard"):
            updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, loss

    return jax.jit(step, donate_argnums=(0, 1)), jax.jit(optimizer.init)


def compile_adamw(
    configs: Mapping[str, ModelConfig], works: Mapping[str, Work]
) -> tuple[dict[str, tuple[timing.Compiled, timing.Call]], list[dict[str, Any]]]:
    """Of each work the compiled step with AdamW and its call, and a row for each that cannot be compiled."""
    steps = {name: with_adamw(configs[name]) for name in works}
    programs = {
        name: (steps[name][0], work.params, jax.eval_shape(steps[name][1], work.params), work.batch)
        for name, work in works.items()
    }
    found, failed = {}, []
    for name, compiled in timing.compile_together(programs):
        if isinstance(compiled, Exception):
            failed.append({"failed": f"{name} with AdamW: {reason(compiled)}"})
        else:
            found[name] = compiled, _stateful(compiled, steps[name][1], works[name])
    return {name: found[name] for name in works if name in found}, failed


def _stateful(compiled: timing.Compiled, init: Any, work: Work) -> timing.Call:
    held: list[Any] = []  # made by the first call: what is never timed takes no memory

    def call() -> Any:
        if not held:
            params = jax.tree.map(jnp.copy, work.params)
            held[:] = params, init(params)
        *held[:], loss = compiled.run(*held, work.batch)
        return jax.block_until_ready(loss)

    return call


def hugging_face(size: Size, layers: int, adamw: bool) -> tuple[dict[str, timing.Call], list[dict[str, Any]]]:
    """GPT-2 in PyTorch, where it is installed, and a row where it is and does not work."""
    found, failed = {}, []
    for name, half in (("hf_sdpa", False), ("hf_sdpa_half", True)):
        if half and jax.default_backend() != "gpu":
            continue
        try:
            if (call := reference.torch_gpt2(size, layers, adamw=adamw, half=half)) is not None:
                found[name] = call
        except Exception as problem:
            failed.append({"failed": f"{name}: {reason(problem)}"})
    return found, failed


def rows(small: bool) -> Iterator[dict[str, Any]]:
    size, configs = models(small)
    seen = product_flops(128 if small else 8192)
    configs |= by_other_kernels(configs)
    works, failed = compile_models(configs, size)
    yield from failed
    base = works["vanilla"].compiled.temp_bytes if "vanilla" in works else None
    for name, work in works.items():
        temps = work.compiled.temp_bytes
        row: dict[str, Any] = {"program": name, "compile_seconds": work.compiled.seconds, "temp_bytes": temps}
        yield row | {"temp_over_vanilla": temps / base if base else None}
    measured = Measured(size, configs, {}, seen)
    shown = set()

    def measure(calls: Mapping[str, timing.Call], adamw: bool, compiled: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """A row for each that has none yet; `vanilla`, which all are compared with, runs again."""
        seconds, failed = timed(calls, small)
        yield from failed
        for name in seconds:
            if name in works and name not in measured.skips:
                measured.skips[name] = reference.skip_share(works[name].routing())
            if (name, adamw) not in shown:
                shown.add((name, adamw))
                yield {"model": name, "adamw": adamw} | figures(name, seconds, measured, compiled.get(name))

    def chosen(names: Iterable[str]) -> dict[str, timing.Call]:
        return {name: works[name].call for name in ("vanilla", *names) if name in works}

    programs = {name: work.compiled for name, work in works.items()}
    layers, others = configs["vanilla"].num_layers, [name for name in works if " " in name]
    # One kind of kernels after the other: one that never ends costs the lines of those after it only. PyTorch comes
    # after ours, whatever it does to this process.
    yield from measure(chosen(()), False, programs)
    yield from measure(chosen(others), False, programs)
    yield from measure(chosen(name for name in works if name not in others), False, programs)
    theirs, failed = hugging_face(size, layers, adamw=False)
    yield from failed
    yield from measure(chosen(()) | theirs, False, programs)
    steps, failed = compile_adamw(configs, {name: work for name, work in works.items() if name not in others})
    yield from failed
    theirs, failed = hugging_face(size, layers, adamw=True)
    yield from failed
    calls = {name: call for name, (_, call) in steps.items()}
    yield from measure(calls | theirs, True, {name: compiled for name, (compiled, _) in steps.items()})


class Measured(NamedTuple):
    """What figures are made with. skips: the shares of SKIP by model and side. seen: FLOP/s of a large product."""

    size: Size
    configs: Mapping[str, ModelConfig]
    skips: dict[str, dict[str, float]]
    seen: float


def figures(name: str, seconds: timing.Seconds, measured: Measured, compiled: timing.Compiled | None) -> dict[str, Any]:
    """What the seconds of a model say. compiled: None for Hugging Face's."""
    size, configs, skips = measured.size, measured.configs, measured.skips.get(name, {})
    vanilla = configs["vanilla"]
    middle, config = timing.medians(seconds)[name], configs.get(name, vanilla)
    peak, rate = peak_flops(jax.devices()[0].device_kind), needed(config, size, skips) / middle
    over = timing.ratio(seconds, name, "vanilla")
    every, active = (needed(config, size, given) / needed(vanilla, size) for given in (None, skips))
    row: dict[str, Any] = {
        "milliseconds": 1e3 * middle,
        "tokens_per_second": size.batch * size.length / middle,
        "mfu": None if peak is None else rate / peak,
        "mfu_of_seen": rate / measured.seen,
        "over_vanilla": over,
        "quartiles": timing.quartiles(timing.ratios(seconds, name, "vanilla")),
    }
    if compiled is None:
        return row | {"vanilla_over_this": timing.ratio(seconds, "vanilla", name)}
    return row | {
        "flops_over_vanilla": every,
        "active_flops_over_vanilla": active,
        "over_flops": None if over is None else over / every,
        "over_active_flops": None if over is None else over / active,
        "skips": skips,
        "temp_bytes": compiled.temp_bytes,
        "total_bytes": compiled.total_bytes,
        "peak_bytes": (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use"),
    }
