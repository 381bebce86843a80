"""`Decoder`: a model made ready for generation, and the loop over tokens."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mom_jax.generation import programs, sampling
from mom_jax.generation.beam import Search
from mom_jax.generation.settings import SMALLEST_WIDTH, LogitsError, Settings, bucket, check_prompts
from mom_jax.model import Cache, MoM, parameters

Stop = Callable[[list[int]], bool]


class Decoder:
    """A model's weights as decoding reads them: layer norms folded in and, on a CPU, every module's as arrays of its
    own. They are a copy: whoever needs the memory may drop the model.

    Prompts, cache and batch are padded to few sizes (`settings.bucket`), so that few programs are compiled; a step is
    one program whose cache is updated in place. On one device.

    >>> decoder = Decoder(model)
    >>> tokens = decoder.generate([[1, 2, 3], [4]], 20, temperature=0)
    """

    def __init__(self, model: MoM):
        self.config = model.config.for_inference()
        self._prepared = programs.prepare(parameters(model), config=self.config)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        *,
        eos_id: int | None = None,
        stop: Stop | None = None,
        **settings: Any,
    ) -> list[list[int]]:
        """The tokens that follow each prompt (prompts not included), at most `max_new_tokens`, ending before `eos_id`.

        stop: gets a row's new tokens after each step and ends the row when true; they are part of the result. settings:
        the fields of `Settings`. Raises ValueError for an empty prompt, for prompt and new tokens that exceed the
        model's context, and for impossible settings; LogitsError where the model's logits are no numbers.
        """
        rows: list[list[int]] = [[] for _ in prompts]
        for tokens in self.stream(prompts, max_new_tokens, eos_id=eos_id, stop=stop, **settings):
            for row, token in zip(rows, tokens, strict=True):
                if token is not None:
                    row.append(token)
        return rows

    def stream(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        *,
        eos_id: int | None = None,
        stop: Stop | None = None,
        **settings: Any,
    ) -> Iterator[list[int | None]]:
        """The same, step by step: each row's new token, None for rows that have ended. With beams all steps come when
        the search has ended. Mistakes are raised by the call, not when the first token is asked for."""
        chosen = Settings(**settings)
        chosen.check(self.config)
        check_prompts(prompts, max_new_tokens, self.config)
        if chosen.num_beams > 1:
            return self._search(prompts, max_new_tokens, chosen, eos_id, stop)
        return self._draw(prompts, max_new_tokens, chosen, eos_id, stop)

    def _draw(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        settings: Settings,
        eos_id: int | None,
        stop: Stop | None,
    ) -> Iterator[list[int | None]]:
        vocabulary = self.config.vocab_size
        values, count = sampling.values(settings, vocabulary), sampling.candidates(settings, vocabulary)
        key, noise_key = jax.random.split(jax.random.key(settings.seed))
        logits, cache, positions = self._prefill(prompts, max_new_tokens, noise_key)
        seen = _seen(prompts, logits.shape) if settings.repetition_penalty != 1 else None
        new: list[list[int]] = [[] for _ in prompts]
        active = np.arange(logits.shape[0]) < len(prompts)
        for i in range(max_new_tokens):
            tokens, seen = sampling.choose(
                logits, seen, values, key, np.int32(i), greedy=settings.temperature == 0, count=count
            )
            if i + 1 < max_new_tokens:
                # The next step is under way before the host looks at this one's tokens: the device need not wait for
                # it. A row that turns out to have ended is computed once more, and its token is not looked at. A copy,
                # since what is given to a running program may not be changed.
                logits, cache = self._step(cache, tokens, positions + np.int32(i), active.copy(), noise_key)
            taken = np.asarray(tokens).tolist()
            out: list[int | None] = [None] * len(prompts)
            for row in np.flatnonzero(active).tolist():
                if taken[row] < 0:
                    raise LogitsError
                if taken[row] == eos_id:
                    active[row] = False
                    continue
                out[row] = taken[row]
                new[row].append(taken[row])
                if stop is not None and stop(new[row]):
                    active[row] = False
            if any(token is not None for token in out):
                yield out
            if not active.any():
                return

    def _search(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        settings: Settings,
        eos_id: int | None,
        stop: Stop | None,
    ) -> Iterator[list[int | None]]:
        _, noise_key = jax.random.split(jax.random.key(settings.seed))
        logits, cache, positions = self._prefill(prompts, max_new_tokens, noise_key)
        beams = settings.num_beams
        first = np.repeat(np.arange(logits.shape[0], dtype=np.int32), beams)
        logits, cache, positions = logits[first], programs.reorder(cache, first), positions[first]
        seen = _seen(prompts, logits.shape, beams) if settings.repetition_penalty != 1 else None
        search = Search(len(prompts), logits.shape[0] // beams, max_new_tokens, settings, eos_id, stop)
        for i in range(max_new_tokens):
            parents, tokens = search.advance(logits, seen)
            if search.done:
                break
            if (parents != np.arange(len(parents))).any():
                cache = programs.reorder(cache, parents)
            if seen is not None:
                seen = seen[parents].at[np.arange(len(tokens)), tokens].set(True)
            logits, cache = self._step(cache, tokens, positions + np.int32(i), search.active(), noise_key)
        found = search.results()
        for i in range(max(map(len, found), default=0)):
            yield [tokens[i] if i < len(tokens) else None for tokens in found]

    def _prefill(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int, noise_key: jax.Array
    ) -> tuple[jax.Array, Cache, np.ndarray]:
        """(logits [B, V], the cache, the positions [B] of the next tokens); B in a bucket, rows beyond are empty."""
        width = min(bucket(max(len(prompt) for prompt in prompts), SMALLEST_WIDTH), self.config.context_length)
        batch = bucket(len(prompts))
        ids, mask = np.zeros((batch, width), np.int32), np.zeros((batch, width), np.bool_)
        for i, prompt in enumerate(prompts):
            ids[i, width - len(prompt) :], mask[i, width - len(prompt) :] = prompt, True
        slots = bucket(width + max_new_tokens)
        logits, cache = programs.prefill(self._prepared, ids, mask, noise_key, config=self.config, slots=slots)
        return logits, cache, mask.sum(1).astype(np.int32)

    def _step(self, cache: Cache, *given: Any) -> tuple[jax.Array, Cache]:
        return programs.step(self._prepared, cache, *given, config=self.config)


def _seen(prompts: Sequence[Sequence[int]], shape: tuple[int, ...], beams: int = 1) -> jax.Array:
    """[rows, V] bool: the tokens that each row's prompt has; a prompt has `beams` rows."""
    seen = np.zeros(shape, np.bool_)
    for i, prompt in enumerate(prompts):
        seen[i * beams : (i + 1) * beams, list(prompt)] = True
    return jnp.asarray(seen)


def generate(model: MoM, prompts: Sequence[Sequence[int]], max_new_tokens: int, **settings: Any) -> list[list[int]]:
    """`Decoder(model).generate(...)`, for a single use."""
    return Decoder(model).generate(prompts, max_new_tokens, **settings)
