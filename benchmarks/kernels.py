"""Each backend of the routed matmul against one dense product of as many rows: `python -m benchmarks.kernels [--json]`.

2048 tokens, 256 -> 1024 and 1024 -> 256, 8 and 32 modules, K = 1 and 2, float32. The routing is `uniform`; `skewed`, by
Zipf's law; or `half_skip`: uniform, but half of the choices are nulls, and the dense product has the other half's rows.

`forward`: x · kernel + bias. `gradients`: that and the gradients of x, kernel and bias. A backend's figures are its
seconds over the dense product's: the median over the rounds of the round's own ratio, and in `over_matmul` the median
of those. A plan (the sort) is made beforehand, since a routing decision is sorted once for several products; its time
is apart. A backend that is not for this platform or not installed is null.
"""

import functools
import itertools
import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.measuring import timing
from mom_jax import dispatch
from train.steps.memory import keep_freed_memory

BACKENDS = tuple(dispatch.BACKENDS)
ROUTINGS = ("uniform", "skewed", "half_skip")
DIRECTIONS = ("forward", "gradients")
# `capacity` needs one: room per module over an even share. Choices without room are dropped, and not paid for.
CAPACITY_FACTOR = 1.25
# Seconds: backends that multiply every row by every module have fewer rounds than the others.
LIMIT = 1.0


class Grid(NamedTuple):
    """tokens: T. shapes: (D, E). modules: N. top_ks: K. All are combined."""

    tokens: int
    shapes: tuple[tuple[int, int], ...]
    modules: tuple[int, ...]
    top_ks: tuple[int, ...]


FULL = Grid(2048, ((256, 1024), (1024, 256)), (8, 32), (1, 2))
SMALL = Grid(64, ((8, 16),), (4,), (2,))


def routing_choices(routing: str, tokens: int, modules: int, top_k: int) -> np.ndarray:
    """[T, K] int32, a token's modules all different; a null is `modules`."""
    rng = np.random.default_rng(0)
    share = 1 / np.arange(1, modules + 1) if routing == "skewed" else np.ones(modules)
    # The largest of log-shares with Gumbel noise: draws without replacement.
    index = np.argsort(-(np.log(share) + rng.gumbel(size=(tokens, modules))), axis=1)[:, :top_k]
    if routing == "half_skip":
        null = rng.permutation(tokens * top_k).reshape(tokens, top_k) < tokens * top_k // 2
        index = np.where(null, modules, index)
    return index.astype(np.int32)


def draw(*shapes: tuple[int, ...]) -> list[jax.Array]:
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.standard_normal(shape, dtype=np.float32)) for shape in shapes]


def both_directions(function: Callable[..., jax.Array], cotangent: jax.Array, *args: Any) -> dict[str, Any]:
    """`function` of x, kernel, bias, ..., and that with the gradients of those three: compiled, each taking the
    cotangent before the function's own arguments."""

    def forward(cotangent: jax.Array, *args: Any) -> jax.Array:
        return function(*args)

    def gradients(cotangent: jax.Array, x: jax.Array, kernel: jax.Array, bias: jax.Array, *rest: Any) -> tuple:
        y, pullback = jax.vjp(lambda *args: function(*args, *rest), x, kernel, bias)
        return y, *pullback(cotangent)

    return {
        name: timing.compile_ahead(jax.jit(program, keep_unused=True), cotangent, *args).run
        for name, program in (("forward", forward), ("gradients", gradients))
    }


def call_of(run: Callable[..., Any], *args: Any) -> timing.Call:
    return lambda: jax.block_until_ready(run(*args))


@functools.cache
def matmul_calls(rows: int, shape: tuple[int, int]) -> dict[str, timing.Call]:
    """One dense product of so many rows, by direction."""

    def product(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
        return jnp.matmul(x, kernel, preferred_element_type=jnp.float32) + bias[None]

    args = draw((rows, shape[1]), (rows, shape[0]), shape, (shape[1],))
    calls = {direction: call_of(run, *args) for direction, run in both_directions(product, *args).items()}
    timing.warm_up(calls)
    return calls


class Routed:
    """A backend's routed product for one shape, pool and K: compiled once, for any routing."""

    def __init__(self, backend: str, tokens: int, shape: tuple[int, int], modules: int, top_k: int):
        options: dict[str, Any] = {"capacity_factor": CAPACITY_FACTOR} if backend == "capacity" else {}
        index = jax.ShapeDtypeStruct((tokens, top_k), jnp.int32)
        plan = jax.jit(lambda index: dispatch.make_plan(index, modules, backend, **options))
        self.plan = timing.compile_ahead(plan, index).run
        self.args = draw(
            (tokens, shape[1]), (tokens, shape[0]), (modules, *shape), (modules, shape[1]), (tokens, top_k)
        )

        def product(x: jax.Array, kernel: jax.Array, bias: jax.Array, multiplier: jax.Array, plan: Any) -> jax.Array:
            return dispatch.routed_linear(x, kernel, bias, multiplier, plan, backend)

        self.runs = both_directions(product, *self.args, jax.eval_shape(plan, index))
        timing.warm_up(self.calls(jnp.asarray(routing_choices("uniform", tokens, modules, top_k))), 1)

    def calls(self, index: jax.Array) -> dict[str, timing.Call]:
        """By direction, for choices [T, K]; `plan` makes their plan."""
        plan = self.plan(index)
        calls = {direction: call_of(run, *self.args, plan) for direction, run in self.runs.items()}
        return calls | {"plan": call_of(self.plan, index)}

    def dropped(self, index: jax.Array, rows: int) -> float:
        """The share of the choices, nulls aside, that the plan has no row for."""
        return 1 - int(self.plan(index).sizes_N.sum()) / rows


def measurable(backend: str) -> bool:
    """Whether it runs here at its own speed: kernels for TPUs and GPUs are interpreted elsewhere."""
    home = {"megablox": "tpu", "triton": "gpu", "mosaic": "gpu"}.get(backend)
    return dispatch.runs_here(backend) and home in (None, jax.default_backend())


def measure(grid: Grid, rounds: int, backends: tuple[str, ...] = BACKENDS) -> dict[str, Any]:
    """One row per case and direction: the dense product's seconds, and each backend's seconds over them."""
    about = timing.machine()
    here = [backend for backend in backends if measurable(backend)]
    cases, plans = [], []
    for shape, modules, top_k in itertools.product(grid.shapes, grid.modules, grid.top_ks):
        timing.progress(f"{shape[0]} -> {shape[1]}, {modules} modules, K = {top_k}")
        routed = {backend: Routed(backend, grid.tokens, shape, modules, top_k) for backend in here}
        for routing in ROUTINGS:
            choices = routing_choices(routing, grid.tokens, modules, top_k)
            rows, index = int((choices < modules).sum()), jnp.asarray(choices)
            calls = {"matmul": matmul_calls(rows, shape)} | {name: r.calls(index) for name, r in routed.items()}
            case = {"shape": f"{shape[0]}->{shape[1]}", "modules": modules, "top_k": top_k, "routing": routing}
            for direction in DIRECTIONS:
                now = {name: call[direction] for name, call in calls.items()}
                seconds = timing.interleaved(now, rounds, limit=LIMIT)
                figures = {backend: timing.ratio(seconds, backend, "matmul") for backend in backends}
                row = {"rows": rows, "direction": direction, "matmul_seconds": timing.medians(seconds)["matmul"]}
                cases.append(case | row | figures)
            if "capacity" in routed:
                for row in cases[-len(DIRECTIONS) :]:
                    row["capacity_dropped"] = routed["capacity"].dropped(index, rows)
            if shape == grid.shapes[0]:
                seconds = timing.interleaved({name: calls[name]["plan"] for name in here}, rounds)
                plans.append({"modules": modules, "top_k": top_k, "routing": routing, **timing.medians(seconds)})
    return {
        "over_matmul": {backend: {d: middle(cases, backend, d) for d in DIRECTIONS} for backend in backends},
        "cases": cases,
        "plan_seconds": plans,
        "rounds": rounds,
        "small": grid == SMALL,
        **about,
    }


def middle(cases: list[dict[str, Any]], backend: str, direction: str) -> float | None:
    """The median of a backend's figures in a direction."""
    figures = [case[backend] for case in cases if case["direction"] == direction and case[backend] is not None]
    return statistics.median(figures) if figures else None


def main(argv: list[str] | None = None) -> None:
    parser = timing.parser("kernels", __doc__, rounds=9)
    parser.add_argument(
        "--backends", type=timing.some_of(BACKENDS), default=BACKENDS, help=f"some of {','.join(BACKENDS)}"
    )
    flags = parser.parse_args(argv)
    keep_freed_memory()
    timing.report(measure(SMALL if flags.small else FULL, flags.rounds, flags.backends), flags.json)


if __name__ == "__main__":
    main()
