"""The programs as users run them: in a process of their own, or called in this one."""

import os
from pathlib import Path

import pytest

from train import cli

ROOT = Path(__file__).parents[2]


def environment():
    """For a process that runs a program."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "helpers"), os.environ["PYTHONPATH"]])
    return os.environ | {"PYTHONPATH": path, "JAX_PLATFORMS": "cpu"}


def optimised(environment):
    """The same for a process in which XLA optimises, as in users' programs."""
    without = ("JAX_DISABLE_MOST_OPTIMIZATIONS", "XLA_FLAGS")
    return {k: v for k, v in environment.items() if k not in without} | {"MOM_TESTS_OPTIMISED": "1"}


def call(capsys, program, *arguments):
    """(exit code, stdout, stderr) of a program called in this process, for which it sets nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli, "prepare_process", lambda: None)
        with pytest.raises(SystemExit) as error:
            cli.run_program(lambda: program([str(a) for a in arguments]))
    captured = capsys.readouterr()
    return error.value.code, captured.out, captured.err
