"""How a task of the harness wants text generated."""

import dataclasses
from typing import Any

from mom_jax.fields import nearest, require

# What the harness gives tasks that do not say how many tokens to generate.
NEW_TOKENS = 256


# What `generate_until` tasks may ask for; names of the same thing in one row.
_NEW_TOKENS_NAMES = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")


_SETTINGS = ("top_k", "top_p", "repetition_penalty", "num_beams", "length_penalty", "early_stopping")


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a task wants text generated. until: strings at whose first occurrence it ends. new_tokens: at most so many.
    sampling: keyword arguments of `mom_jax.Decoder.generate`."""

    until: tuple[str, ...]
    new_tokens: int
    sampling: dict[str, Any]

    @classmethod
    def read(cls, kwargs: dict[str, Any], context: int) -> "Settings":
        """From a task's `generation_kwargs`, with the harness's meanings: without `do_sample` a temperature above 0
        means sampling, and with `do_sample: false` the temperature does not count.

        Raises ConfigError for what is unknown and for more tokens than the model's context has room for.
        """
        given = {name: value for name, value in kwargs.items() if value is not None}
        numbers = {*_NEW_TOKENS_NAMES, "temperature", *_SETTINGS} - {"early_stopping"}
        for name in sorted(numbers & given.keys()):
            value = given[name]
            good = isinstance(value, int | float) and not isinstance(value, bool)
            require(good, f"generation_kwargs.{name}", value, "must be a number")
        until = given.pop("until", [])
        asked = [given.pop(name) for name in _NEW_TOKENS_NAMES if name in given]
        new_tokens = int(asked[0]) if asked else min(NEW_TOKENS, context // 2)
        fits = 1 <= new_tokens < context
        require(fits, "max_gen_toks", new_tokens, f"must be at least 1 and less than the model's context of {context}")
        temperature = float(given.pop("temperature", 0.0))
        sample = given.pop("do_sample", temperature > 0)
        require(temperature > 0 or not sample, "temperature", temperature, "must be above 0 with do_sample: true")
        known = (*_NEW_TOKENS_NAMES, "until", "do_sample", "temperature", *_SETTINGS)
        for name, value in given.items():
            require(name in known, f"generation_kwargs.{name}", value, f"unknown; {nearest(name, known)}")
        if not sample or given.get("top_k", 1) <= 0:  # which is how other programs say that it is off
            given.pop("top_k", None)
        if not sample:
            given.pop("top_p", None)
        stops = (until,) if isinstance(until, str) else tuple(until)
        return cls(stops, new_tokens, given | {"temperature": temperature if sample else 0.0})

    @property
    def tail(self) -> int:
        """So many of the last tokens have any stop string whole that ends with the last one: none is without a byte,
        and the first two may be cut off from what makes them text."""
        return 2 + max((len(stop.encode()) for stop in self.until), default=0)

    def ends(self, text: str) -> bool:
        """Whether a stop string is there."""
        return any(stop in text for stop in self.until if stop)

    def truncated(self, text: str) -> str:
        """The text before the stop strings, taken one after another, as the harness does; `text_generation` ends it at
        the first of them, which is another place where one string ends another."""
        for stop in self.until:
            text = text.split(stop)[0] if stop else text
        return text
