"""`python -m benchmarks.gpu`: its sections run anywhere at toy sizes, and one that fails does not stop the others."""

import json
import math

import pytest

from benchmarks.gpu import __main__ as program
from benchmarks.gpu.table import TABLES, table


def lines(capsys, *flags):
    """(exit code, what is printed as JSON lines)."""
    code = program.main(["--small", *flags])
    return code, [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def numbers(value):
    if isinstance(value, dict):
        return [number for item in value.values() for number in numbers(item)]
    if isinstance(value, list):
        return [number for item in value for number in numbers(item)]
    return [value] if isinstance(value, (int, float)) else []


def test_sections_fit_into_eight_minutes():
    assert sum(program.LIMITS.values()) <= 480
    assert set(program.LIMITS) == set(TABLES)


@pytest.mark.slow
def test_every_section_runs_at_toy_sizes(capsys, tmp_path):
    out = tmp_path / "lines.jsonl"
    code, found = lines(capsys, "--out", str(out))
    assert code == 0
    assert [json.loads(line) for line in out.read_text().splitlines()] == found
    assert {line["section"] for line in found} == set(program.LIMITS)
    assert all(line["small"] and math.isfinite(number) for line in found for number in numbers(line))
    for section in ("products", "attention"):
        rows = [line for line in found if line["section"] == section and "worst_error" in line]
        assert len(rows) >= 4
        assert all(row["wrong"] == [] and row["worst_error"] <= row["allowed"] for row in rows)
    text = table(found)
    assert "not run" not in text
    assert "toy sizes" in text


def test_a_section_that_takes_too_long_is_named_and_the_next_one_runs(capsys):
    code, found = lines(capsys, "--only", "card,remat", "--limit", "0.05")
    assert code == 1
    assert [line["failed"] for line in found] == ["took longer than 0.05 s"] * 2


def test_a_section_that_breaks_says_why(capsys, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "nonsense")
    code, (line,) = lines(capsys, "--only", "card")
    assert code == 1
    assert "nonsense" in line["failed"]


def test_the_table_has_dashes_for_what_was_not_measured():
    found = [
        {"section": "card", "small": False, "device": "A card", "copy_bytes_per_second": 3e12},
        {"section": "step", "small": False, "seconds": 3.0, "failed": "RuntimeError: no memory"},
    ]
    text = table(found)
    assert "**Its ceilings: copies** (A card)" in text
    assert "| 3e+12 |" in text
    assert "step failed: RuntimeError: no memory" in text
    assert "**Decoding** (not run)\n\n| model | batch" in text
    assert "| - | - | - | - | - |" in text


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--only", "cards"], "'cards' unknown; there are card,"),
        (["--table", "nowhere.jsonl"], "--table nowhere.jsonl: "),
    ],
)
def test_wrong_flags_are_answered_in_one_line(capsys, flags, said):
    with pytest.raises(SystemExit) as stopped:
        program.main(flags)
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err
