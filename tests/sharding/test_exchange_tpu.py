"""A train step whose pool eight TPUs divide, compiled here: the chosen rows travel, once there and once back."""

import contextlib
import math
import re

import jax
import numpy as np
import optax
import pytest
from devices import on_eight
from mesh_steps import MODEL
from small import change
from tpu_compiler import needs_libtpu

from mom_jax.analysis import hlo
from mom_jax.dispatch import exchanged
from mom_jax.sharding import MeshConfig, batch_sharding, make_mesh
from train.planning import tpu
from train.planning.topology import building
from train.steps.state import abstract_state
from train.steps.train_step import jit_train_step

D, STEPS, K, LENGTH, SEQUENCES = 1024, 2, 2, 128, 64  # a sequence has as many tokens as a tile of a kernel has rows


def gathered(rows, exchange, turn):
    """What `there` must not be: all rows of the group on every device, which then takes its own."""
    every = jax.lax.all_gather(rows, "module", axis=0, tiled=True)
    return every[: exchange.received] * (turn + 1)


def collectives(on_tpus, replaced):
    """[[kind, how often, bytes of one run, the elements of the largest array]] of all that is sent, and what runs
    beside exchanges."""
    if on_tpus:
        tpu.prepare_environment()
    fields = {"d_model": D, "d_ff": 2 * D, "context_length": LENGTH, "num_steps": STEPS, "top_k": K}
    config = change(MODEL, **fields, num_attn_modules=8, num_ffn_modules=8, dtype="bfloat16", num_bottom=0, num_top=0)
    config = change(config, anchor_after_chunk=False)
    mesh = make_mesh(MeshConfig(module=8), tpu.devices_of("v5e:2x4") if on_tpus else None)
    optimizer = optax.sgd(1.0)
    step = jit_train_step(config, optimizer, 1, 0, mesh)
    tokens = jax.ShapeDtypeStruct((SEQUENCES, LENGTH), np.int32, sharding=batch_sharding(mesh))
    where = building(mesh) if on_tpus else contextlib.nullcontext(("cpu",))
    with where as platforms, pytest.MonkeyPatch.context() as patch:
        if replaced:
            patch.setattr(exchanged, "there", gathered)
        traced = step.trace(abstract_state(config, optimizer, mesh), {"tokens": tokens})
        text = traced.lower(lowering_platforms=platforms).compile().as_text()
    found = [
        [one.kind, one.count, one.bytes, max(map(elements, one.operands + one.results))]
        for one in hlo.count(text).collectives
        if one.group_size > 1
    ]
    return found, list(multiplied_meanwhile(text))


def multiplied_meanwhile(text):
    """For each exchange, in the order of the schedule, how many products of modules run before it is over."""
    lines = text.splitlines()
    for i, line in enumerate(lines):
        if started := re.match(r"\s*%?(\S+) = .* ragged-all-to-all-start\(", line):
            end = next(j for j in range(i, len(lines)) if f"ragged-all-to-all-done(%{started[1]})" in lines[j])
            yield sum("custom-call(" in between and "gmm" in between for between in lines[i:end])


def elements(array):
    return math.prod(map(int, re.findall(r"\d+", array[array.index("[") :])))


@pytest.mark.slow
@needs_libtpu
def test_the_chosen_rows_travel_beside_products_and_nothing_else_does():
    found, beside = on_eight(collectives, True, False, for_tpu=True)
    rows = SEQUENCES * LENGTH // 8 * K
    # Three exchanges a step, each with rows of D numbers there and back: once forward, twice backward.
    ideal = 3 * STEPS * 2 * 3 * rows * D * 2
    sent = sum(count * moved for kind, count, moved, _ in found if kind == "ragged-all-to-all")
    assert 0.7 * ideal < sent <= 1.3 * ideal
    assert not whole_groups(found)
    # While the rows of one half travel the other half's are multiplied, forward and backward.
    assert len(beside) >= 2 * 3 * 5
    assert sum(products > 0 for products in beside) >= len(beside) / 4


@pytest.mark.slow
def test_rows_of_the_whole_group_are_seen():
    assert not whole_groups(on_eight(collectives, False, False)[0])
    assert whole_groups(on_eight(collectives, False, True)[0])


def whole_groups(found):
    """Arrays that have a row of each token of the group."""
    return [one for one in found if one[3] >= SEQUENCES * LENGTH * D and one[0] != "ragged-all-to-all"]
