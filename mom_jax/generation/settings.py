"""What a caller asks of generation: checked settings, and the sizes to which requests are rounded up."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from mom_jax.config import ModelConfig
from mom_jax.fields import LARGEST, SMALLEST, TOO_SMALL

SMALLEST_WIDTH = 32  # prompts are padded to a bucket of at least this


class LogitsError(ArithmeticError):
    """Logits that are no numbers, so that there is no next token."""

    exit_code = 3  # of a program

    def __init__(self) -> None:
        super().__init__("the logits of the next token are no numbers: the model's weights are too large, or damaged")


@dataclasses.dataclass(frozen=True)
class Settings:
    """How tokens are chosen, with the names and meanings of `transformers`.

    temperature: 0 takes the most probable token, otherwise the logits are divided by it. top_k: draw among the k most
    probable tokens only. top_p: among the most probable ones whose probabilities add up to it. repetition_penalty:
    divides the positive logits of tokens that the row has already, prompt included, and multiplies the negative ones.
    They act in the order penalty, temperature, top_k, top_p. num_beams: more than 1 searches with so many beams and
    draws nothing. length_penalty: a hypothesis's log probability is divided by its length to this power.
    early_stopping: True ends the search at num_beams finished hypotheses, False when a better one is unlikely, "never"
    when it is impossible. seed: row i's draws depend on it and on i only. Raises ValueError for an impossible value.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float = 1.0
    num_beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | str = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("temperature", "repetition_penalty", "length_penalty", "top_p"):
            value = getattr(self, name) or 0
            _require(abs(value) <= LARGEST, name, value, "must be finite")
            _require(value == 0 or abs(value) >= SMALLEST, name, value, TOO_SMALL)
        # Beyond these, numbers overflow.
        small = abs(self.length_penalty) <= 100
        _require(small, "length_penalty", self.length_penalty, "must lie between -100 and 100")
        _require(-(2**63) <= self.seed < 2**63, "seed", self.seed, "must have 64 bits at most")
        _require(self.temperature >= 0, "temperature", self.temperature, "must be at least 0")
        _require(self.top_p is None or 0 < self.top_p <= 1, "top_p", self.top_p, "must lie above 0 and at most at 1")
        _require(self.repetition_penalty > 0, "repetition_penalty", self.repetition_penalty, "must be positive")
        _require(self.num_beams >= 1, "num_beams", self.num_beams, "must be at least 1")
        known = self.early_stopping in (True, False, "never")
        _require(known, "early_stopping", self.early_stopping, "must be True, False or 'never'")
        drawing = self.temperature not in (0, 1) or self.top_k is not None or self.top_p is not None
        allowed = "draws nothing: leave temperature, top_k and top_p at their defaults"
        _require(self.num_beams == 1 or not drawing, "num_beams", self.num_beams, allowed)

    def check(self, config: ModelConfig) -> None:
        """Raises ValueError for what this model cannot do."""
        allowed = f"must lie between 1 and vocab_size={config.vocab_size}"
        _require(self.top_k is None or 1 <= self.top_k <= config.vocab_size, "top_k", self.top_k, allowed)
        enough = self.num_beams == 1 or 2 * self.num_beams <= config.vocab_size
        _require(enough, "num_beams", self.num_beams, f"must be at most half of vocab_size={config.vocab_size}")


def check_prompts(prompts: Sequence[Sequence[int]], max_new_tokens: int, config: ModelConfig) -> None:
    """Raises ValueError for an empty prompt, an unknown token, and more tokens than the model's context has."""
    if not prompts or min(len(prompt) for prompt in prompts) == 0:
        raise ValueError("prompts: each must have at least one token")
    unknown = [token for prompt in prompts for token in prompt if not 0 <= token < config.vocab_size]
    if unknown:
        raise ValueError(f"prompts: token {unknown[0]} is not below vocab_size={config.vocab_size}")
    _require(max_new_tokens >= 1, "max_new_tokens", max_new_tokens, "must be at least 1")
    longest = max(len(prompt) for prompt in prompts)
    if longest + max_new_tokens > config.context_length:
        have = f"the longest prompt's {longest} tokens and max_new_tokens={max_new_tokens}"
        raise ValueError(f"{have} exceed context_length={config.context_length}")


def bucket(size: int, smallest: int = 1) -> int:
    """The next of 1, 2, 3, 4, 6, 8, 12, ..., at most half as much again: few sizes are compiled."""
    size = max(size, smallest)
    power = 1 << (size - 1).bit_length()
    return 3 * power // 4 if power >= 4 and size <= 3 * power // 4 else power


def _require(condition: bool, name: str, value: Any, allowed: str) -> None:
    if not condition:
        raise ValueError(f"{name}={value}: {allowed}")
