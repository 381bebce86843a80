"""The notebooks as they are stored: valid, clean, and in agreement with each other, the README and the library.

`python notebooks/run.py` executes them.
"""

import ast
import importlib
import json
import re
import tomllib
from pathlib import Path

import pytest

from notebooks import run

ROOT = Path(__file__).parents[2]
FILES = {path.stem: path for path in sorted((ROOT / "notebooks").glob("*.ipynb"))}
COLAB = "https://colab.research.google.com/"
REPOSITORY = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Source"].split("/", 3)[-1]


def read(name):
    return json.loads(FILES[name].read_text("utf-8"))


def cells(name, kind):
    return {cell["id"]: "".join(cell["source"]) for cell in read(name)["cells"] if cell["cell_type"] == kind}


def parsed(name):
    """The code of all cells, without the lines for the shell."""
    code = "\n".join(cells(name, "code").values())
    return ast.parse(re.sub(r"^( *)!.*", r"\1pass", code, flags=re.MULTILINE))


def badge(name):
    link = f"{COLAB}github/{REPOSITORY}/blob/main/notebooks/{name}.ipynb"
    return f"[![Open in Colab]({COLAB}assets/colab-badge.svg)]({link})"


def test_there_are_four():
    assert set(FILES) == {"gpt2_to_mom", "inside_the_routers", "mom_in_ten_minutes", "planning_a_pod"}


@pytest.mark.parametrize("name", FILES)
def test_stored_without_outputs(name):
    notebook = read(name)
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    for cell in notebook["cells"]:
        assert cell["metadata"] == {}
        if cell["cell_type"] == "code":
            assert (cell["outputs"], cell["execution_count"]) == ([], None)


@pytest.mark.parametrize("name", FILES)
def test_stored_as_nbformat_writes(name):
    # One cell is one difference, whatever program wrote the file.
    text = json.dumps(read(name), indent=1, ensure_ascii=False, sort_keys=True) + "\n"
    assert FILES[name].read_text("utf-8") == text


@pytest.mark.parametrize("name", FILES)
def test_valid(name):
    nbformat = pytest.importorskip("nbformat")
    nbformat.validate(nbformat.read(FILES[name], as_version=4))
    assert len({cell["id"] for cell in read(name)["cells"]}) == len(read(name)["cells"])


@pytest.mark.parametrize("name", FILES)
def test_what_is_imported_is_there(name):
    ours = ("mom_jax", "train", "configs")
    found = 0
    for node in ast.walk(parsed(name)):
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] in ours:
            module = importlib.import_module(node.module)
            for alias in node.names:
                assert hasattr(module, alias.name), f"{node.module}.{alias.name}"
                found += 1
    assert found > 3


def test_the_setup_is_the_same_and_knows_the_repository():
    setups = {cells(name, "code")["setup"] for name in FILES}
    assert len(setups) == 1
    [constant] = re.findall(r'^REPOSITORY = "(.*)"$', setups.pop(), flags=re.MULTILINE)
    assert constant == f"https://github.com/{REPOSITORY}"


@pytest.mark.parametrize("name", FILES)
def test_the_setup_is_the_first_code(name):
    assert next(iter(cells(name, "code"))) == "setup"


@pytest.mark.parametrize("name", FILES)
def test_figures_are_closed(name):
    calls = [ast.unparse(node.func) for node in ast.walk(parsed(name)) if isinstance(node, ast.Call)]
    assert calls.count("plt.close") == calls.count("plt.subplots") >= 2


@pytest.mark.parametrize("name", FILES)
def test_badges_open_the_notebook_in_colab(name):
    assert badge(name) in cells(name, "markdown")["title"]
    assert badge(name) in (ROOT / "README.md").read_text()
    every = "\n".join([*cells(name, "markdown").values(), (ROOT / "README.md").read_text()])
    links = set(re.findall(re.escape(COLAB) + r"github/[^)\s]*", every))
    assert links <= {f"{COLAB}github/{REPOSITORY}/blob/main/notebooks/{file}.ipynb" for file in FILES}


# The script that executes them.


def test_an_unknown_notebook(capsys):
    with pytest.raises(SystemExit) as error:
        run.main(["gpt3"])
    assert error.value.code == 2
    assert (
        "NAME='gpt3': must be one of gpt2_to_mom, inside_the_routers, mom_in_ten_minutes, planning_a_pod"
        in capsys.readouterr().err
    )


def test_notebooks_are_executed_offline_with_this_library(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "elsewhere")
    environment = run.environment(3, tmp_path)
    assert environment["PYTHONPATH"].split(":") == [str(ROOT), "elsewhere"]
    assert (environment["HF_HUB_OFFLINE"], environment["MOM_NOTEBOOK_STEPS"]) == ("1", "3")


def test_pictures_are_named_by_their_cells():
    output = {"output_type": "display_data", "data": {"image/png": "aGVsbG8=", "text/plain": "<Figure>"}}
    text = {"output_type": "stream", "name": "stdout", "text": "hello"}
    code = {"id": "curves", "cell_type": "code", "outputs": [text, output]}
    assert run.pictures({"cells": [{"id": "title", "cell_type": "markdown"}, code]}) == {"curves_1": b"hello"}


@pytest.mark.slow
def test_a_cell_that_fails_fails_the_script(tmp_path, monkeypatch, capsys):
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    for name, source in (("bad", "import os\n\n1 / len(os.environ['MOM_NOTEBOOK_STEPS'][:0])"), ("good", "1")):
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
        nbformat.write(notebook, tmp_path / f"{name}.ipynb")
    monkeypatch.setattr(run, "FOLDER", tmp_path)
    assert run.main(["--output", str(tmp_path / "out")]) == 1
    captured = capsys.readouterr()
    assert "ZeroDivisionError" in captured.err
    assert [line.split(" in ")[0] for line in captured.out.splitlines()] == ["bad: failed", "good: done, 0 pictures,"]
    # What was stored stays as it was; what was executed has its outputs.
    assert nbformat.read(tmp_path / "good.ipynb", as_version=4).cells[0].outputs == []
    assert nbformat.read(tmp_path / "out" / "good.ipynb", as_version=4).cells[0].outputs[0].data == {"text/plain": "1"}
