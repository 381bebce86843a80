"""The command `mom`, and the way to the packages `train` and `configs`.

Those two have names that other people's projects have too. So an installed mom_jax does not put them among the
installed packages, where they would get in the way of others: they lie in this package's folder, and become importable
where that is asked for (docs/install.md). In a checkout they lie beside it.
"""

import os
import sys
from pathlib import Path


def home() -> Path:
    """The folder that has `train` and `configs`."""
    here = Path(__file__).resolve().parent
    return here if (here / "train").is_dir() else here.parent


def make_importable() -> None:
    """Lets this process, and those that it starts, import `train` and `configs`."""
    folder = str(home())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    inherited = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    if folder not in inherited:
        os.environ["PYTHONPATH"] = os.pathsep.join([folder, *inherited])
