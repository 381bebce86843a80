"""Damaged checkpoints: noticed by whoever reads them, set aside by training, never used and never deleted."""

import dataclasses
import os
import shutil

import inject
import jax
import numpy as np
import optax
import pytest
import tiny
from programs import call

from mom_jax.fields import ConfigError
from train import evaluate, generate
from train.checkpoints import locate, manager, manifest, steps
from train.checkpoints.run_config import to_json
from train.steps.state import init_state
from train.training.keeping.damage import missing_steps, set_damaged_aside
from train.verify import __main__ as verify


def save_steps(run, config, phase, losses, keep=9):
    """Small states, one a step, with these validation losses."""
    state = jax.device_put(init_state({"x": np.arange(999, dtype=np.float32)}, optax.adam(0.1)), jax.devices()[0])
    checkpoints = manager.Checkpoints(run / locate.FOLDER / phase, keep=keep)
    for step, loss in enumerate(losses, start=1):
        checkpoints.save(state, manager.Meta(config, phase, step, 4 * step, "0"), loss)
    checkpoints.wait()
    checkpoints.close()
    return run / locate.FOLDER / phase


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A run with a checkpoint of phase 1 and three of phase 2, of which the first is the best."""
    folder = tmp_path_factory.mktemp("original")
    config = dataclasses.replace(tiny.config(folder), run=str(folder / "run"))
    (folder / "run").mkdir()
    save_steps(folder / "run", config, "pretrain", [3.0])
    save_steps(folder / "run", config, "mom", [1.0, 2.0, None])
    return folder / "run", config


@pytest.fixture
def run(original, tmp_path):
    """A copy: (its folder, its configuration, the folder of phase 2)."""
    shutil.copytree(original[0], tmp_path / "run")
    return (
        tmp_path / "run",
        dataclasses.replace(original[1], run=str(tmp_path / "run")),
        tmp_path / "run/checkpoints/mom",
    )


def test_every_file_has_a_checksum_and_every_fault_of_every_file_is_noticed(run):
    _, _, phase = run
    step = phase / "3"
    names = [path.relative_to(step) for path in step.rglob("*") if path.is_file()]
    assert len(names) > 8
    assert manifest.problem(step) is None
    for i, name in enumerate(names):
        content = (step / name).read_bytes()
        for fault, harm in inject.FILE_FAULTS.items():
            if not content and fault != "removed":
                continue
            said = harm(step / name, seed=i)
            wrong = manifest.problem(step)
            if name.name == manifest.MANIFEST and fault == "removed":
                assert wrong is None
                assert not manifest.sealed(step)
            elif (step / name).exists() and (step / name).read_bytes() == content:
                assert wrong is None
            else:
                assert wrong is not None, f"{fault}: {said}"
                same_size = fault in ("a bit flipped", "overwritten") and name.name != manifest.MANIFEST
                assert wrong.rotten == same_size
            (step / name).write_bytes(content)
    assert manifest.problem(step) is None
    sealed = (step / manifest.MANIFEST).read_bytes()
    (step / manifest.MANIFEST).unlink()
    os.mkfifo(step / "params" / "pipe")
    assert str(manifest.problem(step)) == "params/pipe is no file"
    (step / "params" / "pipe").unlink()
    (step / manifest.MANIFEST).write_bytes(sealed)
    (step / manifest.MANIFEST).write_text(
        '{"version": 1, "files": {"../../x": [1, 1], "meta/metadata": [1, 1], "params": [0, 0]}}'
    )
    assert "does not list" in str(manifest.problem(step))


@pytest.mark.parametrize("fault", ["truncated", "removed", "emptied"])
def test_training_takes_the_newest_whole_one_and_sets_the_others_aside(run, fault):
    _, config, phase = run
    inject.FILE_FAULTS[fault](inject.largest(phase / "3", "params"))
    inject.empty(phase / "2")
    (phase / "25").mkdir()  # a copy that failed
    lines = set_damaged_aside(config)
    assert [path.name for path in sorted(phase.iterdir())] == ["1", "2.damaged", "25.damaged", "3.damaged"]
    assert steps.ordered(phase) == [1]
    assert len(lines) == 3
    assert "set aside as 3.damaged" in lines[1]
    assert set_damaged_aside(config) == []
    shutil.copytree(phase / "3.damaged", phase / "3")
    set_damaged_aside(config)
    assert (phase / "3.damaged.1").is_dir()


def test_a_checkpoint_of_another_step_phase_or_run_is_not_taken_for_this_one(run, original, tmp_path):
    folder, config, phase = run
    (folder / "config.json").write_bytes(to_json(config))
    (phase / "3").rename(phase / "7")
    shutil.copytree(folder / "checkpoints/pretrain/1", phase / "5")
    with pytest.raises(ConfigError, match=r"is damaged .is of step 3 of 'mom'.; .*mom/2 is whole"):
        locate.find(folder, field="checkpoint")
    other = dataclasses.replace(config, seed=5, run=str(tmp_path / "other"))
    shutil.rmtree(phase / "2")
    shutil.move(save_steps(tmp_path / "other", other, "mom", [1.0, 2.0]) / "2", phase / "2")
    lines = set_damaged_aside(config)
    assert [line.split("is damaged")[1].split(";")[0] for line in lines] == [
        " (is of step 3 of 'mom')",
        " (is of step 1 of 'pretrain')",
        " (is of a run with another configuration (seed: 5 -> 0))",
    ]
    assert steps.ordered(phase) == [1]


def test_a_checkpoint_that_may_not_be_read_is_not_damaged(run, monkeypatch, capsys):
    folder, config, phase = run
    (folder / "config.json").write_bytes(to_json(config))

    def refused(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(manifest, "_checked", refused)
    for read in (lambda: set_damaged_aside(config), lambda: locate.find(folder, field="checkpoint")):
        with pytest.raises(PermissionError):
            read()
    assert steps.ordered(phase) == [3, 2, 1]
    assert "unknown  checkpoints/mom/3: cannot be read (Permission denied)" in call(capsys, verify.main, folder)[1]
    assert steps.ordered(phase) == [3, 2, 1]


def test_what_training_deletes_meanwhile_is_not_damaged(run, monkeypatch, capsys):
    folder, config, phase = run
    (folder / "config.json").write_bytes(to_json(config))
    checked = manifest._checked

    def deleted(path):
        step = path.relative_to(phase).parts[0] if path.is_relative_to(phase) else "1"
        if step != "1" and (phase / step).exists():
            steps.remove(phase, int(step))
        return checked(path)

    monkeypatch.setattr(manifest, "_checked", deleted)
    assert locate.find(folder, field="checkpoint").step == 1
    out = call(capsys, verify.main, folder)[1]
    assert "damaged  checkpoints" not in out
    assert "good     checkpoints/mom/1" in out
    found = locate.find(folder, field="checkpoint")
    steps.remove(phase, 1)
    with pytest.raises(ConfigError, match="mom/1: was removed while it was read"):
        found.meta()


def test_training_stops_once_where_bytes_have_changed(run):
    _, config, phase = run
    inject.flip(inject.largest(phase / "3", "params"), seed=7)
    with pytest.raises(ConfigError, match=r"checksum.*set aside as 3\.damaged.*the same command goes on from .*/mom/2"):
        set_damaged_aside(config)
    assert set_damaged_aside(config) == []
    assert steps.ordered(phase)[0] == 2


def test_training_goes_back_a_phase_but_never_to_the_start(run):
    folder, config, phase = run
    for step in steps.steps(phase):
        inject.remove(phase / str(step) / "meta" / "metadata")
    assert len(set_damaged_aside(config)) == 3
    assert steps.steps(phase) == []
    assert set_damaged_aside(config) == []
    inject.empty(folder / "checkpoints/pretrain/1")
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"1\.damaged.*no checkpoint of this run is whole: delete the folders"):
            set_damaged_aside(config)


def test_a_file_in_the_place_of_a_phase_is_no_phase_without_checkpoints(run):
    folder, config, phase = run
    phase.rename(folder / "moved")
    phase.write_text("a file")
    with pytest.raises(ConfigError, match="mom must be a folder"):
        set_damaged_aside(config)


def test_only_whole_ones_count_for_what_is_kept(tmp_path, original):
    phase = save_steps(tmp_path, original[1], "mom", [1.0, 2.0, 3.0])
    inject.truncate(inject.largest(phase / "3", "params"))
    assert steps.superfluous(phase, keep=1) == []  # 1 is the best, 2 the latest whole one, 3 is not deleted
    inject.empty(phase / "1")
    assert steps.superfluous(phase, keep=1) == []
    shutil.rmtree(phase)
    phase = save_steps(tmp_path, original[1], "mom", [1.0, float("nan"), 1.0, 2.0, None], keep=1)
    assert steps.steps(phase) == [3, 5]
    assert steps.ordered(phase, best=True) == [3, 5]
    assert not list(phase.glob(".*removed"))
    checkpoints = manager.Checkpoints(phase)
    checkpoints.remove(5)
    assert checkpoints.steps() == [3]
    state = jax.device_put(init_state({"x": np.zeros(9, np.float32)}, optax.sgd(0.1)), jax.devices()[0])
    checkpoints.save(state, manager.Meta(original[1], "mom", 5, 20, "0"), None)
    checkpoints.close()
    assert steps.steps(phase) == [3, 5]
    phase.joinpath("3").rename(phase / ".3.removed")  # killed while it was deleted
    manager.Checkpoints(phase).close()
    assert not list(phase.glob(".*removed"))


def test_programs_that_read_name_the_damaged_one_and_the_one_to_take(tmp_path, capsys):
    config = tiny.config(tmp_path)
    run = tiny.store(config, "pretrain", "mom")
    mom = run / "checkpoints" / "mom"
    shutil.copytree(mom / "6", mom / "4")
    assert "damaged  checkpoints/mom/4: is of step 6 of 'mom'" in call(capsys, verify.main, run)[1]
    meta = mom / "4" / "meta" / "metadata"
    meta.write_text(meta.read_text().replace('"step": 6', '"step": 4', 1))
    manifest.seal(mom / "4")
    assert locate.find(run, field="checkpoint").step == 6
    inject.flip(inject.largest(mom / "6", "params"))
    for program, flags in ((evaluate.main, ()), (generate.main, ("--tokens", 2))):
        for path in (run, mom, mom / "6"):
            code, _, err = call(capsys, program, "--checkpoint", path, *flags)
            assert code == 2
            assert err.startswith("error: checkpoint")
            assert len(err.splitlines()) == 1
            assert f"{mom / '6'} is damaged" in err
            assert f"{mom / '4'} is whole" in err
    assert sorted(path.name for path in mom.iterdir()) == ["4", "6"]
    (mom / "4" / manifest.MANIFEST).unlink()
    for _ in range(2):
        locate.find(mom / "4", field="checkpoint")
    assert capsys.readouterr().err.count("has no checksums") == 1


def test_verify_says_what_can_be_trusted(tmp_path, capsys):
    config = tiny.config(tmp_path)
    run = tiny.store(config, "mom")
    caches = tmp_path / "cache"
    code, out, err = call(capsys, verify.main, run)
    assert code == 2
    assert not err
    assert "damaged  metrics.jsonl: the log metrics.jsonl has lost 12 of 12 steps" in out  # `store` writes none
    records = (f'{{"kind": "train", "phase": "{p}", "step": {s}}}\n' for p in ("pretrain", "mom") for s in range(1, 7))
    (run / "metrics.jsonl").write_text("".join(records))
    code, out, _ = call(capsys, verify.main, run)
    assert code == 0
    assert "good     tokenizer.model" in out
    assert f"a run of 2 phases on source='text:{tmp_path}/corpus/*.txt', cache='{caches}'" in out
    assert out.count("have their checksums") == 3
    assert call(capsys, verify.main, caches)[0] == 0
    [cache] = caches.glob("data-*")
    for file in ("checkpoints/mom/6", "tokenizer.model", "config.json", cache / "val.bin", cache / "meta.json"):
        place = run / file
        copy = place.with_name("copy")
        (shutil.copytree if place.is_dir() else shutil.copy)(place, copy)
        inject.garble(place, seed=3)
        code, out, _ = call(capsys, verify.main, run)
        assert code == 2, file
        assert "damaged" in out
        assert call(capsys, verify.main, caches)[0] == (2 if place.is_relative_to(caches) else 0)
        shutil.rmtree(place) if place.is_dir() else place.unlink()
        copy.rename(place)
    whole = (run / "config.json").read_text()
    (run / "config.json").write_text(whole.replace('"temperature": ', '"temperature": 1', 1))
    code, out, _ = call(capsys, verify.main, run)
    assert code == 2
    assert "config.json: is not what the checkpoints were trained with (model.router.temperature: " in out
    (run / "config.json").write_text(whole)
    assert call(capsys, verify.main, run, "--json")[0] == 0
    code, _, err = call(capsys, verify.main, tmp_path / "corpus")
    assert code == 2
    assert "is no run's folder" in err


def test_gaps_in_a_log_are_counted(original):
    _, config = original
    records = [{"kind": "train", "phase": p, "step": s} for p in ("pretrain", "mom") for s in range(1, 7)]
    assert missing_steps(config, records, "mom", 6) == []
    [line] = missing_steps(config, records[:4] + records[6:], "mom", 6)
    assert "lost 2 of 12 steps, the first is step 5 of pretrain" in line
    [line] = missing_steps(config, [], "mom", 3)
    assert "lost 9 of 9 steps" in line
    resumed = dataclasses.replace(config, resume="elsewhere")
    assert missing_steps(resumed, records[8:], "mom", 6) == []
    assert "lost 1 of" in missing_steps(resumed, records[7:9] + records[10:], "mom", 6)[0]
