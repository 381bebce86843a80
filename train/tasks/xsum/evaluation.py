"""XSUM: fine-tunes models to write an article's one-sentence summary, and compares what they write by ROUGE."""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from mom_jax.config import ModelConfig
from mom_jax.fields import ConfigError, require
from mom_jax.generation import Decoder
from mom_jax.model import with_parameters
from mom_jax.sharding import make_mesh
from train.checkpoints import single_file
from train.cli import notify
from train.data.sources.tfds_builder import download_tfds, prepared_builder
from train.files import whole_folder, write_whole, writing
from train.reporting.progress import Progress
from train.reporting.tables import markdown, spread
from train.tasks import metrics, results
from train.tasks.batches import Example, by_length
from train.tasks.finetune import finetune
from train.tasks.models import Model, inspect
from train.tasks.xsum.articles import SOURCE, Article, Format, articles, training_examples
from train.tasks.xsum.settings import GENERATION, XsumConfig

NAMES = {"rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L"}
_WEIGHTS, _RECIPE, _HEAD = "model.safetensors", "recipe.json", 400


def evaluate(checkpoints: Sequence[str], config: XsumConfig, output: Path, *, best: bool = False) -> None:
    """Fine-tunes every model with every seed, generates summaries, prints the table and some samples, and writes into
    `output`:

    `models/MODEL/xsum/seed-N/`        the fine-tuned model (`train.generate` reads its model.safetensors too); what is
                                       there is not fine-tuned again
    `results/MODEL/xsum/seed-N.json`   the metrics and all summaries; made again where nothing but the generation's
                                       settings are others
    `xsum.json`, `xsum.md`             the table and the samples

    checkpoints: whatever `train.checkpoint.open_model` reads. best: of a run's phase take the step with the lowest
    validation loss. Raises ConfigError, mostly before anything is trained, for a model without a tokenizer, data that
    is not there, and for what is finished with other settings of the fine-tuning.
    """
    results.check_output(output)
    metrics.check_libraries(("rouge_score.rouge_scorer", "rouge-score"))
    if config.download:
        download_tfds(SOURCE, notify)
    builder = prepared_builder(SOURCE, "add --xsum.download to download it")
    models = inspect(checkpoints, config.length, "xsum.length", best, notify)
    for model in models:
        if model.tokenizer.eos_id < 0:
            raise ConfigError(f"checkpoint={model.path!r}: its tokenizer has no token that ends a text")
        most = model.config.vocab_size // 2
        require(config.beams <= most, "xsum.beams", config.beams, f"must be at most {most}, half of the vocabulary")
        room, least = _format(model, config).room, 8
        allowed = f"leaves a document {room} tokens beside separator and summary, must leave {least}"
        require(room >= least, "xsum.length", config.length, allowed)
    todo = {
        model.name: [seed for seed in config.seeds if not _is_done(model, seed, config, output)] for model in models
    }
    for model in models:
        if todo[model.name]:
            _run(model, todo[model.name], builder, config, output)
    report = _report(models, config, output)
    text = _text(report, config.samples)
    with writing(output):
        write_whole(output / "xsum.json", (json.dumps(report, indent=1) + "\n").encode())
        write_whole(output / "xsum.md", text.encode())
    print(text)
    notify(f"written: {output / 'xsum.json'}, {output / 'xsum.md'}")


def result_file(output: Path, model: Model, seed: int) -> Path:
    """Where the result of one fine-tuning is."""
    return output / "results" / model.folder / "xsum" / f"seed-{seed}.json"


def model_folder(output: Path, model: Model, seed: int) -> Path:
    """Where the fine-tuned model is."""
    return output / "models" / model.folder / "xsum" / f"seed-{seed}"


def _read(output: Path, model: Model, seed: int) -> dict[str, Any] | None:
    """The result of one fine-tuning, if there is one."""
    return results.read_own(result_file(output, model, seed), model.digest, seed=seed)


def _format(model: Model, config: XsumConfig) -> Format:
    return Format(model.tokenizer, config.separator, config.length, config.summary_length)


def _is_done(model: Model, seed: int, config: XsumConfig, output: Path) -> bool:
    """Whether there is a result of these settings. Raises ConfigError for another fine-tuning."""
    tuned = results.read(model_folder(output, model, seed) / _RECIPE)
    file = result_file(output, model, seed)
    record = _read(output, model, seed)
    if tuned is not None:
        results.check_same(model_folder(output, model, seed), tuned["recipe"], config.recipe(), "xsum")
    if record is not None:
        have = {name: value for name, value in record["settings"].items() if name not in GENERATION}
        results.check_same(file, have, config.recipe(), "xsum")
    done = record is not None and record["settings"] == json.loads(json.dumps(config.settings()))
    if done:
        notify(f"{model.name}: seed {seed}: finished before")
    return done


def _run(model: Model, seeds: list[int], builder: Any, config: XsumConfig, output: Path) -> None:
    form = _format(model, config)
    held_out = articles(builder, config.split, form, config.evaluation_limit)
    params: dict[Any, Any] | None = None
    examples: list[Example] = []
    for seed in seeds:
        start, folder = time.monotonic(), model_folder(output, model, seed)
        if not folder.exists():
            if params is None:
                params, examples = model.open(), training_examples(builder, form, config.train_limit)
            _finetune(model, params, examples, seed, config, folder)
        tuned = results.read(folder / _RECIPE)
        if tuned is None:
            raise ConfigError(f"{folder} is not whole; delete it to fine-tune again")
        file = single_file.load(folder / _WEIGHTS, "output")
        predictions = summaries(model, file.config, file.params, held_out, config, f"{model.name}: seed {seed}")
        scores = metrics.rouge([article.reference for article in held_out], predictions)
        record: dict[str, Any] = {
            "model": {"path": model.path, "description": model.description, "digest": model.digest},
            "seed": seed,
            "settings": config.settings(),
            "metrics": {NAMES[name]: value for name, value in scores.items()},
            "articles": len(held_out),
            "fine_tuning": {name: tuned[name] for name in ("examples", "steps", "losses")},
            "seconds": time.monotonic() - start,
            "summaries": [
                {"id": a.id, "document": a.document[:_HEAD], "reference": a.reference, "summary": prediction}
                for a, prediction in zip(held_out, predictions, strict=True)
            ],
        }
        results.write(result_file(output, model, seed), record)
        line = ", ".join(f"{name} {value:.2f} %" for name, value in record["metrics"].items())
        notify(f"{model.name}: seed {seed}: {line} ({record['seconds']:.0f} s)")


def _finetune(
    model: Model, params: dict[Any, Any], examples: list[Example], seed: int, config: XsumConfig, folder: Path
) -> None:
    """Fine-tunes and writes the model."""
    label = f"{model.name}: seed {seed}"
    tuned = finetune(model.config, params, examples, config, seed, make_mesh(), label=label, unit="loss")
    record = {"recipe": config.recipe(), "examples": len(examples), "steps": tuned.steps, "losses": tuned.losses}
    with whole_folder(folder) as partial:
        weights = jax.device_get(tuned.params)
        single_file.save(partial / _WEIGHTS, model.config, weights, model.tokenizer.fingerprint)
        model.tokenizer.save(partial)
        results.write(partial / _RECIPE, record)


def summaries(
    model: Model,
    config: ModelConfig,
    params: dict[Any, Any],
    held_out: Sequence[Article],
    settings: XsumConfig,
    label: str,
) -> list[str]:
    """What the model of `config` and `params` writes for each article."""
    decoder, tokenizer = Decoder(with_parameters(config, jax.tree.map(jnp.asarray, params))), model.tokenizer
    how: dict[str, Any] = {"num_beams": settings.beams, "length_penalty": settings.length_penalty, "temperature": 0.0}
    texts = [""] * len(held_out)
    batches = by_length([len(article.prompt) for article in held_out], settings.generation_batch)
    with Progress(len(batches), f"{label}: summaries") as progress:
        for step, indices in enumerate(batches, start=1):
            prompts = [held_out[i].prompt.tolist() for i in indices]
            # The last batch is filled up, so that it needs no program of its own.
            prompts += prompts[:1] * (settings.generation_batch - len(prompts))
            tokens = decoder.generate(prompts, settings.summary_length, eos_id=tokenizer.eos_id, **how)
            for i, own in zip(indices, tokens, strict=False):
                texts[i] = tokenizer.decode([token for token in own if token < tokenizer.vocab_size]).strip()
            progress.update(step)
    return texts


def _report(models: Sequence[Model], config: XsumConfig, output: Path) -> dict[str, Any]:
    """The table as JSON, from the files."""
    rows = {}
    for model in models:
        records = [_read(output, model, seed) for seed in config.seeds]
        whole = [record for record in records if record is not None]
        rows[model.name] = {
            "checkpoint": model.path,
            "articles": whole[0]["articles"],
            "metrics": {
                name: results.statistics([record["metrics"][name] for record in whole]) for name in NAMES.values()
            },
            "summaries": whole[0]["summaries"][: config.samples],
        }
    return {"seeds": list(config.seeds), "settings": config.settings(), "models": rows}


def _text(report: Mapping[str, Any], samples: int) -> str:
    """The same as Markdown, with the samples of the first seed."""
    models, seeds, settings = report["models"], report["seeds"], report["settings"]
    count = next(iter(models.values()))["articles"]
    spread_of = f"mean ± standard deviation (n - 1) over {len(seeds)} seeds" if len(seeds) > 1 else "one seed"
    parts = [
        "# XSUM\n",
        f"F1 of ROUGE with Porter's stemmer, in %, on {count:,} articles of the {settings['split']} split: {spread_of} "
        f"({', '.join(map(str, seeds))}).\n",
        markdown(
            ["model", *NAMES.values()],
            [[name, *(spread(values) for values in own["metrics"].values())] for name, own in models.items()],
        ),
    ]
    limits = {name: settings[name] for name in ("train_limit", "evaluation_limit") if settings[name]}
    if limits:
        what = ", ".join(f"{name}={value}" for name, value in limits.items())
        parts.append(f"A trial on few articles ({what}): not XSUM's numbers.\n")
    parts.append("Settings: " + ", ".join(f"{name} {value!r}" for name, value in settings.items()) + ".\n")
    parts.append("Models: " + "; ".join(f"{name} is {own['checkpoint']}" for name, own in models.items()) + ".\n")
    first = next(iter(models.values()))["summaries"]
    for i, sample in enumerate(first[:samples]):
        rows = [["document", sample["document"]], ["reference", sample["reference"]]]
        rows += [[name, own["summaries"][i]["summary"]] for name, own in models.items()]
        parts.append(f"## Article {sample['id']}, seed {seeds[0]}\n")
        parts.append("\n".join(f"- {name}: {' '.join(text.split())}" for name, text in rows) + "\n")
    return "\n".join(parts)
