"""A tiny experiment on a corpus that tests write: seconds on a CPU, yet all of a run's parts."""

import random
from pathlib import Path

import jax
import numpy as np
from orbax.checkpoint.args import StandardSave
from small import random_params

from mom_jax.config import ModelConfig, RouterConfig
from train.checkpoints.manager import Checkpoints, Meta
from train.checkpoints.run_config import to_json
from train.config import AnalysisConfig, CheckpointConfig, Config, DataConfig, OptimConfig, Phase
from train.data.prepared import prepare
from train.steps.optimizer.names import path_name

VOCABULARY = 300
# What differs in the log of a run that is repeated: all else is the same.
TIMES = ("seconds", "tokens_per_s", "mfu", "data_wait")


def without_times(records):
    """Records of a log, without what differs between two runs that do the same."""
    return [{name: value for name, value in record.items() if name not in TIMES} for record in records]


WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda", "mu"]


def write_corpus(folder: Path, documents: int = 40) -> str:
    """Writes short texts and returns their source for `data.source`."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(documents):
        rng = random.Random(i)
        lines = [" ".join(rng.choice(WORDS) for _ in range(8)) for _ in range(12)]
        (folder / f"{i:03}.txt").write_text("\n".join(lines))
    return f"text:{folder}/*.txt"


def config(folder: Path, **fields) -> Config:
    """Six steps of a vanilla phase and six of a MoM phase, with checkpoints and evaluations in between."""
    source = fields.pop("source", None) or write_corpus(folder / "corpus")
    model = ModelConfig(
        vocab_size=VOCABULARY,
        context_length=32,
        d_model=16,
        num_heads=2,
        num_bottom=0,
        num_attn_modules=2,
        num_ffn_modules=3,
        num_steps=3,
        top_k=2,
        router=RouterConfig(dim=8, temperature=1.0),
        remat="none",  # compiles faster
    )
    data = DataConfig(
        source=source,
        vocab_size=VOCABULARY,
        batch_size=4,
        length=16,
        validation_fraction=0.2,
        validation_batches=2,
        cache=str(folder / "cache"),
    )
    phases = (
        Phase("pretrain", 6, model="vanilla", optim=OptimConfig(warmup_steps=2)),
        Phase("mom", 6, init_from="previous", optim=OptimConfig(warmup_steps=2, router_multiplier=2.0)),
    )
    values = {"model": model, "data": data, "phases": phases, "run": str(folder / "run")}
    values |= {"checkpoint": CheckpointConfig(every=2), "evaluate_every": 3, "final_batches": 2}
    values |= {"analysis": AnalysisConfig(every=0)}  # it would compile as long as all the rest
    return Config(**(values | fields))


def write_config(folder: Path) -> Path:
    """The same as a file for `--config`."""
    config(folder)  # writes the corpus
    file = folder / "experiment.py"
    file.write_text(
        "from pathlib import Path\n\nimport tiny\n\n\n"
        f"def get_config():\n    return tiny.config(Path({str(folder)!r}), source={f'text:{folder}/corpus/*.txt'!r})\n"
    )
    return file


def store(config: Config, *phases: str) -> Path:
    """The run's folder, whose only checkpoints are random models of these phases."""
    folder = Path(config.run)
    folder.mkdir()
    tokenizer = prepare(config.data).tokenizer
    tokenizer.save(folder)
    (folder / "config.json").write_bytes(to_json(config))
    for phase in phases:
        checkpoints = Checkpoints(folder / "checkpoints" / phase)
        params = StandardSave(random_params(config.model_of(phase)))
        checkpoints.save_items(Meta(config, phase, 6, 0, tokenizer.fingerprint), params=params)
        checkpoints.wait()
        checkpoints.close()
    return folder


def by_name(tree) -> dict[str, np.ndarray]:
    """The arrays of a tree like the parameters, by their paths."""
    return {path_name(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
