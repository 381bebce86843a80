"""Generation with texts: prompts in, continuations out, ended by stop strings; and piece by piece for one prompt."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from mom_jax.fields import ConfigError, require
from mom_jax.generation import Decoder
from train.data.tokenizers import Tokenizer

Say = Callable[[str], None]

CONTEXT = 8  # tokens of the prompt that are decoded along: some tokenizers drop a space at a text's beginning
UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # what the bytes of half a character decode to


def continue_texts(
    decoder: Decoder,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    max_new_tokens: int,
    *,
    stop: Sequence[str] = (),
    eos: bool = True,
    truncate: bool = True,
    notify: Say = lambda text: None,
    **settings: Any,
) -> list[str]:
    """What follows each prompt, at most `max_new_tokens` tokens, cut before the first of the `stop` strings.

    eos: whether a text also ends where the tokenizer's document does. truncate: whether a prompt that leaves no room
    in the model's context loses its beginning, of which `notify` is told; otherwise it is refused. settings: of
    `Decoder.generate`. All prompts are one batch. Raises ConfigError for a prompt or `max_new_tokens` without room and
    for an empty stop string, ValueError for impossible settings.
    """
    if not prompts:
        return []
    ids = [_encode(decoder, tokenizer, prompt, max_new_tokens, truncate, notify) for prompt in prompts]
    ends = _Ends(tokenizer, stop)
    # A row's own prompt does not matter for where a stop string is.
    found = decoder.generate(ids, max_new_tokens, **_ending(ends, tokenizer, eos), **settings)
    return [ends.truncated(_text(tokenizer, prompt, new)) for prompt, new in zip(ids, found, strict=True)]


def stream_text(
    decoder: Decoder,
    tokenizer: Tokenizer,
    prompt: str,
    max_new_tokens: int,
    *,
    stop: Sequence[str] = (),
    eos: bool = True,
    truncate: bool = True,
    notify: Say = lambda text: None,
    **settings: Any,
) -> Iterator[str]:
    """The same for one prompt, in pieces that together are its continuation: none has half a character or the
    beginning of what may become a stop string. Mistakes are raised by the call."""
    ids = _encode(decoder, tokenizer, prompt, max_new_tokens, truncate, notify)
    ends = _Ends(tokenizer, stop)
    steps = decoder.stream([ids], max_new_tokens, **_ending(ends, tokenizer, eos), **settings)

    def pieces() -> Iterator[str]:
        new: list[int] = []
        shown = 0
        for [token] in steps:
            if token is not None:
                new.append(token)
            text = ends.certain(_text(tokenizer, ids, new))
            if len(text) > shown:
                yield text[shown:]
                shown = len(text)
        if rest := ends.truncated(_text(tokenizer, ids, new))[shown:]:
            yield rest

    return pieces()


def encode_prompt(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """A prompt's tokens. An empty one begins a document: what comes before one is the separator."""
    if prompt:
        return tokenizer.encode(prompt)
    require(tokenizer.eos_id >= 0, "prompt", prompt, "must not be empty: the tokenizer has no separator to begin with")
    return [tokenizer.eos_id]


def _encode(
    decoder: Decoder, tokenizer: Tokenizer, prompt: str, max_new_tokens: int, truncate: bool, notify: Say
) -> list[int]:
    context, ids = decoder.config.context_length, encode_prompt(tokenizer, prompt)
    allowed = f"must be at least 1 and leave room for a prompt in the model's context of {context} tokens"
    require(1 <= max_new_tokens < context, "max_new_tokens", max_new_tokens, allowed)
    room = context - max_new_tokens
    if len(ids) <= room:
        return ids
    start = prompt if len(prompt) <= 20 else f"{prompt[:20]}..."
    have = f"its {len(ids)} tokens and {max_new_tokens} new ones exceed the model's context of {context}"
    if not truncate:
        raise ConfigError(f"prompt={start!r}: {have}")
    notify(f"prompt {start!r}: {have}; the first {len(ids) - room} are left out")
    return ids[-room:]


def _ending(ends: "_Ends", tokenizer: Tokenizer, eos: bool) -> dict[str, Any]:
    """What tells a decoder where a row ends."""
    return {"eos_id": tokenizer.eos_id if eos else None, "stop": ends.reached if ends.strings else None}


def _text(tokenizer: Tokenizer, prompt: Sequence[int], new: Sequence[int]) -> str:
    """The text of the new tokens after a prompt. Models may have tokens that the tokenizer has not; these have none."""
    before = list(prompt[-CONTEXT:])
    own = [token for token in new if token < tokenizer.vocab_size]
    start, whole = tokenizer.decode(before), tokenizer.decode(before + own)
    return whole[len(start) :] if whole.startswith(start) else tokenizer.decode(own)


class _Ends:
    """Where a text ends by `strings`."""

    def __init__(self, tokenizer: Tokenizer, strings: Sequence[str]):
        require(not isinstance(strings, str), "stop", strings, "must be several texts, not one")
        require(all(strings), "stop", tuple(strings), "must not have an empty text")
        self._tokenizer, self.strings = tokenizer, tuple(strings)

    def reached(self, new: Sequence[int]) -> bool:
        """Whether a row of new tokens has a stop string, which may straddle them."""
        text = _text(self._tokenizer, (), new)
        return any(string in text for string in self.strings)

    def truncated(self, text: str) -> str:
        """The text before the first stop string."""
        places = [place for string in self.strings if (place := text.find(string)) >= 0]
        return text[: min(places, default=len(text))]

    def certain(self, text: str) -> str:
        """The beginning of `text` that stays, whatever tokens follow."""
        text = text.rstrip(UNFINISHED)
        before = self.truncated(text)
        if len(before) < len(text):
            return before
        # The longest end of the text that begins a stop string.
        held = max(
            (n for string in self.strings for n in range(1, len(string)) if text.endswith(string[:n])), default=0
        )
        return text[: len(text) - held]
