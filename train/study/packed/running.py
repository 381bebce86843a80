"""Trains one phase over tokens on the device, and keeps shared first phases."""

import dataclasses
import math
import time
import zlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mom_jax import sharding
from mom_jax.analysis import routing
from mom_jax.config import ModelConfig
from mom_jax.fields import ConfigError
from train.config import Config
from train.files import read_record, whole_file, write_record
from train.numbers import for_json
from train.reporting.history import Record
from train.steps.optimizer.names import path_name
from train.steps.state import TrainState, abstract_params
from train.study.packed.programs import CALL, Programs, rates
from train.study.packed.tokens import TokenFile, batches, held_out_batches

EVALUATIONS = 4  # of a run, evenly over its steps; the last is the final one
PARAMS, FINAL = "params.npz", "final.json"


@dataclasses.dataclass(frozen=True, eq=False)
class Device:
    """The mesh of one device, and the file's tokens on it."""

    mesh: Mesh
    file: TokenFile
    tokens: jax.Array

    def put(self, value: Any, dtype: Any = np.int32) -> jax.Array:
        return jax.device_put(np.asarray(value, dtype), sharding.replicated(self.mesh))


def on_device(file: TokenFile, mesh: Mesh) -> Device:
    return Device(mesh, file, jax.device_put(np.asarray(file.rows), sharding.replicated(mesh)))


@dataclasses.dataclass(frozen=True)
class Ran:
    """A trained phase. final: the final evaluation, as in a run's log. curve: [step, loss]. seconds: of the steps, from
    the first one's call to the last one's end, without evaluations."""

    params: Any
    final: Record
    curve: list[list[Any]]
    seconds: float


def run_phase(config: Config, programs: Programs, device: Device, source: Any) -> Ran:
    """The only phase of a run's configuration. source: the parameters that it starts from, or None."""
    [phase], data = config.phases, config.data
    model = config.model_of(phase.name)
    given, seed = [] if source is None else [source], device.put(config.seed)
    state: TrainState = programs.start(*given, seed)
    rows = batches(data.seed, device.file, phase.steps, data.batch_size).reshape(-1, CALL, data.batch_size)
    calls, rate = len(rows), np.asarray(rates(phase))
    stops = sorted({math.ceil(calls * (i + 1) / EVALUATIONS) for i in range(EVALUATIONS)})
    curve: list[list[Any]] = []
    seconds, begin, final = 0.0, time.perf_counter(), Record()
    for call in range(calls):
        # Calls are asynchronous: the device has the next one while it is at this one.
        inputs = device.put(rows[call]), device.put(rate[call], np.float32)
        state, _ = programs.train(state, device.tokens, *inputs, seed)
        if call + 1 in stops:
            jax.block_until_ready(state)
            seconds += time.perf_counter() - begin
            count = config.final_batches if call + 1 == calls else data.validation_batches
            final = evaluated(state.params, model, programs, device, config, (call + 1) * CALL, count)
            curve.append([(call + 1) * CALL, final["loss"]])
            begin = time.perf_counter()
    return Ran(state.params, final, curve, seconds)


def evaluated(
    params: Any, model: ModelConfig, programs: Programs, device: Device, config: Config, step: int, count: int
) -> Record:
    """Over `count` held-out batches, a multiple of `validation_batches`."""
    each = config.data.validation_batches
    rows = held_out_batches(device.file, count, config.data.batch_size)
    # In float64 on the host: float32 would lose tokens in long evaluations.
    sums = [
        jax.tree.map(lambda x: np.asarray(x, np.float64).sum(0), jax.device_get(found))
        for found in [
            programs.evaluate(params, device.tokens, device.put(rows[i : i + each]), device.put(step))
            for i in range(0, count, each)
        ]
    ]
    total = jax.tree.map(lambda *parts: sum(parts), *sums)
    loss = float(total.nll) / max(float(total.count), 1)
    summary = routing.summary(total.routing, model)
    found: Record = for_json({"loss": loss, "tokens": int(total.count), "routers": summary})
    return found


def keep(folder: Path, ran: Ran) -> None:
    """Writes a first phase: its parameters, and then what it has come to, with the parameters' checksum."""
    folder.mkdir(parents=True, exist_ok=True)
    leaves = jax.tree_util.tree_leaves_with_path(ran.params)
    with whole_file(folder / PARAMS) as partial, partial.open("wb") as file:
        arrays: dict[str, Any] = {path_name(path): np.asarray(leaf) for path, leaf in leaves}
        np.savez(file, **arrays)
    write_record(folder / FINAL, {"final": ran.final, "params": _checksum(folder / PARAMS)}, indent=None)


def _checksum(file: Path) -> int:
    return zlib.crc32(file.read_bytes())


def kept(folder: Path, model: ModelConfig, mesh: Mesh) -> tuple[Any, Record] | None:
    """(the parameters of a first phase, its final evaluation); None where it is not finished. Raises ConfigError where
    they are not what was written."""
    if not (folder / FINAL).is_file():
        return None
    try:
        record = read_record(folder / FINAL, FINAL)
        if _checksum(folder / PARAMS) != record["params"]:
            raise ConfigError(f"{PARAMS}: does not have the checksum that it was written with")
    except (ConfigError, OSError) as error:
        why = error if isinstance(error, ConfigError) else f"{PARAMS}: cannot be read ({error.strerror})"
        raise ConfigError(f"{folder}: {why}; without this folder, the first phase is trained again") from None
    with np.load(folder / PARAMS) as arrays:

        def read(path: tuple, like: jax.ShapeDtypeStruct) -> jax.Array:
            return jax.device_put(jnp.asarray(arrays[path_name(path)]), like.sharding)

        return jax.tree_util.tree_map_with_path(read, abstract_params(model, mesh)), record["final"]
