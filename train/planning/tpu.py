"""TPU topologies on machines without a TPU: what libtpu needs to compile for them."""

import importlib.util
import os
import re
from typing import Any

import jax
from jax.experimental import topologies

from mom_jax.fields import ConfigError, require

# Read when libtpu starts: this machine asks nobody what it is.
ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # two compilations at a time would abort on a lock file
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
}
EXAMPLES = "v4:2x2x2, v5e:4x4 (up to 16x16), v5p:2x2x2, v6e:8x8, tpu7x:2x2x1"


def prepare_environment() -> None:
    """To be called before JAX looks for devices. Raises ConfigError where libtpu is missing."""
    os.environ.update(ENVIRONMENT)
    jax.config.update("jax_platforms", "cpu")
    # What a cache holds of another machine's programs cannot be read here.
    jax.config.update("jax_enable_compilation_cache", False)
    if importlib.util.find_spec("libtpu") is None:
        raise ConfigError(
            "libtpu is not installed: pip install 'jax[tpu]', or put the folder in which it is into PYTHONPATH "
            "(`make test-slow` makes .venv/libtpu)"
        )


def devices_of(topology: str) -> list[Any]:
    """The devices of a topology such as v5e:4x4. Raises ConfigError where there is none of that name."""
    allowed = f"must be KIND:SHAPE, such as {EXAMPLES}"
    require(re.fullmatch(r"\w+:\d+(x\d+)*", topology) is not None, "topology", topology, allowed)
    # Without it the two cores of a v4 chip are listed apart.
    options = {"chip_config_name": "megacore"} if topology.startswith("v4:") else {}
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=topology, **options).devices)
    except Exception as error:  # whatever libtpu makes of it
        first = (str(error).splitlines() or [""])[0]
        raise ConfigError(f"topology={topology!r}: {allowed} ({type(error).__name__}: {first[:120]})") from None
