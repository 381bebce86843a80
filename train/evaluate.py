"""Evaluates checkpoints: `python -m train.evaluate --checkpoint RUN [--task perplexity]`.

--task perplexity   the loss on a run's own held-out data, as training reports it; or, with --data.source or
                    --by-document, perplexity per token, document, byte and word of whole documents
--task glue         fine-tunes on GLUE's tasks, or on one of them: glue/sst2
--task xsum         fine-tunes on XSUM, and measures the summaries by ROUGE
--task lm_eval      --tasks lambada_openai,...: tasks of EleutherAI's lm-evaluation-harness

Several checkpoints stand side by side. Tables go to FOLDER/TASK.json and .md, FOLDER being --output, else the folder
`evaluation` in the run's (for one run) or in the working folder (for all else).
"""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import tyro

from train.cli import run_program, say
from train.tasks.glue import GlueConfig
from train.tasks.output import Results
from train.tasks.xsum import XsumConfig


@dataclasses.dataclass(frozen=True)
class Data:
    """Texts to score, with each checkpoint's own tokenizer.

    Attributes:
        source: `text:GLOB`, `tfds:NAME/CONFIG`, `builtin:stdlib` or a mixture; without one a run's held-out data.
        side: all documents of the source, or those that a run with this source holds out.
        validation_fraction: the share that is held out, where the source has no split of its own.
    """

    source: str | None = None
    side: Literal["all", "validation"] = "all"
    validation_fraction: float = 0.05


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Evaluate checkpoints.

    Attributes:
        checkpoint: a run's folder, RUN/checkpoints/PHASE, RUN/checkpoints/PHASE/STEP, a folder of Hugging Face's GPT-2
            or of the authors' code, or a .safetensors file of ours; or several of these.
        task: perplexity, lm_eval, glue (or one of its tasks, as in glue/sst2), or xsum.
        output: the folder for the tables.
        best: of a run's phase take the step with the lowest validation loss, not the latest.
        tokenizer: a tokenizer's file or folder, where none lies beside the checkpoint.
        limit: perplexity: batches of held-out windows, or documents; lm_eval: documents of each task. 0 reads them all.
        batch_size: windows or prompts that are computed together.
        json: print one JSON object (a list of them for several checkpoints) instead of sentences and tables.
        exchange: perplexity of a run: also measure the loss with the routers' choices exchanged among tokens.
        by_document: perplexity: score whole documents, also of a run's held-out data; --data.source implies it.
        length: perplexity by document: tokens in a window; 0 is the model's context.
        stride: perplexity by document: how many tokens the next window begins later; 0 is `length`.
        tasks: lm_eval: the harness's tasks, separated by commas; groups and * too.
        include_path: lm_eval: a folder with tasks of your own, as YAML files.
        num_fewshot: lm_eval: examples before each question, instead of the tasks' own number.
        gen_kwargs: lm_eval: NAME=VALUE,... over the tasks' own settings of generation.
        glue: how GLUE is done.
        xsum: how XSUM is done.
    """

    checkpoint: tuple[str, ...]
    task: str = "perplexity"
    output: str | None = None
    best: bool = False
    tokenizer: str | None = None
    limit: int = 0
    batch_size: int = 8
    json: bool = False
    data: Data = dataclasses.field(default_factory=Data)
    exchange: bool = False
    by_document: bool = False
    length: int = 0
    stride: int = 0
    tasks: str = ""
    include_path: str | None = None
    num_fewshot: int | None = None
    gen_kwargs: str | None = None
    glue: GlueConfig = dataclasses.field(default_factory=GlueConfig)
    xsum: XsumConfig = dataclasses.field(default_factory=XsumConfig)


# Which tasks a flag is for; the others are for all.
_FOR: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("limit", "batch_size", "tokenizer", "json"), ("perplexity", "lm_eval")),
    **dict.fromkeys(("data", "exchange", "by_document", "length", "stride"), ("perplexity",)),
    **dict.fromkeys(("tasks", "include_path", "num_fewshot", "gen_kwargs"), ("lm_eval",)),
    "glue": ("glue",),
    "xsum": ("xsum",),
}


def main(arguments: Sequence[str] | None = None) -> int:
    flags = tyro.cli(Arguments, args=arguments, prog="python -m train.evaluate", description=__doc__)

    from mom_jax.fields import nearest, require
    from train.tasks.glue_tasks import NAMES

    tasks = {"perplexity": _perplexity, "lm_eval": _lm_eval, "glue": _glue, "xsum": _xsum}
    known = [*tasks, *(f"glue/{name}" for name in NAMES)]
    require(flags.task in known, "task", flags.task, f"unknown; {nearest(flags.task, known)}")
    require(len(flags.checkpoint) >= 1, "checkpoint", flags.checkpoint, "must name at least one")
    require(flags.limit >= 0, "limit", flags.limit, "must be at least 0")
    require(flags.batch_size >= 1, "batch_size", flags.batch_size, "must be at least 1")
    task = flags.task.partition("/")[0]
    defaults = Arguments(())
    for name, those in _FOR.items():
        value = getattr(flags, name)
        fits = task in those or value == getattr(defaults, name)
        require(fits, name, value, f"goes with --task {' or '.join(those)} only")
    tasks[task](flags, _output(flags))
    return 0


def _output(flags: Arguments) -> Path:
    """The folder for the tables. Raises ConfigError, before any work, where it cannot be written."""
    from train.checkpoint import find
    from train.tasks.results import check_output

    [first, *more] = flags.checkpoint
    if flags.output is not None:
        output = Path(flags.output).expanduser()
    elif more or not _is_run(first):
        output = Path("evaluation")
    else:
        output = find(first, field="checkpoint", best=flags.best).run / "evaluation"
    check_output(output)
    return output


def _is_run(checkpoint: str) -> bool:
    """Whether it is of a run of ours, or nothing at all."""
    from train.foreign import detect

    return detect(Path(checkpoint).expanduser(), "checkpoint") is None


def _open(flags: Arguments, checkpoint: str) -> tuple[Any, Any]:
    """(the `foreign.Model`, a tokenizer that can encode texts for it). Raises ConfigError where there is none."""
    from mom_jax.fields import ConfigError, require
    from train.checkpoint import open_model
    from train.data import tokenizer as tokenizers
    from train.data.ids import IdsTokenizer

    model = open_model(checkpoint, field="checkpoint", best=flags.best)
    name = f"checkpoint={checkpoint!r}"
    tokenizer = model.tokenizer
    if flags.tokenizer is not None:
        tokenizer = tokenizers.load(flags.tokenizer, field="tokenizer")
        name = f"tokenizer={flags.tokenizer!r}"
        known = model.fingerprint in ("", tokenizer.fingerprint)
        require(known, "tokenizer", flags.tokenizer, "is not the one the model was trained with")
    if tokenizer is None:
        raise ConfigError(f"{name}: has no tokenizer beside it; give one with --tokenizer")
    if isinstance(tokenizer, IdsTokenizer):
        raise ConfigError(
            f"{name}: was trained on token files without a tokenizer, and texts need one; give --tokenizer"
        )
    if tokenizer.vocab_size > model.config.vocab_size:
        ids = f"the tokenizer has {tokenizer.vocab_size} ids, the model {model.config.vocab_size}"
        raise ConfigError(f"{name}: {ids}")
    return model, tokenizer


def _opened(flags: Arguments) -> Iterator[tuple[str, Any, Any]]:
    """Each checkpoint with what `_open` makes of it. What is wrong with any is raised before the first is given."""
    if len(flags.checkpoint) > 1:  # one at a time in memory
        for checkpoint in flags.checkpoint:
            _open(flags, checkpoint)
    for checkpoint in flags.checkpoint:
        model, tokenizer = _open(flags, checkpoint)
        say(f"{checkpoint}: {model.description}")
        yield checkpoint, model, tokenizer


def _perplexity(flags: Arguments, output: Path) -> None:
    from mom_jax.fields import ConfigError, require
    from train.tasks import held_out

    by_document = flags.by_document or flags.data.source is not None
    for checkpoint in flags.checkpoint:
        if flags.data.source is None and not _is_run(checkpoint):
            must = f"must name the texts to score with {checkpoint!r}, which is no run with data of its own"
            raise ConfigError(f"data.source=None: {must} (text:GLOB, tfds:NAME/CONFIG, builtin:stdlib)")
    if by_document:
        require(not flags.exchange, "exchange", flags.exchange, "goes with a run's own windows, not with documents")
        _documents(flags).finish(output, as_json=flags.json)
        return
    defaults = Arguments(())
    for name in ("length", "stride", "tokenizer", "batch_size", "data"):
        value = getattr(flags, name)
        require(value == getattr(defaults, name), name, value, "goes with --by-document or --data.source")
    found = [
        held_out.evaluate(checkpoint, best=flags.best, limit=flags.limit, exchange=flags.exchange, say=say)
        for checkpoint in flags.checkpoint
    ]
    records = [record for record, _ in found]
    text = "\n".join(text for _, text in found)
    Results("perplexity", records, held_out.table(records), text).finish(output, as_json=flags.json)


def _documents(flags: Arguments) -> Results:
    """Perplexity of whole documents, each checkpoint with its own tokenizer."""
    from mom_jax.fields import require
    from train.checkpoint import find
    from train.tasks import perplexity
    from train.tasks.scores import Scorer

    config, fraction = perplexity.PerplexityConfig(flags.length, flags.stride), flags.data.validation_fraction
    require(0 < fraction < 1, "data.validation_fraction", fraction, "must lie between 0 and 1")
    records, documents = [], []
    for checkpoint, model, tokenizer in _opened(flags):
        source, held_out = flags.data.source, None
        if source is None:
            data = find(checkpoint, field="checkpoint", best=flags.best).meta().config.data
            source, held_out = data.source, data.validation_fraction
        elif flags.data.side == "validation":
            held_out = fraction
        texts = perplexity.documents_of(source, held_out=held_out, limit=flags.limit)
        scorer = Scorer(model.config, model.params, flags.batch_size)
        result = perplexity.perplexity(scorer, tokenizer, texts, config, progress=_Lines(checkpoint))
        facts = {"checkpoint": checkpoint, "description": model.description, "source": source}
        records.append(facts | {"side": "all" if held_out is None else "validation"} | result.record())
        documents += [{"checkpoint": checkpoint, **document.record()} for document in result.documents]
    table = perplexity.table([(record["checkpoint"], record) for record in records])
    return Results("perplexity", records, table, table, documents)


def _lm_eval(flags: Arguments, output: Path) -> None:
    from mom_jax.fields import ConfigError, require

    names = [name.strip() for name in flags.tasks.split(",") if name.strip()]
    require(bool(names), "tasks", flags.tasks, "must name tasks of the harness, separated by commas")
    require((flags.num_fewshot or 0) >= 0, "num_fewshot", flags.num_fewshot, "must be at least 0")
    try:
        from train.tasks import harness
    except ModuleNotFoundError as error:
        needs = f"needs the package {error.name}: pip install 'lm-eval>=0.4.13'"
        raise ConfigError(f"task={flags.task!r}: {needs}") from None
    found = harness.find_tasks(names, flags.include_path)
    request = harness.Request(flags.num_fewshot, flags.limit, flags.gen_kwargs)
    records, texts = [], []
    for checkpoint, model, tokenizer in _opened(flags):
        adapter = harness.Harness(
            model.config, model.params, tokenizer, batch_size=flags.batch_size, description=model.description
        )
        results = harness.evaluate(adapter, request, found)
        records.append({"checkpoint": checkpoint, "description": model.description, **results})
        texts.append(f"{checkpoint}: {model.description}\n\n{harness.tables(results)}")
    text = "\n".join(texts)
    Results("lm_eval", records, text, text).finish(output, as_json=flags.json)


def _glue(flags: Arguments, output: Path) -> None:
    from train.tasks import glue

    names = [flags.task.removeprefix("glue/")] if "/" in flags.task else []
    glue.evaluate(flags.checkpoint, names, flags.glue, output, best=flags.best)


def _xsum(flags: Arguments, output: Path) -> None:
    from train.tasks import xsum

    xsum.evaluate(flags.checkpoint, flags.xsum, output, best=flags.best)


class _Lines:
    """Tells on stderr how many tokens have been scored, every half a minute."""

    def __init__(self, label: str) -> None:
        from time import monotonic

        self._clock, self._label, self._last = monotonic, label, monotonic()

    def __call__(self, tokens: int) -> None:
        if self._clock() - self._last >= 30:
            self._last = self._clock()
            say(f"{self._label}: {tokens:,} tokens scored")


if __name__ == "__main__":
    run_program(main)
