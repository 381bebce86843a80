"""Ctrl-C while a program runs.

The first one raises KeyboardInterrupt; not in the middle of an import, where a library may take it for an error of its
own, but after it; and again where it was raised in a callback, such as JAX's of the garbage collector, whose errors
Python only reports. Where Python does not come to that for seconds, because a library compiles or computes, the process
ends without; as it does at once when there is a second one. Before the program begins see `train/__init__.py`; training
has `train.training.processes.Stop`, which a first one never ends in the middle of a step.
"""

import os
import select
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future
from types import FrameType
from typing import TypeVar

T = TypeVar("T")

_POLL = 0.05  # seconds between two looks at whether an import has ended
_APART = "apart"
PATIENCE = 5.0  # seconds that the first one waits for Python

_again = 0  # how often the signal was sent once more by this module itself
_raised = False
_said = False


def listen() -> None:
    """From here on, in the main thread."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    # The system's handler writes there whatever Python is busy with.
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(reading,), name="interrupts", daemon=True).start()
    signal.signal(signal.SIGINT, _interrupt)


def say() -> None:
    """The one word for the user, once."""
    global _said
    if not _said:
        _said = True
        os.write(2, b"interrupted\n")


def end(number: int = signal.SIGINT, frame: FrameType | None = None) -> None:
    """Ends the process, with one word."""
    say()
    os._exit(130)


def swallowed() -> None:
    """Told of a KeyboardInterrupt that Python has ignored: it is raised again, outside of what ignored it."""
    global _raised
    _raised = False
    _later()


def computes() -> bool:
    """Whether a call `apart` has not ended: Python must not end around it, where C++ would abort the process."""
    return any(thread.name == _APART for thread in threading.enumerate())


def apart(call: Callable[[], T]) -> T:
    """`call()`, by a thread of its own: what a library computes for long, Ctrl-C does not wait for."""
    result: Future[T] = Future()

    def work() -> None:
        try:
            result.set_result(call())
        except BaseException as error:
            result.set_exception(error)

    threading.Thread(target=work, name=_APART, daemon=True).start()
    return result.result()


def _watch(reading: int) -> None:
    count, waiting = 0, False
    while True:
        ready, _, _ = select.select([reading], [], [], PATIENCE if waiting and not _raised else None)
        if ready:
            count += os.read(reading, 64).count(signal.SIGINT)
            waiting = signal.getsignal(signal.SIGINT) is _interrupt
        if count - _again > 1 or (not ready and not _raised):
            end()


def _interrupt(number: int, frame: FrameType | None) -> None:
    global _raised
    if _raised:  # the program is ending: a second KeyboardInterrupt would hit what Python does at its exit
        end()
    if not _importing(frame):
        _raised = True
        raise KeyboardInterrupt
    _later()


def _later() -> None:
    timer = threading.Timer(_POLL, _once_more)
    timer.daemon = True
    try:
        timer.start()
    except RuntimeError:  # Python is ending
        end()


def _once_more() -> None:
    global _again
    _again += 1
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)  # which ends a system call that waits


def _importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False
