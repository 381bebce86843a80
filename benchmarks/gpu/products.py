"""Every backend of the routed products that runs here against float64 on the host, and against `dense`.

A backend is right with a relative error (norms) of at most 1e-2 in bfloat16 and 1e-3 in float32 of the value and of all
gradients, for every routing. Before each call memory is filled with NaN.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.gpu.checks import ALLOWED, Verdict, poison
from benchmarks.gpu.process import reason
from benchmarks.kernels import routing_choices
from benchmarks.measuring import timing
from mom_jax import dispatch

ROUTINGS = ("uniform", "skewed", "half_skip", "all_null", "one_module")
PARTS = ("y", "d_x", "d_kernel", "d_bias", "d_multiplier")


class Sizes(NamedTuple):
    """T, D, E, N, K. No number of rows is a multiple of a kernel's tile."""

    tokens: int
    depth: int
    width: int
    modules: int
    top_k: int


class Case(NamedTuple):
    """given: x, kernel, bias, multiplier, d_y, index. want: the parts in float64."""

    given: list[jax.Array]
    want: tuple[np.ndarray, ...]


def choices(routing: str, sizes: Sizes) -> np.ndarray:
    """[T, K] int32."""
    index = np.full((sizes.tokens, sizes.top_k), sizes.modules, np.int32)
    if routing == "all_null":
        return index
    if routing == "one_module":
        index[:, 0] = sizes.modules - 1
        return index
    return routing_choices(routing, sizes.tokens, sizes.modules, sizes.top_k)


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


def draw(rng: np.random.Generator, routing: str, sizes: Sizes, dtype: str) -> Case:
    """Random arrays and what must come out. Kernels are float32, of numbers that the dtype has."""
    tokens, depth, width, modules, top_k = sizes
    index = choices(routing, sizes)
    shapes = (tokens, depth), (modules, depth, width), (modules, width), (tokens, top_k), (tokens, width)
    x, kernel, bias, multiplier, d_y = (rng.standard_normal(shape, dtype=np.float32) for shape in shapes)
    given = [
        jnp.asarray(x, dtype),
        jnp.asarray(kernel / depth**0.5, dtype).astype(jnp.float32),
        jnp.asarray(bias),
        jnp.asarray(multiplier),
        jnp.asarray(d_y, dtype),
    ]
    want = oracle([np.asarray(a.astype(jnp.float32)) for a in given], index)
    return Case([*given, jnp.asarray(index)], want)


def program(backend: str, modules: int) -> Any:
    """(x, kernel, bias, multiplier, d_y, index) -> the value and all gradients, jitted."""

    def run(x: Any, kernel: Any, bias: Any, multiplier: Any, d_y: Any, index: Any) -> Any:
        plan = dispatch.make_plan(index, modules, backend)

        def function(x: Any, kernel: Any, bias: Any, multiplier: Any) -> jax.Array:
            return dispatch.routed_linear(x, kernel, bias, multiplier, plan, backend)

        y, pullback = jax.vjp(function, x, kernel, bias, multiplier)
        return y, *pullback(d_y)

    return jax.jit(run)


def rows(small: bool) -> Iterator[dict[str, Any]]:
    sizes = Sizes(24, 128, 128, 3, 2) if small else Sizes(1000, 768, 1536, 10, 3)
    seed = int(np.random.default_rng().integers(2**32))
    rng = np.random.default_rng(seed)
    here = []
    for backend in dispatch.BACKENDS:
        if backend == "capacity" or (backend == "megablox" and jax.default_backend() != "tpu"):
            continue  # the one drops choices, the other is a TPU's
        if (why := dispatch.refusal(backend)) is None:
            here.append(backend)
        else:
            yield {"backend": backend, "refused": why}
    cases = {dtype: {routing: draw(rng, routing, sizes, dtype) for routing in ROUTINGS} for dtype in ALLOWED}
    programs = {
        f"{backend} {dtype}": (program(backend, sizes.modules), *cases[dtype]["uniform"].given)
        for backend in here
        for dtype in ALLOWED
    }
    compiled = dict(timing.compile_together(programs))
    dense: dict[tuple[str, str], list[np.ndarray]] = {}
    for backend in sorted(here, key=lambda name: name != "dense"):
        for dtype, allowed in ALLOWED.items():
            row = {"backend": backend, "dtype": dtype, "allowed": allowed, "routings": list(ROUTINGS), "seed": seed}
            run = compiled[f"{backend} {dtype}"]
            try:
                if isinstance(run, Exception):
                    raise run
                exact, beside = Verdict(allowed), Verdict(allowed)
                for routing, case in cases[dtype].items():
                    poison(32 if small else 2048)
                    got = [np.asarray(part.astype(jnp.float32)) for part in run.run(*case.given)]
                    if backend == "dense":
                        dense[dtype, routing] = got
                    for i, part in enumerate(PARTS):
                        exact.compare(f"{routing}: {part}", got[i], case.want[i])
                        if (dtype, routing) in dense:
                            beside.compare(f"{routing}: {part} beside dense", got[i], dense[dtype, routing][i])
            except Exception as problem:
                yield row | {"failed": f"{backend} {dtype}: {reason(problem)}"}
                continue
            yield row | {
                "worst_error": exact.worst,
                "worst_beside_dense": beside.worst,
                "wrong": [*exact.wrong, *beside.wrong],
            }
