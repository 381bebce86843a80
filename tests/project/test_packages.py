"""Wheel and sdist as people get them: built, checked, and installed into new environments, without a network.

Such an environment has nothing but what pip installs there; the libraries that mom_jax needs are those of this one, by
a .pth file, so that pip finds them there and would refuse to install mom_jax where one is missing.
"""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
import tiny
from programs import ROOT

import mom_jax

pytestmark = pytest.mark.slow

VERSION = mom_jax.__version__
# Not of the project: what git ignores, and what no package has.
LEFT_OUT = shutil.ignore_patterns(".*", "tests", "benchmarks", "notebooks", "runs", "__pycache__", "*.egg-info")
SMALL = {
    "data": {"vocab-size": 300, "batch-size": 4, "length": 16, "validation-batches": 2},
    "model": {"context-length": 32, "d-model": 16, "num-heads": 2, "num-bottom": 0, "remat": "none"}
    | {"num-attn-modules": 2, "num-steps": 2, "num-ffn-modules": 4, "module-d-ff": 32},
    "model.router": {"dim": 8},
    "phases.0": {"steps": 2, "optim.warmup-steps": 1},
    "phases.1": {"steps": 2, "optim.warmup-steps": 1},
    "analysis": {"every": 0},
}


def run(*command, folder, **more):
    """A finished process, whose output is given with the complaint where it failed."""
    # The tests' own folder sitecustomize.py only; nothing of the checkout.
    env = os.environ | {"PYTHONPATH": str(ROOT / "tests" / "startup"), "JAX_PLATFORMS": "cpu"} | more
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, cwd=folder, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """{"wheel": file, "sdist": file}: the wheel is made from the sdist."""
    pytest.importorskip("build", reason="needs the extra release")
    folder = tmp_path_factory.mktemp("packages")
    shutil.copytree(ROOT, folder / "source", ignore=LEFT_OUT)
    build = (sys.executable, "-m", "build", "--no-isolation", "--outdir", folder / "dist", folder / "source")
    run(*build, folder=folder)
    [wheel], [sdist] = (folder / "dist").glob("*.whl"), (folder / "dist").glob("*.tar.gz")
    return {"wheel": wheel, "sdist": sdist}


def install(package, folder):
    """Makes an environment with the package; returns the folder with its python and mom."""
    venv.create(folder, with_pip=False, symlinks=True)
    site = folder / "lib" / f"python{sysconfig.get_python_version()}" / "site-packages"
    (site / "libraries.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    programs = folder / "bin"
    pip = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index", "--no-build-isolation")
    run(programs / "python", *pip, package, folder=folder)
    return programs


@pytest.fixture(scope="module")
def installed(packages, tmp_path_factory):
    return install(packages["wheel"], tmp_path_factory.mktemp("wheel"))


def test_the_packages_are_whole_and_claim_no_names_but_ours(packages):
    pytest.importorskip("twine", reason="needs the extra release")
    run(sys.executable, "-m", "twine", "check", "--strict", *packages.values(), folder=ROOT)
    files = zipfile.ZipFile(packages["wheel"]).namelist()
    assert {name.split("/")[0] for name in files} == {"mom_jax", "mom_jax_programs", f"mom_jax-{VERSION}.dist-info"}
    for package, place in (
        ("mom_jax", "mom_jax"),
        ("train", "mom_jax_programs/train"),
        ("configs", "mom_jax_programs/configs"),
    ):
        for file in (ROOT / package).rglob("*"):
            if file.is_file() and "__pycache__" not in file.parts:
                assert f"{place}/{file.relative_to(ROOT / package)}" in files, file
    with tarfile.open(packages["sdist"]) as archive:
        have = {name.partition("/")[2] for name in archive.getnames()}
    assert {"LICENSE", "CHANGELOG.md", "CITATION.cff", "docs/install.md", "mom_jax/py.typed", "setup.py"} <= have


def train_the_quickstart(installed, tmp_path):
    source = tiny.write_corpus(tmp_path / "corpus")
    flags = ["--data.source", source, "--data.cache", tmp_path / "cache", "--final-batches", 1]
    for part, fields in SMALL.items():
        for name, value in fields.items():
            flags += [f"--{part}.{name}", value]
    said = run(installed / "mom", "train", "--config", "quickstart", *flags, folder=tmp_path).stderr
    assert "mom: starting from" in said
    assert (tmp_path / "runs" / "quickstart" / "report.html").stat().st_size > 10_000
    found = json.loads(run(installed / "mom", "version", "--json", folder=tmp_path).stdout)
    assert (found["mom_jax"], Path(found["programs"]).parts[-2:]) == (VERSION, ("site-packages", "mom_jax_programs"))


def test_the_quickstart_trains_in_another_folder(installed, tmp_path):
    train_the_quickstart(installed, tmp_path)


def test_it_trains_from_the_sdist_too(packages, tmp_path):
    train_the_quickstart(install(packages["sdist"], tmp_path / "environment"), tmp_path)


def test_names_are_found_where_they_are_asked_for(installed, tmp_path):
    """train and configs: not by themselves; in the command and what it starts; in a program that asks."""
    python = installed / "python"
    code = "import importlib.util as u; print([bool(u.find_spec(name)) for name in ('mom_jax', 'train', 'configs')])"
    assert run(python, "-c", code, folder=tmp_path).stdout == "[True, False, False]\n"
    home = run(installed / "mom", "path", folder=tmp_path).stdout.strip()
    assert run(python, "-c", code, folder=tmp_path, PYTHONPATH=home).stdout == "[True, True, True]\n"
    assert "early_exit" in run(python, "-m", "mom_jax_programs", "list", folder=tmp_path).stdout
    # A program of one's own, which starts another process, by either way.
    (tmp_path / "own.py").write_text(
        "import multiprocessing, subprocess, sys\n"
        "from mom_jax_programs import make_importable\n"
        "make_importable()\n"
        "from train.config import Config\n"
        "def name(config):\n    return type(config).__module__, config.seed\n"
        "if __name__ == '__main__':\n"
        "    with multiprocessing.get_context('spawn').Pool(1) as pool:\n"
        "        print(pool.apply(name, [Config(seed=3)]))\n"
        "    subprocess.run([sys.executable, '-m', 'train.report', '--help'], check=True)\n"
    )
    said = run(python, "own.py", folder=tmp_path).stdout
    assert said.startswith("('train.config', 3)\nusage: python -m train.report ")
    # A configuration of one's own, in a folder that has other things of these names, and a module beside it.
    (tmp_path / "train.py").write_text("raise RuntimeError('not this one')\n")
    (tmp_path / "widths.py").write_text("WIDTH = 24\n")
    (tmp_path / "mine.py").write_text(
        "import dataclasses\n\nimport widths\nfrom configs import quickstart_paper\n"
        "from train.config import Config\n\n\n"
        "def get_config() -> Config:\n    config = quickstart_paper.get_config()\n"
        "    return dataclasses.replace(config, model=dataclasses.replace(config.model, d_model=widths.WIDTH))\n"
    )
    said = run(installed / "mom", "train", "--config", "mine.py", "--help", folder=tmp_path).stdout
    assert "(default: 24)" in said


def test_types_are_found(installed, tmp_path):
    """By mypy in ten lines, against what is installed."""
    text = """import jax
import mom_jax as mom
from flax import nnx
from mom_jax.losses import next_token

config = mom.ModelConfig(vocab_size=64, d_model=32, num_heads=2, top_k=2)
model = mom.MoM(config, rngs=nnx.Rngs(0))
output: mom.Output = model(jax.numpy.zeros((2, 8), int))
tokens: list[list[int]] = mom.generate(model, [[1, 2, 3]], 4)
reveal_type(config.top_k)
reveal_type(mom.generate)
"""
    (tmp_path / "good.py").write_text(text)
    (tmp_path / "bad.py").write_text("import mom_jax as mom\n\nmom.ModelConfig(d_model='wide')\nmom.MOM\n")
    # Of mom_jax only: to read JAX takes two minutes.
    libraries = ",".join(f"{name}.*" for name in ("jax", "jaxlib", "flax", "optax", "numpy", "chex"))
    (tmp_path / "mypy.ini").write_text(f"[mypy]\nstrict = true\n[mypy-{libraries}]\nfollow_imports = skip\n")
    mypy = (sys.executable, "-m", "mypy", "--python-executable", installed / "python")
    done = run(*mypy, "good.py", folder=tmp_path)
    assert 'Revealed type is "int"' in done.stdout
    assert "-> list[list[int]]" in done.stdout
    with pytest.raises(AssertionError) as error:
        run(*mypy, "bad.py", folder=tmp_path)
    assert 'bad.py:3: error: Argument "d_model" to "ModelConfig" has incompatible type "str"' in str(error.value)
    assert 'bad.py:4: error: Module has no attribute "MOM"' in str(error.value)
