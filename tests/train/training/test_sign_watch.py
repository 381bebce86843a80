"""What a phase's watch says, and when: with a log alone, without a model."""

import dataclasses
import json

import pytest
import tiny

from mom_jax.analysis.signs import SignsConfig
from train.reporting.metrics import FILE, MetricsLog
from train.training.signs import SignWatch

LIMITS = SignsConfig(warmup=10, window=10, patience=2)
BAD, GOOD = [[0.1, 0.1, 0.8]] * 3, [[0.3, 0.6, 0.1], [0.6, 0.3, 0.1], [0.2, 0.2, 0.6]]


@pytest.fixture
def config(tmp_path):
    config = tiny.config(tmp_path, source="text:none", signs=LIMITS)
    model = dataclasses.replace(config.model, num_ffn_modules=1, top_k=1)
    return dataclasses.replace(config, model=model)


def follow(config, folder, steps, usage=BAD, write=True):
    """Writes a phase's records for `steps`, and returns what is said, by step."""
    said = []
    with MetricsLog(folder, write=write) as log, SignWatch(config, config.phases[1], log, 6) as watch:
        watch.begin(steps[0] - 1, said.append)
        for step in steps:
            routers = {"attention": {"usage": usage, "entropy": [1.0] * 3, "grad_norm": 0.1, "update": 1e-3}}
            train = {"kind": "train", "phase": "mom", "step": step, "loss": 4.0, "total": 4.02, "balance": 2.0}
            log.write(train | {"grad_norm": 1.0, "learning_rate": 1e-3, "routers": routers})
            if step % 10 == 0:
                log.write({"kind": "validation", "phase": "mom", "step": step, "loss": 4.0, "routers": routers})
                watch.judge(step, said.append)
    return said


def signs(folder):
    lines = (folder / FILE).read_text().splitlines()
    return [r for r in map(json.loads, lines) if r["kind"] == "sign"]


def test_a_sign_is_said_once_however_often_a_run_goes_on(config, tmp_path):
    said = follow(config, tmp_path, range(1, 41))
    [record] = signs(tmp_path)
    assert {key: record[key] for key in ("phase", "step", "sign", "side")} == {
        "phase": "mom",
        "step": 20,
        "sign": "skip",
        "side": "attention",
    }
    assert said == [f"mom step 20: sign of failure: {record['text']}"]
    assert "skip_preference" in said[0]
    # Interrupted: the log is cut back to the checkpoint, and what is cut is said again.
    for checkpoint, again in ((25, []), (15, said)):
        MetricsLog(tmp_path).truncate(["pretrain", "mom"], "mom", checkpoint)
        assert follow(config, tmp_path, range(checkpoint + 1, 41)) == again
        assert signs(tmp_path) == [record]


def test_what_is_known_before_training_is_said_first(config, tmp_path):
    router = dataclasses.replace(config.model.router, weights="renormalised")
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, router=router))
    [text] = follow(config, tmp_path, range(1, 21), usage=GOOD)
    assert "top_k=1" in text
    assert [(r["step"], r["sign"]) for r in signs(tmp_path)] == [(0, "learning")]
    assert follow(config, tmp_path, range(21, 31), usage=GOOD) == []


def test_silent_where_all_is_well_where_nobody_watches_and_beside_the_process_that_writes(config, tmp_path):
    assert follow(config, tmp_path / "well", range(1, 41), usage=GOOD) == []
    off = dataclasses.replace(config, signs=dataclasses.replace(LIMITS, enabled=False))
    assert follow(off, tmp_path / "off", range(1, 41)) == []
    assert signs(tmp_path / "off") == []
    assert follow(config, tmp_path / "beside", range(1, 41), write=False) == []
    assert not (tmp_path / "beside").exists()
