"""A study's runs, one after the other, each result written the moment that it is there."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from mom_jax.fields import ConfigError, require
from mom_jax.sharding import make_mesh
from train.config import Config
from train.files import locked, to_json, writing
from train.reporting.history import Record
from train.steps import timing
from train.steps.compiled import check_devices
from train.study.changes import changed
from train.study.definition import Study
from train.study.outcome import Outcome, line
from train.study.packed.programs import CALL, Programs, Shapes, Trained, compile_all, trained
from train.study.packed.running import EVALUATIONS, Device, evaluated, keep, kept, on_device, run_phase
from train.study.packed.sizing import Cost, read_sizing, sized, write_sizing
from train.study.packed.tokens import TokenFile, batches, held_out_batches
from train.study.plan import Plan, Run, make_plan
from train.study.records import check_study, key, read_results, write_result, write_study
from train.study.speeds import Speed, write_measure
from train.training.run import Busy

ROUNDS = 3  # calls of each arm that are timed

Say = Callable[[str], None]


def planned(study: Study, size: str, root: Path, tokens: TokenFile) -> Plan:
    """The study's plan over a file of tokens. Raises ConfigError, naming the arm, for what cannot be trained so."""
    data = {"data.source": f"packed:{tokens.digest[:12]}", "model.vocab_size": tokens.vocab_size}
    plan = make_plan(dataclasses.replace(study, base={size: changed(study.base[size], data)}), size, root)
    names = [phase.name for phase in study.base[size].phases]
    for name, config in plan.configs.items():
        try:
            require([row.name for row in config.phases] == names, "phases", config.phases, f"must be {names}")
            _check(config, tokens)
        except ConfigError as error:
            raise ConfigError(f"arm {name!r}: {error}") from None
    return plan


def _check(config: Config, tokens: TokenFile) -> None:
    first, *rest = config.phases
    data, most = config.data, tokens.length
    require(data.length == most, "data.length", data.length, f"must be {most}, as in the file of tokens")
    require(data.packing == "concatenate", "data.packing", data.packing, "must be 'concatenate'")
    require(len(rest) <= 1, "phases", [row.name for row in config.phases], "must be one or two")
    require(first.init_from == "scratch", "phases.0.init_from", first.init_from, "must be 'scratch'")
    for phase in rest:
        require(phase.init_from == "previous", "phases.1.init_from", phase.init_from, "must be 'previous'")
    for phase in config.phases:
        require(phase.distill is None, f"phases.{phase.name}.distill", phase.distill, "must be None")
        require(phase.steps % CALL == 0, f"phases.{phase.name}.steps", phase.steps, f"must be a multiple of {CALL}")
    each = data.validation_batches
    require(each >= 1, "data.validation_batches", each, "must be at least 1")
    whole = config.final_batches >= 1 and config.final_batches % each == 0
    allowed = f"must be a multiple of data.validation_batches={each}"
    require(whole, "final_batches", config.final_batches, allowed)
    held_out_batches(tokens, config.final_batches, data.batch_size)


@contextlib.contextmanager
def alone(plan: Plan) -> Iterator[None]:
    """The study for this process alone, which measures how many steps fit. Raises Busy if another one is at it."""
    with writing(plan.folder):
        plan.folder.mkdir(parents=True, exist_ok=True)
    name = f"out={str(plan.root)!r}"
    with locked(plan.folder / ".packed.lock", name, wait=False) as held:
        if not held:
            raise Busy(f"{name}: another process is at this study")
        yield


class Program:
    """A study over one file of tokens. deadline: by `time.monotonic`, None without one."""

    def __init__(self, plan: Plan, file: TokenFile, deadline: float | None, say: Say, emit: Say) -> None:
        self.plan, self.file, self.deadline, self.say, self.emit = plan, file, deadline, say, emit
        some = next(iter(plan.configs.values()))
        self.mesh: Mesh = make_mesh(some.mesh)
        require(self.mesh.size == 1, "mesh", some.mesh, "must be one device's")
        for config in plan.configs.values():
            check_devices(config, self.mesh)
        self.programs: dict[Trained, Programs | Exception] = {}
        self.costs: Mapping[str, Cost] = {}
        self.failed: list[str] = []
        self.starts: dict[str, tuple[Any, Record]] = {}  # first phases by their folder

    def run(self) -> int:
        """All that is not finished; returns how many runs are left. Raises ConfigError where the file of tokens or the
        study is not that of the results."""
        sizing = read_sizing(self.plan.folder)
        if sizing is not None:
            if sizing["tokens"] != self.file.digest:
                raise ConfigError("tokens: is another file than that of the results; --fresh forgets them")
            self.costs = {arm: Cost(**cost) for arm, cost in sizing["costs"].items()}
            self.plan = self._resized(sizing["steps"])
        check_study(self.plan)
        pending = self._pending()
        if not pending:
            return 0
        device = on_device(self.file, self.mesh)
        self._compile(pending)
        if sizing is None:
            self._measure(device)
            steps = self._steps()
            write_sizing(self.plan.folder, self.file.digest, steps, self.costs)
            self.plan = self._resized(steps)
            self._compile(self._pending())  # nothing, unless a model depends on the number of its steps
        write_study(self.plan)
        for i, run in enumerate(pending := self._pending()):
            if run.arm in self.failed:
                continue
            if self._too_late(run):
                return len(pending) - i
            self._train(run, device)
        return len(self._pending())

    def _pending(self) -> list[Run]:
        done = set(map(key, read_results(self.plan.folder)))
        return [run for run in self.plan.runs if run.key not in done]

    def _compile(self, runs: list[Run]) -> None:
        wanted = {row: None for run in runs for row in filter(None, self._trained(run)) if row not in self.programs}
        if not wanted:
            return
        begin, config = time.monotonic(), runs[0].config
        shapes = Shapes(self.file.rows.shape, config.data.batch_size, config.data.validation_batches)
        self.programs |= compile_all(wanted, shapes, self.mesh)
        self.say(f"{len(wanted)} models compiled in {time.monotonic() - begin:.0f} s")
        for run in runs:
            for row in filter(None, self._trained(run)):
                found = self.programs[row]
                if isinstance(found, Exception) and run.arm not in self.failed:
                    reason = (str(found).strip() or repr(found)).splitlines()[0]
                    self.say(f"{run.arm}: cannot be compiled: {type(found).__name__}: {reason[:300]}")
                    self.failed.append(run.arm)

    def _trained(self, run: Run) -> tuple[Trained | None, Trained]:
        """What the programs of a run depend on: of its first phase, where that is shared, and of its own."""
        if run.start is None:
            return None, trained(run.config, run.config.phases[0], None)
        first = trained(run.start, run.start.phases[0], None)
        return first, trained(run.config, run.config.phases[0], first.model)

    def _of(self, row: Trained) -> Programs:
        found = self.programs[row]
        if isinstance(found, Exception):
            raise found
        return found

    def _measure(self, device: Device) -> None:
        """Times training and evaluation of all arms in turn, with new parameters."""
        states: dict[str, Any] = {}
        calls: dict[str, timing.Call] = {}
        peaks, tokens = {}, {}
        for run in {run.arm: run for run in reversed(self.plan.runs)}.values():
            if run.arm in self.failed:
                continue
            programs, data = self._of(self._trained(run)[1]), run.config.data
            seed = device.put(0)
            source = None if run.start is None else self._of(self._trained(run)[0] or self._trained(run)[1])
            states[run.arm] = programs.start(*([] if source is None else [source.start(seed).params]), seed)
            inputs = device.put(batches(0, self.file, CALL, data.batch_size)), device.put([0.0] * CALL, float)
            calls[run.arm] = _caller(states, run.arm, programs, device, inputs, seed)
            calls[f"{run.arm}\n"] = _evaluator(states, run, programs, device)
            peaks[run.arm], tokens[run.arm] = (programs.peak, programs.temporaries), data.batch_size * data.length
        timing.warm_up(calls)
        seconds = timing.interleaved(calls, ROUNDS)
        own = {arm: [value / CALL for value in seconds[arm]] for arm in peaks}
        speeds = {arm: Speed(own[arm], tokens[arm], *peaks[arm], trained=False) for arm in peaks}
        if self.plan.study.baseline in speeds:
            write_measure(self.plan, speeds)
        middle, costs = timing.medians(seconds), {}
        for arm in own:
            config = self.plan.configs[arm]
            final = config.final_batches // config.data.validation_batches
            costs[arm] = Cost(middle[arm] / CALL, middle[f"{arm}\n"] * (EVALUATIONS - 1 + final))
            self.say(f"{arm}: {tokens[arm] / costs[arm].step:,.0f} tokens/s, {peaks[arm][0] / 1e9:.2f} GB")
        self.costs = costs

    @property
    def _base(self) -> Config:
        return self.plan.study.base[self.plan.size]

    def _steps(self) -> dict[str, int]:
        """By phase: the study's own without a deadline."""
        if self.deadline is None:
            return {phase.name: phase.steps for phase in self._base.phases}
        left = self.deadline - time.monotonic()
        steps = sized(self._base, [run for run in self.plan.runs if run.arm not in self.failed], self.costs, left)
        self.say(f"in the {left:.0f} s that are left: {', '.join(f'{n} {count} steps' for n, count in steps.items())}")
        return steps

    def _resized(self, steps: Mapping[str, int]) -> Plan:
        """Arms change the new configuration, so that what depends on the number of steps does."""
        base = changed(self._base, {f"phases.{name}.steps": count for name, count in steps.items()})
        study = dataclasses.replace(self.plan.study, base={self.plan.size: base})
        return planned(study, self.plan.size, self.plan.root, self.file)

    def _too_late(self, run: Run) -> bool:
        if self.deadline is None or run.arm not in self.costs:
            return False
        cost = self.costs[run.arm]
        needed = cost.of(run.config.phases[0].steps)
        if run.start is not None and self._kept(run.start) is None:
            needed += cost.of(run.start.phases[0].steps)
        left = self.deadline - time.monotonic()
        if late := needed > left:
            self.say(f"{run}: would take {needed:.0f} s, {max(left, 0):.0f} s are left")
        return late

    def _kept(self, start: Config) -> tuple[Any, Record] | None:
        """A finished first phase, read once."""
        if start.run not in self.starts:
            found = kept(Path(start.run), start.model_of(start.phases[0].name), self.mesh)
            if found is None:
                return None
            self.starts[start.run] = found
        return self.starts[start.run]

    def _train(self, run: Run, device: Device) -> None:
        first, own = self._trained(run)
        source, first_loss = None, None
        if run.start is not None and first is not None:
            if (found := self._kept(run.start)) is None:
                ran = run_phase(run.start, self._of(first), device, None)
                keep(Path(run.start.run), ran)
                self.say(f"{Path(run.start.run).name}: {ran.final['loss']} nats/token")
                found = self.starts[run.start.run] = ran.params, ran.final
            source, final = found
            first_loss = final["loss"]
        ran = run_phase(run.config, self._of(own), device, source)
        outcome = Outcome(run.config, ran.final, ran.curve, ran.seconds, {}, first_loss)
        result = line(run, self.plan.configs[run.arm], self.plan.root, outcome)
        write_result(self.plan, result)
        self.emit(to_json(result).decode().rstrip())


def _caller(
    states: dict[str, Any], arm: str, programs: Programs, device: Device, inputs: Any, seed: jax.Array
) -> timing.Call:
    def call() -> None:
        # The state is donated: each call takes the one before.
        states[arm], losses = programs.train(states[arm], device.tokens, *inputs, seed)
        jax.block_until_ready(losses)

    return call


def _evaluator(states: dict[str, Any], run: Run, programs: Programs, device: Device) -> timing.Call:
    [phase], count = run.config.phases, run.config.data.validation_batches
    model = run.config.model_of(phase.name)
    return lambda: evaluated(states[run.arm].params, model, programs, device, run.config, 1, count)
