"""Every backend of attention that runs here against float64 on the host: values and gradients.

Sequences of even and odd lengths, with padding, of packed documents, and with heads of 256 numbers. A backend may
refuse a case. Then, in bfloat16, the milliseconds of forward and backward pass at the step's shape (16 x 1024 tokens,
12 heads of 64), plain and packed.
"""

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple, get_args, get_type_hints

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.gpu.checks import ALLOWED, Verdict, poison
from benchmarks.gpu.process import reason
from benchmarks.measuring import timing
from mom_jax import ModelConfig
from mom_jax.attention import View, attend
from mom_jax.fields import ConfigError

BACKENDS = tuple(name for name in get_args(get_type_hints(ModelConfig)["attention_kernel"]) if name != "auto")
CASES = ("even", "odd", "padded", "packed", "wide")


class Shape(NamedTuple):
    """B, L, heads and their width."""

    batch: int
    length: int
    heads: int
    width: int

    def config(self, backend: str, dtype: str) -> ModelConfig:
        fields: Any = {"dtype": dtype, "attention_kernel": backend}
        return ModelConfig(d_model=self.heads * self.width, num_heads=self.heads, **fields)


class Case(NamedTuple):
    """qkv [B, L, 3E], the output's gradient d [B, L, E], and both results in float64; padding's gradient is 0. real:
    [B, L, 1] bool, the tokens whose results count."""

    shape: Shape
    qkv: jax.Array
    d: jax.Array
    view: View
    real: np.ndarray
    want: tuple[np.ndarray, np.ndarray]


def oracle(qkv: np.ndarray, visible: np.ndarray, heads: int, d: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Attention over qkv [B, L, 3E] and the gradient of sum(output · d), in float64; who sees nothing gets zeros."""
    batch, length, _ = qkv.shape

    def divided(x: np.ndarray) -> np.ndarray:
        return x.astype(np.float64).reshape(batch, length, heads, -1).transpose(0, 2, 1, 3)

    q, k, v = map(divided, np.split(qkv, 3, -1))
    scale = q.shape[-1] ** -0.5
    logits, sees = q @ k.swapaxes(-1, -2) * scale, visible[:, None]
    p = np.exp(logits - logits.max(-1, keepdims=True)) * sees
    p /= np.where(sees.any(-1, keepdims=True), p.sum(-1, keepdims=True), 1)
    d = divided(d)
    d_p = d @ v.swapaxes(-1, -2)
    d_logits = p * (d_p - (d_p * p).sum(-1, keepdims=True)) * scale
    parts = d_logits @ k, d_logits.swapaxes(-1, -2) @ q, p.swapaxes(-1, -2) @ d

    def joined(x: np.ndarray) -> np.ndarray:
        return x.transpose(0, 2, 1, 3).reshape(batch, length, -1)

    return joined(p @ v), np.concatenate([joined(part) for part in parts], -1)


def view_of(name: str, shape: Shape) -> tuple[np.ndarray | None, np.ndarray, np.ndarray]:
    """(the tokens' segments or None, visible [B, L, L], real [B, L]), as a model gives them to attention."""
    batch, length = shape[:2]
    place = np.arange(length)
    visible = np.broadcast_to(place[None, :] <= place[:, None], (batch, length, length))
    real = np.ones((batch, length), bool)
    if name not in ("padded", "packed"):
        return None, visible, real
    # Other lengths in every row; padding is a segment of its own.
    ends = np.stack([length // (3 + np.arange(batch)), 2 * length // 3 + 1 + np.arange(batch)], 1)[:, :, None]
    segments = (place[None] >= ends[:, 0]).astype(np.int32) + (place[None] >= ends[:, 1])
    if name == "padded":
        real = segments < 2
        segments = np.where(real, 0, -1).astype(np.int32)
    return segments, visible & real[:, None, :] & (segments[:, :, None] == segments[:, None, :]), real


def shape_of(name: str, small: bool) -> Shape:
    shape = Shape(1, 128, 2, 32) if small else Shape(2, 1024, 4, 64)
    if name == "odd":
        return shape._replace(length=shape.length - 3)
    return shape._replace(length=shape.length // 2, heads=2, width=64 if small else 256) if name == "wide" else shape


def draw(rng: np.random.Generator, name: str, small: bool, dtype: str) -> Case:
    """A case of random numbers."""
    shape = shape_of(name, small)
    segments, visible, real = view_of(name, shape)
    wide = shape.heads * shape.width
    view = View(jnp.asarray(visible), segment_ids=None if segments is None else jnp.asarray(segments))
    arrays = [rng.standard_normal((shape.batch, shape.length, size), dtype=np.float32) for size in (3 * wide, wide)]
    qkv, d = jnp.asarray(arrays[0], dtype), jnp.asarray(arrays[1] * real[:, :, None], dtype)
    want = oracle(np.asarray(qkv.astype(jnp.float32)), visible, shape.heads, np.asarray(d.astype(jnp.float32)))
    return Case(shape, qkv, d, view, real[:, :, None], want)


def program(config: ModelConfig) -> Any:
    """(qkv, d, view) -> the output and the gradient of qkv, jitted."""

    def run(qkv: jax.Array, d: jax.Array, view: View) -> Any:
        y, pullback = jax.vjp(lambda qkv: attend(qkv, view, config, key=None, cache=None)[0], qkv)
        return y, *pullback(d)

    return jax.jit(run)


def checks(backends: list[str], small: bool) -> Iterator[dict[str, Any]]:
    """A row per backend and dtype."""
    seed = int(np.random.default_rng().integers(2**32))
    rng = np.random.default_rng(seed)
    cases = {(name, dtype): draw(rng, name, small, dtype) for dtype in ALLOWED for name in CASES}
    programs = {
        f"{backend} {name} {dtype}": (program(case.shape.config(backend, dtype)), case.qkv, case.d, case.view)
        for backend in backends
        for (name, dtype), case in cases.items()
    }
    compiled = dict(timing.compile_together(programs))
    for backend in backends:
        for dtype, allowed in ALLOWED.items():
            verdict, failed = Verdict(allowed), []
            refused: dict[str, list[str]] = {}
            for name in CASES:
                case, run = cases[name, dtype], compiled[f"{backend} {name} {dtype}"]
                if isinstance(run, ConfigError):
                    refused.setdefault(str(run), []).append(name)
                    continue
                poison(32 if small else 2048)
                try:
                    if isinstance(run, Exception):
                        raise run
                    y, d_qkv = (np.asarray(part.astype(jnp.float32)) for part in run.run(case.qkv, case.d, case.view))
                except Exception as problem:
                    failed.append(f"{name}: {reason(problem)}")
                    continue
                verdict.compare(f"{name}: y", np.where(case.real, y, 0), np.where(case.real, case.want[0], 0))
                verdict.compare(f"{name}: d_qkv", d_qkv, case.want[1])
            row = {"backend": backend, "dtype": dtype, "allowed": allowed, "seed": seed}
            row |= {"refused": [f"{', '.join(names)}: {why}" for why, names in refused.items()]}
            checked = len(CASES) - sum(map(len, refused.values())) - len(failed)
            row |= {"checked": checked, "worst_error": verdict.worst if checked else None, "wrong": verdict.wrong}
            yield row | ({"failed": f"{backend} {dtype}: {'; '.join(failed)}"} if failed else {})


def speeds(backends: list[str], small: bool) -> Iterator[dict[str, Any]]:
    """Milliseconds of each backend."""
    shape = shape_of("even", small) if small else Shape(16, 1024, 12, 64)
    wide = shape.heads * shape.width
    rng = np.random.default_rng()
    qkv, d = (
        jnp.asarray(rng.standard_normal((shape.batch, shape.length, size), dtype=np.float32), "bfloat16")
        for size in (3 * wide, wide)
    )
    calls: dict[str, timing.Call] = {}
    programs = {}
    for name in ("even", "packed"):
        segments, visible, _ = view_of(name, shape)
        # A row of `visible` serves for all where there are no segments, as in a model.
        view = View(
            jnp.asarray(visible if segments is not None else visible[:1]),
            segment_ids=None if segments is None else jnp.asarray(segments),
        )
        for backend in backends:
            programs[f"{backend} {name}"] = program(shape.config(backend, "bfloat16")), qkv, d, view
    for name, result in timing.compile_together(programs):
        if isinstance(result, Exception):
            continue  # the checks have said why
        call = functools.partial(result.run, *programs[name][1:])
        try:
            jax.block_until_ready(call())
            calls[name] = call
        except Exception as problem:  # too little memory, for one
            yield {"failed": f"{name}: {reason(problem)}"}
    flops = 3.5 * 4 * shape.batch * shape.length**2 / 2 * wide  # backward pass: five products for two
    middle = timing.medians(timing.bursts(calls, 1 if small else 5))
    for name, seconds in sorted(middle.items(), key=lambda item: list(programs).index(item[0])):
        backend, kind = name.split()
        row = {"backend": backend, "timed": kind, "milliseconds": 1e3 * seconds, **shape._asdict()}
        yield row | ({"TFLOP/s": flops / seconds / 1e12} if kind == "even" else {})


def rows(small: bool) -> Iterator[dict[str, Any]]:
    backends = [name for name in BACKENDS if name != "splash" or jax.default_backend() == "tpu"]
    yield from checks(backends, small)
    yield from speeds(backends, small)
