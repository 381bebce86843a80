"""`Config`: one experiment. Frozen dataclasses all the way down, so that every field is a flag and a line of JSON."""

import dataclasses
from typing import Literal

from mom_jax.analysis.signs import SignsConfig
from mom_jax.config import MeshConfig, ModelConfig
from mom_jax.fields import LARGEST, MOST, check_types, require, require_at_most
from train.numbers import WatchConfig
from train.tracking import WandbConfig


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where the tokens come from.

    Attributes:
        source: `builtin:stdlib` (the sources of Python's standard library); `text:GLOB` (text and JSONL files, also
            .gz, .xz and .zst); `parquet:GLOB#COLUMN` (Parquet files); `tfds:NAME/CONFIG` (a prepared TensorFlow
            Datasets data set); `hf:NAME/CONFIG` (a data set of Hugging Face's, streamed by `train.prepare`);
            `bin:FOLDER` (token files train.bin and val.bin, as nanoGPT writes them); or
            `mix:0.7=SOURCE,0.3=SOURCE` (by shares of the examples).
        tokenizer: `sentencepiece` trains one on the source's training documents (for token files: takes the one beside
            them, if any); otherwise the path of a `.model` file, or of GPT-2's tokenizer.json or vocab.json.
        vocab_size: of the tokenizer that is trained.
        batch_size: sequences per optimizer step, all devices' together.
        length: tokens per sequence.
        packing: `concatenate` cuts the stream of all documents into sequences; `documents` packs whole documents into
            sequences, in which no document sees another, and pads the rest.
        seed: of the order of the training examples.
        validation_fraction: the share of documents held out, chosen by the hash of their names, where the source has no
            split of its own.
        validation_batches: how many fixed batches an evaluation during training reads; 0 reads them all.
        on_bad: what becomes of documents that are broken, such as a line that is no JSON or not UTF-8: `fail` ends the
            preparation at the first one; `skip` leaves them out and counts them.
        cache: the folder of tokenizers and token caches, shared by all runs.
    """

    source: str = "builtin:stdlib"
    tokenizer: str = "sentencepiece"
    vocab_size: int = 8192
    batch_size: int = 8
    length: int = 256
    packing: Literal["concatenate", "documents"] = "concatenate"
    seed: int = 0
    validation_fraction: float = 0.05
    validation_batches: int = 16
    on_bad: Literal["fail", "skip"] = "fail"
    cache: str = "~/.cache/mom_jax"

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("vocab_size", "batch_size"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "must be at least 1")
        require(self.length >= 2, "length", self.length, "must be at least 2")
        require_at_most(self, MOST, "vocab_size", "batch_size", "length", "validation_batches")
        require(self.seed >= 0, "seed", self.seed, "must be at least 0")
        require(self.validation_batches >= 0, "validation_batches", self.validation_batches, "must be at least 0")
        good = 0 < self.validation_fraction < 1
        require(good, "validation_fraction", self.validation_fraction, "must lie between 0 and 1")


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """AdamW as in the paper's recipe, or another optimizer, with a schedule of the learning rate (docs/training.md).

    Attributes:
        optimizer: `adamw`; `adafactor` (factored second moment, absolute steps; `beta1`=0 leaves out the first
            moment, and the second's decay rises to `beta2`); `lion` (signs: of one moment, which `beta2` averages and
            `beta1` mixes with the gradient; its rate is to be smaller); `muon` (the matrices of attention and FFN
            made orthogonal, each module's by itself, all else as with `adamw`; one rate serves both).
        learning_rate: the peak, which the warm-up ends with.
        schedule: `cosine` from the peak to `final_fraction` of it; `constant`; `wsd` (warm-up, stable, and a linear
            decay over the last `decay_steps`). All warm up linearly over `warmup_steps`.
        warmup_steps: steps of the linear rise from 0 to the peak.
        decay_steps: the last steps of the phase, over which `wsd` decays.
        final_fraction: of the peak, the learning rate at the end of the phase; not with `constant`.
        beta1: the decay of the first moment.
        beta2: the decay of the second moment.
        momentum: of Muon's matrices.
        epsilon: added to the root of Adam's second moment.
        weight_decay: of matrices; biases and layer norms have none.
        clip_norm: the gradient is scaled down to this norm where it is longer.
        router_multiplier: the routers' learning rate over everybody else's.
        multipliers: (pattern, factor) pairs, the first that matches a parameter's path wins; `*` matches anything.
        freeze: patterns of parameters that do not change; for a whole side: `chunks/*/attention/*`. The biases of
            `model.balance.bias_rate` follow what was chosen all the same.
        freeze_until: (pattern, steps) pairs: parameters that do not change in so many first steps of the phase and then
            begin as if it were the first; the first pattern that matches wins.
        accumulation: micro-batches per optimizer step; the step equals the whole batch's, balance loss included.
    """

    optimizer: Literal["adamw", "adafactor", "lion", "muon"] = "adamw"
    learning_rate: float = 1e-3
    schedule: Literal["cosine", "constant", "wsd"] = "cosine"
    warmup_steps: int = 0
    decay_steps: int = 0
    final_fraction: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.95
    momentum: float = 0.95
    epsilon: float = 1e-5
    weight_decay: float = 0.1
    clip_norm: float = 1.0
    router_multiplier: float = 1.0
    multipliers: tuple[tuple[str, float], ...] = ()
    freeze: tuple[str, ...] = ()
    freeze_until: tuple[tuple[str, int], ...] = ()
    accumulation: int = 1

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("learning_rate", "epsilon", "clip_norm"):
            require(getattr(self, name) > 0, name, getattr(self, name), "must be positive")
        for name in ("warmup_steps", "decay_steps", "weight_decay", "router_multiplier"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "must be at least 0")
        for name in ("beta1", "beta2", "momentum"):
            require(0 <= getattr(self, name) < 1, name, getattr(self, name), "must be at least 0 and below 1")
        require(0 <= self.final_fraction <= 1, "final_fraction", self.final_fraction, "must lie between 0 and 1")
        decays = self.schedule == "wsd"
        allowed = f"must be {'positive' if decays else '0'} with schedule={self.schedule!r}"
        require((self.decay_steps > 0) == decays, "decay_steps", self.decay_steps, allowed)
        unused = {"adamw": ["momentum"], "adafactor": ["momentum", "epsilon"], "lion": ["momentum", "epsilon"]}
        for name in unused.get(self.optimizer, []):
            value, usual = getattr(self, name), getattr(OptimConfig, name)
            require(value == usual, name, value, f"is not used with optimizer={self.optimizer!r}: leave it at {usual}")
        for pattern, steps in self.freeze_until:
            require(steps >= 1, "freeze_until", (pattern, steps), "must have steps of at least 1")
        for pattern, factor in self.multipliers:
            require(0 <= factor <= LARGEST, "multipliers", (pattern, factor), "must have factors of at least 0")
        require(self.accumulation >= 1, "accumulation", self.accumulation, "must be at least 1")


@dataclasses.dataclass(frozen=True)
class Phase:
    """One row of training.

    Attributes:
        name: a word for the phase: of its checkpoints' folder and its records in the log.
        steps: optimizer steps.
        model: the configuration's `model`, or its `vanilla` counterpart.
        init_from: `scratch`; `previous` (the phase before); or the folder of a run, of one of its phases
            (`RUN/checkpoints/PHASE`) or of one step. Only the parameters are taken. A vanilla model's layers become
            the modules of a Mixture-of-Modules.
        optim: the optimizer and its schedule.
        distill: the model that teaches this phase, `previous` or what else `init_from` may name: frozen, as it is
            evaluated, on the same batches. None: no teacher.
        distill_weight: w in the loss (1 - w) · cross entropy + w · T² · KL(teacher || student).
        distill_temperature: T, by which both models' logits are divided for the divergence.
    """

    name: str
    steps: int
    model: Literal["model", "vanilla"] = "model"
    init_from: str = "scratch"
    optim: OptimConfig = OptimConfig()
    distill: str | None = None
    distill_weight: float = 0.5
    distill_temperature: float = 1.0

    def __post_init__(self) -> None:
        check_types(self)
        require(self.steps >= 1, "steps", self.steps, "must be at least 1")
        require_at_most(self, MOST, "steps")
        require(self.name.isidentifier(), "name", self.name, "must be a plain word")
        good = 0 < self.distill_weight <= 1
        require(good, "distill_weight", self.distill_weight, "must lie above 0 and be at most 1")
        good = self.distill_temperature > 0
        require(good, "distill_temperature", self.distill_temperature, "must be positive")
        for name in ("distill_weight", "distill_temperature"):
            value, usual = getattr(self, name), getattr(Phase, name)
            require(self.distill is not None or value == usual, name, value, "is not used without distill")
        total = self.optim.warmup_steps + (self.optim.decay_steps if self.optim.schedule == "wsd" else 0)
        allowed = f"with decay_steps must be at most the {self.steps} steps of the phase {self.name!r}; lower it too"
        require(total <= self.steps, "optim.warmup_steps", self.optim.warmup_steps, allowed)
        for row in self.optim.freeze_until:
            allowed = f"must have fewer steps than the phase's {self.steps}; what never changes is optim.freeze's"
            require(row[1] < self.steps, "optim.freeze_until", row, allowed)


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """What is kept: the latest checkpoints, and the one with the lowest validation loss.

    Attributes:
        every: steps between checkpoints; evaluations and the end of a phase make one too.
        keep: how many of the latest stay.
    """

    every: int = 500
    keep: int = 1

    def __post_init__(self) -> None:
        check_types(self)
        require(self.every >= 1, "every", self.every, "must be at least 1")
        require(self.keep >= 1, "keep", self.keep, "must be at least 1")


@dataclasses.dataclass(frozen=True)
class AnalysisConfig:
    """What is logged of how far the modules have specialised (docs/analysis.md).

    Attributes:
        every: steps between analyses; the first and the last step of a phase have one too. 0: none.
        tokens: held-out tokens that each analysis reads, always the same, but no fewer than a sequence for each device.
    """

    every: int = 100
    tokens: int = 2048

    def __post_init__(self) -> None:
        check_types(self)
        require(self.every >= 0, "every", self.every, "must be at least 0")
        require(self.tokens >= 1, "tokens", self.tokens, "must be at least 1")


@dataclasses.dataclass(frozen=True)
class Config:
    """One experiment: a model, its data and the phases that train it.

    Attributes:
        model: the Mixture-of-Modules.
        data: the tokens.
        phases: what is trained, one after the other; a run may have one phase or many.
        mesh: how devices share the work.
        checkpoint: what is kept of a run.
        analysis: what is logged of the modules' specialisation.
        run: the run's folder. Running again with the same folder resumes.
        resume: another run's folder to go on from where this run's own has no checkpoint yet: parameters, optimizer
            and position in the data.
        seed: of new parameters and of all that is random in a step; the order of the examples has `data.seed`.
        evaluate_every: steps between evaluations on the held-out documents; every phase ends with one.
        final_batches: how many batches the last evaluation of a phase reads; 0 reads all that was held out.
        signs: what counts as a sign of failure.
        watch: what happens to steps whose loss or gradient is no number, or far off.
        wandb: whether the log goes to Weights & Biases too.
    """

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    phases: tuple[Phase, ...] = (
        Phase("pretrain", 1000, model="vanilla"),
        Phase("mom", 1000, init_from="previous"),
    )
    mesh: MeshConfig = MeshConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    analysis: AnalysisConfig = AnalysisConfig()
    run: str = "runs/default"
    resume: str | None = None
    seed: int = 0
    evaluate_every: int = 500
    final_batches: int = 0
    signs: SignsConfig = SignsConfig()
    watch: WatchConfig = WatchConfig()
    wandb: WandbConfig = WandbConfig()

    def __post_init__(self) -> None:
        check_types(self)
        require(len(self.phases) > 0, "phases", self.phases, "must have at least one row")
        names = [phase.name for phase in self.phases]
        require(len(set(names)) == len(names), "phases", names, "must have different names")
        steps = sum(phase.steps for phase in self.phases)
        require(steps <= MOST, "phases", names, f"must have at most {MOST} steps in all, not {steps}")
        require(self.phases[0].init_from != "previous", "phases[0].init_from", "previous", "has no phase before it")
        require(self.phases[0].distill != "previous", "phases[0].distill", "previous", "has no phase before it")
        require(self.evaluate_every >= 1, "evaluate_every", self.evaluate_every, "must be at least 1")
        require(self.final_batches >= 0, "final_batches", self.final_batches, "must be at least 0")
        room = self.model.exchange_room
        require(room == ModelConfig.exchange_room, "model.exchange_room", room, "is set by mesh.room")
        allowed = f"must be at most model.context_length={self.model.context_length}"
        require(self.data.length <= self.model.context_length, "data.length", self.data.length, allowed)
        for i, phase in enumerate(self.phases):
            allowed = f"must divide data.batch_size={self.data.batch_size}"
            divides = self.data.batch_size % phase.optim.accumulation == 0
            require(divides, f"phases[{i}].optim.accumulation", phase.optim.accumulation, allowed)

    @property
    def offsets(self) -> dict[str, int]:
        """By phase the steps of those before it."""
        offsets, before = dict[str, int](), 0
        for phase in self.phases:
            offsets[phase.name], before = before, before + phase.steps
        return offsets

    def model_of(self, phase: str) -> ModelConfig:
        """The model that the phase of this name trains, on the mesh."""
        row = next(row for row in self.phases if row.name == phase)
        model = dataclasses.replace(self.model, exchange_room=self.mesh.room)
        return model.vanilla() if row.model == "vanilla" else model

    def with_vocabulary(self, size: int) -> "Config":
        """The same for data of `size` token ids: the model's vocabulary where it is not given.

        Raises ConfigError if the one that is given is too small.
        """
        have = self.model.vocab_size
        if have == 0:
            return dataclasses.replace(self, model=dataclasses.replace(self.model, vocab_size=size))
        require(have >= size, "model.vocab_size", have, f"must be at least the tokenizer's {size}, or 0 for as many")
        return self
