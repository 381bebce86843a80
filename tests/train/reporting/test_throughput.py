"""MFU: of all devices, and of what a token used."""

import types

import numpy as np
import pytest

from mom_jax.analysis.cost import train_flops_per_token
from mom_jax.config import ModelConfig
from mom_jax.sharding import make_mesh
from train.reporting import throughput

CONFIG = ModelConfig(vocab_size=64, context_length=16, d_model=32, num_heads=2, top_k=2)


def test_the_peak_is_that_of_all_devices(monkeypatch):
    monkeypatch.setattr(throughput, "device_peak", lambda dtype: 10.0)
    chip = types.SimpleNamespace(platform="tpu")
    pod = types.SimpleNamespace(devices=np.array([[chip] * 4] * 2), size=8)
    assert throughput.mesh_peak("bfloat16", pod) == 80.0
    assert throughput.mesh_peak("bfloat16", make_mesh()) == 10.0


def test_modules_that_were_not_taken_do_not_count():
    routers = {"attention": {"taken": 1.5}, "ffn": {"taken": 0.5}}
    needed = train_flops_per_token(CONFIG, 16, attn_taken=1.5, ffn_taken=0.5)
    assert throughput.utilisation(CONFIG, 16, 1000.0, 1e9, routers) == pytest.approx(needed * 1000 / 1e9)
    assert throughput.utilisation(CONFIG, 16, 1000.0, 1e9, {}) > needed * 1000 / 1e9
