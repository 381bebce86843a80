"""The configuration that a run's folder has: `config.json`."""

from pathlib import Path

from mom_jax.fields import ConfigError, from_dict, to_dict
from train import files
from train.config import Config

CONFIG = "config.json"


def to_json(config: Config) -> bytes:
    """What `read_config` reads."""
    return files.to_json(to_dict(config), indent=1)


def read_config(run: Path, field: str) -> Config:
    """The configuration of a run's folder. Raises ConfigError naming `field` where it has none."""
    file = run / CONFIG
    if not file.is_file():
        raise ConfigError(f"{field}={str(run)!r}: is not a run's folder (it has no {CONFIG})")
    record = files.read_json(file, str(file), old=True)
    if isinstance(record, dict) and "phases" not in record:
        other = "is a model of another kind, no run: train.convert makes a run of it"
        raise ConfigError(f"{field}={str(run)!r}: {other}")
    return from_dict(Config, record)
