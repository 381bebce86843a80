"""Beam search as `transformers` defines it (`GenerationMixin._beam_search`, version 5).

A device ranks the continuations; the few that are best come to the host, which keeps the books of each prompt: its
running beams, and the best finished hypotheses.
"""

import functools
from collections.abc import Callable

import jax
import numpy as np

from mom_jax.generation.sampling import penalise
from mom_jax.generation.settings import LogitsError, Settings

NEVER = np.float32(-1e9)  # the score of what cannot be chosen


@functools.partial(jax.jit, static_argnames="beams")
def best(
    logits: jax.Array, seen: jax.Array | None, penalty: jax.Array, scores: jax.Array, *, beams: int
) -> tuple[jax.Array, jax.Array]:
    """The 2·beams best continuations of each prompt: scores and b·V + token [B, 2·beams], best first.

    logits: [B·beams, V]. scores: [B, beams], the running beams' log probabilities.
    """
    log_probability = jax.nn.log_softmax(logits, -1)
    if seen is not None:
        log_probability = penalise(log_probability, seen, penalty)
    total = log_probability.reshape(*scores.shape, -1) + scores[:, :, None]
    return jax.lax.top_k(total.reshape(scores.shape[0], -1), 2 * beams)


class Search:
    """The books of a search for `prompts` prompts, in arrays with room for `rows`."""

    def __init__(
        self,
        prompts: int,
        rows: int,
        max_new_tokens: int,
        settings: Settings,
        eos_id: int | None,
        stop: Callable[[list[int]], bool] | None,
    ):
        self.settings, self.longest, self.eos_id, self.stop = settings, max_new_tokens, eos_id, stop
        # All beams of a prompt begin alike: only the first may be continued at first.
        self.scores = np.full((rows, settings.num_beams), NEVER, np.float32)
        self.scores[:, 0] = 0
        self.prompts = [_Prompt(settings.num_beams) for _ in range(prompts)]

    @property
    def done(self) -> bool:
        """Whether nothing can change any more."""
        return all(prompt.done for prompt in self.prompts)

    def active(self) -> np.ndarray:
        """The rows [B·beams] that are still searched, bool."""
        searched = np.zeros(len(self.scores), np.bool_)
        searched[: len(self.prompts)] = [not prompt.done for prompt in self.prompts]
        return np.repeat(searched, self.settings.num_beams)

    def results(self) -> list[list[int]]:
        """Each prompt's best hypothesis, without its eos."""
        found = [prompt.best() for prompt in self.prompts]
        return [tokens[:-1] if tokens and tokens[-1] == self.eos_id else tokens for tokens in found]

    def advance(self, logits: jax.Array, seen: jax.Array | None) -> tuple[np.ndarray, np.ndarray]:
        """Takes the logits [B·beams, V] of the running beams, and says which row each new one continues and by which
        token, [B·beams] both."""
        beams, vocabulary = self.settings.num_beams, logits.shape[1]
        penalty = np.float32(self.settings.repetition_penalty)
        scores, flat = map(np.asarray, best(logits, seen, penalty, self.scores, beams=beams))
        parents = np.arange(self.scores.size, dtype=np.int32)
        tokens = np.zeros(self.scores.size, np.int32)
        for i, prompt in enumerate(self.prompts):
            if prompt.done:
                continue
            if np.isnan(scores[i]).any():
                raise LogitsError
            origin, token = flat[i] // vocabulary, flat[i] % vocabulary
            candidates = [[*prompt.running[o], t] for o, t in zip(origin.tolist(), token.tolist(), strict=True)]
            ends = np.array([self._ends(candidate) for candidate in candidates])
            going = scores[i] + np.where(ends, NEVER, np.float32(0))
            kept = np.argsort(-going, kind="stable")[:beams]
            prompt.finish(candidates, scores[i], ends, self.settings)
            prompt.running = [candidates[j] for j in kept]
            self.scores[i] = going[kept]
            prompt.update(self.scores[i, 0], self.longest, self.settings, exhausted=bool(ends.all()))
            rows = slice(i * beams, (i + 1) * beams)
            parents[rows], tokens[rows] = i * beams + origin[kept], token[kept]
        return parents, tokens

    def _ends(self, tokens: list[int]) -> bool:
        if len(tokens) >= self.longest or tokens[-1] == self.eos_id:
            return True
        return self.stop is not None and self.stop(tokens)


class _Prompt:
    """running: the tokens of each beam. finished: (score, tokens), best first, at most as many as there are beams."""

    def __init__(self, beams: int):
        self.running: list[list[int]] = [[] for _ in range(beams)]
        self.finished: list[tuple[np.float32, list[int]]] = []
        self.done = False

    def best(self) -> list[int]:
        return self.finished[0][1]

    def finish(self, candidates: list[list[int]], scores: np.ndarray, ends: np.ndarray, settings: Settings) -> None:
        """Those of the best `num_beams` candidates that end become hypotheses."""
        beams = settings.num_beams
        norm = np.float32(len(candidates[0]) ** settings.length_penalty)
        self.finished += [(scores[j] / norm, candidates[j]) for j in range(beams) if ends[j]]
        # Stable: of equal ones the earlier stays ahead.
        self.finished = sorted(self.finished, key=lambda hypothesis: -hypothesis[0])[:beams]

    def update(self, running_score: np.float32, longest: int, settings: Settings, *, exhausted: bool) -> None:
        """Whether the search for this prompt is over. running_score: of the best running beam."""
        full = len(self.finished) == settings.num_beams
        optimistic = settings.early_stopping == "never" and settings.length_penalty > 0
        length = longest if optimistic else len(self.running[0])
        possible = running_score / np.float32(length**settings.length_penalty)
        # The heuristic looks at the worst hypothesis, where there are enough of them.
        hopeless = full and not possible > self.finished[-1][0]
        self.done = exhausted or hopeless or (full and settings.early_stopping is True)
