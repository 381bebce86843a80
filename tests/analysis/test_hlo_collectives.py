"""Collectives counted in programs that are compiled for eight CPUs, and for eight TPUs where libtpu is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from devices import on_eight
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tpu_compiler import needs_libtpu

from mom_jax.analysis import hlo
from train.planning.tpu import devices_of, prepare_environment

TOPOLOGY = "v5e:2x4"

# A mesh of 2 x 4 devices; each has x: f32[512,2048].
ROWS, WIDTH, TRIPS, OUTER = 512, 2048, 5, 3
SIZE = 4 * ROWS * WIDTH
RING = [(i, (i + 1) % 4) for i in range(4)]


def all_gather(x):
    return jax.lax.all_gather(x, "b", axis=0, tiled=True)


def scattered(x):
    return jax.lax.psum_scatter(x, "b", scatter_dimension=0, tiled=True)


def scan(x):
    return jax.lax.scan(lambda x, _: (jnp.sin(jax.lax.psum(x, "a")), None), x, None, length=TRIPS)[0]


def nested(x):
    return jax.lax.fori_loop(0, OUTER, lambda _, x: jax.lax.ppermute(scan(x), "b", RING), x)


def branches(x):
    def gather(x):
        return jnp.sin(all_gather(x))[:ROWS]

    return jax.lax.cond(x[0, 0] > 0, gather, lambda x: jnp.cos(jax.lax.psum(x, ("a", "b"))), x)


def until(x):
    # The limit has to be the same on all devices.
    limit = jax.lax.psum(x[0, 0], ("a", "b")).astype(jnp.int32)
    return jax.lax.fori_loop(0, limit, lambda _, x: jnp.sin(jax.lax.psum(x, "b")), x)


def sharded_layers(x):
    """The gradient of layers that gather their weights before they use them, and again in the backward pass."""

    @jax.checkpoint
    def layer(h, pair):
        first, second = map(all_gather, pair)
        return h + jnp.matmul(jnp.tanh(jnp.matmul(h, first)), second), None

    def loss(x):
        weights = jnp.arange(1, 1 + TRIPS, dtype=x.dtype)[:, None, None] * x[None]
        h = jnp.broadcast_to(x[:1], (2 * ROWS, WIDTH))
        return jax.lax.scan(layer, h, (jnp.sin(weights), jnp.cos(weights)))[0].astype(jnp.float32).sum()

    return jax.grad(loss)(x.astype(jnp.bfloat16)).astype(jnp.float32)


PROGRAMS = {
    "psum": lambda x: jax.lax.psum(x, "b"),
    "psum of all": lambda x: jax.lax.psum(x, ("a", "b")),
    "all_gather": all_gather,
    "psum_scatter": scattered,
    "all_to_all": lambda x: jax.lax.all_to_all(x, "b", 0, 0, tiled=True),
    "ppermute": lambda x: jax.lax.ppermute(x, "b", RING),
    "scan": scan,
    "nested": nested,
    "branches": branches,
    "until": until,
    "sharded layers": sharded_layers,
}
# (kind, count, depth, devices of a group, bytes of one run)
EXPECTED = {
    "psum": [("all-reduce", 1, 0, 4, 2 * SIZE * 3 // 4)],
    "psum of all": [("all-reduce", 1, 0, 8, 2 * SIZE * 7 // 8)],
    "all_gather": [("all-gather", 1, 0, 4, 4 * SIZE * 3 // 4)],
    "psum_scatter": [("reduce-scatter", 1, 0, 4, SIZE * 3 // 4)],
    "all_to_all": [("all-to-all", 1, 0, 4, SIZE * 3 // 4)],
    "ppermute": [("collective-permute", 1, 0, 4, SIZE)],
    "scan": [("all-reduce", TRIPS, 1, 2, SIZE)],
    "nested": [("all-reduce", OUTER * TRIPS, 2, 2, SIZE), ("collective-permute", OUTER, 1, 4, SIZE)],
    "branches": [("all-gather", 1, 0, 4, 4 * SIZE * 3 // 4)],
}


def compiled(devices, function):
    """The HLO text of a function on every device of a mesh."""
    mesh = Mesh(np.array(devices).reshape(2, 4), ("a", "b"))
    spec = PartitionSpec(("a", "b"))
    mapped = jax.shard_map(function, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    x = jax.ShapeDtypeStruct((8 * ROWS, WIDTH), jnp.float32, sharding=NamedSharding(mesh, spec))
    platform = devices[0].platform
    return jax.jit(mapped).trace(x).lower(lowering_platforms=(platform,)).compile().as_text()


def texts(platform):
    """The HLO texts of all programs, by name; on eight devices."""
    if platform == "tpu":
        prepare_environment()
    devices = devices_of(TOPOLOGY) if platform == "tpu" else jax.devices()
    return {name: compiled(devices, function) for name, function in PROGRAMS.items()}


def found(text):
    return [(one.kind, one.count, one.depth, one.group_size, one.bytes) for one in hlo.count(text).collectives]


@pytest.fixture(scope="module")
def cpu_texts():
    return on_eight(texts, "cpu")


@pytest.mark.parametrize("name", EXPECTED)
def test_compiled_for_eight_cpus(name, cpu_texts):
    assert sorted(found(cpu_texts[name])) == sorted(EXPECTED[name])
    assert hlo.count(cpu_texts[name]).unknown_loops == ()


def test_what_is_said_of_a_collective(cpu_texts):
    (one,) = hlo.count(cpu_texts["psum_scatter"]).collectives
    shapes = (f"f32[{ROWS},{WIDTH}]",), (f"f32[{ROWS // 4},{WIDTH}]",)
    assert one.groups in ("{{0,1,2,3},{4,5,6,7}}", "mesh['a'=2,'b'=4] {'b'}")  # JAX 0.10, JAX 0.12
    name = "jit(scattered)/shard_map/reduce_scatter"
    assert one == hlo.Collective("reduce-scatter", 1, 0, *shapes, 4, one.groups, SIZE * 3 // 4, name)
    (ring,) = hlo.count(cpu_texts["ppermute"]).collectives
    assert ring.groups == "{{0,1},{1,2},{2,3},{3,0},{4,5},{5,6},{6,7},{7,4}}"


def test_loops_of_unknown_length_are_reported(cpu_texts):
    counted = hlo.count(cpu_texts["until"])
    assert len(counted.unknown_loops) == 1
    assert found(cpu_texts["until"]) == [("all-reduce", 1, 0, 8, 7), ("all-reduce", 1, 1, 4, 2 * SIZE * 3 // 4)]


def by_kind(text):
    """Kind -> (runs, bytes of all of them)."""
    totals = {}
    for one in hlo.count(text).collectives:
        runs, moved = totals.get(one.kind, (0, 0))
        totals[one.kind] = runs + one.count, moved + one.count * one.bytes
    return totals


def test_weights_that_are_gathered_in_a_scan(cpu_texts):
    # Two matrices a layer. The CPU's compiler widens bfloat16.
    gathered = 4 * SIZE * 3 // 4
    want = {"all-gather": (4 * TRIPS, 4 * TRIPS * gathered), "reduce-scatter": (2 * TRIPS, 2 * TRIPS * gathered)}
    assert by_kind(cpu_texts["sharded layers"]) == want


@pytest.mark.slow
@needs_libtpu
def test_compiled_for_eight_tpus():
    compiled = on_eight(texts, "tpu", for_tpu=True)
    for name, expected in EXPECTED.items():
        assert sorted(found(compiled[name])) == sorted(expected), name
    text = compiled["sharded layers"]
    # It would say nothing without these forms, each of which mentions a collective more often than it runs.
    assert text.count("AsyncCollectiveStart") == 2 < text.count("async_collective_fusion_config")
    assert "all-reduce-scatter" in text
    assert " reduce-scatter(" not in text
    totals = by_kind(text)
    gathered = 2 * SIZE * 3 // 4
    assert totals["all-gather"] == (4 * TRIPS, 4 * TRIPS * gathered)
    runs, moved = totals["reduce-scatter"]
    assert runs == 2 * TRIPS
    # Pads the rows, and a permute moves what came to the wrong device.
    assert 2 * TRIPS * gathered <= moved <= 1.05 * 2 * TRIPS * gathered
    assert totals["collective-permute"][1] < 0.05 * moved
