"""The command `mom`: which program each of its words starts. The programs' own flags are theirs."""

import importlib
import os
import sys
from collections.abc import Sequence

from mom_jax_programs import home, make_importable

# Command -> the module whose `main(arguments)` it is, and what it does.
COMMANDS = {
    "train": ("train.main", "trains a configuration, or goes on with it"),
    "evaluate": ("train.evaluate", "loss, perplexity, GLUE, XSUM and the lm-evaluation-harness on checkpoints"),
    "generate": ("train.generate", "continues a text"),
    "analyse": ("train.analyse", "looks inside checkpoints: routes, depth, modules"),
    "report": ("train.report", "writes a run's report.html, or compares several runs on one page"),
    "study": ("train.study.__main__", "several ways side by side: arms and seeds from one file"),
    "prepare": ("train.prepare", "downloads and tokenizes ahead of training"),
    "plan": ("train.plan", "what a run needs on a pod, before one is paid for"),
    "verify": ("train.verify.__main__", "says what of a run, or of a token cache, can be trusted"),
    "convert": ("train.convert", "models in other formats, in and out, and smaller ones"),
    "paper": ("configs.paper", "the paper's models: parameters, depth and FLOPs beside GPT-2's"),
    "list": ("mom_jax_programs.listing", "the configurations and studies that come with mom_jax; of one, its file"),
    "version": ("mom_jax_programs.version", "versions, devices and platform"),
    "path": ("mom_jax_programs.path", "the folder of the packages train and configs"),
    "completion": ("mom_jax_programs.completion", "a script that has bash, zsh or fish complete this command"),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Ends the process with the program's exit code."""
    make_importable()
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # what a configuration imports, as under `python -m`; never before a library
    name, *rest = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if "_ARGCOMPLETE" in os.environ:
        name = _complete()
    if name in ("-h", "--help"):
        print(_help())
        return
    name = "version" if name == "--version" else name
    if name not in COMMANDS:
        from mom_jax.fields import nearest

        print(f"error: command={name!r}: unknown; {nearest(name, COMMANDS)}", file=sys.stderr)
        sys.exit(2)
    sys.argv = [f"mom {name}", *rest]

    from train.cli import run_program

    run_program(importlib.import_module(COMMANDS[name][0]).main)


def _help() -> str:
    rows = "\n".join(f"  {name:<12}{text}" for name, (_, text) in COMMANDS.items())
    return (
        "usage: mom COMMAND ...\n\n"
        f"Mixture-of-Modules language models: training, evaluation, analysis.\n\n{rows}\n\n"
        "mom COMMAND --help lists a command's flags; mom train --config NAME --help every field of a configuration.\n"
        f"First: mom train --config quickstart. The programs are in {home()}"
    )


def _complete() -> str:
    """The command whose words are being completed, having told argcomplete to leave it out. Ends the process where it
    is the command itself."""
    import argparse

    from argcomplete.lexers import split_line

    from train.flags.completion import complete

    *_, words, _ = split_line(os.environ["COMP_LINE"], int(os.environ["COMP_POINT"]))
    if len(words) < 2 or words[1] not in COMMANDS:
        parser = argparse.ArgumentParser()
        parser.add_argument("command", choices=COMMANDS)
        complete(lambda: parser)
    os.environ["_ARGCOMPLETE"] = str(int(os.environ["_ARGCOMPLETE"]) + 1)
    return str(words[1])
