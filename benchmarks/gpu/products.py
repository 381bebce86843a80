"""Every backend of the routed products that runs here against float64 on the host: values and all gradients.

A backend is right with a relative error (norms) of at most 1e-2 in bfloat16 and 1e-3 in float32, for every routing.
Before each call memory is filled with NaN, so that rows that a kernel should have written, and did not, show.
"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.kernels import routing_choices
from mom_jax import dispatch

ALLOWED = {"bfloat16": 1e-2, "float32": 1e-3}
ROUTINGS = ("uniform", "skewed", "half_skip", "all null", "one module")
PARTS = ("y", "d_x", "d_kernel", "d_bias", "d_multiplier")


def choices(routing: str, tokens: int, modules: int, top_k: int) -> np.ndarray:
    if routing == "all null":
        return np.full((tokens, top_k), modules, np.int32)
    if routing == "one module":
        index = np.full((tokens, top_k), modules, np.int32)
        index[:, 0] = modules - 1
        return index
    return routing_choices(routing, tokens, modules, top_k)


def oracle(arrays: list[np.ndarray], index: np.ndarray) -> tuple[np.ndarray, ...]:
    """y and the gradients of sum(y · d_y), in float64."""
    x, kernel, bias, multiplier, d_y = (a.astype(np.float64) for a in arrays)
    y = np.zeros_like(d_y)
    d_x, d_kernel, d_bias, d_multiplier = (np.zeros_like(a) for a in (x, kernel, bias, multiplier))
    for module in range(len(kernel)):
        token, k = np.nonzero(index == module)
        if not len(token):
            continue
        weight = multiplier[token, k][:, None]
        result = x[token] @ kernel[module] + bias[module]
        d_result = weight * d_y[token]
        np.add.at(y, token, weight * result)
        np.add.at(d_x, token, d_result @ kernel[module].T)
        d_kernel[module], d_bias[module] = x[token].T @ d_result, d_result.sum(0)
        d_multiplier[token, k] = (result * d_y[token]).sum(1)
    return y, d_x, d_kernel, d_bias, d_multiplier


def poison(megabytes: int) -> None:
    """Leaves NaN in the memory that the next call will be given."""
    held = [jnp.full((2**18,), jnp.nan, jnp.float32) for _ in range(megabytes)]
    jax.block_until_ready(held)


def error(got: Any, want: np.ndarray) -> float | None:
    """|got - want| / |want|; None where something is not finite."""
    got = np.asarray(got, np.float64)
    if not np.isfinite(got).all():
        return None
    size = float(np.linalg.norm(want))
    return float(np.linalg.norm(got - want)) / (size or 1.0)


def rows(small: bool) -> Iterator[dict[str, Any]]:
    tokens, depth, width, modules, top_k = (24, 128, 128, 3, 2) if small else (2000, 768, 1536, 10, 3)
    rng = np.random.default_rng()
    for backend in dispatch.BACKENDS:
        if backend == "capacity" or (backend == "megablox" and jax.default_backend() != "tpu"):
            continue  # the one drops choices, the other is a TPU's
        if (reason := dispatch.refusal(backend)) is not None:
            yield {"backend": backend, "refused": reason}
            continue
        for dtype, allowed in ALLOWED.items():

            @jax.jit
            def run(
                x: Any, kernel: Any, bias: Any, multiplier: Any, d_y: Any, index: Any, backend: str = backend
            ) -> Any:
                plan = dispatch.make_plan(index, modules, backend)

                def function(x: Any, kernel: Any, bias: Any, multiplier: Any) -> jax.Array:
                    return dispatch.routed_linear(x, kernel, bias, multiplier, plan, backend)

                y, pullback = jax.vjp(function, x, kernel, bias, multiplier)
                return y, *pullback(d_y)

            worst, wrong = 0.0, []
            for routing in ROUTINGS[:: 2 if small else 1]:
                index = choices(routing, tokens, modules, top_k)
                shapes = (tokens, depth), (modules, depth, width), (modules, width), index.shape, (tokens, width)
                x, kernel, bias, multiplier, d_y = (rng.standard_normal(shape, dtype=np.float32) for shape in shapes)
                kernel /= depth**0.5
                given = [jnp.asarray(x, dtype), jnp.asarray(kernel, dtype).astype(jnp.float32), jnp.asarray(bias)]
                given += [jnp.asarray(multiplier), jnp.asarray(d_y, dtype)]
                want = oracle([np.asarray(a.astype(jnp.float32)) for a in given], index)
                poison(16 if small else 2048)
                for part, got, expected in zip(PARTS, run(*given, jnp.asarray(index)), want, strict=True):
                    off = error(got, expected)
                    if off is None or off > allowed:
                        wrong.append(f"{routing}: {part} {'not finite' if off is None else f'{off:.2e}'}")
                    worst = max(worst, off or 0.0)
            yield {"backend": backend, "dtype": dtype, "worst_error": worst, "allowed": allowed, "wrong": wrong}
