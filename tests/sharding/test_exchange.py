"""Pools that devices along `module` divide: which rows travel, how often, and that nothing else changes."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from devices import on_eight
from jax.sharding import PartitionSpec
from mesh_steps import MODEL, compare_gradients
from small import EXHAUSTIVE, change

from mom_jax import pool
from mom_jax.dispatch import PooledWeights, blocked, exchanged
from mom_jax.routers import Selection
from mom_jax.sharding import AXES, Exchange, MeshConfig, back, exchange, make_mesh, modules_received, there

SKIP = 4  # the class of mesh_steps.MODEL
MESHES = [(1, 1, 8, 1), (2, 1, 4, 1), (1, 2, 2, 2), (2, 2, 2, 1)]


# What runs on eight devices.


def ragged_all_to_all(x, into, begin, size, begin_there, size_there, *, axis_name):
    """`jax.lax.ragged_all_to_all` by its documentation, on platforms that have none: every device looks at all."""
    every, begin, size, begin_there = (jax.lax.all_gather(a, axis_name) for a in (x, begin, size, begin_there))
    me, row = jax.lax.axis_index(axis_name), jnp.arange(into.shape[0], dtype=jnp.int32)
    for source in range(every.shape[0]):
        place = row - begin_there[source, me]
        inside = (place >= 0) & (place < size[source, me])
        value = every[source][jnp.clip(begin[source, me] + place, 0, x.shape[0] - 1)]
        into = jnp.where(inside.reshape(-1, *[1] * (x.ndim - 1)), value, into)
    return into


def ragged(function, *arguments):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax.lax, "ragged_all_to_all", ragged_all_to_all)
        patch.setattr(exchange, "platform", lambda: "gpu")
        return function(*arguments)


def gradients_with_ragged_rounds(*arguments):
    """In two halves, as where the platform computes while rows travel."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exchanged, "LEAST", 1)
        return ragged(compare_gradients, *arguments)


def travelled(is_ragged, seed, room, modules):
    """For a random exchange: how many rounds it takes, and on each device what was wrong with the rows that it got,
    with their modules, and with what came back of them."""
    if is_ragged:
        return ragged(travels, True, seed, room, modules)
    return travels(False, seed, room, modules)


def travels(is_ragged, seed, room, modules):
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 6, (8, 8, modules)) * (rng.random((8, 8, modules)) < 0.5)
    counts[:, 3] += 7  # one device that many want
    counts[5] = 0  # and one that wants nothing
    rows = int(counts.sum((1, 2)).max()) + 2
    given = Exchange(jnp.asarray(counts, jnp.int32), room, is_ragged)
    # A row's value says where it comes from, for which device and module it is.
    home = np.full((8, rows, 3), -1.0, np.float32)
    for source in range(8):
        own = [(source, to, n) for to in range(8) for n in range(modules) for _ in range(counts[source, to, n])]
        home[source, : len(own)] = np.reshape(own, (-1, 3))
    rounds = int(given.rounds)

    def device(x):
        me, total, wrong, got = jax.lax.axis_index("module"), 0, 0, 0
        for turn in range(rounds):
            received, module = there(x, given, turn), modules_received(given, turn)
            used = module < modules
            came_for = received[:, 1:].astype(jnp.int32)
            here = (came_for[:, 0] == me) & (came_for[:, 1] == module)
            wrong += (used & ~here).sum() + (~used & (received != 0).any(1)).sum()
            got += used.sum()
            total += back(received, given, turn, x.shape[0])
        _, pullback = jax.vjp(lambda x: there(x, given, 0), x)
        [transposed] = pullback(jnp.ones((given.received, 3)))
        first = back(jnp.ones((given.received, 3)), given, 0, x.shape[0])
        return wrong[None], got[None], total, (transposed - first)

    spec, mesh = PartitionSpec("module"), make_mesh(MeshConfig(module=8))
    mapped = jax.shard_map(device, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    wrong, got, total, transposed = jax.jit(mapped)(home.reshape(-1, 3))
    expected = np.where(home < 0, 0, home).reshape(-1, 3)
    return [
        rounds,
        int(np.sum(wrong)),
        (np.asarray(got) - counts.sum((0, 2))).tolist(),
        float(np.abs(total - expected).max() + np.abs(transposed).max()),
        int(counts.sum((0, 2)).max()),
        int(counts.sum(2).max()),
    ]


def planned_rows(modules):
    """Rows in blocks on each of eight devices, of choices that are balanced."""
    config = change(MODEL, num_ffn_modules=16, num_attn_modules=16, top_k=2, dispatch="blocked")
    mesh = make_mesh(MeshConfig(module=modules))
    tokens = 4096
    index = np.stack([np.arange(tokens), np.arange(tokens) + 7], 1).astype(np.int32) % 16

    def rows(index):
        chosen = Selection(index, index.astype(np.float32))
        stacked = {"ffn": PooledWeights((), ())}  # in training
        plan = pool.make_plan(stacked, chosen, np.ones(len(index), bool), config, "ffn")
        return (-(-plan.parts[0].first.sizes_N // blocked.UNIT) * blocked.UNIT).sum()[None]

    spec = PartitionSpec(AXES)
    return jax.jit(jax.shard_map(rows, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False))(index).tolist()


# The tests.


@pytest.mark.parametrize("is_ragged", [False, True])
@pytest.mark.parametrize(("seed", "room", "modules"), [(0, 1000, 3), (1, 16, 1), (2, 13, 2)])
def test_all_rows_travel_once_there_and_once_back(is_ragged, seed, room, modules):
    rounds, wrong, missing, difference, most_to_one, most_of_a_pair = on_eight(
        travelled, is_ragged, seed, room, modules
    )
    slot = math.ceil(room / 8)
    assert rounds == (math.ceil(most_to_one / room) if is_ragged else math.ceil(most_of_a_pair / slot))
    assert wrong == 0
    assert missing == [0] * 8
    assert difference == 0


def test_a_device_multiplies_its_own_modules_rows_only():
    for rows in on_eight(planned_rows, 8):
        assert 4096 * 2 / 8 <= rows <= 1.15 * 4096 * 2 / 8


@pytest.mark.parametrize(
    ("function", "name", "shapes", "force"),
    [
        *(
            pytest.param(function, name, shapes, force, marks=marks)
            for function, name, shapes, force, marks in [
                (compare_gradients, "k1", [(1, 1, 8, 1)], 0, pytest.mark.slow),
                (gradients_with_ragged_rounds, "uneven", [(2, 1, 4, 1)], None, pytest.mark.slow),
                (compare_gradients, "k1", MESHES[1:], None, pytest.mark.slow),
                (compare_gradients, "k3", MESHES[1:3], None, EXHAUSTIVE),
                (compare_gradients, "uneven", [(1, 1, 8, 1)], 2, EXHAUSTIVE),
                (compare_gradients, "k1", [(2, 1, 4, 1)], SKIP, pytest.mark.slow),
                (gradients_with_ragged_rounds, "k1", [(1, 2, 2, 2)], 0, pytest.mark.slow),
                (gradients_with_ragged_rounds, "k3", [(1, 1, 8, 1)], None, EXHAUSTIVE),
            ]
        ),
    ],
)
def test_losses_and_gradients_are_those_of_one_device(function, name, shapes, force):
    for (report, gradients, rounds), shape in zip(
        on_eight(function, name, shapes, 1, False, force), shapes, strict=True
    ):
        assert report < 1e-5
        assert gradients < 1e-5
        if name == "k1" and force is not None:
            expected = rounds_for(force, shape, function is gradients_with_ragged_rounds)
            assert rounds == dict.fromkeys(("attention", "ffn"), pytest.approx([expected] * 3))
        else:
            assert all(1 <= taken <= 2 * shape[2] for side in rounds.values() for taken in side)


def rounds_for(force, shape, is_ragged):
    """Of 16 sequences of 16 tokens, all of which choose one module, or SKIP."""
    if force == SKIP:
        return 1
    tokens = 16 * 16 // 8 * shape[3]  # of the devices along `tensor`
    if not is_ragged:
        return math.ceil(tokens / math.ceil(math.ceil(1.5 * tokens) / shape[2]))
    half = tokens // 2  # the first round of both counts once
    return 1 + 2 * (math.ceil(shape[2] * half / math.ceil(1.5 * half)) - 1)
