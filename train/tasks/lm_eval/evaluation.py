"""Checkpoints on tasks of EleutherAI's lm-evaluation-harness, side by side."""

from collections.abc import Sequence

from mom_jax.fields import ConfigError, require
from train.tasks.output import Results
from train.tasks.scored_models import scored_models


def evaluate(
    checkpoints: Sequence[str],
    tasks: str,
    *,
    include_path: str | None,
    num_fewshot: int | None,
    limit: int,
    gen_kwargs: str | None,
    batch_size: int,
    tokenizer: str | None,
    best: bool,
) -> Results:
    """The harness's results for each checkpoint. tasks: names, separated by commas. The others are `Request`'s and
    `Harness`'s. Raises ConfigError where the harness is not installed or does not know a task."""
    names = [name.strip() for name in tasks.split(",") if name.strip()]
    require(bool(names), "tasks", tasks, "must name tasks of the harness, separated by commas")
    require((num_fewshot or 0) >= 0, "num_fewshot", num_fewshot, "must be at least 0")
    try:
        from train.tasks.lm_eval import results
        from train.tasks.lm_eval.harness import Harness
    except ModuleNotFoundError as error:
        needs = f"needs the package {error.name}: pip install 'lm-eval>=0.4.13'"
        raise ConfigError(f"task='lm_eval': {needs}") from None
    found = results.find_tasks(names, include_path)
    request = results.Request(num_fewshot, limit, gen_kwargs)
    records, texts = [], []
    for checkpoint, model, own in scored_models(checkpoints, tokenizer=tokenizer, best=best):
        description = model.description
        harness = Harness(model.config, model.params, own, batch_size=batch_size, description=description)
        record = results.evaluate(harness, request, found)
        records.append({"checkpoint": checkpoint, "description": description, **record})
        texts.append(f"{checkpoint}: {description}\n\n{results.tables(record)}")
    text = "\n".join(texts)
    return Results("lm_eval", records, text, text)
