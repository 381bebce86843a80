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
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from train.cli import import_modules, run_program
from train.parse import Imports, parse_flags
from train.tasks.glue.settings import GlueConfig
from train.tasks.xsum.settings import XsumConfig


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
        imports: modules or Python files to import first, such as one that registers the model's router.
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
    imports: Imports = ()
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
    flags = parse_flags(Arguments, arguments, prog="python -m train.evaluate", description=__doc__)
    import_modules(flags.imports)

    from train.tasks.output import output_folder
    from train.tasks.results import check_output

    task = _check(flags)
    output = output_folder(flags.output, flags.checkpoint, "evaluation", best=flags.best)
    check_output(output)
    {"perplexity": _perplexity, "lm_eval": _lm_eval, "glue": _glue, "xsum": _xsum}[task](flags, output)
    return 0


def _check(flags: Arguments) -> str:
    """The family of tasks that is asked for. Raises ConfigError for flags that do not go with it."""
    from mom_jax.fields import nearest, require
    from train.tasks.glue.tasks import NAMES

    known = ["perplexity", "lm_eval", "glue", "xsum", *(f"glue/{name}" for name in NAMES)]
    require(flags.task in known, "task", flags.task, f"unknown; {nearest(flags.task, known)}")
    require(len(flags.checkpoint) >= 1, "checkpoint", flags.checkpoint, "must name at least one")
    require(flags.limit >= 0, "limit", flags.limit, "must be at least 0")
    require(flags.batch_size >= 1, "batch_size", flags.batch_size, "must be at least 1")
    task = flags.task.partition("/")[0]
    for name, those in _FOR.items():
        fits = task in those or not _given(flags, name)
        require(fits, name, getattr(flags, name), f"goes with --task {' or '.join(those)} only")
    return task


def _given(flags: Arguments, name: str) -> bool:
    """Whether a flag has another value than its default."""
    return getattr(flags, name) != getattr(Arguments(()), name)


def _perplexity(flags: Arguments, output: Path) -> None:
    from mom_jax.fields import ConfigError, require
    from train.checkpoints.formats import is_run
    from train.tasks.perplexity import evaluation
    from train.tasks.perplexity.by_document import PerplexityConfig

    for checkpoint in flags.checkpoint:
        if flags.data.source is None and not is_run(checkpoint, "checkpoint"):
            must = f"must name the texts to score with {checkpoint!r}, which is no run with data of its own"
            raise ConfigError(f"data.source=None: {must} (text:GLOB, tfds:NAME/CONFIG, builtin:stdlib)")
    if flags.by_document or flags.data.source is not None:
        require(not flags.exchange, "exchange", flags.exchange, "goes with a run's own windows, not with documents")
        config = PerplexityConfig(flags.length, flags.stride)
        common = {name: getattr(flags, name) for name in ("limit", "batch_size", "tokenizer", "best")}
        results = evaluation.of_documents(flags.checkpoint, config, **dataclasses.asdict(flags.data), **common)
    else:
        for name in ("length", "stride", "tokenizer", "batch_size", "data"):
            given = _given(flags, name)
            require(not given, name, getattr(flags, name), "goes with --by-document or --data.source")
        common = {name: getattr(flags, name) for name in ("best", "limit", "exchange")}
        results = evaluation.of_held_out(flags.checkpoint, **common)
    results.finish(output, as_json=flags.json)


def _lm_eval(flags: Arguments, output: Path) -> None:
    from train.tasks.lm_eval.evaluation import evaluate

    own = ("include_path", "num_fewshot", "limit", "gen_kwargs", "batch_size", "tokenizer", "best")
    results = evaluate(flags.checkpoint, flags.tasks, **{name: getattr(flags, name) for name in own})
    results.finish(output, as_json=flags.json)


def _glue(flags: Arguments, output: Path) -> None:
    from train.tasks.glue.evaluation import evaluate

    names = [flags.task.removeprefix("glue/")] if "/" in flags.task else []
    evaluate(flags.checkpoint, names, flags.glue, output, best=flags.best)


def _xsum(flags: Arguments, output: Path) -> None:
    from train.tasks.xsum.evaluation import evaluate

    evaluate(flags.checkpoint, flags.xsum, output, best=flags.best)


if __name__ == "__main__":
    run_program(main)
