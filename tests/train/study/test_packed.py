"""Studies over one file of tokens: the file, the steps that fit, and a small study killed and taken up again."""

import dataclasses
import json
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from programs import call, environment

from mom_jax.fields import ConfigError
from mom_jax.sharding import make_mesh
from train.data.prepared import prepare
from train.files import CHECKSUM
from train.steps.evaluation_step import evaluation_step
from train.steps.optimizer import make_optimizer
from train.steps.train_step import jit_train_step
from train.study import changed
from train.study.__main__ import main as study_main
from train.study.definition import load_study
from train.study.packed.__main__ import main
from train.study.packed.pack import pack
from train.study.packed.program import alone
from train.study.packed.running import kept
from train.study.packed.sizing import Cost, sized
from train.study.packed.tokens import HEADER, batches, held_out_batches, open_tokens, order
from train.study.plan import make_plan
from train.study.records import read_results
from train.training.initial_state import first_state, fresh_params
from train.training.run import Busy

# What a machine with an accelerator need not have.
ABSENT = ("tyro", "grain", "tensorflow_datasets", "sentencepiece", "tensorboardX", "scipy", "matplotlib")


def write_study(folder: Path, seeds=(0,)) -> Path:
    """A study that needs nothing of the tests."""
    config = changed(tiny.config(folder), {"phases.pretrain.steps": 20, "phases.mom.steps": 20})
    (folder / "base.json").write_text(json.dumps(dataclasses.asdict(config)))
    file = folder / "study_file.py"
    file.write_text(
        "import json\nfrom pathlib import Path\n\nfrom mom_jax.fields import from_dict\n"
        "from train.config import Config\nfrom train.study import Arm, Study\n\n\ndef get_study():\n"
        f"    base = from_dict(Config, json.loads(Path({str(folder / 'base.json')!r}).read_text()))\n"
        "    arms = (Arm('vanilla', {'phases.mom.model': 'vanilla'}), Arm('K=1', {'model.top_k': 1}))\n"
        f"    return Study('trial', 'Which?', {{'small': base}}, arms, seeds={seeds})\n"
    )
    return file


def small_file(folder: Path, **fields):
    data = dataclasses.replace(tiny.config(folder).data, **fields)
    return data, pack(data, 20_000, folder / "tokens.bin", lambda text: None)


def with_header(content, **fields):
    """The file with another header."""
    header = json.loads(content[:HEADER]) | fields
    return json.dumps(header).encode().ljust(HEADER) + content[HEADER:]


def test_a_file_has_windows_of_both_sides(tmp_path):
    data, found = small_file(tmp_path)
    assert (tmp_path / "tokens.bin").stat().st_size <= 20_000
    prepared = prepare(data)
    for caches, rows in (
        (prepared.validation, found.rows[: found.held_out]),
        (prepared.train, found.rows[found.held_out :]),
    ):
        [cache] = caches
        windows = cache.tokens[: cache.num_tokens // 16 * 16].reshape(-1, 16).tolist()
        places = [windows.index(row) for row in rows.tolist()]
        assert len(rows) > 50
        assert len(set(map(tuple, rows.tolist()))) >= 0.9 * len({tuple(windows[place]) for place in places})
    assert found.vocab_size == tiny.VOCABULARY
    # An order has each row once in each epoch, and seeds have different ones.
    epochs = batches(3, found, 2 * found.training // 4, 4).reshape(-1) - found.held_out
    half = found.training // 4 * 4
    assert len(set(epochs[:half].tolist())) == half
    assert not np.array_equal(next(order(3, 50)), next(order(4, 50)))
    assert len(set(held_out_batches(found, 3, 4).reshape(-1).tolist())) == 12
    with pytest.raises(ConfigError, match=r"final_batches=999: of 4 rows each must be at most"):
        held_out_batches(found, 999, 4)
    content = (tmp_path / "tokens.bin").read_bytes()
    for damaged, problem in (
        (content[:-1], "is no whole file"),
        (content[:-2] + b"\0\0", "its tokens are not those that were written"),
        (b"tokens", "is no whole file"),
        (with_header(content, vocab_size=200), "its tokens are not those|its header is not what"),
        (with_header(content, vocab_size=301), "its header is not what was written"),
        (with_header(content, held_out=found.held_out + 1, training=found.training - 1), "its header is not what"),
        (with_header(content, training=0), "its header has no counts of at least 1"),
        (with_header(content, training=10**30), "its header has no counts"),
        (with_header(content, training=found.training + 1), "bytes, its header says"),
        (with_header(content, source=None), "its header is not what was written"),
    ):
        (tmp_path / "tokens.bin").write_bytes(damaged)
        with pytest.raises(ConfigError, match=problem):
            open_tokens(tmp_path / "tokens.bin")
    older = json.loads(content[:HEADER])
    del older[CHECKSUM]
    (tmp_path / "tokens.bin").write_bytes(json.dumps(older).encode().ljust(HEADER) + content[HEADER:])
    assert open_tokens(tmp_path / "tokens.bin").digest == found.digest
    (tmp_path / "program.py").write_text("precious")
    with pytest.raises(ConfigError, match=r"pack='.*program.py': is there already, and is not a file of tokens"):
        pack(data, 20_000, tmp_path / "program.py", lambda text: None)
    assert (tmp_path / "program.py").read_text() == "precious"


def test_as_many_steps_as_fit(tmp_path):
    plan = make_plan(load_study(str(write_study(tmp_path, seeds=(0, 1)))), "small", tmp_path)
    base, costs = plan.study.base["small"], {"vanilla": Cost(0.01, 0.5), "K=1": Cost(0.03, 1.0)}
    steps = sized(base, plan.runs, costs, 100.0)
    assert steps["pretrain"] == steps["mom"]
    assert steps["mom"] % 10 == 0

    def seconds(more):
        first = costs["vanilla"].of(steps["pretrain"] + more)  # that all share
        return first + sum(costs[run.arm].of(steps["mom"] + more) for run in plan.runs)

    assert seconds(0) <= 90 < seconds(10)
    with pytest.raises(ConfigError, match=r"seconds: 5 runs in the 4 s that are left would have 0 steps of pretrain"):
        sized(base, plan.runs, costs, 4.0)


def test_one_process_is_at_a_study_at_a_time(tmp_path):
    plan = make_plan(load_study(str(write_study(tmp_path))), "small", tmp_path)
    with alone(plan), pytest.raises(Busy, match="another process is at this study"), alone(plan):
        raise AssertionError
    with alone(plan):
        pass


def without_times(folder):
    return [{**row, "seconds": None} for row in read_results(folder)]


@pytest.mark.slow
def test_killed_and_resumed_it_gives_the_same(tmp_path, capsys):
    file, tokens = write_study(tmp_path), tmp_path / "tokens.bin"
    code, output, _ = call(capsys, main, file, "--pack", tokens, "--megabytes", "0.02")
    assert code == 0
    assert "tokens to train on" in output
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    code, output, _ = call(capsys, main, file, "--tokens", tokens, "--out", whole)
    assert code == 0
    expected = without_times(whole / "trial-small")
    assert [json.loads(line) | {"seconds": None} for line in output.splitlines()] == expected
    assert [(row["arm"], row["tokens"], row["own_tokens"]) for row in expected] == [
        ("vanilla", 2560, 1280),
        ("K=1", 2560, 1280),
    ]
    assert [step for step, _ in expected[1]["curve"]] == [10, 20]
    assert expected[1]["curve"][-1][1] == expected[1]["loss"]
    assert expected[1]["routers"]["ffn"]["entropy"] > 0

    # In a process that has nothing but what the accelerator's machine has; killed when the first result is there.
    script = f"import sys; sys.modules.update(dict.fromkeys({ABSENT}))\n"
    script += "from train.study.packed.__main__ import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", script, str(file), "--tokens", str(tokens), "--out", str(parts)]
    with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline(), process.stderr.read()
        process.send_signal(signal.SIGKILL)
    assert without_times(parts / "trial-small") == expected[:1]
    assert call(capsys, main, file, "--tokens", tokens, "--out", parts)[0] == 0
    assert without_times(parts / "trial-small") == expected
    # Nothing is left; the table is made by the program of all studies.
    assert call(capsys, main, file, "--tokens", tokens, "--out", parts)[:2] == (0, "")
    code, output, _ = call(capsys, study_main, file, "--out", parts, "--table")
    assert code == 0
    assert "memory, MB" in output
    other = tmp_path / "other.bin"
    assert call(capsys, main, file, "--pack", other, "--megabytes", "0.03")[0] == 0
    code, _, error = call(capsys, main, file, "--tokens", other, "--out", parts)
    assert (code, "is another file than that of the results" in error) == (2, True)

    # The first phase is what the step does that all training has.
    [run] = [run for run in make_plan_of(file, whole) if run.arm == "K=1"]
    check_first_phase(run.start, open_tokens(tokens), whole, expected[0]["first_phase"][0])


def make_plan_of(file, root):
    return make_plan(load_study(str(file)), "small", root).runs


def check_first_phase(config, tokens, root, line):
    [phase], mesh = config.phases, make_mesh(config.mesh)
    model = config.model_of(phase.name)
    optimizer = make_optimizer(phase.optim, phase.steps)
    step = jit_train_step(model, optimizer, 1, config.seed, mesh)
    state = first_state(fresh_params(model, config.seed, mesh), model, optimizer, mesh)

    def batch(rows):
        return {"tokens": jnp.asarray(tokens.rows[rows].astype(np.int32))}

    for rows in batches(config.data.seed, tokens, phase.steps, config.data.batch_size):
        state, _ = step(state, batch(rows))
    params, final = kept(root / line["run"], model, mesh)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), params, state.params)
    found = [
        evaluation_step(state.params, batch(rows), state.step, config=model, mesh=mesh)
        for rows in held_out_batches(tokens, config.final_batches, config.data.batch_size)
    ]
    loss = sum(float(sums.nll) for sums in found) / sum(float(sums.count) for sums in found)
    assert line["loss"] == final["loss"] == pytest.approx(loss, rel=1e-5)
