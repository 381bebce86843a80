"""Imports point one way: configs -> train -> mom_jax, within mom_jax along `LAYERS`, within train along `ROOMS`.

And the house stays one that can be overlooked: no crowded folder, no long file, no module that imports itself by way of
others.
"""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# What nothing of a package may import, by the first word.
FORBIDDEN = {
    "mom_jax": {"train", "configs", "tests", "benchmarks", "orbax", "grain", "tensorflow_datasets", "sentencepiece"},
    "train": {"configs", "tests", "benchmarks"},
}

# A module of mom_jax imports from earlier rows only, or from its own where the row says so.
LAYERS = (
    {"fields"},
    {"config"},
    {"checks", "platforms", "products", "remat"},
    {"sharding"},
    {"attention", "dispatch"},
    {"cache", "layers"},
    {"embeddings", "routers"},
    {"routing"},
    {"pool"},
    {"assembly"},
    {"model"},
    {"losses"},
    {"evaluation"},
    {"generation", "interop", "analysis"},
)
WITHIN = {
    "config",
    "routers",
    "assembly",
    "attention",
    "dispatch",
    "generation",
    "interop",
    "analysis",
    "sharding",
    "losses",
}  # folders, whose files may import each other

# Folders and modules of train, from the ground floor up; each imports from the floors below. Programs are on top.
ROOMS = (
    {"numbers", "tracking"},
    {"batch", "config", "files", "flags", "process"},
    {"data", "reporting", "steps"},
    {"checkpoints", "cli", "planning"},
    {"analysis", "parse"},
    {"checkpoint", "training"},
    {"tasks"},
    {"study"},
)
PROGRAMS = {"main", "analyse", "prepare", "evaluate", "generate", "convert", "plan", "report", "verify"}

MOST_FILES, MOST_LINES = 14, 300


def imported(text):
    """The dotted names that a module's text imports, wherever it does; `from a import b` gives a.b."""
    names = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide where they point"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def at_start(text):
    """The same, of what is imported when the module is."""
    tree = ast.parse(text)
    tree.body = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    return imported(ast.unparse(tree))


def problems(module, text):
    """What is wrong with the imports of `module` (its dotted name)."""
    package, *rest = module.split(".")
    found = []
    for name in imported(text):
        first, *inner = name.split(".")
        if first in FORBIDDEN[package]:
            found.append(f"{module} imports {name}")
        if package == first == "mom_jax" and rest and not points_down(rest[0], inner):
            found.append(f"{module} imports {name}")
        if package == first == "train" and rest and not floor_below(rest[0], inner):
            found.append(f"{module} imports {name}")
    return found


def points_down(importer, inner):
    if not inner or inner[0] not in set().union(*LAYERS):
        return False  # the package itself, which imports everything
    return rank(inner[0], LAYERS) < rank(importer, LAYERS) or (inner[0] == importer and importer in WITHIN)


def floor_below(importer, inner):
    if not inner or inner[0] in PROGRAMS:
        return False  # programs are run, not imported
    return inner[0] == importer or rank(inner[0], ROOMS) < rank(importer, (*ROOMS, PROGRAMS))


def rank(name, rows):
    return next(i for i, row in enumerate(rows) if name in row)


def modules():
    for package in FORBIDDEN:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            yield pytest.param(".".join(p for p in parts if p != "__init__"), path, id="/".join(parts))


@pytest.mark.parametrize(("module", "path"), list(modules()))
def test_imports_point_one_way(module, path):
    assert problems(module, path.read_text()) == []


@pytest.mark.parametrize(("package", "rows"), [("mom_jax", LAYERS), ("train", (*ROOMS, PROGRAMS))])
def test_every_module_has_its_place(package, rows):
    files = {
        path.stem for path in (ROOT / package).iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert files - {"__init__"} == set().union(*rows)


def test_no_module_imports_itself_by_way_of_others():
    known = {param.values[0]: param.values[1] for param in modules()}

    def module_of(name):
        while name not in known:
            name = name.rpartition(".")[0]
        return name

    # What a function imports when it is called makes no circle.
    graph = {
        name: {module_of(n) for n in at_start(path.read_text()) if n.split(".")[0] in FORBIDDEN}
        for name, path in known.items()
    }
    done = set()

    def visit(name, path):
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name not in done:
            for other in graph[name] - {name}:
                visit(other, [*path, name])
            done.add(name)

    for name in known:
        visit(name, [])


def test_folders_and_files_are_small():
    for folder in ("mom_jax", "mom_jax_programs", "train", "benchmarks", "configs", "tests"):
        files = list((ROOT / folder).rglob("*.py"))
        for path in files:
            assert folder == "tests" or len(path.read_text().splitlines()) <= MOST_LINES, path
        for place in {path.parent for path in files}:
            assert len(list(place.glob("*.py"))) <= MOST_FILES, place


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("mom_jax.model", "import train"),
        ("mom_jax.model", "from train.step import train_step"),
        ("mom_jax.analysis.cost", "import orbax.checkpoint as ocp"),
        ("mom_jax.layers", "def f():\n    import grain.python"),
        ("mom_jax", "from sentencepiece import SentencePieceProcessor"),
        ("mom_jax.config", "if True:\n    import tensorflow_datasets as tfds"),
        ("train.data.prepared", "from configs import quickstart"),
        ("mom_jax.fields", "from mom_jax.config import ModelConfig"),
        ("mom_jax.dispatch", "from mom_jax.layers import linear"),
        ("mom_jax.routers", "from mom_jax import pool"),
        ("mom_jax.model", "import mom_jax.generation"),
        ("mom_jax.analysis.cost", "from mom_jax.interop.phases import from_vanilla"),
        ("mom_jax.assembly.chunk", "import mom_jax as mom"),
        ("mom_jax.assembly.chunk", "from mom_jax import MoM"),
        ("train.steps.state", "from train.training.loop import train"),
        ("train.data.prepared", "from train.steps import optimizer"),
        ("train.tasks.finetune", "from train.evaluate import main"),
    ],
)
def test_wrong_imports_are_found(module, text):
    assert len(problems(module, text)) == 1


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("mom_jax.pool", "from mom_jax import dispatch\nfrom mom_jax.layers import View"),
        ("mom_jax.interop.phases", "from mom_jax.interop.official import FIXED"),
        ("mom_jax", "from mom_jax.model import MoM"),
        ("train.steps.state", "import mom_jax\nimport train.config\nimport grain"),
        ("mom_jax.layers", "import trainer, grained"),
    ],
)
def test_right_imports_are_not(module, text):
    assert problems(module, text) == []


def test_relative_imports_are_refused():
    with pytest.raises(AssertionError, match="relative"):
        problems("mom_jax.pool", "from . import model")
