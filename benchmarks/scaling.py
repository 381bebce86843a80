"""How the train step's time, temporaries and program grow: `python -m benchmarks.scaling [--json] [--only n,skip,...]`.

The work is that of benchmarks/measuring/reference.py at K = 1; one thing changes at a time.

    n        modules in each pool: 8, 16, 32, for the same K and H
    k        modules per token: 1, 2, 3
    h        steps: 4, 8, 32, for the same pools
    skip     no choice, half, or every choice is SKIP: one program, of which only the routers' biases differ
    l        length: 256, 512, 1024, for the same number of tokens; MoM and vanilla
    d        width: 128, 256, 512, heads of 32, router as wide as the model; MoM and vanilla
    compile  H = 32 against H = 4: compile seconds, and bytes of the optimised program
    memory   temporaries of the step over those of vanilla with the same depth

A ratio is the median over the rounds of the seconds' ratio in that round, and `quartiles` are those rounds'. Headline
figures of parts that were left out are null.
"""

import dataclasses
import statistics
from collections.abc import Mapping
from typing import Any

import jax

from benchmarks.measuring import reference, timing
from benchmarks.measuring.reference import Size, Work
from mom_jax.config import SIDES
from train.steps.memory import keep_freed_memory

HEADLINES = (
    "n32_over_n8",
    "half_skip_over_none",
    "h32_over_h4_compile",
    "h32_over_h4_program",
    "temp_memory_over_vanilla",
)
COMPILATIONS = 3
# Far beyond any score: nothing chooses SKIP, or everything does.
NEVER, ALWAYS = -1e3, 1e3
# How near to one half the share of SKIP must come, and how many steps the search may take.
TOLERANCE, SEARCHES = 0.005, 30


def curve(works: Mapping[str, Work], rounds: int) -> tuple[timing.Seconds, dict[str, Any]]:
    """The seconds of each round, and by name the median, its ratio over the first name's, and temporaries in bytes."""
    calls = {name: work.call for name, work in works.items()}
    timing.warm_up(calls)
    seconds = timing.interleaved(calls, rounds)
    middle, first = timing.medians(seconds), next(iter(works))
    points = {
        name: {
            "seconds": middle[name],
            f"over_{first}": timing.ratio(seconds, name, first),
            "temp_bytes": work.compiled.temp_bytes,
            "program_bytes": work.compiled.program_bytes,
        }
        for name, work in works.items()
    }
    return seconds, points


def over_modules(size: Size, rounds: int) -> dict[str, Any]:
    configs = {f"n{n}": reference.config(size, modules=n) for n in (8, 16, 32)}
    seconds, points = curve({name: reference.prepare(config, size) for name, config in configs.items()}, rounds)
    return {
        "n32_over_n8": timing.ratio(seconds, "n32", "n8"),
        "quartiles": {"n32_over_n8": timing.quartiles(timing.ratios(seconds, "n32", "n8"))},
        "n": points,
    }


def over_top_k(size: Size, rounds: int) -> dict[str, Any]:
    configs = {f"k{k}": reference.config(size, top_k=k) for k in (1, 2, 3)}
    return {"k": curve({name: reference.prepare(config, size) for name, config in configs.items()}, rounds)[1]}


def over_steps(size: Size, rounds: int) -> dict[str, Any]:
    configs = {f"h{h}": reference.config(size, steps=h) for h in (4, 8, 32)}
    return {"h": curve({name: reference.prepare(config, size) for name, config in configs.items()}, rounds)[1]}


def over_length(size: Size, rounds: int) -> dict[str, Any]:
    sizes = [
        dataclasses.replace(size, length=size.length * m, batch=size.batch // m) for m in (1, 2, 4) if size.batch >= m
    ]
    return {"l": with_vanilla({f"l{s.length}": s for s in sizes}, rounds)}


def over_width(size: Size, rounds: int) -> dict[str, Any]:
    def wide(width: int) -> Size:
        return dataclasses.replace(size, width=width, heads=width * size.heads // size.width, router=width)

    sizes = [wide(width) for width in (size.width // 2, size.width, 2 * size.width)]
    return {"d": with_vanilla({f"d{s.width}": s for s in sizes}, rounds)}


def with_vanilla(sizes: Mapping[str, Size], rounds: int) -> dict[str, Any]:
    """MoM and vanilla at each size: seconds of both, their ratio, and the temporaries' ratio."""
    works = {}
    for name, size in sizes.items():
        config = reference.config(size)
        works[name] = reference.prepare(config, size)
        works[f"{name} vanilla"] = reference.prepare(config.vanilla(), size)
    seconds, points = curve(works, rounds)
    for name in sizes:
        plain = points.pop(f"{name} vanilla")
        points[name] |= {
            "vanilla_seconds": plain["seconds"],
            "over_vanilla": timing.ratio(seconds, name, f"{name} vanilla"),
            "temp_over_vanilla": points[name]["temp_bytes"] / plain["temp_bytes"],
        }
    return points


# The share of SKIP.


def with_skip_bias(params: dict[str, Any], bias: Mapping[str, float]) -> dict[str, Any]:
    """The parameters with `bias` added to SKIP's score in the routers of each side."""
    chunks = {}
    for index, chunk in params["chunks"].items():
        chunks[index] = dict(chunk)
        for side in SIDES:
            router = dict(chunk[f"{side}_router"])
            router["score_bias"] = router["score_bias"].at[-1].add(bias[side])
            chunks[index][f"{side}_router"] = router
    return {**params, "chunks": chunks}


def same_bias(value: float) -> dict[str, float]:
    return dict.fromkeys(SIDES, value)


def half_skip_bias(work: Work) -> dict[str, float]:
    """The bias of each side with which half of its choices are SKIP on this batch: the best of a search."""
    bias, step = same_bias(0.0), 1.0
    best, smallest = bias, 1.0
    for _ in range(SEARCHES):
        share = reference.skip_share(work._replace(params=with_skip_bias(work.params, bias)).routing())
        error = max(abs(share[side] - 0.5) for side in SIDES)
        if error < smallest:
            best, smallest = bias, error
        if error < TOLERANCE:
            break
        bias = {side: bias[side] + (step if share[side] < 0.5 else -step) for side in SIDES}
        # A bisection halves its steps; these shrink less, since each side's routing moves the other's.
        step *= 0.7
    return best


def over_skip(size: Size, rounds: int) -> dict[str, Any]:
    work = reference.prepare(reference.config(size), size)
    biases = {"none": same_bias(NEVER), "half": half_skip_bias(work), "all": same_bias(ALWAYS)}
    works = {name: work._replace(params=with_skip_bias(work.params, bias)) for name, bias in biases.items()}
    seconds, points = curve(works, rounds)
    for name, own in works.items():
        points[name] = {"share": reference.skip_share(own.routing()), **points[name]}
    parts = [(half - rest) / (none - rest) for none, half, rest in zip(*seconds.values(), strict=True)]
    return {
        "half_skip_over_none": statistics.median(parts),
        "quartiles": {"half_skip_over_none": timing.quartiles(parts)},
        "skip": points,
    }


# The program.


def over_compile(size: Size, rounds: int) -> dict[str, Any]:
    """Compile seconds are medians of COMPILATIONS, each of them with JAX's caches emptied."""
    configs = {f"h{h}": reference.config(size, steps=h) for h in (4, 32)}
    arguments = reference.params(configs["h4"]), {"tokens": reference.tokens(size)}
    seconds, program = timing.Seconds({name: [] for name in configs}), {}
    with timing.compiling_anew():
        for _ in range(COMPILATIONS):
            for name, config in configs.items():
                jax.clear_caches()
                compiled = timing.compile_ahead(reference.loss_and_gradients(config), *arguments)
                seconds[name].append(compiled.seconds)
                program[name] = compiled.program_bytes
    middle = timing.medians(seconds)
    return {
        "h32_over_h4_compile": timing.ratio(seconds, "h32", "h4"),
        "quartiles": {"h32_over_h4_compile": timing.quartiles(timing.ratios(seconds, "h32", "h4"))},
        "h32_over_h4_program": program["h32"] / program["h4"],
        "compile": {name: {"compile_seconds": middle[name], "program_bytes": program[name]} for name in program},
    }


def over_vanilla_memory(size: Size, rounds: int) -> dict[str, Any]:
    config = reference.config(size)
    temp = {
        name: reference.prepare(c, size).compiled.temp_bytes
        for name, c in (("mom", config), ("vanilla", config.vanilla()))
    }
    return {"temp_memory_over_vanilla": temp["mom"] / temp["vanilla"], "memory": temp}


PARTS = {
    "n": over_modules,
    "k": over_top_k,
    "h": over_steps,
    "skip": over_skip,
    "l": over_length,
    "d": over_width,
    "compile": over_compile,
    "memory": over_vanilla_memory,
}


def measure(size: Size, rounds: int, only: tuple[str, ...] = tuple(PARTS)) -> dict[str, Any]:
    """The headline numbers (null for parts that were left out) and every part's curve."""
    about = timing.machine()
    headlines: dict[str, Any] = dict.fromkeys(HEADLINES)
    curves: dict[str, Any] = {}
    quartiles: dict[str, Any] = {}
    for name in only:
        timing.progress(f"part {name}")
        for key, value in PARTS[name](size, rounds).items():
            if key == "quartiles":
                quartiles |= value
            else:
                (headlines if key in headlines else curves)[key] = value
    small = {"rounds": rounds, "small": size == reference.SMALL, "size": dataclasses.asdict(size)}
    return headlines | {"quartiles": quartiles} | curves | small | about


def main(argv: list[str] | None = None) -> None:
    parser = timing.parser("scaling", __doc__, rounds=5)
    parser.add_argument(
        "--only", type=timing.some_of(tuple(PARTS)), default=tuple(PARTS), help=f"some of {','.join(PARTS)}"
    )
    flags = parser.parse_args(argv)
    keep_freed_memory()
    timing.report(measure(reference.SMALL if flags.small else reference.FULL, flags.rounds, flags.only), flags.json)


if __name__ == "__main__":
    main()
