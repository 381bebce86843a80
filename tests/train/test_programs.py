"""The programs as a user runs them: their output, exit codes and one-line errors."""

import json
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tiny
from programs import ROOT, call, environment

from train import checkpoint, evaluate, generate, main
from train.reporting import metrics

pytestmark = pytest.mark.usefixtures("shared_steps")


def command(file, *flags):
    return [sys.executable, "-m", "train.main", "--config", str(file), *flags]


def run(file, *flags):
    return subprocess.run(command(file, *flags), capture_output=True, text=True, cwd=ROOT, env=environment())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    file = tiny.write_config(folder)
    result = run(file)
    assert result.returncode == 0, result.stderr
    return folder, file, result


def test_training_shows_progress_and_results(trained):
    folder, _, result = trained
    for expected in (
        "pretrain: starting from scratch",
        "mom: starting from",
        "validation loss",
        "tokens/s",
        "a sample",
    ):
        assert expected in result.stderr
    assert str(folder / "run" / "report.html") in result.stderr
    assert "exchanging the choices among tokens changes the loss" in result.stderr


def test_evaluate(trained, capsys):
    folder, _, _ = trained
    code, out, _ = call(capsys, evaluate.main, "--checkpoint", folder / "run", "--json", "--limit", 2)
    assert code == 0
    record = json.loads(out)
    final = metrics.read(folder / "run" / "metrics.jsonl")[-1]
    assert record["phase"] == "mom"
    assert record["loss"] == pytest.approx(final["loss"], abs=1e-6)
    code, out, _ = call(capsys, evaluate.main, "--checkpoint", folder / "run/checkpoints/pretrain", "--exchange")
    assert code == 0
    assert "perplexity" in out


def test_generate(trained, capsys):
    folder, _, _ = trained
    flags = ("--checkpoint", folder / "run", "--prompt", "alpha beta", "--tokens", 8, "--seed", 3)
    code, first, _ = call(capsys, generate.main, *flags)
    assert code == 0
    assert first.startswith("alpha beta")
    assert call(capsys, generate.main, *flags)[1] == first


def test_dry_run_writes_no_run(trained, tmp_path, capsys):
    _, file, _ = trained
    code, out, _ = call(capsys, main.main, "--config", file, "--run", tmp_path / "run", "--dry-run")
    assert code == 0
    for expected in ("parameters, total", "memory of the compiled step", "first batch, row 0", "pretrain: 6 steps"):
        assert expected in out
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_profile_writes_a_trace(trained, tmp_path, capsys):
    _, file, _ = trained
    flags = ("--config", file, "--run", tmp_path / "run", "--profile", "2:3")
    assert call(capsys, main.main, *flags)[0] == 0
    assert list((tmp_path / "run" / "profile").rglob("*.xplane.pb"))


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (("--model.top-k", "9"), "top_k=9: must be at most the 3 classes of the attention router"),
        (("--model.num-steps", "0"), "num_steps=0: must be at least 1"),
        (
            ("--model.attention-kernel", "cudnn"),
            "attention_kernel='cudnn': needs an NVIDIA GPU of compute capability 8.0",
        ),
        (("--model.num-heads", "3"), "num_heads=3: must divide d_model=16"),
        (("--model.exchange-room", "2"), "model.exchange_room=2.0: is set by mesh.room"),
        (("--mesh.room", "0"), "room=0.0: must be positive"),
        (("--model.vocab-size", "200"), "model.vocab_size=200: must be at least the tokenizer's 300"),
        (("--data.source", "text:/no/such/folder/*.txt"), "data.source='text:/no/such/folder/*.txt'"),
        (("--data.tokenizer", "/no/such.model"), "data.tokenizer='/no/such.model'"),
        (("--data.length", "64"), "data.length=64: must be at most model.context_length=32"),
        (("--phases.1.init-from", "/no/such"), "phases.mom.init_from='/no/such': no such folder"),
        (("--resume", "/no/such"), "resume='/no/such'"),
        (("--profile", "3:2"), "profile='3:2'"),
        (("--profile", "3:99"), "profile='3:99': the run has 12 steps"),
        (("--phases.0.optim.freeze", "chunk/*"), "phases.pretrain.optim.freeze='chunk/*': matches no parameter"),
        (("--phases.0.optim.schedule", "wsd"), "decay_steps=0: must be positive with schedule='wsd'"),
    ],
)
def test_wrong_input_is_one_line_and_writes_nothing(trained, tmp_path, capsys, flags, expected):
    _, file, _ = trained
    before = set(tmp_path.iterdir())
    code, out, err = call(capsys, main.main, "--config", file, "--run", tmp_path / "run", *flags)
    assert code == 2
    assert out == ""
    assert expected in err
    assert err.count("\n") == 1
    assert set(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("flags", "expected"),
    [(("--model.topk", "2"), "--model.top-k"), (("--model.top-k", "two"), "int"), (("--model.dtype", "f4"), "float32")],
)
def test_flags_that_do_not_parse(trained, tmp_path, capsys, flags, expected):
    _, file, _ = trained
    code, _, err = call(capsys, main.main, "--config", file, "--run", tmp_path / "run", *flags)
    assert code == 2
    assert expected in err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "no such file"),
        ("x = 1\n", "must define get_config()"),
        ("def get_config(): return 1\n", "not int"),
        ("x = 1\ny = (\n", "line 2: SyntaxError"),
        ("\nimport nothing_such\n", "line 2: ModuleNotFoundError"),
    ],
)
def test_wrong_config_files(tmp_path, capsys, content, expected):
    file = tmp_path / "experiment.py"
    if content:
        file.write_text(content)
    code, _, err = call(capsys, main.main, "--config", file)
    assert code == 2
    assert expected in err


def test_evaluate_refuses_what_is_no_run(tmp_path, capsys):
    for path, expected in ((tmp_path / "missing", "no such folder"), (tmp_path, "is not a run's folder")):
        code, _, err = call(capsys, evaluate.main, "--checkpoint", path)
        assert code == 2
        assert f"checkpoint='{path}'" in err
        assert expected in err


def test_a_tokenizer_of_another_vocabulary_is_refused(trained, tmp_path, capsys):
    from train.data.tokenizers.spm import train_sentencepiece

    folder, _, _ = trained
    model = folder / "run" / "tokenizer.model"
    original = model.read_bytes()
    model.write_bytes(train_sentencepiece([" ".join(tiny.WORDS) * 20], 280))
    try:
        code, _, err = call(capsys, generate.main, "--checkpoint", folder / "run")
    finally:
        model.write_bytes(original)
    assert code == 2
    assert "another tokenizer (a vocabulary of 300 tokens" in err


def params_bytes(run):
    """The parameters of every phase's last checkpoint, by path."""
    found = [checkpoint.find(run / "checkpoints" / name, field="run") for name in ("pretrain", "mom")]
    import jax

    return [[np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(f.params(f.meta().model))] for f in found]


def goes_on(capsys, file, *flags):
    """The same command again, to its end. Nothing of this is about processes: it is called in this one."""
    code, _, err = call(capsys, main.main, "--config", file, *flags)
    assert code == 0, err


def killed_again_and_again(trained, folder, capsys, kills, seed):
    """Runs the same experiment with `kills` kills at random moments of its training, then to its end."""
    reference, file, _ = trained
    flags, log, rng = ("--run", str(folder / "run")), folder / "run" / "metrics.jsonl", random.Random(seed)
    killed = 0
    for _ in range(kills):
        target = lines_of(log) + rng.randrange(5)
        process = subprocess.Popen(
            command(file, *flags), cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while process.poll() is None and lines_of(log) <= target:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.5))
        killed += process.poll() is None
        process.kill()
        process.wait()
    goes_on(capsys, file, *flags)
    assert params_bytes(folder / "run") == params_bytes(reference / "run")
    steps = [(r["phase"], r["step"]) for r in metrics.read(log) if r["kind"] == "train"]
    assert steps == [(phase, step) for phase in ("pretrain", "mom") for step in range(1, 7)]
    return killed


def lines_of(log):
    return log.read_bytes().count(b"\n") if log.exists() else 0


@pytest.mark.slow
def test_a_run_killed_three_times_ends_bit_for_bit_alike(trained, tmp_path, capsys):
    assert killed_again_and_again(trained, tmp_path, capsys, 3, 1) >= 2


def copy_of(trained, tmp_path):
    shutil.copytree(trained[0] / "run", tmp_path / "run")
    return tmp_path / "run"


def test_a_finished_phase_needs_no_checkpoints_any_more(trained, tmp_path, capsys):
    copy = copy_of(trained, tmp_path)
    before = (copy / "metrics.jsonl").read_bytes()
    shutil.rmtree(copy / "checkpoints" / "pretrain")
    code, _, err = call(capsys, main.main, "--config", trained[1], "--run", copy)
    assert code == 0
    assert err.count("finished before") == 2
    assert (copy / "metrics.jsonl").read_bytes() == before


@pytest.mark.slow
def test_a_resumed_run_stands_by_itself(trained, tmp_path, capsys):
    source = copy_of(trained, tmp_path)
    shutil.rmtree(source / "checkpoints" / "mom")
    (source / "checkpoints" / "mom").mkdir()  # as if killed before the first checkpoint
    flags = ("--config", trained[1], "--run", tmp_path / "new", "--resume", source)
    assert call(capsys, main.main, *flags)[0] == 0
    assert params_bytes(tmp_path / "new") == params_bytes(trained[0] / "run")
    log = (tmp_path / "new" / "metrics.jsonl").read_bytes()
    assert call(capsys, main.main, *flags)[0] == 0
    assert (tmp_path / "new" / "metrics.jsonl").read_bytes() == log


def test_another_corpus_is_refused(trained, tmp_path, capsys):
    copy = copy_of(trained, tmp_path)
    log = (copy / "metrics.jsonl").read_text().splitlines()
    (copy / "metrics.jsonl").write_text("\n".join(line for line in log if '"final"' not in line) + "\n")
    added = trained[0] / "corpus" / "zzz.txt"
    added.write_text("omega " * 200)
    try:
        code, _, err = call(capsys, main.main, "--config", trained[1], "--run", copy)
    finally:
        added.unlink()
    assert code == 2
    assert err.splitlines()[-1].startswith("error: data.source='text:")
    assert "another tokenizer" in err


@pytest.mark.parametrize(
    ("break_it", "expected"),
    [
        (lambda run: (run / "config.json").write_text("{"), "config.json: cannot be read"),
        (lambda run: shutil.rmtree(run / "checkpoints/mom/6/params"), "/6 is damaged (params/_METADATA is missing)"),
        (
            lambda run: shutil.rmtree(run / "checkpoints/mom/6/meta"),
            "/6 is damaged (meta/commit_success.txt is missing)",
        ),
        (lambda run: shutil.rmtree(run / "checkpoints"), "has no checkpoint"),
    ],
)
def test_a_damaged_run_is_one_line(trained, tmp_path, capsys, break_it, expected):
    copy = copy_of(trained, tmp_path)
    break_it(copy)
    code, _, err = call(capsys, evaluate.main, "--checkpoint", copy)
    assert code == 2
    assert expected in err.splitlines()[-1]


def test_a_broken_line_in_the_log_is_one_line(trained, tmp_path, capsys):
    copy = copy_of(trained, tmp_path)
    log = (copy / "metrics.jsonl").read_text()
    (copy / "metrics.jsonl").write_text("{broken\n" + log)
    code, _, err = call(capsys, main.main, "--config", trained[1], "--run", copy)
    assert code == 2
    assert "metrics.jsonl, line 1: must be a JSON object" in err


def test_every_way_to_name_a_checkpoint(trained, tmp_path, monkeypatch):
    shutil.copytree(trained[0] / "run", tmp_path / "checkpoints" / "exp")  # a run in a folder of that name
    run = tmp_path / "checkpoints" / "exp"
    monkeypatch.chdir(run / "checkpoints" / "mom")
    for path in (run, run / "checkpoints", run / "checkpoints/mom", run / "checkpoints/mom/6", ".", "6"):
        found = checkpoint.find(path, field="checkpoint")
        assert (found.run, found.phase.name, found.step) == (run, "mom", 6)


@pytest.mark.parametrize(
    ("number", "code"), [pytest.param(signal.SIGTERM, 0, marks=pytest.mark.slow), (signal.SIGINT, 130)]
)
def test_a_signal_saves_and_the_same_command_goes_on(trained, tmp_path, capsys, number, code):
    reference, file, _ = trained
    flags = ("--run", str(tmp_path / "run"))
    process = subprocess.Popen(
        command(file, *flags), cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    log = tmp_path / "run" / "metrics.jsonl"
    while process.poll() is None and not (log.exists() and log.stat().st_size):
        time.sleep(0.05)
    process.send_signal(signal.SIGSTOP)  # which changes nothing
    time.sleep(0.5)
    process.send_signal(signal.SIGCONT)
    process.send_signal(number)
    out, err = process.communicate(timeout=120)
    assert process.returncode == code, err
    assert f"stopped by {number.name}" in out
    assert checkpoint.find(tmp_path / "run", field="run").step >= 1
    goes_on(capsys, file, *flags)
    assert params_bytes(tmp_path / "run") == params_bytes(reference / "run")


def test_two_processes_cannot_train_in_one_folder(trained, capsys):
    """The lock is the open file's, not the process's: the other one may be this one."""
    import fcntl

    folder, file, _ = trained
    with (folder / "run" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        code, _, err = call(capsys, main.main, "--config", file)
    assert code == 2
    assert "another process is training in this folder" in err


@pytest.mark.parametrize("folder", ["/", "/tmp"])
def test_a_folder_at_the_top_that_is_no_run(capsys, folder):
    code, _, err = call(capsys, generate.main, "--checkpoint", folder)
    assert (code, err) == (2, f"error: checkpoint={folder!r}: is not a run's folder (it has no config.json)\n")
