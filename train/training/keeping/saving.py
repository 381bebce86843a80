"""Saving while a phase is trained: a save that fails does not stop it, but is said and tried again."""

import contextlib
import dataclasses
import errno
import os
import time
from collections.abc import Callable, Sequence

import jax

from train.checkpoints.manager import Checkpoints, Meta
from train.reporting.metrics import MetricsLog
from train.steps.state import TrainState

# Seconds of training between a save that failed and the next try; when the last of them fails, the run stops.
PAUSES = (1.0, 5.0, 20.0, 60.0, 180.0)
# The same where the run is to stop anyway, and whoever stopped it waits.
LAST_PAUSES = (1.0, 5.0)


_INTACT = "everything saved before is intact, and the same command goes on from there"


class SavingFailedError(Exception):
    """A checkpoint could not be saved, however often it was tried. All that was saved before is intact, so the same
    command goes on from there when there is room again."""

    exit_code = 75  # of the program: try again (EX_TEMPFAIL of sysexits.h)

    @property
    def others_go_on(self) -> bool:
        """Whether other processes, which can save, know nothing of it: at its end this one would wait for them, and
        they for it in a step, until JAX aborts all."""
        return jax.process_count() > 1


class Saver:
    """Saves the checkpoints of one phase.

    The log is on disk before a checkpoint is: a resumed run finds every step up to the checkpoint there. Where either
    cannot be written, the user is told, and the state of a later step is saved instead. Of several processes each would
    decide for itself, so there the first failure is the last.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        log: MetricsLog,
        notify: Callable[[str], None],
        pauses: Sequence[float] = PAUSES,
        clock: Callable[[], float] = time.monotonic,
        *,
        guard: Callable[[], None] = lambda: None,
    ) -> None:
        self.guard = guard  # raises where the folder is not that of the run any more
        self.checkpoints, self.log, self.notify, self.clock = checkpoints, log, notify, clock
        self.pauses = tuple(pauses) if jax.process_count() == 1 else ()
        self._failures = 0  # one after the other
        self._again: float | None = None  # when to try again
        self._meta: Meta | None = None  # of what was to be saved last

    def save(self, state: TrainState, meta: Meta, loss: float | None) -> None:
        """Starts to save; `loss` is the validation loss where it was measured at this step.

        Raises SavingFailedError where it was tried for the last time, or the folder is gone."""
        self.guard()
        self._await()
        self._meta = meta
        if self._again is not None and self.clock() < self._again:
            return  # a later step's state will be tried
        try:
            self.log.flush()
            self.checkpoints.save(state, dataclasses.replace(meta, log=self.log.mark()), loss)
            self._again = None
        except Exception as error:  # whatever the file system, or orbax, makes of it
            self._failed(error)

    def due(self) -> bool:
        """Whether to save after this step, whatever the configuration says: the time for another try has come.

        Raises SavingFailedError where there is no other try."""
        if (error := self.checkpoints.failure()) is not None:
            self._failed(error)
        return self._again is not None and self.clock() >= self._again

    def settle(self, state: TrainState, *, stopping: bool) -> None:
        """Returns when what was saved is on disk. What was not is tried again with `state`, if it is the step's for
        which `save` was called last. stopping: whether somebody waits for the run to stop."""
        self.guard()
        if stopping and self.pauses:
            self.pauses = self.pauses[: self._failures] + LAST_PAUSES
        self._await()
        while self._again is not None and self._meta is not None and self._meta.step == int(state.step):
            time.sleep(max(0.0, self._again - self.clock()))
            self.save(state, self._meta, None)
            self._await()

    def insist(self, write: Callable[[], object]) -> None:
        """Calls `write` as often as saving is tried, until it raises no OSError."""
        for pause in (*self.pauses, None):
            try:
                write()
                return
            except OSError as error:
                self.notify(f"{_why(error)}{'' if pause is None else f'; trying again in {pause:.0f} s'}")
                if pause is None:
                    raise SavingFailedError(f"{_why(error)}; {_INTACT}") from error
                time.sleep(pause)

    @property
    def _name(self) -> str:
        # Before the first save of this process it is what the checkpoint that it goes on from has lacked.
        return "checksums" if self._meta is None else f"step {self._meta.step} of {self._meta.phase}"

    def _await(self) -> None:
        """Waits for the save before, if there was one."""
        try:
            self.checkpoints.wait()
        except Exception as error:
            self._failed(error)
        if self._again is None and self._failures:
            self.notify(f"{self._name} is saved now")
            self._failures = 0

    def _failed(self, error: BaseException) -> None:
        said = f"{self._name} could not be saved ({_why(error)})"
        if self._failures == len(self.pauses):
            tries = f", the last of {self._failures + 1} tries" if self._failures else ""
            raise SavingFailedError(f"{said}{tries}; {_INTACT}") from error
        pause = self.pauses[self._failures]
        self._failures += 1
        self._again = self.clock() + pause
        self.notify(f"{said}; training goes on, and tries again in {pause:.0f} s")
        with contextlib.suppress(Exception):  # the next try will meet it
            self.checkpoints.reset()


def _why(error: BaseException) -> str:
    """An error in one line; the reason that a file system gives, where that is all it is."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror if error.filename is None else f"{error.strerror}: {error.filename}"
    for reason in (
        os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EIO)
    ):
        if reason in str(error):
            return reason
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
