"""The command `mom`: every program is one of its words, it starts without JAX, and the shell completes it."""

import argparse
import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest
import tyro
from programs import ROOT, call, environment

import mom_jax
from mom_jax_programs import command, completion, listing, path, version
from train import analyse, cli, convert, evaluate, generate, prepare
from train.config import Config
from train.flags.completion import parser_of, with_fields
from train.flags.experiments import experiments, find_experiment

LIBRARIES = ["jax", "flax", "grain", "orbax", "tensorflow_datasets", "sentencepiece", "tensorboardX", "matplotlib"]


def python(code, *arguments):
    """What a process prints that runs this code."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=environment(), cwd=ROOT
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def has_main(file):
    return any(isinstance(n, ast.FunctionDef) and n.name == "main" for n in ast.parse(file.read_text()).body)


def test_every_program_is_a_command():
    files = [*(ROOT / "train").glob("*.py"), *(ROOT / "train").glob("*/__main__.py"), ROOT / "configs" / "paper.py"]
    programs = {file for file in files if 'if __name__ == "__main__"' in file.read_text()}
    modules = {ROOT / (module.replace(".", "/") + ".py") for module, _ in command.COMMANDS.values()}
    assert modules == programs | {file for file in (ROOT / "mom_jax_programs").glob("*.py") if has_main(file)} - {
        ROOT / "mom_jax_programs" / "command.py"
    }
    assert all(has_main(file) for file in modules)


def test_help_starts_without_the_heavy_libraries():
    code = """
import sys
from mom_jax_programs.command import COMMANDS, main
names = sys.argv[1].split(",")
for words in ([], *([name, "--help"] for name in COMMANDS if name not in ("paper", "study"))):  # these read models
    try:
        main(words)
    except SystemExit as end:
        assert not end.code, (words, end.code)
    found = [name for name in names if name in sys.modules]
    assert not found, (words, found)
"""
    said = python(code, ",".join(LIBRARIES))
    assert "usage: mom train " in said
    assert "`mom train --config quickstart " in said
    assert "usage: mom evaluate " in said
    assert "python -m" not in said


def test_the_library_alone_imports_nothing_of_training():
    code = """
import sys
import mom_jax
names = sys.argv[1].split(",")
assert not [name for name in names if name in sys.modules]
assert sorted(mom_jax.__all__) == [name for name in dir(mom_jax) if name in mom_jax.__all__]
mom_jax.ModelConfig(num_heads=2)
assert "jax" not in sys.modules
import mom_jax.generation
for name in mom_jax.__all__:
    assert callable(getattr(mom_jax, name)), name
assert "jax" in sys.modules
print([name for name in names[2:] if name in sys.modules])
try:
    mom_jax.MOM
except AttributeError as error:
    print(error)
"""
    assert python(code, ",".join(LIBRARIES)).splitlines() == ["[]", "module 'mom_jax' has no attribute 'MOM'"]


def test_own_commands(capsys):
    code, out, _ = call(capsys, listing.main)
    assert code == 0
    lines = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert (
        lines["quickstart"]
        == "Both phases on the sources of Python's standard library, small enough for two CPU cores."
    )
    assert {"mom_large", "special/early_exit", "studies/two_arms"} < set(lines)
    assert not {"paper", "special/base", "__init__"} & set(lines)
    known = json.loads(call(capsys, listing.main, "--json")[1])
    assert [(row["name"], row["title"]) for row in known] == list(lines.items())
    assert all(row["title"] for row in known)
    assert call(capsys, listing.main, "special/vanilla")[1] == (ROOT / "configs/special/vanilla.py").read_text()
    assert call(capsys, path.main)[1] == f"{ROOT}\n"
    found = json.loads(call(capsys, version.main, "--json")[1])
    assert found["mom_jax"] == mom_jax.__version__
    assert re.fullmatch(r"\d+ x cpu \(cpu\)", found["devices"])
    said = call(capsys, version.main)[1]
    assert f"mom_jax {mom_jax.__version__}, in {ROOT}\n" in said
    assert f"jax {found['libraries']['jax']}" in said


def test_configurations_by_name_or_path(tmp_path, capsys, monkeypatch):
    assert cli.load_config("special/early_exit").run == "runs/special/early_exit"
    assert cli.load_config("configs/quickstart.py") == cli.load_config("quickstart")
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "configs/special/vanilla.py", tmp_path / "quickstart")
    assert find_experiment("quickstart").read_text() == (ROOT / "configs/special/vanilla.py").read_text()
    code, _, err = call(capsys, convert.main, "--input", "x", "--output", "y", "--to", "mom", "--config", "quickstrat")
    assert (code, err.count("\n")) == (2, 1)
    assert "config='quickstrat': no such file, nor one that comes with mom_jax; did you mean" in err
    assert call(capsys, prepare.main, "--config", "mine.py")[2] == "error: config='mine.py': no such file\n"


def test_a_wrong_command_is_one_line(capsys, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
    with pytest.raises(SystemExit) as end:
        command.main(["trian"])
    assert end.value.code == 2
    assert capsys.readouterr().err == "error: command='trian': unknown; did you mean 'train'?\n"
    assert os.environ["PYTHONPATH"].split(os.pathsep)[0] == str(ROOT)


@pytest.fixture(scope="module")
def mom(tmp_path_factory):
    """A folder with a script `mom`, as pip would make one."""
    folder = tmp_path_factory.mktemp("bin")
    script = folder / "mom"
    script.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m mom_jax_programs "$@"\n')
    script.chmod(0o755)
    return folder


def completed(mom, folder, script, line):
    """What bash offers after this line; `script` is that of `mom completion bash`."""
    words = line.split(" ")
    code = f"""{script}
COMP_WORDS=({" ".join(map(shlex.quote, words))}) COMP_CWORD={len(words) - 1}
COMP_LINE={shlex.quote(line)} COMP_POINT={len(line)} COMP_TYPE=9
_python_argcomplete mom mom
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    env = environment() | {"PATH": f"{mom}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, cwd=folder, env=env)
    return {word.strip() for word in done.stdout.splitlines() if word.strip()}


@pytest.mark.slow
def test_bash_completes(mom, tmp_path, capsys):
    script = call(capsys, completion.main, "bash")[1]
    (tmp_path / "qualified.py").touch()
    for line, expected in {
        "mom tr": {"train"},
        "mom train --config qu": {"quickstart", "quickstart_paper", "qualified.py"},
        "mom train --phases.0.optim.schedule c": {"cosine", "constant"},
        "mom study studies/tw": {"studies/two_arms"},
        "mom train --phases.1.optim.l": {"--phases.1.optim.learning-rate"},
        "mom convert --input x --to hu": {"huggingface"},
        "mom list special/e": {"special/early_exit"},
    }.items():
        assert completed(mom, tmp_path, script, line) == expected, line


def test_there_is_a_script_for_each_shell(capsys):
    for shell in ("bash", "zsh", "fish"):
        script = call(capsys, completion.main, shell)[1]
        assert "_ARGCOMPLETE" in script
        assert "mom" in script
        if shutil.which(shell):
            subprocess.run([shell, "-n"], input=script, text=True, check=True)
    assert "complete --command mom" in script


def flags_in(text):
    return set(re.findall(r"--(?:no-)?[a-z][a-z0-9.-]*", text))


@pytest.mark.parametrize("program", [analyse, convert, evaluate, generate, prepare])
def test_completion_knows_the_flags_that_tyro_makes(program, capsys):
    own = {flag for action in parser_of(program.Arguments)._actions for flag in action.option_strings}
    with pytest.raises(SystemExit):
        tyro.cli(program.Arguments, args=["--help"], prog="mom")
    rows = re.findall(r"^.\s(--.*?)(?:  .*)?$", capsys.readouterr().out, re.MULTILINE)
    assert own - {"-h"} <= flags_in("\n".join(rows)) | {"--help"}
    assert flags_in("\n".join(rows)) - own <= {"--out"}  # another name for --output


def test_completion_knows_every_field_of_a_configuration(capsys):
    parser = with_fields(argparse.ArgumentParser(), Config())
    own = {flag for action in parser._actions for flag in action.option_strings}
    with pytest.raises(SystemExit):
        tyro.cli(Config, default=Config(), args=["--help"], prog="mom", config=(tyro.conf.FlagConversionOff,))
    rows = re.findall(r"^.\s(--[a-z]\S+)", capsys.readouterr().out, re.MULTILINE)
    assert own - {"-h"} == {*rows, "--help"}
    assert len(own) > 100


def test_all_titles_are_one_sentence():
    for experiment in experiments():
        assert experiment.title.endswith("."), experiment.name
        assert len(experiment.title) <= 120, experiment.name
