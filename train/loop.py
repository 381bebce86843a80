"""The training loop: every phase of a configuration, one after the other, resumed wherever it was left."""

import contextlib
import dataclasses
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from rich.console import Console

from mom_jax.analysis import routing
from mom_jax.config import ModelConfig
from mom_jax.fields import ConfigError, require
from mom_jax.generate import generate
from mom_jax.model import with_parameters
from mom_jax.sharding import make_mesh
from train import distributed, metrics
from train.checkpoint import FOLDER, Checkpoints, Meta, last_step, phase_model
from train.compiled import check_devices
from train.config import Config, Phase
from train.data.pipeline import TrainingData
from train.data.prefetch import DevicePrefetch
from train.data.prepared import Prepared, prepare
from train.evaluation import Evaluation, exchange_test, validate
from train.initialise import check_sources, initial_state
from train.optim import make_optimizer, make_schedule
from train.progress import Progress
from train.report import write_report
from train.run import check_unchanged, claimed
from train.step import StepReport, TrainState, jit_train_step, whole_params
from train.throughput import mesh_peak, utilisation

PROMPT_TOKENS, SAMPLE_TOKENS = 12, 64


@dataclasses.dataclass(frozen=True)
class Profile:
    """The steps, first and last, counted over all phases, of which a trace is written."""

    first: int
    last: int


def make_ready(config: Config, console: Console) -> tuple[Config, Mesh, Prepared]:
    """The configuration with the data's vocabulary, the devices and the data of a run. Raises ConfigError for whatever
    cannot be trained; the run's folder is not touched."""
    mesh = make_mesh(config.mesh)
    check_devices(config, mesh)
    check_unchanged(config)
    prepared = prepare(config.data, lambda text: console.print(text, markup=False, highlight=False, soft_wrap=True))
    config = config.with_vocabulary(prepared.tokenizer.vocab_size)
    check_sources(config, prepared.tokenizer.fingerprint)
    return config, mesh, prepared


def train(config: Config, *, profile: Profile | None = None, console: Console | None = None) -> int | None:
    """Trains all phases of `config` in its run's folder, from wherever an earlier call was interrupted.

    Returns None when all is done, or the number of the signal that stopped it; everything is saved then.
    Raises ConfigError for what cannot be.
    """
    first = distributed.is_first()
    console = console or Console(stderr=True, quiet=not first)
    distributed.check_agreement(config)
    with distributed.together():
        config, mesh, prepared = make_ready(config, console)
        if profile is not None:
            steps = sum(phase.steps for phase in config.phases)
            require(profile.last <= steps, "profile", f"{profile.first}:{profile.last}", f"the run has {steps} steps")
    run = Path(config.run).expanduser()
    with contextlib.ExitStack() as stack:
        with distributed.together():
            if first:
                stack.enter_context(claimed(config))
                prepared.tokenizer.save(run)
        with distributed.Stop() as stop, metrics.MetricsLog(run, write=first) as log:
            trainer = Trainer(config, run, prepared, log, console, stop, profile, mesh)
            trainer.rewind()
            for line in trainer.data.describe():
                trainer.say(f"training data: {line}")
            for phase in config.phases:
                try:
                    trainer.run_phase(phase)
                finally:
                    stop_profile()
                if stop.signal is not None:
                    return stop.signal
        if first:
            console.print(f"report: {write_report(run)}", markup=False, highlight=False, soft_wrap=True)
        distributed.wait_for_all("end of the run")
    return None


class Trainer:
    """What the phases of a run share."""

    def __init__(
        self,
        config: Config,
        run: Path,
        prepared: Prepared,
        log: metrics.MetricsLog,
        console: Console,
        stop: distributed.Stop,
        profile: Profile | None,
        mesh: Mesh,
    ):
        self.config, self.run, self.prepared, self.log, self.mesh = config, run, prepared, log, mesh
        self.console, self.stop, self.profile = console, stop, profile
        self.peak = mesh_peak(config.model.dtype, mesh)
        self.data = TrainingData(prepared, config.data)
        self.finished: set[str] = set()  # the phases that have had their last word
        self.offsets, steps = {}, 0
        for phase in config.phases:
            self.offsets[phase.name], steps = steps, steps + phase.steps

    def say(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def checkpoints(self, phase: Phase) -> Checkpoints:
        return Checkpoints(self.run / FOLDER / phase.name, keep=self.config.checkpoint.keep)

    def rewind(self) -> None:
        """Cuts the log back to the last checkpoint, so that every step that follows is there once."""
        for phase in reversed(self.config.phases):  # the furthest counts: earlier checkpoints may have been removed
            latest = last_step(self.run / FOLDER / phase.name)
            if latest is not None:
                break
        names = [row.name for row in self.config.phases]
        self.log.truncate(names, phase.name, latest or 0, offset=self.offsets[phase.name])
        file = self.run / metrics.FILE
        records = metrics.read(file) if file.exists() else []
        done = {record["phase"] for record in records if record.get("kind") == "final"}
        # One process cuts the file; what the others read of it may be older.
        known = distributed.of_first([name in done for name in names])
        self.finished = {name for name, is_done in zip(names, known, strict=True) if is_done}

    def run_phase(self, phase: Phase) -> None:
        """Trains one phase to its end, or until a signal comes; does nothing where it is finished."""
        if phase.name in self.finished:
            self.say(f"{phase.name}: finished before")
            return
        checkpoints = self.checkpoints(phase)
        try:
            model = phase_model(self.config, phase.name)
            optimizer = make_optimizer(phase.optim, phase.steps)
            fingerprint = self.prepared.tokenizer.fingerprint
            start = initial_state(self.config, phase, optimizer, checkpoints, fingerprint, self.mesh)
            for message in start.messages:
                self.say(f"{phase.name}: {message}")
            step_function = jit_train_step(model, optimizer, phase.optim.accumulation, self.config.seed, self.mesh)
            loop = PhaseLoop(self, phase, checkpoints, step_function)
            if checkpoints.latest() is None and int(start.state.step) > 0:
                # From `resume`: from here on the run stands by itself.
                loop.save(start.state, int(start.state.step), start.examples_seen, None)
            state = loop.train(start.state, start.examples_seen)
            checkpoints.wait()
            if int(state.step) == phase.steps:
                self.finish(phase, state)
        finally:
            checkpoints.close()

    def validate(self, phase: Phase, state: TrainState, limit: int) -> Evaluation:
        model, step = phase_model(self.config, phase.name), int(state.step)
        return validate(state.params, model, self.prepared, self.config.data, step=step, limit=limit, mesh=self.mesh)

    def finish(self, phase: Phase, state: TrainState) -> None:
        """The phase's last word: a longer evaluation, the exchange test, a sample."""
        model = phase_model(self.config, phase.name)
        evaluation = self.validate(phase, state, self.config.final_batches)
        record = {"kind": "final", "phase": phase.name, "step": phase.steps, **evaluation.record()}
        self.say(
            f"{phase.name}: validation loss {evaluation.loss:.4f} nats/token, perplexity {evaluation.perplexity:.2f} "
            f"per token, over {evaluation.tokens:,} tokens"
        )
        if evaluation.routers:
            data = self.config.data
            losses = exchange_test(state.params, model, self.prepared, data, step=phase.steps, mesh=self.mesh)
            record["exchanged"] = losses
            self.say(describe_exchange(phase.name, losses))
            for side, summary in evaluation.routers.items():
                self.say(f"{phase.name}: {describe_routing(side, summary, model.skip)}")
        prompt, text = self.sample(model, state)
        if text:
            record["prompt"], record["sample"] = prompt, text
            self.say(f"{phase.name}: a sample, after {prompt!r}\n{text}")
        self.log.write(record, offset=self.offsets[phase.name])
        self.log.flush()
        distributed.wait_for_all(f"end of {phase.name}")  # for the sample; orbax would not wait as long

    def sample(self, model: ModelConfig, state: TrainState) -> tuple[str, str]:
        """The start of the held-out text, and what the model makes of it; nothing where there is no room."""
        # On one device, as generation is; all take part in the copy.
        params = jax.tree.map(lambda leaf: leaf.addressable_data(0), whole_params(state.params, self.mesh))
        tokenizer = self.prepared.tokenizer
        prompt = self.prepared.validation[0].tokens[:PROMPT_TOKENS].tolist()
        count = min(SAMPLE_TOKENS, model.context_length - len(prompt))
        if count < 1 or not distributed.is_first():
            return "", ""
        network = with_parameters(model.at_step(int(state.step)), params)
        settings: dict[str, Any] = {"temperature": 0.8, "top_k": min(40, model.vocab_size), "eos_id": tokenizer.eos_id}
        [tokens] = generate(network, [prompt], count, **settings)
        start, whole = (
            tokenizer.decode([t for t in part if t < tokenizer.vocab_size]) for part in (prompt, [*prompt, *tokens])
        )
        return start, whole


@dataclasses.dataclass(frozen=True)
class _Pending:
    """A step that is under way. waited: seconds that all reading of data took so far."""

    step: int
    report: StepReport
    examples_seen: int
    waited: float


class PhaseLoop:
    """The steps of one phase."""

    def __init__(self, trainer: Trainer, phase: Phase, checkpoints: Checkpoints, step_function: Any):
        self.trainer, self.phase, self.checkpoints, self.step_function = trainer, phase, checkpoints, step_function
        self.config = trainer.config
        self.model = phase_model(self.config, phase.name)
        self.schedule = make_schedule(phase.optim, phase.steps)
        self.waited = 0.0  # for data, until the step before was done, seconds
        self.clock: float | None = None  # when the step before was done; None where that says nothing of a step's time

    def train(self, state: TrainState, examples_seen: int) -> TrainState:
        """From `state` to the phase's last step, or to the step after which a signal came."""
        first, last, data = int(state.step) + 1, self.phase.steps, self.config.data
        batches = self.trainer.data.batches(
            examples_seen=examples_seen, process_index=jax.process_index(), process_count=jax.process_count()
        )
        quiet = not distributed.is_first()
        placed = DevicePrefetch(batches, self.trainer.mesh)
        pending: _Pending | None = None
        with contextlib.closing(batches), Progress(last, self.phase.name, start=first - 1, quiet=quiet) as progress:
            for step in range(first, last + 1):
                self._profile(step, state)
                state, report = self.step_function(state, next(placed))
                examples_seen += data.batch_size
                # The step is under way; meanwhile the one before is written down.
                self._log(pending, progress)
                pending = _Pending(step, report, examples_seen, placed.waited)
                stopping = self.trainer.stop.wanted(self._offset + step)
                evaluating = step % self.config.evaluate_every == 0 or step == last
                if evaluating or stopping or step % self.config.checkpoint.every == 0:
                    self._log(pending, progress)
                    pending = None
                    loss = self._evaluate(state, step, progress) if evaluating else None
                    self.save(state, step, examples_seen, loss)
                    self.clock = None
                if stopping:
                    break
        return state

    def _log(self, pending: _Pending | None, progress: Progress) -> None:
        if pending is None:
            return
        step, report = pending.step, jax.device_get(pending.report)
        now = time.perf_counter()
        seconds = None if self.clock is None else now - self.clock
        self.clock = now
        waited, self.waited = pending.waited - self.waited, pending.waited
        routers = routing.summary(report.routing, self.model)
        data = self.config.data
        tokens_per_s = None if seconds is None else data.batch_size * data.length / seconds
        mfu = None
        if tokens_per_s is not None:
            mfu = utilisation(self.model, data.length, tokens_per_s, self.trainer.peak, routers)
        losses = report.losses
        record = {
            "kind": "train",
            "phase": self.phase.name,
            "step": step,
            "loss": losses.loss,
            "total": losses.total,
            "balance": losses.balance,
            "z_loss": losses.z,
            "grad_norm": report.grad_norm,
            "learning_rate": self.schedule(step - 1),
            "tokens_per_s": tokens_per_s,
            "mfu": mfu,
            "examples_seen": pending.examples_seen,
            "epoch": max(self.trainer.data.epochs(pending.examples_seen).values()),
            "seconds": seconds,
            # Part of a wait may lie before the step that it was for.
            "data_wait": None if seconds is None else min(1.0, waited / seconds),
        }
        self.trainer.log.write(record | ({"routers": routers} if routers else {}), offset=self._offset)
        progress.update(step, loss=float(losses.loss), tokens_per_s=tokens_per_s, mfu=mfu)

    @property
    def _offset(self) -> int:
        return self.trainer.offsets[self.phase.name]

    def _evaluate(self, state: TrainState, step: int, progress: Progress) -> float:
        evaluation = self.trainer.validate(self.phase, state, self.config.data.validation_batches)
        record = {"kind": "validation", "phase": self.phase.name, "step": step, **evaluation.record()}
        self.trainer.log.write(record, offset=self._offset)
        progress.print(f"{self.phase.name} step {step}: validation loss {evaluation.loss:.4f} nats/token")
        return evaluation.loss

    def save(self, state: TrainState, step: int, examples_seen: int, loss: float | None) -> None:
        # The log is on disk before the checkpoint is: a resumed run finds every step up to the checkpoint there.
        self.trainer.log.flush()
        fingerprint = self.trainer.prepared.tokenizer.fingerprint
        self.checkpoints.save(state, Meta(self.config, self.phase.name, step, examples_seen, fingerprint), loss)

    def _profile(self, step: int, state: TrainState) -> None:
        profile = self.trainer.profile
        if profile is None:
            return
        if step + self._offset == profile.first:
            jax.profiler.start_trace(str(self.trainer.run / "profile"))
        elif step + self._offset == profile.last + 1:
            jax.block_until_ready(state)
            stop_profile()


def stop_profile() -> None:
    """Writes the trace, if one is being taken."""
    try:
        jax.profiler.stop_trace()
    except RuntimeError:  # none was started, or it was stopped before
        return


def describe_exchange(name: str, losses: dict[str, list[float]]) -> str:
    """The exchange test in a sentence."""
    normal, exchanged = np.array(losses["normal"]), np.array(losses["exchanged"])
    difference = exchanged - normal
    return (
        f"{name}: exchanging the choices among tokens changes the loss from {normal.mean():.4f} to "
        f"{exchanged.mean():.4f} nats/token: {difference.mean():+.4f}, standard deviation {difference.std(ddof=1):.4f} "
        f"over {len(normal)} seeds (of the loss itself: {normal.std(ddof=1):.4f})"
    )


def describe_routing(side: str, summary: dict[str, Any], skip: bool) -> str:
    """A side's routing in a sentence."""
    usage = np.mean(summary["usage"], 0)
    names = [str(i) for i in range(len(usage))]
    if skip:
        names[-1] = "SKIP"
    shares = ", ".join(f"{name} {100 * share:.0f} %" for name, share in zip(names, usage, strict=True))
    dropped = f", dropped for want of room {100 * summary['dropped']:.1f} %" if summary["dropped"] else ""
    return f"{side} router: entropy {np.mean(summary['entropy']):.3f} nats, usage {shares}{dropped}"


def parse_profile(text: str) -> Profile:
    """`A:B` as a `Profile`. Raises ConfigError for anything else."""
    first, _, last = text.partition(":")
    good = first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)
    if not good:
        raise ConfigError(f"profile={text!r}: must be FIRST:LAST, two step numbers from 1 on")
    return Profile(int(first), int(last))
