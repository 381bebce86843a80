"""Grouped products against one dense product of the same rows, in bfloat16: the shapes of GPT-2 small."""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import timing
from benchmarks.kernels import routing_choices
from mom_jax import dispatch
from mom_jax.dispatch import mosaic, triton
from mom_jax.dispatch.plan import Plan

SHAPES = ((768, 2304), (768, 768), (768, 3072), (3072, 768))
ROWS = ((16384, 10), (16384, 32), (49152, 10))  # (rows, modules)
BACKENDS: dict[str, Any] = {"triton": triton, "mosaic": mosaic}
# What else the table of a kernel could hold; the first is what it holds.
TILES: dict[str, list[Any]] = {
    "mosaic": [
        mosaic.BLOCKS,
        *(
            dataclasses.replace(mosaic.BLOCKS, **more)
            for more in ({"stages": 4}, {"stages": 2, "programs": 2}, {"stages": 5})
        ),
    ],
    "triton": [
        triton.PRODUCT[2],
        *(
            dataclasses.replace(triton.PRODUCT[2], **more)
            for more in ({"stages": 4}, {"columns": 256}, {"warps": 4}, {"depth": 32, "stages": 4})
        ),
    ],
    "triton gradient": [
        triton.GRADIENT[2],
        *(
            dataclasses.replace(triton.GRADIENT[2], **more)
            for more in ({"stages": 4}, {"depth": 32, "stages": 4}, {"warps": 4})
        ),
    ],
}


@functools.cache
def dense_seconds(rows: int, depth: int, width: int, direction: str) -> float:
    """One dense product of so many rows."""
    x, d, kernel = (
        jax.random.normal(jax.random.key(i), s, jnp.bfloat16)
        for i, s in enumerate(((rows, depth), (rows, width), (depth, width)))
    )
    if direction == "forward":
        return timing.seconds_of(jax.jit(jnp.matmul), x, kernel)
    if direction == "rows' gradient":
        return timing.seconds_of(jax.jit(lambda d, kernel: d @ kernel.T), d, kernel)
    return timing.seconds_of(
        jax.jit(lambda x, d: jnp.einsum("pd,pe->de", x, d, preferred_element_type=jnp.float32)), x, d
    )


def arrays(plan: Plan, depth: int, width: int, modules: int) -> dict[str, jax.Array]:
    """Random rows and matrices for a plan; rows that no choice has are zeros."""
    used = (plan.choice_P < plan.slot_TxK.size)[:, None]
    x, d, kernel = (
        jax.random.normal(jax.random.key(i), s, jnp.bfloat16)
        for i, s in enumerate(((used.size, depth), (used.size, width), (modules, depth, width)))
    )
    return {"rows": jnp.where(used, x, 0), "d": jnp.where(used, d, 0), "kernel": kernel}


def seconds(module: Any, plan: Plan, given: dict[str, jax.Array], direction: str) -> float:
    """A grouped product alone; the gradient of the weights adds to sinks in place."""
    if direction == "forward":
        return timing.seconds_of(jax.jit(module.forward), given["rows"], given["kernel"], plan)
    if direction == "rows' gradient":
        return timing.seconds_of(jax.jit(module.backward), given["d"], given["kernel"], plan)
    shape = given["kernel"].shape
    sinks = jnp.zeros(shape, jnp.float32), jnp.zeros((shape[0], shape[2]), jnp.float32)
    gradient = jax.jit(lambda sinks, rows, d, plan: triton.gradient(sinks, rows, d, None, plan), donate_argnums=0)
    held = [sinks]

    def run(*args: Any) -> Any:
        held[0] = gradient(held[0], *args)
        return held[0]

    return timing.seconds_of(run, given["rows"], given["d"], plan)


def rows(small: bool) -> Iterator[dict[str, Any]]:
    shapes = ((128, 256),) if small else SHAPES
    sizes = ((256, 3),) if small else ROWS
    for number, modules in sizes:
        index = jnp.asarray(routing_choices("uniform", number, modules, 1))
        plan = jax.jit(lambda index, modules=modules: dispatch.make_plan(index, modules, "triton"))(index)
        for depth, width in shapes:
            given = arrays(plan, depth, width, modules)
            for backend, module in BACKENDS.items():
                if not dispatch.runs_here(backend):
                    continue
                row: dict[str, Any] = {
                    "backend": backend,
                    "rows": number,
                    "modules": modules,
                    "shape": f"{depth}->{width}",
                }
                for direction in ("forward", "rows' gradient", *(["weights' gradient"] if backend == "triton" else [])):
                    own, dense = seconds(module, plan, given, direction), dense_seconds(number, depth, width, direction)
                    row |= {direction: own / dense, f"{direction} TFLOP/s": 2e-12 * number * depth * width / own}
                yield row
    yield from tiles(small)


def tiles(small: bool) -> Iterator[dict[str, Any]]:
    """Other entries of the kernels' tables."""
    number, modules, depth, width = (256, 3, 128, 256) if small else (16384, 10, 768, 3072)
    index = jnp.asarray(routing_choices("uniform", number, modules, 1))
    plan = jax.jit(lambda index: dispatch.make_plan(index, modules, "triton"))(index)
    given = arrays(plan, depth, width, modules)
    for kernel, entries in TILES.items():
        backend = kernel.split()[0]
        if not dispatch.runs_here(backend):
            continue
        for blocks in entries[: 2 if small else None]:
            restore = mosaic.BLOCKS, triton.PRODUCT[2], triton.GRADIENT[2]
            try:
                if kernel == "mosaic":
                    mosaic.BLOCKS = blocks
                elif kernel == "triton":
                    triton.PRODUCT[2] = blocks
                else:
                    triton.GRADIENT[2] = blocks
                direction = "weights' gradient" if "gradient" in kernel else "forward"
                own = seconds(BACKENDS[backend], plan, given, direction)
                found: dict[str, Any] = {f"{direction} TFLOP/s": 2e-12 * number * depth * width / own}
            except Exception as problem:  # too much shared memory, for one
                found = {"refused": str(problem).splitlines()[0][:160]}
            finally:
                mosaic.BLOCKS, triton.PRODUCT[2], triton.GRADIENT[2] = restore
            yield {
                "tiles": kernel,
                "blocks": dataclasses.asdict(blocks),
                "shape": f"{depth}->{width}",
                "rows": number,
            } | found
