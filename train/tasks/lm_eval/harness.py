"""EleutherAI's lm-evaluation-harness (`lm_eval`) on our models: its `LM`, and `simple_evaluate` with it.

Follows the harness's own Hugging Face model (`lm_eval/models/huggingface.py`), so that the same weights give the same
numbers: before the first token stands the separator; spaces at the end of a context belong to the continuation; a
context that is too long loses tokens on its left; a rolling log-likelihood is the sum over disjoint windows, of which
the last has as much context as fits. Two things differ. The text "<|endoftext|>" is text here and never the separator
(train/data/tokenizers/gpt2.py). And where context and continuation share a token, so that nothing would be left to
score, both are tokenized by themselves; the harness's model stops there.

Needs the extra `lmeval`, and no torch (lm-eval 0.4.9 still did).
"""

import functools
import json
from collections.abc import Sequence
from typing import Any

import jax
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.utils import (
    get_rolling_token_windows,
    make_disjoint_window,
)
from tqdm import tqdm

from mom_jax.config import ModelConfig
from mom_jax.fields import ConfigError, require
from mom_jax.generation import Decoder
from mom_jax.model import with_parameters
from train.data.tokenizers import Tokenizer
from train.tasks.lm_eval.settings import Settings
from train.tasks.perplexity.scores import Scorer, Window


class Harness(TemplateLM):
    """A model and its tokenizer as the harness's `LM`: log-likelihoods, rolling ones, and `generate_until`.

    Args:
        params: nested dictionaries of arrays.
        batch_size: sequences that are computed together.
        seed: of what is drawn, where a task wants sampling.
        description: goes into the results.

    Raises ConfigError for a tokenizer that has no separator.
    """

    def __init__(
        self,
        config: ModelConfig,
        params: dict[Any, Any],
        tokenizer: Tokenizer,
        *,
        batch_size: int = 8,
        seed: int = 0,
        description: str = "",
    ) -> None:
        super().__init__()
        require(tokenizer.eos_id >= 0, "tokenizer", tokenizer.file_name, "has no token to begin texts with")
        self._scorer = Scorer(config, params, batch_size)
        self._text, self._seed, self._description = tokenizer, seed, description
        self.batch_size = batch_size

    @property
    def config(self) -> ModelConfig:
        return self._scorer.config

    @property
    def eot_token_id(self) -> int:
        return self._text.eos_id

    @property
    def max_length(self) -> int:
        """The model's context, in tokens."""
        return self.config.context_length

    @property
    def tokenizer_name(self) -> str:
        """Names the tokenizer in the harness's cache of requests."""
        return self._text.fingerprint

    def get_model_info(self) -> dict[str, Any]:
        """For the results' `config`."""
        count = sum(leaf.size for leaf in jax.tree.leaves(self._scorer.params))
        info = {"model": "mom_jax", "model_description": self._description, "model_num_parameters": count}
        return info | {"model_dtype": str(self.config.dtype), "max_length": self.max_length}

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """The ids of a text; no special tokens are ever added."""
        return self._text.encode(string)

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        before, after = super()._encode_pair(context, continuation)
        if not after:
            before, after = self.tok_encode(context), self.tok_encode(continuation)
        # Of a context of spaces only nothing is left before the continuation.
        return before or [self.prefix_token_id], after

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        windows = []
        for _, context, continuation in requests:
            count, most = len(continuation), self.max_length
            allowed = f"must have 1 to {most} tokens, as many as the model's context"
            require(1 <= count <= most, "tasks", f"a continuation of {count} tokens", allowed)
            windows.append(Window((context + continuation)[-(most + 1) :], count))
        with tqdm(total=len(windows), desc="log-likelihoods", disable=disable_tqdm) as bar:
            scores = self._scorer.score(windows, lambda batch: bar.update(len(batch)))
        answers = [(score.log_likelihood, score.greedy) for score in scores]
        for (pair, _, _), answer in zip(requests, answers, strict=True):
            if pair is not None:
                self.cache_hook.add_partial("loglikelihood", pair, answer)
        return answers

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
        """The log-likelihood of each text, nats."""
        windows: list[tuple[None, list[int], list[int]]] = []
        counts = []
        for request in requests:
            ids = self.tok_encode(request.args[0])
            own = get_rolling_token_windows(ids, self.prefix_token_id, self.max_length, context_len=1)
            before = len(windows)
            windows += [(None, *make_disjoint_window(window)) for window in own]
            counts.append(len(windows) - before)
        scores = iter(self._loglikelihood_tokens(windows, disable_tqdm=disable_tqdm))
        sums = [sum(next(scores)[0] for _ in range(count)) for count in counts]
        for request, total in zip(requests, sums, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return sums

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """What the model continues each text with, up to the first of the task's stop strings."""
        texts: list[str] = [""] * len(requests)
        groups: dict[str, list[int]] = {}
        for i, request in enumerate(requests):
            groups.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(i)
        with tqdm(total=len(requests), desc="generation", disable=disable_tqdm) as bar:
            for indices in groups.values():
                settings = Settings.read(requests[indices[0]].args[1], self.max_length)
                prompts = {i: self.tok_encode(requests[i].args[0]) or [self.prefix_token_id] for i in indices}
                order = sorted(indices, key=lambda i: -len(prompts[i]))
                for start in range(0, len(order), self.batch_size):
                    some = order[start : start + self.batch_size]
                    made = self._continue([prompts[i] for i in some], settings, self._seed + start)
                    for i, text in zip(some, made, strict=True):
                        texts[i] = text
                        self.cache_hook.add_partial("generate_until", requests[i].args, text)
                    bar.update(len(some))
        return texts

    @functools.cached_property
    def _decoder(self) -> Decoder:
        """Made when a task generates: it has a copy of the weights."""
        return Decoder(with_parameters(self.config, self._scorer.params))

    def _continue(self, prompts: list[list[int]], settings: "Settings", seed: int) -> list[str]:
        room = self.max_length - settings.new_tokens
        try:
            made = self._decoder.generate(
                [prompt[-room:] for prompt in prompts],
                settings.new_tokens,
                eos_id=self.eot_token_id,
                stop=lambda ids: settings.ends(self._decode(ids[-settings.tail :])),
                seed=seed,
                **settings.sampling,
            )
        except (TypeError, ValueError) as error:  # a setting of the task's that cannot be
            raise ConfigError(f"generation_kwargs: {error}") from error
        return [settings.truncated(self._decode(ids)) for ids in made]

    def _decode(self, ids: Sequence[int]) -> str:
        # A model may have more ids than its tokenizer.
        return self._text.decode([i for i in ids if i < self._text.vocab_size])
