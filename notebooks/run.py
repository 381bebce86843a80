"""Executes the notebooks of this folder, shortened and offline: `python notebooks/run.py [NAME ...] [--output FOLDER]`.

In a temporary folder, with this checkout's library and without the network: where a notebook would download a model, it
makes one. Exit code 1 and the cell's own error if a cell fails. Needs the extra [notebooks]: nbclient and ipykernel.
"""

import argparse
import base64
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
SECONDS = 1200  # that a cell may take


def environment(steps: int, home: Path) -> dict[str, str]:
    """Of a notebook's process. home: a folder for what it keeps: no model is found that was downloaded before."""
    path = os.pathsep.join(filter(None, [str(FOLDER.parent), os.environ.get("PYTHONPATH")]))
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(home / "huggingface")}
    # Programs that the two notebooks compile alike are compiled once.
    cache = {"JAX_COMPILATION_CACHE_DIR": str(home / "xla"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    # Compiling takes most of the time of so few steps: a quarter less without what makes programs fast.
    quick = {"XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"}
    return {**quick, **os.environ, **offline, **cache, "PYTHONPATH": path, "MOM_NOTEBOOK_STEPS": str(steps)}


def execute(file: Path, steps: int, home: Path) -> tuple[Any, Exception | None]:
    """The notebook with its outputs, and the error of the cell that failed, if one did."""
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    notebook = nbformat.read(file, as_version=4)
    with tempfile.TemporaryDirectory() as work:
        client = NotebookClient(notebook, timeout=SECONDS, resources={"metadata": {"path": work}})
        try:
            client.execute(env=environment(steps, home))
        except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
            return notebook, error
    return notebook, None


def pictures(notebook: Mapping[str, Any]) -> dict[str, bytes]:
    """The PNGs among the outputs, named by their cell."""
    found = {}
    for cell in notebook["cells"]:
        for i, output in enumerate(cell.get("outputs", [])):
            if "image/png" in output.get("data", {}):
                found[f"{cell['id']}_{i}"] = base64.b64decode(output["data"]["image/png"])
    return found


def save(notebook: Any, name: str, output: Path) -> None:
    """Writes NAME.ipynb with its outputs, and its pictures beside it."""
    import nbformat

    output.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, output / f"{name}.ipynb")
    for picture, content in pictures(notebook).items():
        (output / f"{name}_{picture}.png").write_bytes(content)


def main(arguments: Sequence[str] | None = None) -> int:
    names = sorted(file.stem for file in FOLDER.glob("*.ipynb"))
    parser = argparse.ArgumentParser("python notebooks/run.py", description="Executes the notebooks, offline.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(names)}; all where none is given")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="save the executed notebooks and their pictures")
    parser.add_argument("--steps", type=int, default=4, help="training steps of a phase (default: %(default)s)")
    options = parser.parse_args(arguments)
    if unknown := sorted(set(options.names) - set(names)):
        parser.error(f"NAME={unknown[0]!r}: must be one of {', '.join(names)}")
    if options.steps < 1:
        parser.error(f"steps={options.steps}: must be at least 1")
    with tempfile.TemporaryDirectory() as home:
        return max([_run(name, options.steps, Path(home), options.output) for name in options.names or names])


def _run(name: str, steps: int, home: Path, output: Path | None) -> int:
    start = time.monotonic()
    try:
        notebook, error = execute(FOLDER / f"{name}.ipynb", steps, home)
    except ImportError as missing:
        print(f"error: {missing}: pip install nbclient ipykernel", file=sys.stderr)
        return 2
    if output is not None:
        save(notebook, name, output)
    if error is not None:
        print(f"{name}: {error}", file=sys.stderr)
    drawn = len(pictures(notebook))
    word = "failed" if error else f"done, {drawn} pictures,"
    print(f"{name}: {word} in {time.monotonic() - start:.0f} s", flush=True)
    return 1 if error else 0


if __name__ == "__main__":
    sys.exit(main())
