"""`mom version`: what a report of a fault should name."""

import importlib.metadata
import json
import platform
from collections.abc import Sequence
from typing import Any

from mom_jax_programs import home

LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain")


def main(arguments: Sequence[str] | None = None) -> int:
    from train.cli import Parser
    from train.flags.completion import complete

    parser = Parser("mom version", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    complete(lambda: parser)
    flags = parser.parse_args(arguments)
    found = versions()
    if flags.json:
        print(json.dumps(found))
        return 0
    print(f"mom_jax {found['mom_jax']}, in {found['programs']}")
    print(f"Python {found['python']}, {', '.join(f'{name} {v}' for name, v in found['libraries'].items())}")
    print(f"on {found['system']}")
    print(f"devices: {found['devices'] or found['error']}")
    return 0


def versions() -> dict[str, Any]:
    """Versions by name; `devices` as `4 x TPU v5e (tpu)`, or None with JAX's reason in `error`."""
    import jax

    import mom_jax

    devices, error = None, None
    try:
        found = jax.devices()
        devices = f"{len(found)} x {found[0].device_kind} ({jax.default_backend()})"
    except RuntimeError as problem:
        error = f"JAX finds none ({str(problem).splitlines()[0]})"
    return {
        "mom_jax": mom_jax.__version__,
        "programs": str(home()),
        "python": platform.python_version(),
        "libraries": {name: importlib.metadata.version(name) for name in LIBRARIES},
        "system": platform.platform(),
        "devices": devices,
        "error": error,
    }
