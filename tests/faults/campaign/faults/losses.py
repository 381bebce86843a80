"""Losses that are no number, or spikes, at a step of a phase: what each policy does about them."""

import contextlib
import dataclasses
import functools
import json
import random
from collections.abc import Callable, Iterator
from unittest import mock

import jax.numpy as jnp

from campaign.judging import refuses
from campaign.outcomes import Job, Outcome
from campaign.workshop import Place, config, records
from train.checkpoints import locate
from train.data.pipeline import TrainingData
from train.data.prepared import prepare
from train.steps import train_step
from train.steps.train_step import jit_train_step
from train.training import loop

GROUP = "Numbers"
STEPS = 6
# What the loss of a batch is multiplied by, for each seed of the data.
VALUES = {1: float("nan"), 2: float("inf"), 3: float("-inf"), 4: 1000.0}
NAMES = {1: "NaN", 2: "infinity", 3: "minus infinity", 4: "a thousand times the loss"}
BATCHES = 12
# In one phase; the seed of the data says in which way it goes wrong, and where.
ONE_PHASE = ("--evaluate-every", STEPS)


def _where(seed: int) -> int:
    """The batch of the data of that seed, counted from 1."""
    return random.Random(seed).randint(4, 5)


# Steps that were traced with it; those that other jobs share are without.
_poisoned_step = functools.cache(jit_train_step)


@contextlib.contextmanager
def poisoned(place: Place) -> Iterator[None]:
    """The loss of one batch of the data of each seed is another."""
    marks = {}
    for seed in VALUES:
        base = config(place.shop.folder, f"text:{place.shop.folder}/corpus/*.txt").data
        data = dataclasses.replace(base, seed=seed)
        batches = TrainingData(prepare(data), data).batches(examples_seen=0)
        found = [next(batches)["tokens"] for _ in range(BATCHES)]
        marks[seed] = found[_where(seed) - 1][0]  # its first sequence
        batches.close()
    original = train_step.batch_sums

    def sums(params, batch, *args, **kwargs):  # type: ignore[no-untyped-def]
        found = original(params, batch, *args, **kwargs)
        factor = jnp.float32(1.0)
        for seed, mark in marks.items():
            factor = jnp.where(jnp.all(batch["tokens"][0] == jnp.asarray(mark)), VALUES[seed], factor)
        return dataclasses.replace(found, nll=found.nll * factor)

    with mock.patch.object(train_step, "batch_sums", sums), mock.patch.object(loop, "jit_train_step", _poisoned_step):
        yield


def _flags(seed: int, *watch: object) -> tuple[object, ...]:
    return ("--data.seed", seed, *ONE_PHASE, *watch)


def _stopped(place: Place, seed: int, fault: str, watch: tuple[object, ...]) -> Outcome:
    step = _where(seed)
    said = place.train(*_flags(seed, *watch))
    outcome = Outcome(f"{NAMES[seed]}, policy stop", f"step {step} of pretrain")
    refuses(outcome, said, f"pretrain step {step}: the (loss|gradient).*the state before it is saved", code=3)
    kept = place.run / "numbers" / f"pretrain-{step}"
    facts = json.loads(kept.with_suffix(".json").read_text())
    outcome.expect((facts["step"], facts["fault"]) == (step, fault), f"{facts}")
    outcome.expect(kept.with_suffix(".npz").exists(), "its batch is not kept")
    found = locate.find(place.run, field="run")
    outcome.expect(found.step == step - 1, f"the checkpoint is of step {found.step}")
    found.params(found.meta().model)  # raises for what is no number
    again = place.train(*_flags(seed, *watch))
    refuses(outcome, again, "stopped before at step", code=3)
    outcome.happened = "stopped at once, exit code 3, state before and batch kept; again in the same step"
    return outcome


def _job(seed: int, policy: str) -> Callable[[Place], list[Outcome]]:
    spike = VALUES[seed] == 1000.0
    fault = "spike" if spike else "not finite"
    watch: tuple[object, ...] = ("--watch.spike" if spike else "--watch.non-finite", policy)
    watch += ("--watch.window", 2, "--watch.loss-factor", 5) if spike else ()

    def do(place: Place) -> list[Outcome]:
        with poisoned(place):
            if policy == "stop":
                return [_stopped(place, seed, fault, watch)]
            step = _where(seed)
            said = place.train(*_flags(seed, *watch))
        outcome = Outcome(f"{NAMES[seed]}, policy {policy}", f"step {step} of pretrain")
        outcome.wrong += said.complaints()
        outcome.expect(said.code == 0, f"exit code {said.code}: {said.err[-300:]!r}")
        log = records(place.run)
        # The next phase, and after a rewind the next epoch, have the same examples again, and may meet it too.
        mine = [r for r in log if r["phase"] == "pretrain"]
        watched = [(r["fault"], r["policy"], r.get("at", r["step"])) for r in mine if r["kind"] == "watch"]
        told = said.says(f"pretrain step {step}: the (loss|gradient)")
        outcome.silent = not outcome.expect(
            told and watched[:1] == [(fault, policy, step)] and {w[:2] for w in watched} == {(fault, policy)},
            f"{watched}, {said.err[-300:]!r}",
        )
        train = [r for r in mine if r["kind"] == "train"]
        outcome.expect([r["step"] for r in train] == list(range(1, STEPS + 1)), "steps missing or twice")
        if policy == "rewind":
            outcome.steps_lost = step - 1 - next(r["step"] for r in mine if r["kind"] == "watch")
            outcome.expect(all(r["loss"] is not None for r in train), "a refused step in the log")
        found = locate.find(place.run, field="run")
        found.params(found.meta().model)
        outcome.happened = {
            "skip": "the update skipped, said and logged; went on",
            "rewind": "went back, those examples left out, said and logged; went on",
            "log": "taken, said and logged; went on",
        }[policy]
        return [outcome]

    return do


def _explodes(rate: str) -> Callable[[Place], list[Outcome]]:
    """Nothing is injected: a learning rate at which nothing can be learned."""

    def do(place: Place) -> list[Outcome]:
        flags = ("--phases.0.optim.learning-rate", rate, "--phases.0.optim.clip-norm", "1e30")
        outcome = Outcome("a learning rate at which training explodes", rate)
        refuses(outcome, place.train(*flags), "pretrain step", code=3)
        outcome.expect(not (place.run / "checkpoints" / "mom").exists(), "the next phase began")
        return [outcome]

    return do


def jobs() -> list[Job]:
    found = [
        Job(GROUP, f"{NAMES[seed]}, policy {policy}", _job(seed, policy))
        for policy in ("stop", "skip", "rewind", "log")
        for seed in VALUES
        if policy != "log" or VALUES[seed] == 1000.0
    ]
    return [*found, *(Job(GROUP, f"a learning rate of {rate}", _explodes(rate)) for rate in ("1e30", "1e38"))]
