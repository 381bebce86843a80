"""A section as a process of its own: its lines as they come, its time limit, and why it failed if it did."""

import contextlib
import importlib
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from benchmarks.measuring import timing

# Seconds that a section may take, its start and compilations included: eight minutes in all. A section may also use
# what those before it have left over.
LIMITS = {"card": 25, "products": 65, "step": 165, "grouped": 75, "attention": 50, "decoding": 55, "remat": 45}
LAST_WORDS = 30  # lines of what a failed section said on its standard error


def plain(value: Any) -> Any:
    """`value` as JSON has it: numbers that are not finite are null."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def reason(error: BaseException) -> str:
    """An exception in one line."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300] if lines else ''}"


def work(section: str, small: bool) -> int:
    """What the process of a section does: prints a line for everything that it finds, the moment that it has it."""
    about: dict[str, Any] = {"section": section, "small": small}

    def notify(row: dict[str, Any]) -> None:
        print(json.dumps(plain(about | row), allow_nan=False), flush=True)

    try:
        about |= {"device": jax.devices()[0].device_kind, "versions": timing.versions()}
        if small and jax.default_backend() == "cpu":  # where it is there to see that everything runs
            jax.config.update("jax_disable_most_optimizations", True)
        for row in importlib.import_module(f"benchmarks.gpu.{section}").rows(small):
            notify(row)
    except Exception as error:
        traceback.print_exc()
        notify({"failed": reason(error)})
        return 1
    return 0


def environment(cache: str) -> dict[str, str]:
    """Of a section's process; what the user has set stays. cache: a folder for compiled programs."""
    defaults = {
        "JAX_COMPILATION_CACHE_DIR": cache,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # PyTorch needs room on the same card
    }
    return defaults | dict(os.environ)


def run(section: str, small: bool, limit: float, environment: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """The lines of a section. The last one is about the process: its seconds, and why it was ended if it was."""
    command = [sys.executable, "-m", "benchmarks.gpu", "--section", section, *(["--small"] if small else [])]
    about: dict[str, Any] = {"section": section, "small": small, "device": None, "versions": timing.versions()}
    begin, overdue, failed = time.monotonic(), threading.Event(), False
    with tempfile.TemporaryFile("w+", errors="replace") as words:
        # In a group of its own, so that compilers that it has started end with it.
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=words, text=True, env=environment, process_group=0
        )

        def end() -> None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

        def stop() -> None:
            overdue.set()
            end()

        timer = threading.Timer(limit, stop)
        timer.start()
        try:
            assert process.stdout is not None
            with process.stdout:
                for text in process.stdout:
                    if (line := _parsed(text)) is not None:
                        about["device"] = line["device"] = line.get("device")
                        failed |= "failed" in line
                        yield line
            code = process.wait()
        finally:
            timer.cancel()
            end()
            process.wait()
        words.seek(0)
        said = [line.rstrip() for line in words if line.strip()]
    result = about | {"seconds": round(time.monotonic() - begin, 1)}
    if overdue.is_set():
        result["failed"] = f"took longer than {limit:.4g} s"
    elif code < 0:
        result["failed"] = f"ended by {signal.Signals(-code).name}: {said[-1][:300] if said else ''}"
    elif code and not failed:  # it had no time to say why
        result["failed"] = f"exit code {code}: {said[-1][:300] if said else ''}"
    if "failed" in result or failed:
        print(*(f"{section}: {line}" for line in said[-LAST_WORDS:]), sep="\n", file=sys.stderr)
    yield result


def _parsed(text: str) -> dict[str, Any] | None:
    """A line of a section; None for what libraries print, and for a line that was broken off."""
    try:
        line = json.loads(text)
    except ValueError:
        return None
    return line if isinstance(line, dict) and "section" in line else None
