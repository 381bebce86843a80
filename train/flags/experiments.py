"""The configurations that come with mom_jax: the files of the folder `configs` beside `train`, by name."""

import ast
import dataclasses
from pathlib import Path

from mom_jax.fields import ConfigError, nearest

FOLDER = Path(__file__).parents[2] / "configs"


@dataclasses.dataclass(frozen=True)
class Experiment:
    """name: the file's path in the folder, without its ending. function: get_config or get_study. title: the first
    paragraph of its docstring."""

    name: str
    function: str
    title: str
    file: Path


def experiments() -> list[Experiment]:
    """All of them; none is run for that."""
    found = []
    for file in sorted(FOLDER.rglob("*.py"), key=lambda file: (len(file.parts), file)):
        tree = ast.parse(file.read_text("utf-8"))
        functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        for function in functions & {"get_config", "get_study"}:
            name = file.relative_to(FOLDER).with_suffix("").as_posix()
            title, *_ = (ast.get_docstring(tree) or "").split("\n\n")
            found.append(Experiment(name, function, " ".join(title.split()), file))
    return found


def find_experiment(name: str, function: str = "get_config", field: str = "config") -> Path:
    """The file that `name` means: a path, or else the name of one here that has such a function. Raises ConfigError,
    naming `field`, where neither is."""
    if Path(name).is_file():
        return Path(name)
    known = {experiment.name: experiment.file for experiment in experiments() if experiment.function == function}
    if name in known:
        return known[name]
    if name.endswith(".py") or Path(name).exists():
        raise ConfigError(f"{field}={name!r}: no such file")
    raise ConfigError(f"{field}={name!r}: no such file, nor one that comes with mom_jax; {nearest(name, known)}")
