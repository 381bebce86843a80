"""Tiny runs that are built to fail, each in its own way, give its sign; a healthy one gives none."""

import dataclasses

import jax
import pytest
import tiny
from small import change

from mom_jax.analysis.signs import SignsConfig
from train.config import CheckpointConfig, OptimConfig, Phase
from train.reporting import metrics
from train.training import initial_state, loop

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("shared_steps")]

STEPS = 30


def trained(folder, optim=None, **model):
    """The signs of a run of one phase: {(sign, side): step}."""
    config = tiny.config(folder)
    apart = {"preference": 2.0}
    small = change(config.model, num_attn_modules=4, num_ffn_modules=4, attention=apart, ffn=apart)
    phase = Phase("mom", STEPS, optim=OptimConfig(**{"learning_rate": 1e-2, "warmup_steps": 2} | (optim or {})))
    signs = SignsConfig(warmup=10, window=5)
    config = dataclasses.replace(
        config,
        model=change(small, **model),
        phases=(phase,),
        signs=signs,
        evaluate_every=5,
        checkpoint=CheckpointConfig(every=STEPS),
    )
    assert loop.train(config) is None
    records = metrics.read(folder / "run" / metrics.FILE)
    return {(r["sign"], r["side"]): r["step"] for r in records if r["kind"] == "sign"}


BOTH = ("attention", "ffn")


@pytest.mark.parametrize("way", ["healthy", "k1", "still", "token", "balance", "fast"])
def test_x(way, tmp_path):
    kw = {
        "healthy": {},
        "k1": dict(top_k=1, router={"weights": "renormalised"}, balance={"weight": 0.0}),
        "still": dict(optim={"router_multiplier": 0.0}, attention={"preference": 0.0}, ffn={"preference": 0.0}),
        "token": dict(attention={"preference": 30.0}, ffn={"preference": 30.0}),
        "balance": dict(balance={"weight": 10.0}),
        "fast": dict(optim={"learning_rate": 3.0}),
    }[way]
    print(trained(tmp_path, **kw))
    import sys

    sys.path.insert(0, "/tmp/w/s5/signs.scratch")
    sys.argv = ["x", "x"]
    import figs

    figs.show(tmp_path / "run", SignsConfig(warmup=5, window=5))
    import subprocess

    subprocess.run(["cp", "-r", str(tmp_path / "run"), f"/tmp/w/s5/signs.scratch/tiny_{way}"])
