"""Continues a text: `python -m train.generate --checkpoint RUN --prompt "def"`."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import tyro

from train.cli import run_program


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Continue a text.

    Attributes:
        checkpoint: a run's folder, RUN/checkpoints/PHASE, or RUN/checkpoints/PHASE/STEP.
        prompt: the text to continue.
        tokens: at most so many new tokens; fewer where the text ends or the model's context is full.
        temperature: 0 always takes the most probable token.
        top_k: draw among the k most probable tokens; 0 among all.
        seed: of what is drawn.
        best: of a phase take the step with the lowest validation loss, not the latest.
    """

    checkpoint: str
    prompt: str = "def"
    tokens: int = 100
    temperature: float = 0.8
    top_k: int = 40
    seed: int = 0
    best: bool = False


def main(arguments: Sequence[str] | None = None) -> int:
    flags = tyro.cli(Arguments, args=arguments, prog="python -m train.generate", description=__doc__)

    from mom_jax.fields import ConfigError, require
    from mom_jax.generate import generate
    from train.checkpoint import load

    require(flags.tokens >= 1, "tokens", flags.tokens, "must be at least 1")
    require(flags.temperature >= 0, "temperature", flags.temperature, "must be at least 0")
    require(flags.top_k >= 0, "top_k", flags.top_k, "must be at least 0")
    require(flags.seed >= 0, "seed", flags.seed, "must be at least 0")
    model, tokenizer = load(flags.checkpoint, best=flags.best)
    if tokenizer is None:
        raise ConfigError(f"checkpoint={flags.checkpoint!r}: has no tokenizer beside it")
    # An empty prompt begins a document: what comes before one is the separator.
    prompt = tokenizer.encode(flags.prompt) or [tokenizer.eos_id]
    room = model.config.context_length - len(prompt)
    allowed = f"must leave room in the model's context of {model.config.context_length} tokens"
    require(room >= 1, "prompt", f"{flags.prompt[:20]}...", allowed)
    top_k = min(flags.top_k, model.config.vocab_size) or None
    settings: dict[str, Any] = {"temperature": flags.temperature, "top_k": top_k, "seed": flags.seed}
    [tokens] = generate(model, [prompt], min(flags.tokens, room), eos_id=tokenizer.eos_id, **settings)
    print(flags.prompt + tokenizer.decode([token for token in tokens if token < tokenizer.vocab_size]))
    return 0


if __name__ == "__main__":
    run_program(main)
