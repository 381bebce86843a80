"""Grouped products against one dense product of the same rows, in bfloat16: the shapes of GPT-2 small.

Of the kernels for GPUs the products alone: `forward`, `rows' gradient`, and `weights' gradient`, which adds to a
float32 sum in place. Of every backend `linear`, the product with its bias, and `linear's gradients`, all of them, as a
model has them, over one dense layer's. All are ratios of seconds. `tiles`: other entries of the kernels' tables.
"""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks.gpu.process import reason
from benchmarks.kernels import measurable, routing_choices
from benchmarks.measuring import timing
from mom_jax import dispatch
from mom_jax.dispatch import grouped, mosaic, triton

SHAPES = ((768, 2304), (768, 768), (768, 3072), (3072, 768))
SIZES = ((16384, 10), (49152, 10), (16384, 32), (49152, 32))  # (rows, modules)
ROUNDS = 5
KERNELS: dict[str, Any] = {"triton": triton, "mosaic": mosaic}
TILED = ((16384, 10), (768, 3072))  # what tiles are tried on


def _entries(first: Any, *changes: dict[str, int]) -> list[Any]:
    return [first, *(dataclasses.replace(first, **change) for change in changes)]


class Tiles(NamedTuple):
    """A kernel's table, `name` of `module`, for numbers of `key` bytes where it goes by them; a direction that shows
    what its entries do; and entries, first the one that it holds."""

    module: Any
    name: str
    key: int | None
    direction: str
    entries: list[Any]


TILES = {
    "triton": Tiles(
        triton,
        "PRODUCT",
        2,
        "forward",
        _entries(triton.PRODUCT[2], {"stages": 4}, {"columns": 256}, {"warps": 4}, {"depth": 32, "stages": 4}),
    ),
    "triton gradient": Tiles(
        triton,
        "GRADIENT",
        2,
        "weights' gradient",
        _entries(triton.GRADIENT[2], {"stages": 4}, {"depth": 32, "stages": 4}, {"warps": 4}),
    ),
    "mosaic": Tiles(
        mosaic,
        "BLOCKS",
        None,
        "forward",
        _entries(mosaic.BLOCKS, {"stages": 4}, {"stages": 2, "programs": 2}, {"stages": 5}),
    ),
}


class Program(NamedTuple):
    """A function and its arguments.

    held: the first argument is given up, and the result takes its place. entry: a kernel's table and another entry in
    it.
    """

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    held: bool = False
    entry: tuple[str, Any] | None = None

    def lower(self, *args: Any) -> Any:
        with other_entry(*self.entry) if self.entry else contextlib.nullcontext():
            # A function of its own: JAX would not trace the same one again for another entry.
            own = functools.partial(self.function)
            return jax.jit(own, donate_argnums=0 if self.held else ()).lower(*args)


@functools.cache
def numbers(count: int) -> jax.Array:
    """So many random numbers."""
    return jax.random.normal(jax.random.key(0), (count,), jnp.bfloat16)


def draw(*shapes: tuple[int, ...]) -> list[jax.Array]:
    """Random arrays, all cut out of the same numbers: making numbers for each would be another program to compile."""
    sizes = [math.prod(shape) for shape in shapes]
    pool = numbers(1 << 28 if max(sizes) > 1 << 20 else 1 << 20)
    return jax.jit(lambda pool: [pool[:n].reshape(shape) for n, shape in zip(sizes, shapes, strict=True)])(pool)


@functools.lru_cache(maxsize=4)
def arrays(backend: str, rows: int, modules: int, depth: int, width: int) -> tuple[Any, ...]:
    """(plan, rows, their gradients, matrices) in the order of a plan; rows that no choice has are zeros."""
    index = jnp.asarray(routing_choices("uniform", rows, modules, 1))
    plan_of = jax.jit(lambda index: dispatch.make_plan(index, modules, backend))
    plan = plan_of(index)
    x, d, kernel = draw((plan.choice_P.size, depth), (plan.choice_P.size, width), (modules, depth, width))

    @jax.jit
    def cleared(x: jax.Array, d: jax.Array) -> list[jax.Array]:
        return [jnp.where((plan.choice_P < rows)[:, None], a, 0) for a in (x, d)]

    return plan, *cleared(x, d), kernel


def dense(rows: int, depth: int, width: int) -> dict[str, Program]:
    """One dense product of so many rows, its gradients, and a layer with a bias, by direction."""
    x, d, kernel = draw((rows, depth), (rows, width), (depth, width))
    bias, sinks = jnp.zeros((1, width), jnp.float32), (jnp.zeros((depth, width)), jnp.zeros((1, width)))

    def weights(sinks: Any, x: Any, d: Any) -> Any:
        return sinks[0] + inner(x, d), sinks[1]

    def linear(x: Any, kernel: Any, bias: Any) -> Any:
        return (jnp.matmul(x, kernel, preferred_element_type=jnp.float32) + bias).astype(x.dtype)

    def gradients(sinks: Any, x: Any, d: Any, kernel: Any) -> Any:
        return (sinks[0] + inner(x, d), sinks[1] + d.astype(jnp.float32).sum(0, keepdims=True)), d @ kernel.T

    def inner(x: Any, d: Any) -> jax.Array:
        return jnp.einsum("pd,pe->de", x, d, preferred_element_type=jnp.float32)

    return {
        "forward": Program(lambda x, kernel: x @ kernel, (x, kernel)),
        "rows' gradient": Program(lambda d, kernel: d @ kernel.T, (d, kernel)),
        "weights' gradient": Program(weights, (sinks, x, d), held=True),
        "linear": Program(linear, (x, kernel, bias)),
        "linear's gradients": Program(gradients, (sinks, x, d, kernel), held=True),
    }


def routed(backend: str, rows: int, modules: int, depth: int, width: int) -> dict[str, Program]:
    """The same of a backend."""
    plan, x, d, kernel = arrays("triton" if backend in KERNELS else backend, rows, modules, depth, width)
    sinks = jnp.zeros(kernel.shape), jnp.zeros((modules, width))
    products = grouped.PRODUCTS[backend]

    def gradients(sinks: Any, x: Any, d: Any, kernel: Any, plan: Any) -> Any:
        return products.backward(x, d, kernel, None, sinks, plan)[::-1]

    programs = {
        "linear": Program(
            lambda x, kernel, bias, plan: products.forward(x, kernel, bias, None, plan), (x, kernel, sinks[1], plan)
        ),
        "linear's gradients": Program(gradients, (sinks, x, d, kernel, plan), held=True),
    }
    if backend not in KERNELS:
        return programs
    kernels = KERNELS[backend]
    alone = {
        "forward": Program(kernels.forward, (x, kernel, plan)),
        "rows' gradient": Program(kernels.backward, (d, kernel, plan)),
    }
    if hasattr(kernels, "gradient"):
        alone["weights' gradient"] = Program(
            lambda sinks, x, d, plan: kernels.gradient(sinks, x, d, None, plan), (sinks, x, d, plan), held=True
        )
    return alone | programs


def compiled(programs: dict[str, Program]) -> tuple[dict[str, timing.Call], dict[str, str]]:
    """The calls of those that compile and run once, and what is wrong with the others."""
    calls, wrong = {}, {}
    for name, result in timing.compile_together({name: (one, *one.arguments) for name, one in programs.items()}):
        try:
            if isinstance(result, Exception):
                raise result
            calls[name] = _call(result.run, programs[name])
            jax.block_until_ready(calls[name]())
        except Exception as problem:
            calls.pop(name, None)
            wrong[name] = reason(problem)
    return calls, wrong


def _call(run: Callable[..., Any], program: Program) -> timing.Call:
    if not program.held:
        return lambda: run(*program.arguments)
    own, *rest = program.arguments
    held = [jax.tree.map(jnp.copy, own)]

    def call() -> Any:
        result = run(held[0], *rest)
        # The sums, or the sums and the gradient of the rows.
        held[0] = result[0] if isinstance(result[0], tuple) else result
        return result

    return call


def compare(
    rows: int, modules: int, depth: int, width: int, backends: list[str], rounds: int
) -> Iterator[dict[str, Any]]:
    """A row for each backend."""
    programs = {f"dense {direction}": program for direction, program in dense(rows, depth, width).items()}
    for backend in backends:
        for direction, program in routed(backend, rows, modules, depth, width).items():
            programs[f"{backend} {direction}"] = program
    calls, wrong = compiled(programs)
    seconds: timing.Seconds = {}
    for direction in ("forward", "rows' gradient", "weights' gradient", "linear", "linear's gradients"):
        now = {name: call for name, call in calls.items() if name.split(" ", 1)[1] == direction}
        seconds |= timing.bursts(now, rounds)
    middle = timing.medians(seconds)
    for backend in ("dense", *backends):
        row: dict[str, Any] = {"backend": backend, "rows": rows, "modules": modules, "shape": f"{depth}->{width}"}
        for name, value in middle.items():
            own, direction = name.split(" ", 1)
            if own == backend:
                work = 2e-12 * rows * depth * width * (2 if direction == "linear's gradients" else 1)
                row |= {f"{direction} TFLOP/s": work / value}
                if own != "dense":
                    row |= {direction: timing.ratio(seconds, name, f"dense {direction}")}
        if problems := [f"{name}: {text}" for name, text in wrong.items() if name.startswith(f"{backend} ")]:
            row["failed"] = "; ".join(problems)
        yield row


@contextlib.contextmanager
def other_entry(table: str, blocks: Any) -> Iterator[None]:
    """With another entry in a kernel's table."""
    module, name, key = TILES[table][:3]
    before = getattr(module, name)
    setattr(module, name, blocks if key is None else before | {key: blocks})
    try:
        yield
    finally:
        setattr(module, name, before)


def tiles(table: str, small: bool) -> Iterator[dict[str, Any]]:
    """TFLOP/s with each of a table's entries; too much shared memory, for one, is refused."""
    (rows, modules), (depth, width) = ((256, 3), (128, 256)) if small else TILED
    direction, own = TILES[table].direction, TILES[table].entries[: 2 if small else None]
    program = routed(table.split()[0], rows, modules, depth, width)[direction]
    calls, refused = compiled({str(i): program._replace(entry=(table, blocks)) for i, blocks in enumerate(own)})
    middle = timing.medians(timing.bursts(calls, 1 if small else ROUNDS))
    for i, blocks in enumerate(own):
        row = {"tiles": table, "blocks": dataclasses.asdict(blocks), "direction": direction, "rows": rows}
        if str(i) in middle:
            yield row | {"TFLOP/s": 2e-12 * rows * depth * width / middle[str(i)]}
        else:
            yield row | {"refused": refused[str(i)]}


def rows(small: bool) -> Iterator[dict[str, Any]]:
    kernels = [name for name in KERNELS if dispatch.runs_here(name)]
    others = [name for name in dispatch.BACKENDS if measurable(name) and name not in ("dense", "capacity", *kernels)]
    if small:
        yield from compare(256, 3, 128, 256, [*kernels, *others], 1)
    else:
        for number, modules in SIZES:
            for depth, width in SHAPES:
                # Those that multiply every row by every module need not be seen to do so with all sizes.
                more = others if (number, modules) == SIZES[0] else []
                yield from compare(number, modules, depth, width, kernels + more, ROUNDS)
    for table in TILES:
        if table.split()[0] in kernels:
            yield from tiles(table, small)
