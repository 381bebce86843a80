"""EleutherAI's lm-evaluation-harness (`lm_eval`) on our models: its `LM`, and `simple_evaluate` with it.

Follows the harness's own Hugging Face model (`lm_eval/models/huggingface.py`), so that the same weights give the same
numbers: before the first token stands the separator; spaces at the end of a context belong to the continuation; a
context that is too long loses tokens on its left; a rolling log-likelihood is the sum over disjoint windows, of which
the last has as much context as fits. Two things differ. The text "<|endoftext|>" is text here and never the separator
(train/data/gpt2.py). And where context and continuation share a token, so that nothing would be left to score, both are
tokenized by themselves; the harness's model stops there.

Needs the extra `lmeval`, and no torch (lm-eval 0.4.9 still did).
"""

import contextlib
import dataclasses
import functools
import json
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.tasks import TaskManager
from lm_eval.utils import (
    get_rolling_token_windows,
    handle_non_serializable,
    make_disjoint_window,
    simple_parse_args_string,
)
from tqdm import tqdm

from mom_jax.config import ModelConfig
from mom_jax.fields import ConfigError, nearest, require
from mom_jax.generate import Decoder
from mom_jax.model import with_parameters
from train.data.tokenizer import Tokenizer
from train.tasks.scores import Scorer, Window
from train.tasks.tables import markdown

# What the harness gives tasks that do not say how many tokens to generate.
NEW_TOKENS = 256
# Resamplings for standard errors that have no formula: of so many the error is known to about 2 %.
BOOTSTRAPS = 1000
# What `generate_until` tasks may ask for; names of the same thing in one row.
_NEW_TOKENS_NAMES = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_SETTINGS = ("top_k", "top_p", "repetition_penalty", "num_beams", "length_penalty", "early_stopping")


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
        return [settings.cut(self._decode(ids)) for ids in made]

    def _decode(self, ids: Sequence[int]) -> str:
        # A model may have more ids than its tokenizer.
        return self._text.decode([i for i in ids if i < self._text.vocab_size])


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

    def cut(self, text: str) -> str:
        """The text before the stop strings, taken one after another, as the harness does (`train.text` cuts at the
        first of them, which is another place where one string ends another)."""
        for stop in self.until:
            text = text.split(stop)[0] if stop else text
        return text


@dataclasses.dataclass(frozen=True)
class Request:
    """What to run, besides the tasks. num_fewshot: examples before each question, instead of the task's own number.
    limit: of each task the first so many documents; 0 is all. gen_kwargs: `name=value,...`, over the tasks' own
    generation settings."""

    num_fewshot: int | None = None
    limit: int = 0
    gen_kwargs: str | None = None


def find_tasks(names: Sequence[str], include_path: str | None) -> tuple[TaskManager, list[str]]:
    """(the harness's tasks and those of the folder, the ones of these names). names: of tasks or groups, also with `*`.
    include_path: a folder of the user's own tasks, as YAML files. Raises ConfigError for a name that none has,
    with the nearest one, and for a folder that is not there."""
    if include_path is not None:
        require(Path(include_path).expanduser().is_dir(), "include_path", include_path, "no such folder")
        include_path = str(Path(include_path).expanduser())
        # The harness takes ten seconds to read its own tasks: only where they are asked for.
        own = TaskManager(include_path=include_path, include_defaults=False)
        if all(own.match_tasks([name]) for name in names):
            return own, own.match_tasks(list(names))
    manager = TaskManager(include_path=include_path)
    for name in names:
        if not manager.match_tasks([name]):
            close = nearest(name, manager.all_tasks)
            hint = close if close.startswith("did") else "see `lm-eval ls tasks` for the names"
            raise ConfigError(f"tasks={name!r}: unknown; {hint}")
    return manager, manager.match_tasks(list(names))


def evaluate(model: Harness, request: Request, found: tuple[TaskManager, list[str]]) -> dict[str, Any]:
    """The harness's results, as plain values. found: from `find_tasks`.

    Raises ConfigError where a task's data set cannot be had.
    """
    from datasets.exceptions import DatasetsError

    manager, names = found
    if request.gen_kwargs:  # what cannot be is known before the model runs
        Settings.read(simple_parse_args_string(request.gen_kwargs), model.max_length)
    # Otherwise it forks this process for its bootstraps, and JAX is multithreaded.
    os.environ.setdefault("DISABLE_MULTIPROC", "1")
    logging.getLogger("lm_eval").setLevel(logging.WARNING)
    try:
        with contextlib.redirect_stdout(sys.stderr):  # it tells of its bootstraps there
            results = simple_evaluate(
                model,
                tasks=list(names),
                task_manager=manager,
                num_fewshot=request.num_fewshot,
                batch_size=model.batch_size,
                limit=request.limit or None,
                gen_kwargs=request.gen_kwargs,
                bootstrap_iters=BOOTSTRAPS,
                log_samples=False,
                torch_random_seed=None,
            )
    except (OSError, DatasetsError) as error:
        line = (str(error).splitlines() or [""])[0]
        raise ConfigError(f"tasks={','.join(names)!r}: cannot be read ({type(error).__name__}: {line})") from error
    return json.loads(json.dumps(results, default=handle_non_serializable))


def tables(results: dict[str, Any]) -> str:
    """Markdown tables as the harness prints them: of the tasks and, where there are any, of the groups.

    Not by its own `make_table`, whose library starts processes by forking this one, and JAX is multithreaded.
    """
    columns = {"results": "Tasks", "groups": "Groups"}
    return "\n".join(_table(results, column, title) for column, title in columns.items() if results.get(column))


def _table(results: dict[str, Any], column: str, title: str) -> str:
    """As `lm_eval.utils.make_table`: a row for each metric, with its filter, direction and standard error."""
    rows = []
    for task, metrics in results[column].items():
        name = [str(metrics.get("alias", task)), str(results["versions"].get(task, "N/A"))]
        higher_is_better = results.get("higher_is_better", {}).get(task, {})
        for key in sorted(key for key in metrics if "," in key):
            metric, _, chosen = key.partition(",")
            if metric.endswith("_stderr"):
                continue
            value, error = metrics[key], metrics.get(f"{metric}_stderr,{chosen}", "N/A")
            arrow = {True: "\u2191", False: "\u2193"}.get(higher_is_better.get(metric), "")
            shots = str(results.get("n-shot", {}).get(task, ""))
            rows.append((*name, chosen, shots, metric, arrow, _number(value), "\u00b1", _number(error)))
            name = ["", ""]
    return markdown((title, "Version", "Filter", "n-shot", "Metric", "", "Value", "", "Stderr"), rows)


def _number(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)
