"""Whatever is wrong with what a program is given: exit code 2, one line, and nothing written.

docs/bad_inputs.md is made here: MOM_WRITE_DOCS=1 .venv/bin/python -m pytest tests/train/inputs/test_bad_inputs.py
"""

import importlib
import os
import re
import sys

import bad_files
import bad_flags
import pytest
from programs import ROOT, call

from train.steps import compiled, memory

PAGE = ROOT / "docs" / "bad_inputs.md"
HEAD = """# Bad input

Whatever is wrong with a program's flags, files or folders, it says so in one line on the standard error, beginning with
`error:`, ends with exit code 2, and has written nothing. A stranger's files are data: nothing that they name is
imported or run, they name nothing outside of their folder, sizes that they claim are compared with the files before
anything is allocated, and links are followed neither for locks nor for what is written.

The table is made by `tests/train/inputs/test_bad_inputs.py`, which calls every program with every input. `…` stands for
the folder of the inputs, and for the middle of what is long.

| program | what is wrong | flags | what it says |
|---|---|---|---|
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    bad_files.make(folder)
    return folder


def files(folder):
    """Every file and folder with its size and time, and where links lead."""
    found = {}
    for place, folders, names in os.walk(folder):
        for name in folders + names:
            facts = os.lstat(path := os.path.join(place, name))
            found[path] = facts.st_size, facts.st_mtime_ns, facts.st_mode
    return found


def cell(text, folder):
    """As the page has it: no paths of this machine, not too long, no end of a cell."""
    text = text.encode("ascii", "backslashreplace").decode().replace(str(folder), "…")
    text = re.sub(r"(\w)\1{200,}", r"\1…\1", text)
    text = re.sub(r"byte \d{3,}", "byte …", text)  # in a configuration, which grows with every field
    text = text if len(text) <= 400 else f"{text[:300]} … {text[-80:]}"
    return text.replace("|", "\\|").replace("\n", " ")


def test_every_bad_input_is_one_line_and_writes_nothing(folder, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TFDS_DATA_DIR", str(folder / "tfds"))
    monkeypatch.chdir(folder)
    for module in (compiled, memory):
        monkeypatch.setattr(module, "memory_of", lambda devices: 2**34)
    rows: list[tuple[str, str]] = []
    wrong = []
    before = files(folder)
    for name, what, flags in bad_flags.TABLE:
        program = importlib.import_module(f"train.{'verify.__main__' if name == 'verify' else name}").main
        arguments = [part.replace("{w}", str(folder)) for part in flags.split()]
        code, _, err = call(capsys, program, *arguments)
        said = [line for line in err.splitlines() if line.startswith("error: ")]
        after = files(folder)
        if code != 2 or len(said) != 1 or not err.endswith(f"{said[0]}\n") or "Traceback" in err or after != before:
            new = sorted(set(after) ^ set(before) | {path for path in after if after[path] != before.get(path)})
            wrong.append(f"{name} {flags[:200]} ({what}): {code}, {err[-400:]!r}, {new[:5]}")
        before = after
        line = said[0].removeprefix("error: ") if said else ""
        given = cell(flags.replace("{w}", str(folder)), folder) or " "
        rows.append((f"| {name} | {what} | `{given}` | ", f"{cell(line, folder)} |\n"))
    assert not wrong, "\n".join(wrong)
    assert len(rows) >= 100
    page = HEAD + "".join(map("".join, rows))
    if os.environ.get("MOM_WRITE_DOCS"):
        PAGE.write_text(page)
    if sys.version_info[:2] == (3, 11):  # as pinned in constraints.txt: others put some lines otherwise
        assert PAGE.read_text() == page, "docs/bad_inputs.md is not what the programs say: make it anew"
    assert all(row in PAGE.read_text() for row, _ in rows)
