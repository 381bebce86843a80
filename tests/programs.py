"""The programs as users run them: in a process of their own, or called in this one."""

import os
from pathlib import Path

import pytest

from train import cli

ROOT = Path(__file__).parents[1]


def environment():
    """For a process that runs a program, and may be killed."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    # Perhaps while it writes a compiled program: these are not shared with the tests' own process.
    cache = os.environ["JAX_COMPILATION_CACHE_DIR"] + "-programs"
    return os.environ | {"PYTHONPATH": path, "JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": cache}


def call(capsys, program, *arguments):
    """(exit code, stdout, stderr) of a program called in this process."""
    with pytest.raises(SystemExit) as error:
        cli.run_program(lambda: program([str(a) for a in arguments]))
    captured = capsys.readouterr()
    return error.value.code, captured.out, captured.err
