"""Decoding with a KV cache: our vanilla GPT-2, MoM, and Hugging Face's `generate` on the vanilla model's weights.

Shape of GPT-2 small, float32, random weights, greedy, in one process and in turn: `python -m benchmarks.decoding`. MoM
has the same depth and modules: an anchor, a chunk of 10 steps over 10 + 10 modules without SKIP, an anchor; its routers
are those of benchmarks/measuring/reference.py, ten times as large as initially so that routing spreads. Counted is the
time from the first new token to the last one. A ratio is the median over the rounds of the two speeds' ratio in that
round. Hugging Face's are null without the [torch] extra.
"""

import argparse
import dataclasses
import functools
import importlib
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.measuring import reference, timing
from mom_jax import Decoder, ModelConfig, RouterConfig, with_parameters
from mom_jax.config import SIDES
from mom_jax.interop.gpt2 import config_to_gpt2, params_to_gpt2
from train.steps.memory import keep_freed_memory


@dataclasses.dataclass(frozen=True)
class Size:
    """The model, and how many tokens are given and decoded."""

    vocabulary: int = 50257
    width: int = 768
    heads: int = 12
    layers: int = 12
    router: int = 256
    prompt: int = 32
    new: int = 33
    context: int = 1024


FULL = Size()
SMALL = Size(vocabulary=64, width=16, heads=2, layers=4, router=8, prompt=4, new=5, context=64)
# Decodes, and returns the seconds from the first new token to the last one.
Decoding = Callable[[], float]


def config(size: Size, top_k: int = 1, dtype: Any = "float32") -> ModelConfig:
    """The MoM; `vanilla()` of it is the GPT-2."""
    modules = size.layers - 2
    return ModelConfig(
        vocab_size=size.vocabulary,
        context_length=size.context,
        d_model=size.width,
        num_heads=size.heads,
        num_attn_modules=modules,
        num_ffn_modules=modules,
        num_steps=modules,
        top_k=top_k,
        skip=False,
        router=RouterConfig(dim=size.router),
        dtype=dtype,
    )


def prompts(size: Size, batch: int) -> np.ndarray:
    """[batch, prompt] tokens."""
    return np.random.default_rng(0).integers(0, size.vocabulary, (batch, size.prompt), dtype=np.int32)


def ours(decoder: Decoder, size: Size, batch: int) -> Decoding:
    """A decoder of ours at work on a batch."""
    given = prompts(size, batch).tolist()

    def call() -> float:
        times = [time.perf_counter() for _ in decoder.stream(given, size.new, temperature=0)]
        return times[-1] - times[0]

    return call


def hugging_face(
    params: dict[Any, Any], vanilla: ModelConfig, size: Size, threads: int
) -> Callable[[int], Decoding] | None:
    """The same of `transformers`, for any batch; None where it is not installed."""
    if (where := reference.torch_device()) is None:
        return None
    device, dtype = where
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch, transformers = importlib.import_module("torch"), importlib.import_module("transformers")
        transformers.logging.set_verbosity_error()
        torch.set_num_threads(threads)
        options = {key: value for key, value in config_to_gpt2(vanilla).items() if key != "model_type"}
        gpt2 = transformers.GPT2Config(**options, bos_token_id=None, eos_token_id=None)
        with torch.device("meta"):
            model = transformers.GPT2LMHeadModel(gpt2)
        state = params_to_gpt2(jax.tree.map(np.asarray, params), vanilla)
        tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in state.items()}
        model.load_state_dict(tensors, strict=False, assign=True)
        model.tie_weights()
        model.to(device, dtype).eval()

    class Clock:
        """What `generate` calls for the prompt, for every step's tokens, and at the end."""

        def __init__(self) -> None:
            self.times: list[float] = []

        def put(self, tokens: Any) -> None:
            if device == "cuda":  # the tokens are there when the device has done them
                torch.cuda.synchronize()
            self.times.append(time.perf_counter())

        def end(self) -> None:
            pass

    def of(batch: int) -> Decoding:
        ids = torch.from_numpy(prompts(size, batch)).long().to(device)
        given = {"attention_mask": torch.ones_like(ids), "do_sample": False, "use_cache": True, "pad_token_id": 0}

        def call() -> float:
            clock = Clock()
            with torch.inference_mode():
                model.generate(ids, max_new_tokens=size.new, streamer=clock, **given)
            assert len(clock.times) == 1 + size.new
            return clock.times[-1] - clock.times[1]

        return call

    return of


def touched(decoder: Decoder, model_config: ModelConfig, params: dict[Any, Any], size: Size, batch: int) -> int:
    """Bytes of weights that a step reads at least, on average: all that are not routed, and every module that some row
    chose, once."""
    given = prompts(size, batch).tolist()
    new = decoder.generate(given, size.new, temperature=0)
    ids = jnp.asarray([a + b for a, b in zip(given, new, strict=True)], jnp.int32)
    run = jax.jit(lambda params: with_parameters(model_config, params)(ids, capture=("routing",)).captured)
    captured = run(params)
    routed = [chunk[side] for chunk in params["chunks"].values() for side in SIDES if f"{side}_router" in chunk]
    total = float(_bytes(params) - _bytes(params["embed"]["positions"]) - sum(map(_bytes, routed)))
    for side in SIDES:
        if f"{side}/index" not in captured:
            continue
        index = np.asarray(captured[f"{side}/index"])[..., size.prompt :, :]  # [S, H, B, L, K]
        for chunk, of_chunk in zip(params["chunks"].values(), index, strict=True):
            module = _bytes(chunk[side]) / model_config.modules(side)
            for step in of_chunk:
                counts = [len(np.unique(step[:, t][step[:, t] < model_config.modules(side)])) for t in range(size.new)]
                total += module * float(np.mean(counts))
    return round(total)


def _bytes(tree: Any) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def in_turn(calls: Mapping[str, Decoding], rounds: int) -> timing.Seconds:
    """Every call's own seconds once a round, in changing order (as `timing.interleaved` does, which times itself)."""
    names, seconds = list(calls), timing.Seconds({name: [] for name in calls})
    for turn in range(rounds):
        start = turn % len(names)
        order = names[start:] + names[:start]
        for name in reversed(order) if turn % 2 else order:
            seconds[name].append(calls[name]())
    return seconds


class Competitors:
    """Our models of some K's and Hugging Face's, ready to decode. dtype: of the computation; Hugging Face's is float32
    on a CPU and bfloat16 on a GPU."""

    def __init__(self, size: Size, top_ks: tuple[int, ...], torch_threads: int, dtype: str = "float32"):
        self.size = size
        self.configs = {
            "vanilla": config(size, dtype=dtype).vanilla(),
            **{f"mom_k{k}": config(size, k, dtype) for k in top_ks},
        }
        self.params = {name: reference.params(model) for name, model in self.configs.items()}
        self.decoders = {
            name: Decoder(with_parameters(model, self.params[name])) for name, model in self.configs.items()
        }
        self.torch_threads = torch_threads

    @functools.cached_property
    def theirs(self) -> Callable[[int], Decoding] | None:
        """Hugging Face's, made when it is first asked for."""
        return hugging_face(self.params["vanilla"], self.configs["vanilla"], self.size, self.torch_threads)

    def ours(self, batch: int) -> dict[str, Decoding]:
        """Our models at work on a batch."""
        return {name: ours(decoder, self.size, batch) for name, decoder in self.decoders.items()}

    def calls(self, batch: int) -> dict[str, Decoding]:
        """All of them at work on a batch."""
        return self.ours(batch) if self.theirs is None else self.ours(batch) | {"hf": self.theirs(batch)}

    def pairs(self) -> list[tuple[str, str]]:
        """Whose speed is divided by whose."""
        return [("vanilla", "hf"), *((name, "vanilla") for name in self.configs if name != "vanilla")]

    def speeds(self, seconds: timing.Seconds, batch: int) -> dict[str, dict[str, float]]:
        """What the seconds of a batch's decodings are per token."""
        steps = self.size.new - 1
        return {
            name: {"tokens_per_second": batch * steps / middle, "step_seconds": middle / steps}
            for name, middle in timing.medians(seconds).items()
        }

    def touched(self, name: str, batch: int) -> int:
        """Bytes of weights that a step of that one touches."""
        model = "vanilla" if name == "hf" else name
        return touched(self.decoders[model], self.configs[model], self.params[model], self.size, batch)


def measure(
    size: Size, rounds: int, top_ks: tuple[int, ...], batches: tuple[int, ...], torch_threads: int
) -> dict[str, Any]:
    """Ratios of speeds, tokens per second, and the bytes of weights that a step touches."""
    about = timing.machine()
    competitors = Competitors(size, top_ks, torch_threads)
    result: dict[str, Any] = {"quartiles": {}}
    rows: dict[str, Any] = {}
    for batch in batches:
        calls = competitors.calls(batch)
        timing.progress(f"compiling {', '.join(calls)} at batch {batch}")
        timing.warm_up(calls, 1)
        timing.progress(f"{rounds} rounds")
        seconds = in_turn(calls, rounds)
        for fast, slow in competitors.pairs():
            # Speeds divide the other way round than seconds.
            result[f"{fast}_over_{slow}_b{batch}"] = timing.ratio(seconds, slow, fast)
            quartiles = timing.quartiles(timing.ratios(seconds, slow, fast))
            result["quartiles"][f"{fast}_over_{slow}_b{batch}"] = quartiles
        for name, speed in competitors.speeds(seconds, batch).items():
            rows[f"{name} b{batch}"] = speed | {"weight_bytes_per_step": competitors.touched(name, batch)}
    result |= {"decoding": rows, "torch_threads": torch_threads, "rounds": rounds, "small": size == SMALL}
    return result | {"size": dataclasses.asdict(size), **about}


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(timing.positive(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of whole numbers") from None


def main(argv: list[str] | None = None) -> None:
    parser = timing.parser("decoding", __doc__, rounds=7)
    parser.add_argument("--top-k", type=_numbers, default=(1,), help="modules per step, with commas between")
    parser.add_argument("--batch", type=_numbers, default=(1, 16), help="rows, with commas between")
    parser.add_argument(
        "--torch-threads",
        type=timing.positive,
        default=timing.threads(),
        help="of Hugging Face's (as many as ours); beside other processes its threads wait for each other",
    )
    flags = parser.parse_args(argv)
    keep_freed_memory()  # for all competitors alike
    size = SMALL if flags.small else FULL
    timing.report(measure(size, flags.rounds, flags.top_k, flags.batch, flags.torch_threads), flags.json)


if __name__ == "__main__":
    main()
