"""The configuration that a run's folder has: `config.json`."""

import dataclasses
import json
from pathlib import Path

from mom_jax.fields import ConfigError, from_dict
from train.config import Config

CONFIG = "config.json"


def to_json(config: Config) -> bytes:
    """What `read_config` reads."""
    return (json.dumps(dataclasses.asdict(config), indent=1) + "\n").encode()


def read_config(run: Path, field: str) -> Config:
    """The configuration of a run's folder. Raises ConfigError naming `field` where it has none."""
    file = run / CONFIG
    if not file.is_file():
        raise ConfigError(f"{field}={str(run)!r}: is not a run's folder (it has no {CONFIG})")
    try:
        record = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file}: cannot be read ({error})") from None
    return from_dict(Config, record)
