"""Training by two processes on one machine, each with four simulated devices, started as a user starts them."""

import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import tiny
from programs import ROOT, call, environment

from train import checkpoint, evaluate, generate, main
from train.reporting import metrics

MESH = ("--mesh.fsdp", "2", "--mesh.module", "2")
# XLA prints these words for every group of devices.
GLOO_WORDS = {"Gloo", "Rank", "is", "connected", "to", "peer", "ranks", "Expected", "number", "of"}
# Long enough for a signal to come in between.
STEPS = 48
LONG = ("--phases.0.steps", str(STEPS), "--checkpoint.every", "5", "--evaluate-every", str(STEPS))


def write_config_of(folder, phase):
    """The tiny experiment with one of its phases only, from scratch."""
    file = tiny.write_config(folder)
    text = file.read_text().replace("return ", "config = ")
    phases = f"(dataclasses.replace(config.phases[{phase}], init_from='scratch'),)"
    file.write_text(f"import dataclasses\n{text}    return dataclasses.replace(config, phases={phases})\n")
    return file


def popen(file, devices, *flags):
    own = environment() | {"JAX_NUM_CPU_DEVICES": str(devices)}
    command = [sys.executable, "-m", "train.main", "--config", str(file), "--data.batch-size", "8", *flags]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=ROOT, env=own, **pipes)


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def start(file, *flags, each=((), ())):
    """Two processes; `each` has the flags in which they differ."""
    meeting = ("--coordinator", f"127.0.0.1:{free_port()}", "--processes", "2")
    return [popen(file, 4, *MESH, *meeting, "--process", str(i), *flags, *own) for i, own in enumerate(each)]


def ended(processes, seconds=400):
    """(exit code, stdout, stderr) of each."""
    try:
        outputs = [process.communicate(timeout=seconds) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, *output) for process, output in zip(processes, outputs, strict=True)]


def one(file, devices, *flags):
    [result] = ended([popen(file, devices, *flags)])
    return result


def finished(results):
    assert [code for code, _, _ in results] == [0] * len(results), results
    return results


def wait_for_step(run, step, processes):
    log = run / "metrics.jsonl"
    while not log.exists() or log.read_bytes().count(b"\n") < step:
        assert all(process.poll() is None for process in processes), ended(processes)
        time.sleep(0.02)


def train_records(run):
    return [record for record in metrics.read(run / "metrics.jsonl") if record["kind"] == "train"]


def assert_same_losses(run, other):
    """The same examples at every step, the same losses, the same evaluations."""
    ours, theirs = (metrics.read(folder / "metrics.jsonl") for folder in (run, other))
    for name in ("kind", "phase", "step", "examples_seen"):
        assert [record.get(name) for record in ours] == [record.get(name) for record in theirs]
    np.testing.assert_allclose([r["loss"] for r in ours], [r["loss"] for r in theirs], rtol=0, atol=1e-4)


def assert_same_params(run, other, phase, tolerance):
    found = [checkpoint.find(folder / "checkpoints" / phase, field="run") for folder in (run, other)]
    assert found[0].step == found[1].step
    ours, theirs = (f.params(f.meta().model) for f in found)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=tolerance), ours, theirs)


@pytest.fixture(scope="module")
def vanilla(tmp_path_factory):
    """Its first phase compiles quickly, and processes divide a MoM no differently."""
    return write_config_of(tmp_path_factory.mktemp("vanilla"), 0)


@pytest.fixture(scope="module")
def pair(vanilla):
    """A run of two processes, and what they said."""
    run = vanilla.parent / "pair"
    return run, finished(ended(start(vanilla, "--run", str(run))))


def test_two_processes_train_like_one(vanilla, pair):
    run, single = pair[0], vanilla.parent / "single"
    finished([one(vanilla, 1, "--run", str(single))])
    assert_same_losses(run, single)
    assert_same_params(run, single, "pretrain", 1e-4)


def test_one_process_speaks_and_writes(pair):
    run, [(_, _, first), (_, out, second)] = pair
    assert "pretrain: 6/6 steps (100 %)" in first
    assert f"report: {run}/report.html" in first
    assert second == ""
    assert set(re.findall("[A-Za-z]+", out)) <= GLOO_WORDS
    assert [record["step"] for record in train_records(run)] == [1, 2, 3, 4, 5, 6]
    assert (run / "report.html").stat().st_size > 0


def test_the_other_programs_read_what_two_processes_saved(pair, capsys):
    run, _ = pair
    code, out, _ = call(capsys, evaluate.main, "--checkpoint", run, "--json", "--limit", 2)
    assert code == 0
    assert json.loads(out)["loss"] == pytest.approx(metrics.read(run / "metrics.jsonl")[-1]["loss"], abs=1e-5)
    code, out, _ = call(capsys, generate.main, "--checkpoint", run, "--prompt", "alpha", "--tokens", 4)
    assert code == 0
    assert out.startswith("alpha")


@pytest.mark.slow
def test_a_dry_run_on_a_mesh(vanilla, tmp_path):
    code, out, err = one(vanilla, 8, *MESH, "--dry-run", "--run", str(tmp_path / "run"))
    assert code == 0, err
    assert "each of 8 devices" in out
    assert not (tmp_path / "run").exists()


MEET = ("--coordinator", "127.0.0.1:1", "--processes", "2")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (("--processes", "2"), "coordinator=None: --coordinator, --processes and --process go together"),
        (MEET, "process=None: --coordinator, --processes and --process go together"),
        ((*MEET, "--process", "2"), "process=2: must lie between 0 and 1, with --processes"),
        ((*MEET, "--process", "1", "--distributed"), "distributed=True: finds by itself"),
        ((*MEET, "--process", "1", "--coordinator", "127.0.0.1"), "coordinator='127.0.0.1': must be HOST:PORT"),
        ((*MEET, "--process", "1", "--coordinator", "h:70000"), "coordinator='h:70000': must be HOST:PORT"),
        ((*MEET, "--process", "1", "--join-timeout", "0"), "join-timeout=0: must be at least 1"),
        (("--mesh.fsdp", "64"), "x fsdp 64 x module 1 x tensor 1': is 64 devices, there are 1"),
        (("--mesh.fsdp", "0"), "fsdp=0: must be at least 1"),
    ],
)
def test_wrong_flags_are_one_line(vanilla, tmp_path, capsys, flags, expected):
    code, _, err = call(capsys, main.main, "--config", vanilla, "--run", tmp_path / "run", *flags)
    assert code == 2
    assert expected in err.splitlines()[-1]
    assert not (tmp_path / "run").exists()


def assert_refused(result, expected, run, *, prepared=False):
    """The process ends with one line; before it only what preparing the data shows, where `prepared`."""
    code, _, err = result
    assert code == 2, err
    *before, last = err.splitlines()
    assert last.startswith("error: ")
    assert expected in last
    assert prepared or not before, err
    assert "Traceback" not in err
    assert not run.exists()


@pytest.mark.parametrize("process", [0, 1])
def test_a_process_without_the_others(vanilla, tmp_path, process):
    address = f"127.0.0.1:{free_port()}"
    meeting = ("--coordinator", address, "--processes", "2", "--process", str(process), "--join-timeout", "1")
    result = one(vanilla, 4, "--run", str(tmp_path / "run"), *meeting)
    assert_refused(result, f"'{address}': the processes did not all start within 1 s", tmp_path / "run")


def test_a_port_that_another_program_has(vanilla, tmp_path, capsys):
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        meeting = ("--coordinator", address, "--processes", "2", "--process", "0")
        result = call(capsys, main.main, "--config", vanilla, "--run", tmp_path / "run", *meeting)
    assert_refused(result, f"'{address}': the port cannot be opened here (Address already in use)", tmp_path / "run")


@pytest.mark.slow
def test_all_end_where_one_cannot_go_on(vanilla, tmp_path):
    file = tmp_path / "file"
    file.touch()
    results = ended(start(vanilla, "--run", str(tmp_path / "run"), each=((), ("--data.cache", str(file / "cache")))))
    # whether process 0 finds its data prepared depends on the tests that ran before
    assert_refused(results[0], "process 1 cannot go on and says why", tmp_path / "run", prepared=True)
    assert_refused(results[1], "cache': must be a folder that can be written", tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("each", "expected"),
    [
        (((), ("--seed", "3")), "config: must be the same in all processes, process 1 has another than process 0"),
        ((("--data.batch-size", "12"),) * 2, "data.batch_size=12: must be a multiple of the mesh's 8 devices"),
        ((("--mesh.data", "1"),) * 2, "is 4 devices and must be all 8 of all processes"),
    ],
)
def test_wrong_input_of_two_processes(vanilla, tmp_path, each, expected):
    for result in ended(start(vanilla, "--run", str(tmp_path / "run"), each=each)):
        assert_refused(result, expected, tmp_path / "run")


@pytest.mark.slow
def test_a_finished_run_and_a_folder_in_use(vanilla, pair):
    import fcntl

    run, _ = pair
    before = (run / "metrics.jsonl").read_bytes()
    results = finished(ended(start(vanilla, "--run", str(run))))
    assert "pretrain: finished before" in results[0][2]
    assert (run / "metrics.jsonl").read_bytes() == before
    with (run / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        results = ended(start(vanilla, "--run", str(run)))
    assert [code for code, _, _ in results] == [2, 2]
    assert "another process is training in this folder" in results[0][2]


@pytest.mark.slow
def test_a_run_that_is_killed_and_stopped_ends_as_if_nothing_had_happened(vanilla, tmp_path):
    """One process is killed; started again, one is sent SIGTERM, which stops both."""
    run = tmp_path / "run"
    processes = start(vanilla, "--run", str(run), *LONG)
    wait_for_step(run, 8, processes)
    processes[1].kill()
    [(code, _, err), _] = ended(processes, seconds=60)
    assert code == -signal.SIGABRT
    assert "another task died" in err
    processes = start(vanilla, "--run", str(run), *LONG)
    wait_for_step(run, 16, processes)
    processes[1].send_signal(signal.SIGTERM)
    results = ended(processes)
    assert [code for code, _, _ in results] == [0, 0], results
    assert "stopped by SIGTERM; everything is saved" in results[0][1]
    assert not any("Traceback" in err for _, _, err in results)
    assert checkpoint.find(run, field="run").step < STEPS
    finished(ended(start(vanilla, "--run", str(run), *LONG)))
    uninterrupted = tmp_path / "uninterrupted"
    finished(ended(start(vanilla, "--run", str(uninterrupted), *LONG)))
    assert_same_losses(run, uninterrupted)
    assert_same_params(run, uninterrupted, "pretrain", 1e-6)


@pytest.fixture(scope="module")
def modules(tmp_path_factory):
    """Both phases, by two processes and by one with one device; every checkpoint is kept."""
    file = tiny.write_config(tmp_path_factory.mktemp("modules"))
    keep = ("--checkpoint.keep", "9")
    finished(ended(start(file, "--run", str(file.parent / "two"), *keep)))
    finished([one(file, 1, "--run", str(file.parent / "one"), *keep)])
    return file


@pytest.mark.slow
def test_modules_divided_among_processes(modules):
    eight = modules.parent / "eight"
    finished([one(modules, 8, "--run", str(eight), *MESH)])
    for run in (modules.parent / "two", eight):
        assert_same_losses(run, modules.parent / "one")
        for phase in ("pretrain", "mom"):
            assert_same_params(run, modules.parent / "one", phase, 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("saved_by", ["two", pytest.param("one", marks=pytest.mark.exhaustive)])
def test_a_run_goes_on_with_other_processes_and_another_mesh(modules, tmp_path, saved_by):
    run = tmp_path / "run"
    shutil.copytree(modules.parent / saved_by, run)
    for step in ("3", "4", "6"):  # as if stopped after step 2
        shutil.rmtree(run / "checkpoints" / "mom" / step)
    if saved_by == "two":
        results = finished(
            [one(modules, 8, "--run", str(run), "--mesh.data", "1", "--mesh.fsdp", "4", "--mesh.tensor", "2")]
        )
    else:
        results = finished(ended(start(modules, "--run", str(run))))
    assert "mom: resuming at step 2" in results[0][2]
    assert_same_losses(run, modules.parent / saved_by)
    assert_same_params(run, modules.parent / saved_by, "mom", 1e-4)


@pytest.mark.slow
@pytest.mark.exhaustive
def test_random_numbers_on_a_mesh(tmp_path):
    run = tmp_path / "run"
    random = ("--model.router.kind", "gru_random", "--model.dropout.residual", "0.1")
    finished([one(write_config_of(tmp_path, 1), 8, "--run", str(run), *MESH, *random)])
    assert np.isfinite([record["loss"] for record in train_records(run)]).all()
