"""Several processes that train one model: how they find each other, and what they agree on.

JAX is the engine: every process runs the same program on its own devices, and a computation on the mesh needs them all.
Files that all share (the run's folder) are written by one of them, or by orbax, which has its own agreements.
"""

import argparse
import contextlib
import dataclasses
import hashlib
import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from mom_jax.fields import ConfigError, require
from train.config import Config

# A process of which nothing was heard for so long is taken for dead, and the others end. So long, too, one that ends
# with an error waits for the others.
HEARTBEAT_SECONDS = 30


def join(flags: argparse.Namespace) -> None:
    """Finds the other processes, if there are any. Raises ConfigError for flags that cannot be."""
    explicit = {name: getattr(flags, name) for name in ("coordinator", "processes", "process")}
    settings: dict[str, Any] = {}
    if any(value is not None for value in explicit.values()):
        for name, value in explicit.items():
            require(value is not None, name, value, "--coordinator, --processes and --process go together")
        require(not flags.distributed, "distributed", True, "finds by itself what --coordinator gives")
        host, _, port = flags.coordinator.rpartition(":")
        good = bool(host) and port.isdecimal() and 0 < int(port) < 2**16
        require(good, "coordinator", flags.coordinator, "must be HOST:PORT")
        require(flags.processes >= 1, "processes", flags.processes, "must be at least 1")
        good = 0 <= flags.process < flags.processes
        require(good, "process", flags.process, f"must lie between 0 and {flags.processes - 1}, with --processes")
        settings = {
            "coordinator_address": flags.coordinator,
            "num_processes": flags.processes,
            "process_id": flags.process,
        }
    elif not (flags.distributed or int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1):
        return
    require(flags.join_timeout >= 1, "join-timeout", flags.join_timeout, "must be at least 1")
    if flags.process == 0:
        _check_free(flags.coordinator)
    name = f"coordinator={flags.coordinator!r}" if settings else "distributed=True"
    with _time_limit(flags.join_timeout, f"{name}: the processes did not all start within {flags.join_timeout} s"):
        try:
            jax.distributed.initialize(
                # Longer than the limit here, at which it would end the process with a stack trace.
                initialization_timeout=flags.join_timeout + 60,
                heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
                shutdown_timeout_seconds=HEARTBEAT_SECONDS,
                **settings,
            )
        except (RuntimeError, ValueError) as error:
            first = (str(error).splitlines() or [""])[0]
            raise ConfigError(f"{name}: the processes did not find each other ({first})") from None


def _check_free(address: str) -> None:
    """Raises ConfigError where another program has the port: JAX would crash, or share it."""
    try:
        socket.create_server(("", int(address.rpartition(":")[2]))).close()
    except OSError as error:
        allowed = f"the port cannot be opened here ({os.strerror(error.errno or 0)})"
        raise ConfigError(f"coordinator={address!r}: {allowed}") from None


@contextlib.contextmanager
def _time_limit(seconds: float, message: str) -> Iterator[None]:
    """Ends the process, as a ConfigError would, if what is within takes longer. JAX waits in C++: nothing can be raised
    there."""

    def end() -> None:
        print(f"error: {message}", file=sys.stderr, flush=True)
        os._exit(2)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def is_first() -> bool:
    """Whether this is the process that writes and speaks."""
    return jax.process_index() == 0


def wait_for_all(name: str) -> None:
    """Returns when all processes are here, however long it takes."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def of_first(values: list[bool]) -> list[bool]:
    """The first process's values, everywhere."""
    if jax.process_count() == 1:
        return values
    return [bool(value) for value in multihost_utils.broadcast_one_to_all(np.array(values, np.bool_))]


def integers_of_first(values: list[int]) -> list[int]:
    """The first process's values, from -2**62 to 2**62, everywhere."""
    if jax.process_count() == 1:
        return values
    halves = np.array([divmod(value, 2**31) for value in values], np.int32)
    return [int(high) * 2**31 + int(low) for high, low in multihost_utils.broadcast_one_to_all(halves)]


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Where one process raises ConfigError within, all do: none waits for one that has left."""
    error: ConfigError | None = None
    try:
        yield
    except ConfigError as own:
        error = own
    if jax.process_count() > 1:
        failed = multihost_utils.process_allgather(np.array(error is not None))
        if error is None and failed.any():
            error = ConfigError(f"process {failed.argmax()} cannot go on and says why")
    if error is not None:
        raise error


def check_agreement(config: Config) -> None:
    """Raises ConfigError unless all processes have the same configuration, folders of caches aside."""
    if jax.process_count() == 1:
        return
    record = dataclasses.asdict(config)
    record["data"].pop("cache")
    digest = hashlib.sha256(json.dumps(record, sort_keys=True).encode()).digest()
    all_digests = multihost_utils.process_allgather(np.frombuffer(digest, np.uint8))
    others = [i for i, other in enumerate(all_digests) if not np.array_equal(other, all_digests[0])]
    if others:
        raise ConfigError(f"config: must be the same in all processes, process {others[0]} has another than process 0")


class Stop:
    """Turns the first SIGINT or SIGTERM into a wish that the loop grants after the step; a second one is immediate.

    Of several processes any one may get the signal, and all must stop after the same step. JAX's preemption service
    sees to that. It takes SIGTERM itself, also a second one, so an interrupt is passed on to it; processes that only
    hear of it stop as after SIGTERM.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._old: dict[int, Any] = {}
        self._together = jax.process_count() > 1
        self._interrupted = False

    def __enter__(self) -> "Stop":
        for number in (signal.SIGINT,) if self._together else (signal.SIGINT, signal.SIGTERM):
            self._old[number] = signal.signal(number, self._handle)
        return self

    def _handle(self, number: int, frame: Any) -> None:
        for each in self._old:  # a second one of either kind
            signal.signal(each, signal.SIG_DFL)
        if self._together:
            self._interrupted = True
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            self.signal = number

    def wanted(self, step: int) -> bool:
        """Whether to stop after `step`, a number that grows by one from call to call."""
        if self._together and self.signal is None and multihost_utils.reached_preemption_sync_point(step):
            self.signal = signal.SIGINT if self._interrupted else signal.SIGTERM
        return self.signal is not None

    def __exit__(self, *error: object) -> None:
        for number, old in self._old.items():
            signal.signal(number, old)
