"""How probable a model finds tokens: windows of tokens in, the log-probabilities of their last tokens out.

Windows are sorted by length and padded on the right to one of few lengths, and batches have one size, so that few
programs are compiled; the logits of all tokens never exist at once.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mom_jax.config import ModelConfig
from mom_jax.evaluation import for_evaluation
from mom_jax.losses import IGNORE
from mom_jax.losses.chunked import label_scores
from mom_jax.model import with_parameters
from train.tasks.batches import Example, make_batch


class Window(NamedTuple):
    """tokens: at most context_length + 1 ids, since the last one is no input. scored: how many of the last ones are
    scored, each given all tokens before it in the window; at least 1 and fewer than there are."""

    tokens: Sequence[int]
    scored: int


class Scores(NamedTuple):
    """Of one window. log_likelihood: the sum of the scored tokens' log-probabilities, nats. greedy: whether each of
    them was the most probable token."""

    log_likelihood: float
    greedy: bool


class Scorer:
    """Scores windows with a model.

    Args:
        params: nested dictionaries of arrays, moved to the default device once.
        batch_size: windows that are computed together.
    """

    def __init__(self, config: ModelConfig, params: dict[Any, Any], batch_size: int = 8) -> None:
        # Without drops: what a window scores may not depend on those that share its batch.
        self.config, self.batch_size = config.for_inference(), batch_size
        self.params = jax.tree.map(jnp.asarray, params)

    def score(
        self, windows: Sequence[Window], done: Callable[[Sequence[Window]], object] = lambda batch: None
    ) -> list[Scores]:
        """The scores of each window, in the order that they came in. done: given the windows of each batch, afterwards.

        Raises ValueError for a window that is no `Window` of this model.
        """
        longest = self.config.context_length
        for window in windows:
            if not 1 <= window.scored < len(window.tokens) <= longest + 1:
                had = f"a window of {len(window.tokens)} tokens, {window.scored} of them scored"
                raise ValueError(f"{had}: must have 1 to {longest} inputs, and score at most as many tokens")
        # Longest first: what does not fit into memory fails at once.
        order = sorted(range(len(windows)), key=lambda i: -len(windows[i].tokens))
        rows = min(self.batch_size, 1 << (len(windows) - 1).bit_length()) if windows else 0
        scores: list[Scores | None] = [None] * len(windows)
        for start in range(0, len(order), max(rows, 1)):
            some = order[start : start + rows]
            batch = [windows[i] for i in some]
            for i, score in zip(some, self._batch(batch, rows), strict=True):
                scores[i] = score
            done(batch)
        return [score for score in scores if score is not None]

    def _batch(self, windows: list[Window], rows: int) -> list[Scores]:
        batch = make_batch([_example(window) for window in windows], rows, self.config.context_length)
        given = batch["tokens"], batch["mask"], batch["labels"]
        value, first = jax.device_get(_scores(self.params, *given, config=self.config))
        # Added in float64: float32 would lose digits in long windows.
        sums, greedy = value.astype(np.float64).sum(1), first.all(1)
        return [Scores(float(sums[row]), bool(greedy[row])) for row in range(len(windows))]


def _example(window: Window) -> Example:
    """The inputs, each labelled with the token after it where that is scored."""
    tokens = np.asarray(window.tokens, np.int32)
    label = np.where(np.arange(1, len(tokens)) < len(tokens) - window.scored, IGNORE, tokens[1:])
    return Example(tokens[:-1], label)


@functools.partial(jax.jit, static_argnames="config")
def _scores(
    params: dict[Any, Any], ids: jax.Array, mask: jax.Array, labels: jax.Array, *, config: ModelConfig
) -> tuple[jax.Array, jax.Array]:
    """The log-probability of each label at its place, and whether it was the most probable token; [B, L]."""
    config, key = for_evaluation(config)
    output = with_parameters(config, params)(ids, mask=mask, key=key)
    return label_scores(output.hidden, output.unembedding, labels)
