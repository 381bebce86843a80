"""What the configurations of the paper's sizes (arXiv 2407.06677) share, and a table of what the models cost.

Command: python -m configs.paper [--json]

Layers: GPT-2's, as bottom anchors + chunks of modules + top anchors. For the large model 1 + 2 x 17 + 1 and the depths
12 and 50 are a worked example that fits the paper's figures: over 60 % less depth, and over 38 % more. Its own table
of modules and steps for the small and the medium model is not known to us. They follow the example's deep variant:
one module a step, and the number of steps whose depth comes nearest to its +38.9 %. The small one has a pool of 8,
which 2, 4 and 8 devices can divide.

paper_routing/ has the paper's models, mom_*.py are of the same layers by this library's recipe (docs/training.md).

Training: the recipe of the official scripts, in which each micro-batch is balanced by itself; their shorter second
phase is `--phases.1.steps 5000 --phases.1.optim.warmup-steps 500`. Routing has this library's defaults where the
official code differs (docs/architecture.md). Phase 1 is the whole run of the GPT-2: with `--resume runs/gpt2_small` it
need not be trained again. A step takes its 512 sequences at once, divided among the devices; few devices need
micro-batches, `--phases.0.optim.accumulation 8`, and `python -m train.plan` says how many.

Data: OpenWebText, prepared once by `python -m train.prepare --config configs/mom_small.py`, with a SentencePiece
tokenizer of as many pieces as GPT-2's vocabulary. The paper's own data are nanoGPT's token files, with GPT-2's
tokenizer: `--data.source bin:FOLDER` takes them as they are.
"""

import argparse
import dataclasses
import importlib
import json
from collections.abc import Sequence
from typing import Any, Literal

from mom_jax.analysis.cost import forward_flops_by_part, forward_flops_per_token, parameter_count
from mom_jax.config import BalanceConfig, ModelConfig, RouterConfig
from mom_jax.interop.phases import preserving
from mom_jax.interop.recipe import recommended
from train.cli import called, run_program
from train.config import CheckpointConfig, Config, DataConfig, OptimConfig, Phase

SizeName = Literal["small", "medium", "large"]

VOCABULARY = 50257
ROUTERS = 3.0  # times the learning rate, by this library's recipe
LENGTH = 1024


@dataclasses.dataclass(frozen=True)
class Size:
    """A size of GPT-2.

    Attributes:
        anchors: at the bottom, and at the top.
        chunks: of `modules` attention modules and as many FFN modules: 2·anchors + chunks·modules layers.
        reported: the parameters that the paper gives for this size; None where that is not known to us.
    """

    d_model: int
    num_heads: int
    anchors: int
    chunks: int
    modules: int
    reported: int | None


SIZES: dict[SizeName, Size] = {
    "small": Size(768, 12, anchors=2, chunks=1, modules=8, reported=122_000_000),
    "medium": Size(1024, 16, anchors=1, chunks=2, modules=11, reported=None),
    "large": Size(1280, 20, anchors=1, chunks=2, modules=17, reported=774_000_000),
}

# The runs that `train.convert` makes of OpenAI's GPT-2s.
PRETRAINED: dict[SizeName, str] = {
    "small": "runs/pretrained_gpt2",
    "medium": "runs/pretrained_gpt2_medium",
    "large": "runs/pretrained_gpt2_large",
}

# The files of this folder that the table has, and their sizes.
MODELS: dict[str, SizeName] = {
    "gpt2_small": "small",
    "paper_routing/small": "small",
    "mom_small": "small",
    "gpt2_medium": "medium",
    "paper_routing/medium": "medium",
    "paper_routing/medium_wide": "medium",
    "mom_medium": "medium",
    "gpt2_large": "large",
    "paper_routing/large": "large",
    "paper_routing/large_deep": "large",
    "mom_large": "large",
    "mom_large_deep": "large",
}


def gpt2(size: SizeName, *, run: str) -> Config:
    """GPT-2 of this size: phase 1 alone."""
    model = _model(size, top_k=1, num_steps=SIZES[size].modules).vanilla()
    return _experiment(model, (_pretrain(),), run)


def paper(size: SizeName, *, top_k: int, num_steps: int, run: str) -> Config:
    """The paper's Mixture-of-Modules of the layers of a GPT-2 of this size: both phases.

    top_k: K, modules taken per step. num_steps: H, steps per chunk.
    """
    second = _second(20_000, "previous")
    return _experiment(_model(size, top_k=top_k, num_steps=num_steps), (_pretrain(), second), run)


def mom(size: SizeName, *, num_steps: int | None = None, run: str) -> Config:
    """A Mixture-of-Modules of the same layers by this library's recipe (`mom_jax.interop.recipe`): both phases.

    num_steps: H, steps per chunk; None: one for each layer, so that its depth and FLOPs are the GPT-2's.
    """
    second = _second(20_000, "previous", router_multiplier=ROUTERS)
    return _experiment(_ours(size, num_steps), (_pretrain(), second), run)


def mom_of_pretrained(size: SizeName, *, run: str) -> Config:
    """Phase 2 alone by this library's recipe, from OpenAI's GPT-2 of this size, as which it starts to the last digit
    (`router.score_init` is 0): `train.convert` has made a run of it.

    The official scripts' short second phase: 5000 steps, 500 of them warm-up.
    """
    phase = _second(5000, PRETRAINED[size], warmup_steps=500, router_multiplier=ROUTERS)
    return _experiment(_ours(size, None, score_init=0.0), (phase,), run, tokenizer=PRETRAINED[size])


def paper_of_pretrained(size: SizeName, *, num_steps: int, run: str) -> Config:
    """The same with the paper's routing: it starts as the GPT-2, and the choices are free after half of the steps."""
    phase = _second(5000, PRETRAINED[size], warmup_steps=500)
    model = preserving(_model(size, top_k=1, num_steps=num_steps), anneal_steps=phase.steps // 2)
    return _experiment(model, (phase,), run, tokenizer=PRETRAINED[size])


def _second(steps: int, init_from: str, **optim: Any) -> Phase:
    return Phase("mom", steps, init_from=init_from, optim=dataclasses.replace(_optim(), **optim))


def _ours(size: SizeName, num_steps: int | None, **router: Any) -> ModelConfig:
    steps = SIZES[size].modules if num_steps is None else num_steps
    return recommended(_model(size, top_k=1, num_steps=steps), parts=2, **router)


def _model(size: SizeName, *, top_k: int, num_steps: int) -> ModelConfig:
    sizes = SIZES[size]
    return ModelConfig(
        vocab_size=VOCABULARY,
        context_length=LENGTH,
        d_model=sizes.d_model,
        num_heads=sizes.num_heads,
        num_bottom=sizes.anchors,
        num_top=sizes.anchors,
        num_chunks=sizes.chunks,
        num_attn_modules=sizes.modules,
        num_ffn_modules=sizes.modules,
        num_steps=num_steps,
        top_k=top_k,
        router=RouterConfig(kind="gru", dim=256, temperature=0.2),
        balance=BalanceConfig(weight=0.01, over="micro_batch"),
        dtype="bfloat16",
    )


def _pretrain() -> Phase:
    return Phase("pretrain", 30_000, model="vanilla", optim=_optim())


def _optim() -> OptimConfig:
    return OptimConfig(
        learning_rate=1e-3,
        schedule="cosine",
        warmup_steps=2000,
        beta1=0.9,
        beta2=0.95,
        epsilon=1e-5,
        weight_decay=0.1,
        clip_norm=1.0,
    )


def _experiment(model: ModelConfig, phases: tuple[Phase, ...], run: str, *, tokenizer: str = "sentencepiece") -> Config:
    data = DataConfig(
        source="tfds:openwebtext",
        tokenizer=tokenizer,
        vocab_size=VOCABULARY,
        batch_size=512,
        length=LENGTH,
        validation_fraction=0.0005,  # as in nanoGPT, whose token files the official scripts read
    )
    checkpoint = CheckpointConfig(every=1000)
    return Config(model=model, data=data, phases=phases, checkpoint=checkpoint, run=run, evaluate_every=1000)


# The table.


def config_of(name: str) -> Config:
    """The configuration of this name in this folder, such as `gpt2_small` or `paper_routing/small`."""
    config: Config = importlib.import_module(f"configs.{name.replace('/', '.')}").get_config()
    return config


def table() -> list[dict[str, Any]]:
    """A row for each model of `MODELS`, its parameters counted as in `mom_jax.analysis.cost.ParameterCount`.

    flops: of the forward pass, per token of `LENGTH` tokens. flops_ratio: to the GPT-2 of the same size.
    flops_ratio_square: likewise, without the routers and with all of attention's square, its masked half included.
    reported: the parameters that the paper gives, None where they are not known.
    """
    rows = []
    for name, size in MODELS.items():
        model = config_of(name).model
        plain = model.vanilla()
        flops = forward_flops_per_token(model, LENGTH)
        rows.append(
            {
                "model": name,
                "depth": model.depth,
                **dataclasses.asdict(parameter_count(model)),
                "flops": flops,
                "flops_ratio": flops / forward_flops_per_token(plain, LENGTH),
                "flops_ratio_square": _square(model) / _square(plain),
                "reported": SIZES[size].reported,
            }
        )
    return rows


def _square(model: ModelConfig) -> float:
    parts = forward_flops_by_part(model, LENGTH, causal=False)
    return sum(parts.values()) - parts["routers"]


NOTES = f"""\
depth: layers that a token passes through. total to head: parameters. active: parameters that a token is multiplied
with, counted each time. GFLOPs: of the forward pass per token, at {LENGTH} tokens with nothing skipped. ratio: of
these, to the GPT-2 of the same size. ratio (*): without routers, and with the masked half of attention. paper: the
parameters that it reports."""


def readable(rows: Sequence[dict[str, Any]]) -> str:
    """The table as text, with notes below."""
    names = {"flops": "GFLOPs", "flops_ratio": "ratio", "flops_ratio_square": "ratio (*)", "reported": "paper"}
    lines = [[names.get(column, column) for column in rows[0]]]
    lines += [[_cell(column, value) for column, value in row.items()] for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = ["  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in lines]
    return "\n".join([*text, "", NOTES])


def _cell(column: str, value: Any) -> str:
    if value is None:
        return "-"
    if column == "reported":
        return f"{value // 10**6}M"
    if isinstance(value, float):
        return f"{value / (1e9 if column == 'flops' else 1):.3f}"
    return f"{value:,}" if isinstance(value, int) else value


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(called("python -m configs.paper"), description="What the paper's models cost.")
    parser.add_argument("--json", action="store_true", help="exact numbers, on one line")
    options = parser.parse_args(arguments)
    print(json.dumps(table()) if options.json else readable(table()))
    return 0


if __name__ == "__main__":
    run_program(main)
