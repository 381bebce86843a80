"""A run's routes, `RUN/routes/PHASE.json`: what tokens of a fixed held-out text chose at the end of each phase."""

import json
from pathlib import Path
from typing import Any

from mom_jax.analysis.explorer import is_explorer_data, same_text
from mom_jax.fields import ConfigError
from train.files import read_json, write_whole

FOLDER = "routes"


def write_routes(run: Path, phase: str, data: dict[str, Any]) -> None:
    """data: `mom_jax.analysis.explorer.explorer_data`. The file is replaced atomically."""
    folder = run / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    write_whole(folder / f"{phase}.json", text.encode())


def read_routes(run: Path, phases: list[str]) -> dict[str, dict[str, Any]]:
    """By phase, in the order of `phases`, then of others by name; empty where the run has none.

    Raises ConfigError for a file that is not the explorer's.
    """
    files = {path.stem: path for path in sorted((run / FOLDER).glob("*.json"))}
    names = [name for name in phases if name in files] + [name for name in files if name not in phases]
    return {name: _read(files[name]) for name in names}


def beside(run: Path, phases: list[str], against: Path | None) -> dict[str, dict[str, Any]]:
    """The routes of a run and, last, those of the last routed phase of another one, by the names that readers see.

    Raises ConfigError naming `against` where it has no routes, or those of another text.
    """
    own = read_routes(run, phases)
    if against is None:
        return own
    name = str(against)
    if not own:
        raise ConfigError(f"against={name!r}: {run / FOLDER} has nothing to set it against")
    others = read_routes(against, phases)
    if not others:
        raise ConfigError(f"against={name!r}: {against / FOLDER} has no routes")
    phase, data = list(others.items())[-1]
    if not any(same_text(data, each) for each in own.values()):
        raise ConfigError(f"against={name!r}: its routes are of another text (other held-out data or tokens)")
    here, there = run.resolve().name, against.resolve().name
    here, there = (here, there) if here != there else (str(run), str(against))
    return {f"{here}, {each}": own[each] for each in own} | {f"{there}, {phase}": data}


def _read(path: Path) -> dict[str, Any]:
    data = read_json(path, str(path))
    if not is_explorer_data(data):
        raise ConfigError(f"{path}: is not what training writes there; remove it to have a report without")
    return data
