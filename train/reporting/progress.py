"""Progress of long work: a bar in a terminal, occasional plain lines elsewhere. Everything goes to stderr."""

import sys
import types
from collections.abc import Callable
from time import monotonic

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar

# How the fields of `update` are shown; the others are ratios or norms, shown as `name value`.
_FORMATS: dict[str, Callable[[float], str]] = {
    "loss": lambda x: f"loss {x:.4f} nats/token",
    "validation_loss": lambda x: f"validation loss {x:.4f} nats/token",
    "example_loss": lambda x: f"loss {x:.4f} nats/example",
    "squared_error": lambda x: f"squared error {x:.4f}/example",
    "tokens_per_s": lambda x: f"{x:,.0f} tokens/s",
    "examples_per_s": lambda x: f"{x:,.1f} examples/s",
    "mfu": lambda x: f"MFU {100 * x:.1f} %",
    "perplexity": lambda x: f"perplexity {x:.2f} per token",
    "learning_rate": lambda x: f"learning rate {x:.2e} per step",
}
_LINE_FRACTION, _LINE_SECONDS, _REFRESH_SECONDS = 0.05, 30.0, 0.1


class Progress:
    """Shows how far `total` steps have come; a context manager.

    Args:
        total: the steps of the whole work.
        label: what the work is, e.g. the phase's name.
        start: the steps done before, on resume.
        console: where to show a bar; None (default) is stderr, with a bar only if that is a terminal.
        quiet: shows nothing: another process does.
    """

    def __init__(
        self, total: int, label: str, *, start: int = 0, console: Console | None = None, quiet: bool = False
    ) -> None:
        self._total, self._label, self._last_step = total, label, start
        self._first: tuple[int, float] | None = None
        self._before: tuple[int, float] | None = None
        self._longest = (0.0, 0)  # the longest pause between two updates, and its steps
        self._last_time = -float("inf")
        self._quiet = quiet
        if console is None and sys.stderr.isatty() and not quiet:
            console = Console(stderr=True)
        self._bar: Bar | None = None
        if console is not None and not console.is_dumb_terminal:
            # No refreshing thread: steps come often enough, and nothing runs on after an error.
            self._bar = Bar(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=24),
                TextColumn("{task.completed}/{task.total} steps"),
                TextColumn("{task.fields[detail]}", markup=False),
                console=console,
                auto_refresh=False,
            )
            self._task = self._bar.add_task(label, total=total, completed=start, detail="")

    def __enter__(self) -> "Progress":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.refresh()
            self._bar.stop()

    def update(self, step: int, **fields: float | None) -> None:
        """`step` steps are done. `fields` are numbers to show, None is left out: loss (nats per token), tokens_per_s,
        mfu (a fraction of 1), learning_rate and so on.
        """
        now = monotonic()
        if self._first is None or self._before is None:
            self._first = self._before = (step, now)
        last_step, last_time = self._before
        self._longest = max(self._longest, (now - last_time, step - last_step))
        self._before = (step, now)
        texts = [_show(name, value) for name, value in fields.items() if value is not None]
        detail = ", ".join([*texts, *self._remaining(step, now)])
        if self._bar is not None:
            due = now - self._last_time >= _REFRESH_SECONDS or step >= self._total
            self._bar.update(self._task, completed=step, detail=detail, refresh=due)
            if due:
                self._last_time = now
        elif self._due(step, now):
            self._last_step, self._last_time = step, now
            done = f"{step}/{self._total} steps ({100 * step / max(self._total, 1):.0f} %)"
            self.print(", ".join([f"{self._label}: {done}", *([detail] if detail else [])]))

    def print(self, text: str) -> None:
        """Prints a line, above the bar where there is one."""
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        elif not self._quiet:
            print(text, file=sys.stderr, flush=True)

    def _due(self, step: int, now: float) -> bool:
        far = step - self._last_step >= _LINE_FRACTION * self._total
        return far or now - self._last_time >= _LINE_SECONDS or step >= self._total

    def _remaining(self, step: int, now: float) -> list[str]:
        """The time left, from the speed since the first update, what came before being compilation; without the longest
        pause since then, in which something else was compiled."""
        assert self._first is not None
        first_step, first_time = self._first
        if step >= self._total or step <= first_step:
            return []
        pause, steps = self._longest
        spent, done = now - first_time, step - first_step
        if done > steps:
            spent, done = spent - pause, done - steps
        return [f"ETA {duration((self._total - step) * spent / done)}"]


def duration(seconds: float) -> str:
    """Seconds in words: `42 s`, `3 min 05 s`, `2 h 07 min`, `3 d 04 h`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600:02d} h"


def _show(name: str, value: float) -> str:
    value = float(value)
    return _FORMATS[name](value) if name in _FORMATS else f"{name.replace('_', ' ')} {value:.4g}"
