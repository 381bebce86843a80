"""Progress in a terminal and in a log file."""

import io
import sys
import threading

import pytest
from rich.console import Console

import train.reporting.progress
from train.reporting.progress import Progress, duration


@pytest.fixture
def clock(monkeypatch):
    """Sets the time, in seconds."""
    now = [0.0]
    monkeypatch.setattr(train.reporting.progress, "monotonic", lambda: now[0])
    return now


def terminal():
    return Console(file=io.StringIO(), force_terminal=True, width=200, _environ={"TERM": "xterm"})


def test_plain_lines_have_units_and_the_time_left(capsys, clock):
    with Progress(100, "mom") as progress:
        progress.update(10, loss=4.0)
        clock[0] = 20.0
        progress.update(20, loss=3.25, tokens_per_s=12345.6, mfu=0.412, learning_rate=1e-3, grad_norm=0.5)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "mom: 10/100 steps (10 %), loss 4.0000 nats/token",
        "mom: 20/100 steps (20 %), loss 3.2500 nats/token, 12,346 tokens/s, MFU 41.2 %, "
        "learning rate 1.00e-03 per step, grad norm 0.5, ETA 2 min 40 s",
    ]


def test_plain_lines_come_every_five_percent(capsys, clock):
    with Progress(1000, "mom") as progress:
        for step in range(1, 1001):
            progress.update(step)
    steps = [line.split()[1] for line in capsys.readouterr().err.splitlines()]
    assert steps == ["1/1000", *(f"{n}/1000" for n in range(51, 1000, 50)), "1000/1000"]


def test_plain_lines_come_every_thirty_seconds(capsys, clock):
    with Progress(10**6, "mom") as progress:
        for step in range(1, 62):
            clock[0] += 1.0
            progress.update(step)
    steps = [line.split()[1] for line in capsys.readouterr().err.splitlines()]
    assert steps == ["1/1000000", "31/1000000", "61/1000000"]


def test_a_resumed_work_counts_from_its_start(capsys, clock):
    with Progress(100, "mom", start=90) as progress:
        clock[0] = 100.0
        progress.update(91)
        clock[0] = 102.0
        progress.update(96)
    # Two seconds for five steps; the 100 seconds before the first step are compilation.
    assert capsys.readouterr().err.splitlines()[-1] == "mom: 96/100 steps (96 %), ETA 2 s"


def test_what_is_compiled_on_the_way_does_not_count(capsys, clock):
    with Progress(100, "mom") as progress:
        for step in range(1, 21):
            clock[0] += 60.0 if step == 10 else 1.0
            progress.update(step)
    assert capsys.readouterr().err.splitlines()[-1].endswith("20/100 steps (20 %), ETA 1 min 20 s")


def test_unknown_and_infinite_values(capsys):
    with Progress(1, "mom") as progress:
        progress.update(1, loss=float("nan"), mfu=None)
    assert capsys.readouterr().err == "mom: 1/1 steps (100 %), loss nan nats/token\n"


def test_a_terminal_gets_a_bar_with_the_same_text(clock):
    console = terminal()
    with Progress(10, "[mom]", console=console) as progress:
        progress.update(1, loss=2.0)
        clock[0] = 2.0
        progress.update(3, loss=1.5)
        progress.print("saved [checkpoint]")
        progress.update(10, loss=1.0)
    text = console.file.getvalue()
    assert "[mom]" in text
    assert "3/10 steps" in text
    assert "loss 1.5000 nats/token, ETA 7 s" in text
    assert "saved [checkpoint]\n" in text
    assert "10/10 steps" in text


def test_a_bar_draws_at_most_ten_times_a_second(clock):
    console = terminal()
    with Progress(10**6, "mom", console=console) as progress:
        for step in range(1, 1001):
            clock[0] = step / 1000
            progress.update(step)
    assert console.file.getvalue().count("/1000000 steps") <= 15


def test_an_error_leaves_no_thread_and_restores_the_streams():
    streams, threads = (sys.stdout, sys.stderr), threading.active_count()

    def fail():
        with Progress(10, "mom", console=terminal()) as progress:
            progress.update(1)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert (sys.stdout, sys.stderr) == streams
    assert threading.active_count() == threads


def test_print_goes_to_stderr(capsys):
    with Progress(10, "mom") as progress:
        progress.print("step 3: 0.5 s")
    assert capsys.readouterr() == ("", "step 3: 0.5 s\n")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.6, "1 min 00 s"), (185, "3 min 05 s"), (7640, "2 h 07 min"), (3 * 86400 + 4 * 3600, "3 d 04 h")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text
