"""What the benchmarks share: interleaved timing, compiling ahead, flags and output."""

import argparse
import concurrent.futures
import contextlib
import importlib.metadata
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
from jax.experimental.compilation_cache import compilation_cache

from train.steps.timing import Call as Call
from train.steps.timing import Seconds as Seconds
from train.steps.timing import interleaved as interleaved
from train.steps.timing import medians as medians
from train.steps.timing import quartiles as quartiles
from train.steps.timing import ratio as ratio
from train.steps.timing import ratios as ratios
from train.steps.timing import warm_up as warm_up

PACKAGES = ("jax", "jaxlib", "flax", "optax", "torch", "transformers")


# Timing.


def bursts(calls: Mapping[str, Call], rounds: int = 5, least: float = 0.02) -> Seconds:
    """Seconds of a call when calls follow one another without waiting for each, as a device's kernels do.

    A call starts work and returns its JAX arrays. Each round calls everything in turn, each so often that it takes
    `least` seconds or so, and waits for the last one.
    """

    def burst(call: Call, count: int) -> Call:
        def run() -> None:
            for _ in range(count):
                last = call()
            jax.block_until_ready(last)

        return run

    counts = {}
    for name, call in calls.items():
        burst(call, 1)()
        begin = time.perf_counter()
        burst(call, 1)()
        counts[name] = min(1000, max(1, round(least / (time.perf_counter() - begin))))
    seconds = interleaved({name: burst(call, counts[name]) for name, call in calls.items()}, rounds)
    return {name: [value / counts[name] for value in values] for name, values in seconds.items()}


def seconds_of(call: Call, least: float = 0.2) -> float:
    """The median of `bursts` of one call."""
    return medians(bursts({"": call}, least=least))[""]


# Compiling.


class Compiled(NamedTuple):
    """run: the compiled function. seconds: what compiling took, without tracing. temp_bytes: the temporaries of a call.
    total_bytes: those, the arguments, and the results that do not take an argument's place. program_bytes: the length
    of the optimised HLO as text."""

    run: Callable[..., Any]
    seconds: float
    temp_bytes: int
    total_bytes: int
    program_bytes: int


def compile_ahead(function: Any, *args: Any) -> Compiled:
    """A jitted function compiled for these arguments (arrays or their shapes)."""
    return _compile(function.lower(*args))


def _compile(lowered: Any) -> Compiled:
    begin = time.perf_counter()
    compiled = lowered.compile()
    seconds = time.perf_counter() - begin
    memory = compiled.memory_analysis()
    results = memory.output_size_in_bytes - memory.alias_size_in_bytes
    total = memory.temp_size_in_bytes + memory.argument_size_in_bytes + results
    return Compiled(compiled, seconds, memory.temp_size_in_bytes, total, len(compiled.as_text()))


def compile_together(programs: Mapping[str, tuple[Any, ...]]) -> Iterator[tuple[str, Compiled | Exception]]:
    """`compile_ahead` of several at the same time, {name: (function, *arguments)}: each one's name and itself, or the
    exception where it failed, the moment that it is done.

    Tracing is Python's work and stays on this thread; XLA compiles without Python's lock.
    """
    with concurrent.futures.ThreadPoolExecutor(threads()) as pool:
        names = {}
        for name, (function, *args) in programs.items():
            try:
                names[pool.submit(_compile, function.lower(*args))] = name
            except Exception as error:  # whatever a backend makes of what it cannot do
                yield name, error
        for future in concurrent.futures.as_completed(names):
            result: Compiled | Exception
            try:
                result = future.result()
            except Exception as error:
                result = error
            yield names[future], result


@contextlib.contextmanager
def compiling_anew() -> Iterator[None]:
    """Within it nothing comes out of the cache of compiled programs on disk."""
    enabled = jax.config.values["jax_enable_compilation_cache"]
    try:
        jax.config.update("jax_enable_compilation_cache", False)
        compilation_cache.reset_cache()  # JAX looks at the setting once
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", enabled)
        compilation_cache.reset_cache()


# Flags.


def positive(text: str) -> int:
    """An argparse type: a whole number from 1 on."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return value


def some_of(allowed: tuple[str, ...]) -> Callable[[str], tuple[str, ...]]:
    """An argparse type: names separated by commas, each one of `allowed`."""

    def parse(text: str) -> tuple[str, ...]:
        names = tuple(text.split(","))
        if unknown := [name for name in names if name not in allowed]:
            raise argparse.ArgumentTypeError(f"{','.join(unknown)!r} unknown; there are {','.join(allowed)}")
        return names

    return parse


def parser(name: str, description: str | None, rounds: int) -> argparse.ArgumentParser:
    """The flags that all benchmarks have. description: a docstring, of which the first paragraph is shown."""
    result = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}", description=(description or "").split("\n\n")[0], allow_abbrev=False
    )
    result.add_argument("--json", action="store_true", help="print one JSON line instead of a table")
    result.add_argument("--rounds", type=positive, default=rounds, help=f"how often each is timed ({rounds})")
    result.add_argument("--small", action="store_true", help="toy sizes, to see that it runs: not a measurement")
    return result


# Output.


def threads() -> int:
    """The cores that this process may use: so many threads XLA takes."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def versions() -> dict[str, str | None]:
    """Of Python and of the packages that are measured; None for one that is not installed."""

    def version(package: str) -> str | None:
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            return None

    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


def machine() -> dict[str, Any]:
    """What ran where. load_average: processes that wanted to run in the minute before: a quiet machine's is below 1."""
    return {
        "device": jax.devices()[0].device_kind,
        "threads": threads(),
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "versions": versions(),
    }


def progress(text: str) -> None:
    """One line on stderr: some benchmarks take minutes."""
    print(text, file=sys.stderr, flush=True)


def report(result: dict[str, Any], as_json: bool) -> None:
    """Prints a result: as one JSON line, or to be read."""
    print(json.dumps(result, allow_nan=False) if as_json else readable(result))


def readable(result: Mapping[str, Any], indent: str = "") -> str:
    """Nested dictionaries as lines; a list or a dictionary of dictionaries is a table."""
    width = max((len(name) for name in result), default=0)
    lines = []
    for name, value in result.items():
        if isinstance(value, dict) and value and all(isinstance(row, dict) for row in value.values()):
            value = [{"": key, **row} for key, row in value.items()]
        if isinstance(value, list) and value and all(isinstance(row, dict) for row in value):
            lines += [f"{indent}{name}", *_table(value, indent + "  ")]
        elif isinstance(value, dict):
            lines += [f"{indent}{name}", readable(value, indent + "  ")]
        else:
            lines.append(f"{indent}{name:<{width}}  {_cell(value)}")
    return "\n".join(lines)


def _table(rows: list[dict[str, Any]], indent: str) -> list[str]:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    cells = [columns, *([_cell(row.get(name)) for name in columns] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    return [
        indent + "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    ]


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (list, tuple)):
        return " .. ".join(_cell(item) for item in value)
    if isinstance(value, dict):
        return ", ".join(f"{key} {_cell(item)}" for key, item in value.items())
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
