"""`python -m benchmarks.gpu`: its sections run anywhere at toy sizes, and one that fails does not stop the others."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.gpu import __main__ as program
from benchmarks.gpu import card, decoding, grouped, process, products, step
from benchmarks.gpu.checks import Verdict
from benchmarks.gpu.table import TABLES, table
from benchmarks.measuring import reference, timing
from mom_jax import dispatch


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
    assert sum(process.LIMITS.values()) <= 480
    assert set(process.LIMITS) == set(TABLES)


@pytest.mark.slow
def test_every_section_runs_at_toy_sizes(capsys, tmp_path):
    out = tmp_path / "lines.jsonl"
    code, found = lines(capsys, "--out", str(out))
    assert [line["failed"] for line in found if "failed" in line] == []
    assert code == 0
    assert [json.loads(line) for line in out.read_text().splitlines()] == found
    assert {line["section"] for line in found} == {line["section"] for line in found if "seconds" in line}
    assert {line["section"] for line in found} == set(process.LIMITS)
    assert all(line["small"] and line["device"] == "cpu" and line["versions"]["jax"] for line in found)
    assert all(math.isfinite(number) for line in found for number in numbers(line))
    backends = {line["backend"] for line in found if line["section"] == "products" and "backend" in line}
    assert backends == set(dispatch.BACKENDS) - {"capacity", "megablox"}
    for section, key in (("products", "worst_error"), ("products", "worst_beside_dense"), ("attention", "worst_error")):
        rows = [line for line in found if line["section"] == section and line.get(key) is not None]
        assert len(rows) >= 6
        assert all(row["wrong"] == [] and row[key] <= row["allowed"] for row in rows)
    assert {line["model"] for line in found if line["section"] == "step" and "model" in line} >= {"vanilla", "K=1"}
    assert program.main(["--table", str(out)]) == 0
    text = capsys.readouterr().out
    assert "not run" not in text
    assert "toy sizes" in text


def test_a_section_that_takes_too_long_is_named_and_the_next_one_runs(capsys):
    code, found = lines(capsys, "--only", "card,remat", "--limit", "0.05")
    assert code == 1
    assert [(line["section"], line["failed"]) for line in found] == [
        ("card", "took longer than 0.05 s"),
        ("remat", "took longer than 0.05 s"),
    ]
    assert all(line["versions"]["python"] for line in found)


def test_what_a_section_has_found_before_it_is_ended_is_kept(capsys, monkeypatch, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import sys, time\n"
        "if '--section' in sys.argv:\n"
        """    print('{"section": "card", "found": 1}\\nwords\\n{"section": "card", "broken', flush=True)\n"""
        "    time.sleep(60)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    command = process.sys.executable
    (tmp_path / "python").write_text(f"#!/bin/sh\nexec {command} -c 'import sitecustomize' \"$@\"\n")
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setattr(process.sys, "executable", str(tmp_path / "python"))
    code, found = lines(capsys, "--only", "card", "--limit", "3")
    assert code == 1
    assert [line.get("found") for line in found] == [1, None]
    assert found[-1]["failed"] == "took longer than 3 s"


def test_a_section_that_breaks_says_why(capsys, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "nonsense")
    code, found = lines(capsys, "--only", "card")
    assert code == 1
    assert "nonsense" in found[0]["failed"]
    assert "seconds" in found[-1]


def test_a_section_that_raises_says_so_after_what_it_has_found(capsys, monkeypatch):
    def rows(small):
        yield {"value": math.nan, "values": [np.float32(2), {"inner": math.inf}]}
        raise RuntimeError("no memory\nand more")

    monkeypatch.setattr(card, "rows", rows)
    assert process.work("card", True) == 1
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert (found[0]["value"], found[0]["values"]) == (None, [2, {"inner": None}])
    assert found[1]["failed"] == "RuntimeError: no memory"
    assert all(line["device"] == "cpu" and line["small"] for line in found)


def test_time_that_is_left_over_goes_to_the_next_sections(monkeypatch):
    limits = []
    monkeypatch.setattr(process, "run", lambda section, small, limit, environment: iter([limits.append(limit)]))
    list(program.run_all(("card", "step"), True, None, "cache"))
    list(program.run_all(("card", "step"), True, 3.0, "cache"))
    assert limits[0] == pytest.approx(process.LIMITS["card"], abs=1)
    assert limits[1] == pytest.approx(process.LIMITS["card"] + process.LIMITS["step"], abs=1)
    assert limits[2:] == [3.0, 3.0]


def test_a_wrong_backend_is_found(monkeypatch):
    right = dispatch.grouped.PRODUCTS["ragged"]

    def forward(rows, kernel, bias, multiplier, plan):
        out = right.forward(rows, kernel, bias, multiplier, plan)
        return jnp.where(plan.module_P[:, None] == 1, 1.1 * out, out)

    monkeypatch.setitem(dispatch.grouped.PRODUCTS, "ragged", right._replace(forward=forward))
    monkeypatch.setattr(dispatch, "BACKENDS", ("dense", "ragged"))
    rows = {(row["backend"], row["dtype"]): row for row in products.rows(small=True)}
    assert rows["dense", "float32"]["wrong"] == []
    wrong = rows["ragged", "float32"]["wrong"]
    assert wrong[0].startswith("uniform: y ")
    assert any("beside dense" in text for text in wrong)
    assert not any("all_null" in text or "d_kernel" in text for text in wrong)


def test_nan_is_never_right():
    verdict = Verdict(allowed=1e-2)
    verdict.compare("good", np.ones(3) + 1e-3, np.ones(3))
    verdict.compare("zeros", np.zeros(3), np.zeros(3))
    assert (verdict.wrong, verdict.worst) == ([], pytest.approx(1e-3))
    verdict.compare("lost", np.array([1.0, math.nan, 1.0]), np.ones(3))
    verdict.compare("off", np.ones(3), np.zeros(3))
    assert verdict.wrong == ["lost not finite", f"off {3**0.5:.2e}"]
    assert verdict.worst == math.inf


def test_every_entry_of_a_kernel_s_table_is_traced():
    def stages(x):
        return x + grouped.triton.PRODUCT[2].stages

    before = grouped.triton.PRODUCT
    entries = grouped.TILES["triton"].entries
    programs = {
        str(i): grouped.Program(stages, (jnp.float32(0),), entry=("triton", blocks)) for i, blocks in enumerate(entries)
    }
    calls, wrong = grouped.compiled(programs)
    assert wrong == {}
    assert [float(calls[str(i)]()) for i in range(len(entries))] == [blocks.stages for blocks in entries]
    assert len({blocks.stages for blocks in entries}) > 1
    assert grouped.triton.PRODUCT is before


def test_the_work_is_the_issue_s():
    size, configs = step.models(small=False)
    assert (size.batch, size.length, size.vocabulary, size.router) == (16, 1024, 50257, 256)
    assert configs["vanilla"].num_layers == 12
    assert {config.dtype for config in configs.values()} == {"bfloat16"}
    flops = {name: step.needed(config, size) for name, config in configs.items()}
    assert {name: round(value / 1e12, 1) for name, value in flops.items()} == {
        "vanilla": 13.1,
        "K=1": 14.6,
        "K=2": 21.6,
        "K=3": 28.5,
    }
    half = step.needed(configs["K=1"], size, {"attention": 0.5, "ffn": 0.5})
    assert flops["vanilla"] / 2 < half < flops["K=1"]
    assert {rows for rows, _ in grouped.SIZES} == {16384, 49152}
    assert {modules for _, modules in grouped.SIZES} == {10, 32}


@pytest.mark.slow
def test_pytorch_comes_after_ours(monkeypatch):
    monkeypatch.setattr(reference, "torch_gpt2", lambda *args, **options: lambda: None)
    rows = list(step.rows(small=True))
    timed = [(row["model"], row["adamw"]) for row in rows if "model" in row]
    assert timed == [
        ("vanilla", False),
        ("K=1", False),
        ("hf_sdpa", False),
        ("vanilla", True),
        ("K=1", True),
        ("hf_sdpa", True),
    ]
    assert all(row["vanilla_over_this"] > 0 for row in rows if row.get("model") == "hf_sdpa")

    monkeypatch.setattr(decoding.decoding, "hugging_face", lambda *args: lambda batch: lambda: 1.0)
    rows = list(decoding.rows(small=True))
    assert [row["batch"] for row in rows if row.get("model") == "hf"] == [1, 2]
    assert {row["pair"] for row in rows if "pair" in row} == {"vanilla over hf", "mom_k1 over vanilla"}
    assert not any("failed" in row for row in rows)


def test_what_cannot_be_compiled_does_not_stop_the_others():
    def broken(x):
        raise ValueError("no such kernel")

    programs = {"good": (jax.jit(lambda x: x + 1), jnp.float32(1)), "bad": (jax.jit(broken), jnp.float32(1))}
    results = dict(timing.compile_together(programs))
    assert float(results["good"].run(jnp.float32(1))) == 2
    assert results["good"].total_bytes >= 8
    assert str(results["bad"]) == "no such kernel"


def test_calls_that_follow_one_another_are_timed_each():
    count = []
    seconds = timing.bursts({"a": lambda: count.append(1) or jnp.float32(1)}, rounds=3, least=2e-2)
    assert len(seconds["a"]) == 3
    assert len(count) > 5
    assert 0 < timing.medians(seconds)["a"] < 1e-2
    assert timing.seconds_of(jax.jit(lambda: jnp.float32(1)), least=1e-3) > 0


def test_the_table_has_dashes_for_what_was_not_measured():
    found = [
        {"section": "card", "small": False, "device": "A card", "copy_bytes_per_second": 3e12},
        {"section": "step", "small": False, "seconds": 3.0, "failed": "RuntimeError: no memory"},
    ]
    text = table(found)
    assert "**Copies** (A card)" in text
    assert "| 3e+12 |" in text
    assert "step failed: RuntimeError: no memory" in text
    assert "**Decoding** (not run)\n\n| model | batch" in text
    assert "| - | - | - | - |" in text


def test_the_table_shows_the_last_run_of_a_section(capsys, tmp_path):
    about = {"section": "card", "small": False, "device": "A card"}
    file = tmp_path / "lines.jsonl"
    runs = [about | {"copy_bytes_per_second": 1e12}, about | {"seconds": 1.0}] * 2
    runs[2] = about | {"copy_bytes_per_second": 2e12}
    file.write_text("\n".join(json.dumps(line) for line in runs))
    assert program.main(["--table", str(file)]) == 0
    text = capsys.readouterr().out
    assert "2e+12" in text
    assert "1e+12" not in text


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--only", "cards"], "'cards' unknown; there are card,"),
        (["--only", "card", "--limit", "0"], "--limit: 0 is not above 0"),
        (["--table", "nowhere.jsonl"], "--table nowhere.jsonl: "),
        (["--only", "card", "--out", "nowhere/lines.jsonl"], "--out nowhere/lines.jsonl: "),
        (["--only", "card", "extra"], "unrecognized arguments: extra"),
    ],
)
def test_wrong_flags_are_answered_in_one_line(capsys, flags, said):
    with pytest.raises(SystemExit) as stopped:
        program.main(flags)
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


def test_a_table_of_something_else_is_answered_in_one_line(capsys, tmp_path):
    for text in ("words", "[1]", '{"a": 1}'):
        (tmp_path / "lines").write_text(text)
        with pytest.raises(SystemExit) as stopped:
            program.main(["--table", str(tmp_path / "lines")])
        assert stopped.value.code == 2
        assert "--table" in capsys.readouterr().err
