"""Every command in README and docs has flags that its program has, and values that it takes.

The program's own parser reads them, and the configuration is loaded; nothing is run. What is run is in
test_executed.py; what cannot be, and why, in not_executed.toml.
"""

import argparse
import contextlib
import importlib
import re
import sys

import pytest
from pages import OURS, PAGES, ROOT, commands, tokens

from mom_jax_programs.command import COMMANDS
from train import analyse, cli, convert, evaluate, generate, parse, prepare
from train.config import Config
from train.flags.completion import parser_of, with_fields
from train.verify import __main__ as verify


class Parsed(Exception):
    """The flags were read."""


def program(words):
    """(module, arguments) of a command of ours."""
    if words[0] == "mom":
        assert words[1] in (*COMMANDS, "--help"), words
        return COMMANDS.get(words[1], ("mom_jax_programs.command", ""))[0], words[2:]
    assert words[0].endswith("python")
    assert words[1] == "-m"
    module = words[2]
    if module == "mom_jax_programs":
        return program(["mom", *words[3:]])
    if (ROOT / module.replace(".", "/") / "__main__.py").exists():
        module += ".__main__"
    return module, words[3:]


def read_flags(words, patch):
    """Has the command's program read its flags, and nothing else. Raises what it raises."""
    name, arguments = program(words)
    module = importlib.import_module(name)
    whole = argparse.ArgumentParser.parse_args

    def only_parse(self, *given, **named):
        whole(self, *given, **named)
        raise Parsed

    def only_flags(kind, given, *, default=None, **named):
        if kind is not Config:
            cli_flags(kind, given, **named)
            raise Parsed
        # The fields of a configuration: tyro takes a second to say the same.
        parser = with_fields(cli.Parser(prog="mom", allow_abbrev=False), default)
        whole(parser, given)
        raise Parsed

    cli_flags = parse.parse_flags
    patch.setattr(argparse.ArgumentParser, "parse_args", only_parse)
    patch.setattr(parse, "import_modules", lambda names: None)
    patch.setattr(parse, "parse_flags", only_flags)
    if hasattr(module, "parse_flags"):
        patch.setattr(module, "parse_flags", only_flags)
    patch.setattr(sys, "argv", [name, *arguments])
    patch.chdir(ROOT)
    if name.startswith("benchmarks."):
        module.main(*([arguments] if module.main.__code__.co_argcount else []))
    else:
        module.main(arguments)


OURS_ONLY = [command for command in commands() if OURS.match(command.text.removeprefix("srun "))]
# As a page may say it: a configuration of the reader's own, and names that stand for something.
STAND_FOR = {"mine.py": "quickstart", "theirs.py": "quickstart_paper"}


def test_flags_are_their_programs(monkeypatch):
    assert len(OURS_ONLY) > 80
    for text in sorted({command.text for command in OURS_ONLY}):
        command = next(c for c in OURS_ONLY if c.text == text)
        words = [STAND_FOR.get(word, word) for word in command.words if word != "srun"]
        if "--help" in words or words[:2] == ["mom", "study"]:
            continue
        with monkeypatch.context() as patch, contextlib.suppress(Parsed):
            try:
                read_flags(words, patch)
            except Parsed:
                raise
            except (Exception, SystemExit) as error:
                if not command.whole and "arguments are required" in str(error):
                    continue  # a part of a command, in a sentence
                pytest.fail(f"{command.page}, line {command.line}: {text}: {error!r}")
            pytest.fail(f"{command.page}, line {command.line}: {text}: read no flags")


@pytest.mark.parametrize(
    "text",
    [
        "mom train --config quickstart --model.topk 2",
        "mom train --config quickstart --model.dispatch tokamax",
        "mom train --config quikstart",
        "mom evaluate --checkpoint RUN --exchanged",
        "mom report",
        "python -m train.study",
        "python -m benchmarks.step --round 3",
        "mom trian --config quickstart",
    ],
)
def test_wrong_flags_are_found(text, monkeypatch, capsys):
    with pytest.raises((cli.ConfigError, SystemExit, AssertionError)):
        read_flags(text.split(), monkeypatch)


# Flags of other people's programs that the pages name.
OTHERS = {"--worker", "--no-deps", "--logdir", "--xla_gpu_deterministic_ops", "--coverage", "--signal"}


def test_flags_in_sentences_exist():
    parsers = [with_fields(argparse.ArgumentParser(), Config())]
    parsers += [parser_of(module.Arguments) for module in (analyse, convert, evaluate, generate, prepare, verify)]
    known = {option for parser in parsers for action in parser._actions for option in action.option_strings}
    files = [
        path for folder in ("train", "benchmarks", "notebooks", "configs") for path in (ROOT / folder).rglob("*.py")
    ]
    # Programs that make their parsers themselves name their flags in quotation marks.
    known |= set(re.findall(r'"(--[a-z][a-z0-9-]*)"', "\n".join(path.read_text() for path in files)))
    assert "--model.top-k" in known
    assert "--model.topk" not in known
    for page in set(PAGES) - {"docs/bad_inputs.md", "docs/migration.md"}:  # wrong on purpose, and other programs' ones
        for token in tokens(page):
            for child in token.children or []:
                if child.type == "code_inline" and not child.content.startswith(("gcloud", "pip", "#SBATCH", "apt")):
                    for flag in re.findall(r"(?<!\S)--[a-z][a-z0-9_.-]*", child.content):
                        name = flag.rstrip(".")  # `--phases.0....` stands for all fields of a phase
                        there = name in known | OTHERS or any(k.startswith(name + ".") for k in known)
                        assert there, f"{page}, line {token.map[0] + 1}: there is no flag {flag}"
