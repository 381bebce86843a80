"""Imports point one way: configs -> train -> mom_jax, and within mom_jax along `LAYERS`."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# What nothing of a package may import, by the first word.
FORBIDDEN = {
    "mom_jax": {"train", "configs", "tests", "benchmarks", "orbax", "grain", "tensorflow_datasets", "sentencepiece"},
    "train": {"configs", "tests", "benchmarks"},
}

# A module of mom_jax imports from earlier rows only, or from its own where the row says so.
LAYERS = (
    {"fields"},
    {"config"},
    {"platforms", "products", "remat", "sharding"},
    {"attention", "dispatch", "linear_cross_entropy"},
    {"layers"},
    {"router"},
    {"routing"},
    {"pool"},
    {"assembly"},
    {"model"},
    {"losses", "generate", "interop", "analysis"},
)
WITHIN = {
    "attention",
    "dispatch",
    "generate",
    "interop",
    "analysis",
    "sharding",
}  # folders, whose files may import each other


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
    return found


def points_down(importer, inner):
    if not inner or inner[0] not in set().union(*LAYERS):
        return False  # the package itself, which imports everything
    return rank(inner[0]) < rank(importer) or (inner[0] == importer and importer in WITHIN)


def rank(name):
    return next(i for i, row in enumerate(LAYERS) if name in row)


def modules():
    for package in FORBIDDEN:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            yield pytest.param(".".join(p for p in parts if p != "__init__"), path, id="/".join(parts))


@pytest.mark.parametrize(("module", "path"), list(modules()))
def test_imports_point_one_way(module, path):
    assert problems(module, path.read_text()) == []


def test_every_module_has_its_place():
    files = {
        path.stem for path in (ROOT / "mom_jax").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert files - {"__init__"} <= set().union(*LAYERS)
    assert {"fields", "config", "layers", "dispatch", "router", "routing", "pool", "assembly", "model"} <= files


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
        ("mom_jax.router", "from mom_jax import pool"),
        ("mom_jax.model", "import mom_jax.generate"),
        ("mom_jax.analysis.cost", "from mom_jax.interop.phases import from_vanilla"),
        ("mom_jax.assembly", "import mom_jax as mom"),
        ("mom_jax.assembly", "from mom_jax import MoM"),
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
        ("train.step", "import mom_jax\nimport train.config\nimport grain"),
        ("mom_jax.layers", "import trainer, grained"),
    ],
)
def test_right_imports_are_not(module, text):
    assert problems(module, text) == []


def test_relative_imports_are_refused():
    with pytest.raises(AssertionError, match="relative"):
        problems("mom_jax.pool", "from . import model")
