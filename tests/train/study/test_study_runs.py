"""A small study as users run it: killed within a run and taken up again, in parts, it gives the same results."""

import json
import signal
import subprocess
import sys
import time

import pytest
from programs import call, environment
from test_study_parts import write_file

from train.reporting import metrics
from train.study.__main__ import main
from train.study.records import read_results


def without_times(folder):
    return [{**row, "seconds": None} for row in read_results(folder)]


@pytest.mark.slow
def test_killed_and_resumed_in_parts_it_gives_the_same(tmp_path, capsys):
    file = write_file(tmp_path, seeds=(0,))
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    code, output, _ = call(capsys, main, file, "--out", whole)
    assert code == 0
    assert "| K=1" in output
    expected = without_times(whole / "trial-small")
    assert [(row["arm"], row["seed"]) for row in expected] == [("vanilla", 0), ("K=1", 0)]
    for row in expected:
        assert row["tokens"] == 2 * row["own_tokens"] == 2 * 6 * 4 * 16
        assert [step for step, _ in row["curve"]] == [3, 6]
    assert expected[0]["loss"] != expected[1]["loss"]
    assert expected[0]["flops_per_token"] != expected[1]["flops_per_token"]

    # The run of this part is killed after a checkpoint, the moment that a step beyond it is in its log.
    command = [sys.executable, "-m", "train.study", str(file), "--out", str(parts), "--shard", "2/2"]
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    log = parts / "trial-small" / "runs" / "K=1" / "seed-0" / "metrics.jsonl"
    while process.poll() is None:
        if log.exists() and any(r.get("kind") == "train" and r["step"] >= 3 for r in metrics.read(log)):
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.005)
    assert process.wait() == -signal.SIGKILL
    assert read_results(parts / "trial-small") == []
    code, output, _ = call(capsys, main, file, "--out", parts, "--dry-run")
    assert code == 0
    assert "2 of 3 runs to train" in output
    for shard in ("2/2", "1/2"):
        assert call(capsys, main, file, "--out", parts, "--shard", shard)[0] == 0
    assert without_times(parts / "trial-small") == expected

    # All is there: nothing is trained again, and the table is made of the results alone.
    before = (parts / "trial-small" / "results.jsonl").read_bytes()
    assert call(capsys, main, file, "--out", parts)[0] == 0
    assert (parts / "trial-small" / "results.jsonl").read_bytes() == before
    (parts / "trial-small" / "table.md").unlink()
    code, output, _ = call(capsys, main, file, "--out", parts, "--table")
    assert (parts / "trial-small" / "table.md").read_text().strip() == output.strip()

    # Speed and memory come from the finished runs' parameters.
    code, output, _ = call(capsys, main, file, "--out", parts, "--measure", "--rounds", "2")
    assert code == 0
    measured = json.loads((parts / "trial-small" / "measure.json").read_text())["arms"]
    assert measured["vanilla"]["speed_ratio"] == 1
    assert measured["K=1"]["peak_bytes"] > measured["vanilla"]["peak_bytes"] > 0
    assert {own["parameters"] for own in measured.values()} == {"of a finished run"}
    assert "memory, MB" in output

    # An arm that is taught by the first phase, which is trained by now, has steps with a teacher.
    file = write_file(tmp_path, ", Arm('taught', {'phases.mom.distill': 'previous'})", seeds=(0,))
    code, _, err = call(capsys, main, file, "--out", parts, "--measure", "--rounds", "2", "--only", "taught")
    assert code == 0, err
    measured = json.loads((parts / "trial-small" / "measure.json").read_text())["arms"]
    assert measured["taught"]["peak_bytes"] > measured["vanilla"]["peak_bytes"]
    assert measured["taught"]["parameters"] == "new"

    # A vanilla model is analysed too, and has no choices that could change.
    file = write_file(tmp_path, ", Arm('analysed', {'phases.mom.model': 'vanilla', 'analysis.every': 3})", seeds=(0,))
    code, _, err = call(capsys, main, file, "--out", parts, "--only", "analysed")
    assert code == 0, err
    analysed = next(row for row in read_results(parts / "trial-small") if row["arm"] == "analysed")
    assert (analysed["loss"], analysed["routers"]) == (expected[0]["loss"], {})
