"""Continues a text: `python -m train.generate --checkpoint RUN --prompt "def"`."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

from train.cli import import_modules, notify, run_program
from train.parse import Imports, parse_flags


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Continue a text, shown as it is made.

    Attributes:
        checkpoint: a run's folder, RUN/checkpoints/PHASE, or RUN/checkpoints/PHASE/STEP.
        prompt: the text to continue.
        tokens: at most so many new tokens; fewer where the text ends or the model's context is full.
        temperature: 0 always takes the most probable token; 0.8 if not given.
        top_k: draw among the k most probable tokens, 0 among all; 40 if not given.
        top_p: draw among the most probable tokens that together have this probability.
        repetition_penalty: above 1 makes tokens that the text already has less probable.
        beams: search with so many beams for the most probable text; nothing is drawn.
        length_penalty: with beams: a text's log probability is divided by its length to this power.
        early_stopping: with beams: `yes` ends with as many finished texts as beams; `no` when a better one is unlikely;
            `never` when it is impossible.
        stop: texts at which the continuation ends; they are not shown.
        eos: whether it also ends where the document does.
        truncate: whether a prompt longer than the model's context loses its beginning; otherwise it is refused.
        samples: continue the prompt so many times, each printed whole.
        seed: of what is drawn.
        imports: modules or Python files to import first, such as one that registers the model's router.
        best: of a phase take the step with the lowest validation loss, not the latest.
    """

    checkpoint: str
    prompt: str = "def"
    tokens: int = 100
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float = 1.0
    beams: int = 1
    length_penalty: float = 1.0
    early_stopping: Literal["no", "yes", "never"] = "no"
    stop: tuple[str, ...] = ()
    eos: bool = True
    truncate: bool = True
    samples: int = 1
    seed: int = 0
    imports: Imports = ()
    best: bool = False


def main(arguments: Sequence[str] | None = None) -> int:
    flags = parse_flags(Arguments, arguments, prog="python -m train.generate", description=__doc__)
    import_modules(flags.imports)

    from mom_jax.fields import MOST_SEED, ConfigError, is_text, require
    from mom_jax.generation import Decoder
    from mom_jax.generation.settings import Settings
    from train.checkpoints.models import load
    from train.tasks.text_generation import continue_texts, encode_prompt, stream_text

    for name in ("tokens", "beams", "samples"):
        require(getattr(flags, name) >= 1, name, getattr(flags, name), "must be at least 1")
    for name, text in (("prompt", flags.prompt), *(("stop", stop) for stop in flags.stop)):
        require(is_text(text), name, text, "must be UTF-8")
    require(flags.top_k is None or flags.top_k >= 0, "top_k", flags.top_k, "must be at least 0")
    require(0 <= flags.seed <= MOST_SEED, "seed", flags.seed, f"must lie between 0 and {MOST_SEED}")
    for name in ("temperature", "top_k", "top_p"):
        value = getattr(flags, name)
        require(flags.beams == 1 or value is None, name, value, f"has no meaning with beams={flags.beams}")
    require(flags.beams == 1 or flags.samples == 1, "samples", flags.samples, f"are all alike with beams={flags.beams}")
    settings = _settings(flags)
    try:
        Settings(**settings)  # before the model is read
    except ValueError as error:
        raise ConfigError(str(error)) from None
    model, tokenizer = load(flags.checkpoint, best=flags.best)
    if tokenizer is None:
        raise ConfigError(f"checkpoint={flags.checkpoint!r}: has no tokenizer beside it")
    context, length = model.config.context_length, len(encode_prompt(tokenizer, flags.prompt))
    require(context > 1, "checkpoint", flags.checkpoint, "this model's context has no room for a new token")
    if settings.get("top_k"):
        settings["top_k"] = min(settings["top_k"], model.config.vocab_size)
    settings |= {"stop": flags.stop, "eos": flags.eos, "truncate": flags.truncate, "notify": notify}
    # A prompt that fits keeps its beginning: there may be fewer new tokens. Of others `continue_texts` tells.
    room = context - length if length < context else context - 1
    given = tokenizer, min(flags.tokens, room)
    _check_memory(flags, model.config, min(context, length + given[1]))
    decoder = Decoder(model)
    try:
        if flags.samples > 1:
            texts = continue_texts(decoder, given[0], [flags.prompt] * flags.samples, given[1], **settings)
        else:
            pieces = stream_text(decoder, given[0], flags.prompt, given[1], **settings)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if room < flags.tokens and length < context:
        notify(f"the context of {context} tokens has room for {room} after the prompt, not for {flags.tokens}")
    if flags.samples > 1:
        for i, text in enumerate(texts):
            print(f"--- {i + 1} of {flags.samples}\n{flags.prompt}{text}")
        return 0
    print(flags.prompt, end="", flush=True)
    for piece in pieces:
        print(piece, end="", flush=True)
    print()
    return 0


def _check_memory(flags: Arguments, model: Any, length: int) -> None:
    """Raises ConfigError where keys and values alone would not fit in the memory that there is."""
    import jax

    from mom_jax.fields import require
    from train.steps.memory import gib, memory_of

    have = memory_of(jax.devices()[:1])
    rows, width = flags.samples * flags.beams, 2 if model.dtype == "bfloat16" else 4
    need = rows * length * model.depth * 2 * model.d_model * width
    name = "samples" if flags.samples > 1 else "beams"
    allowed = f"keys and values of so many take {gib(need)}, the device has {gib(have or 0)}"
    require(have is None or need <= have, name, getattr(flags, name), allowed)


def _settings(flags: Arguments) -> dict[str, Any]:
    """The flags as `Decoder.generate` has them."""
    stopping = {"no": False, "yes": True, "never": "never"}[flags.early_stopping]
    settings: dict[str, Any] = {"repetition_penalty": flags.repetition_penalty, "seed": flags.seed}
    if flags.beams > 1:
        return settings | {
            "num_beams": flags.beams,
            "length_penalty": flags.length_penalty,
            "early_stopping": stopping,
        }
    top_k = 40 if flags.top_k is None else flags.top_k
    settings["temperature"] = 0.8 if flags.temperature is None else flags.temperature
    return settings | {"top_k": top_k or None, "top_p": flags.top_p}


if __name__ == "__main__":
    run_program(main)
