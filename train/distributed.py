"""Several processes that train one model: how they find each other, and what they agree on.

JAX is the engine: every process runs the same program on its own devices, and a computation on the mesh needs them all.
Files that all share (the run's folder) are written by one of them, or by orbax, which has its own agreements.
"""

import argparse
import dataclasses
import hashlib
import json
import os
import signal
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from mom_jax.fields import ConfigError, require
from train.config import Config

# A process of which nothing was heard for so long is taken for dead, and the others end.
HEARTBEAT_SECONDS = 30


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that say which of several processes this one is."""
    group = parser.add_argument_group("several processes (one for each host, or for each GPU)")
    text = "one of several processes, as the environment says: a TPU pod slice, Slurm (automatic under srun), Open MPI"
    group.add_argument("--distributed", action="store_true", help=text)
    group.add_argument("--coordinator", metavar="HOST:PORT", help="the address of process 0, instead of --distributed")
    group.add_argument("--processes", type=int, metavar="N", help="how many processes there are; with --coordinator")
    group.add_argument("--process", type=int, metavar="I", help="which one this is, from 0; with --coordinator")
    text = "wait so long for all processes to start (default: %(default)s)"
    group.add_argument("--join-timeout", type=int, default=300, metavar="SECONDS", help=text)


def join(flags: argparse.Namespace) -> None:
    """Finds the other processes, if there are any. Raises ConfigError for flags that cannot be."""
    explicit = {name: getattr(flags, name) for name in ("coordinator", "processes", "process")}
    settings: dict[str, Any] = {}
    if any(value is not None for value in explicit.values()):
        for name, value in explicit.items():
            require(value is not None, name, value, "--coordinator, --processes and --process go together")
        require(not flags.distributed, "distributed", True, "finds by itself what --coordinator gives")
        host, _, port = flags.coordinator.rpartition(":")
        require(bool(host) and port.isdecimal(), "coordinator", flags.coordinator, "must be HOST:PORT")
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
    try:
        jax.distributed.initialize(
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS, initialization_timeout=flags.join_timeout, **settings
        )
    except (RuntimeError, ValueError) as error:
        first = (str(error).splitlines() or [""])[0]
        name = f"coordinator={flags.coordinator!r}" if settings else "distributed=True"
        raise ConfigError(f"{name}: the processes did not find each other ({first})") from None


def is_first() -> bool:
    """Whether this is the process that writes and speaks."""
    return jax.process_index() == 0


def wait_for_all(name: str) -> None:
    """Returns when all processes are here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def of_first(values: list[bool]) -> list[bool]:
    """The first process's values, everywhere."""
    if jax.process_count() == 1:
        return values
    return [bool(value) for value in multihost_utils.broadcast_one_to_all(np.array(values, np.bool_))]


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
    sees to that; it takes SIGTERM itself, so an interrupt is passed on to it.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._old: dict[int, Any] = {}
        self._together = jax.process_count() > 1

    def __enter__(self) -> "Stop":
        for number in (signal.SIGINT,) if self._together else (signal.SIGINT, signal.SIGTERM):
            self._old[number] = signal.signal(number, self._handle)
        return self

    def _handle(self, number: int, frame: Any) -> None:
        signal.signal(number, signal.SIG_DFL)
        if self._together:
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            self.signal = number

    def wanted(self, step: int) -> bool:
        """Whether to stop after `step`, a number that grows by one from call to call."""
        if self._together and self.signal is None and multihost_utils.reached_preemption_sync_point(step):
            self.signal = signal.SIGTERM
        return self.signal is not None

    def __exit__(self, *error: object) -> None:
        for number, old in self._old.items():
            signal.signal(number, old)
