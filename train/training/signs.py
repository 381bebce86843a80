"""Watching a phase for signs of failure: what is found is said once, on the console and in the log."""

from collections.abc import Callable
from typing import Any

from mom_jax.analysis.signs import Finding, History, before_training, judge
from train.config import Config, Phase
from train.reporting.metrics import MetricsLog

Record = dict[str, Any]


class SignWatch:
    """Reads along what a phase writes to the log, beginning with what is there of it already.

    What was said before is in the log as well, which a resumed run cuts back to its checkpoint: so nothing is said
    twice, and whatever comes after a checkpoint is judged as it would have been. Processes that do not write the log
    see nothing of it, and say nothing.
    """

    def __init__(self, config: Config, phase: Phase, log: MetricsLog, offset: int) -> None:
        self.phase, self.limits, self.log, self.offset = phase.name, config.signs, log, offset
        self.model = config.model_of(phase.name)
        self.history = History(self.model, config.signs, sequences=config.data.batch_size, steps=phase.steps)
        self.said: set[tuple[str, str | None]] = set()

    def __enter__(self) -> "SignWatch":
        for record in self.log.records(self.phase):
            self._see(record)
        self.log.listeners.append(self._see)
        return self

    def __exit__(self, *error: object) -> None:
        self.log.listeners.remove(self._see)

    def _see(self, record: Record) -> None:
        if record.get("kind") == "sign":
            self.said.add((record["sign"], record["side"]))
        elif self.limits.enabled and isinstance(record.get("step"), int):
            self.history.add(record)

    def begin(self, step: int, say: Callable[[str], None]) -> None:
        """Says what the configuration alone shows, before the step after `step`."""
        self._say(before_training(self.model, self.limits), step, say)

    def judge(self, step: int, say: Callable[[str], None], last: Record | None = None) -> None:
        """Says what has come to light since the last time: all records of `step` are written.

        last: the phase's last record, which is written after the signs that it shows, since nothing follows it.
        """
        if last is not None:
            self._see(last)
        self.history.close()
        self._say(judge(self.history.points, self.model, self.limits), step, say)

    def _say(self, findings: list[Finding], step: int, say: Callable[[str], None]) -> None:
        for finding in findings:
            if (finding.sign, finding.side) in self.said:
                continue
            self.said.add((finding.sign, finding.side))
            record = {"kind": "sign", "phase": self.phase, "step": step, "sign": finding.sign, "side": finding.side}
            self.log.write(record | {"text": finding.text}, offset=self.offset)
            say(f"{self.phase} step {step}: sign of failure: {finding.text}")
