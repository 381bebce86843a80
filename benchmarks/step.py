"""The train step (loss and gradients) of MoM, of our vanilla transformer, and of Hugging Face's GPT-2 in PyTorch.

All in one process, in turn, on the work of benchmarks/measuring/reference.py: `python -m benchmarks.step [--json]`. A
ratio is the median over the rounds of the two seconds' ratio in that round; `quartiles` are those rounds'. Hugging
Face's ratios are null without the [torch] extra. `flops_ratio_*`: the products that a MoM needs over vanilla's, every
choice a real module; `_taken`: without the choices that were SKIP. `*_over_flops`: the time's ratio over the first of
these. `--shape gpt2_small`: width 768, 12 layers, R 256, vocabulary 50257, 2 x 512 tokens. `--remat none,dots` also
compares what the backward pass may recompute.
"""

import dataclasses
import typing
from typing import Any

from benchmarks.measuring import reference, timing
from benchmarks.measuring.reference import Size, Work
from mom_jax import ModelConfig
from train.steps.memory import keep_freed_memory

TOP_KS = (1, 2, 3)
PAIRS = (
    *((f"mom_k{k}", "hf_sdpa") for k in TOP_KS),
    *((f"mom_k{k}", "vanilla") for k in TOP_KS),
    ("vanilla", "hf_sdpa"),
)
SHAPES = {"reference": reference.FULL, "gpt2_small": reference.GPT2_SMALL}
REMATS: tuple[str, ...] = typing.get_args(typing.get_type_hints(ModelConfig)["remat"])


def measure(size: Size, rounds: int, remats: tuple[str, ...] = ()) -> dict[str, Any]:
    """The ratios, seconds, temporaries in bytes, and the shares of the choices that are SKIP."""
    about = timing.machine()
    configs = {"vanilla": reference.config(size).vanilla()}
    configs |= {f"mom_k{k}": reference.config(size, top_k=k) for k in TOP_KS}
    timing.progress(f"compiling {', '.join(configs)}")
    works = {name: reference.prepare(config, size) for name, config in configs.items()}
    calls = {name: work.call for name, work in works.items()}
    if (call := reference.torch_gpt2(size, configs["vanilla"].num_layers)) is not None:
        calls["hf_sdpa"] = call
    timing.warm_up(calls)
    timing.progress(f"{rounds} rounds of {', '.join(calls)}")
    seconds = timing.interleaved(calls, rounds)
    result: dict[str, Any] = {f"{a}_over_{b}": timing.ratio(seconds, a, b) for a, b in PAIRS}
    skips = {name: reference.skip_share(works[name].routing()) for name in works if name != "vanilla"}
    result |= flops_ratios(configs, size, skips)
    result |= {f"{name}_over_vanilla_over_flops": over_flops(result, name) for name in skips}
    result |= {
        "quartiles": {f"{a}_over_{b}": timing.quartiles(timing.ratios(seconds, a, b)) for a, b in PAIRS},
        "seconds": timing.medians(seconds),
        "temp_bytes": {name: work.compiled.temp_bytes for name, work in works.items()},
        "skip_share": skips,
    }
    if remats:
        result["remat"] = measure_remat(size, rounds, remats)
    result |= {"rounds": rounds, "small": size == reference.SMALL, "layers": configs["vanilla"].num_layers}
    return result | {"size": dataclasses.asdict(size), **about}


def flops_ratios(configs: dict[str, ModelConfig], size: Size, skips: dict[str, dict[str, float]]) -> dict[str, float]:
    """The FLOPs of each MoM over vanilla's; skips: the shares of its choices that were SKIP."""
    vanilla, result = reference.train_flops(configs["vanilla"], size), {}
    for name, shares in skips.items():
        ratio = f"flops_ratio_{name.removeprefix('mom_')}"
        result[ratio] = reference.train_flops(configs[name], size) / vanilla
        result[f"{ratio}_taken"] = reference.train_flops(configs[name], size, shares) / vanilla
    return result


def over_flops(result: dict[str, Any], name: str) -> float:
    """The model's time over vanilla's, over its FLOPs over vanilla's."""
    return result[f"{name}_over_vanilla"] / result[f"flops_ratio_{name.removeprefix('mom_')}"]


def measure_remat(size: Size, rounds: int, remats: tuple[str, ...]) -> dict[str, Any]:
    """Seconds and temporaries of each model and policy, and their ratios over the same model that recomputes nothing.

    `none` is measured in any case.
    """
    remats = tuple(dict.fromkeys(("none", *remats)))
    models = {"vanilla": reference.config(size).vanilla()}
    models |= {f"mom_k{k}": reference.config(size, top_k=k) for k in (1, 2)}
    timing.progress(f"compiling {', '.join(models)} with remat {', '.join(remats)}")
    works: dict[str, Work] = {}
    for model, config in models.items():
        for remat in remats:
            policy: Any = remat
            works[f"{model} {remat}"] = reference.prepare(dataclasses.replace(config, remat=policy), size)
    calls = {name: work.call for name, work in works.items()}
    timing.warm_up(calls)
    seconds = timing.interleaved(calls, rounds)
    middle = timing.medians(seconds)
    result: dict[str, Any] = {}
    for name, work in works.items():
        base = f"{name.split()[0]} none"
        result[name] = {
            "seconds": middle[name],
            "over_none": timing.ratio(seconds, name, base),
            "temp_bytes": work.compiled.temp_bytes,
            "temp_over_none": work.compiled.temp_bytes / works[base].compiled.temp_bytes,
        }
    return result


def main(argv: list[str] | None = None) -> None:
    parser = timing.parser("step", __doc__, rounds=9)
    parser.add_argument(
        "--remat", type=timing.some_of(REMATS), default=(), help=f"also compare some of {','.join(REMATS)}"
    )
    parser.add_argument("--shape", choices=tuple(SHAPES), default="reference", help="of the models and the batch")
    flags = parser.parse_args(argv)
    keep_freed_memory()  # for all competitors alike
    size = reference.SMALL if flags.small else SHAPES[flags.shape]
    timing.report(measure(size, flags.rounds, flags.remat), flags.json)


if __name__ == "__main__":
    main()
