"""Reductions in stages: along the rows and then along the columns of a plane of chips."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from devices import on_eight
from jax.sharding import NamedSharding, PartitionSpec
from tpu_compiler import needs_libtpu

from mom_jax.analysis import hlo
from mom_jax.sharding import MeshConfig, collectives, gather, make_mesh
from train.planning import tpu
from train.planning.topology import building

SHAPE = (24, 32)  # embed x mlp


def gradient(x, devices):
    """Of a function of x, [24, 32] divided along its first axis, in which each device has another share."""

    def device(x):
        def loss(x):
            whole = gather(x, ("embed", "mlp"), (8 * x.shape[0], x.shape[1]))
            rows = jnp.arange(whole.size, dtype=jnp.float32).reshape(whole.shape)
            return (jnp.sin(rows * (1.0 + jax.lax.axis_index("fsdp").astype(jnp.float32))) * whole).sum()

        return jax.grad(loss)(x)

    spec = PartitionSpec("fsdp")
    mapped = jax.shard_map(device, mesh=devices, in_specs=spec, out_specs=spec, check_vma=False)
    return jax.jit(mapped)(x)


def gradients(ring):
    """The gradient with stages for groups of more than `ring` devices."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(collectives, "RING", ring)
        patch.setattr(collectives, "platform", lambda: "tpu")
        return np.asarray(gradient(jnp.zeros(SHAPE), make_mesh(MeshConfig(fsdp=8)))).tolist()


def test_a_gradient_that_is_scattered_in_stages_is_the_same():
    one, two = (np.array(on_eight(gradients, ring)) for ring in (8, 2))
    assert np.abs(one).max() > 1
    np.testing.assert_allclose(two, one, atol=1e-5)


@pytest.mark.parametrize("devices", [2, 8, 16, 32, 64, 96, 13])
def test_stages(devices, monkeypatch):
    assert collectives._rings(devices) == [None]  # on this platform
    monkeypatch.setattr(collectives, "platform", lambda: "tpu")
    stages = collectives._rings(devices)
    if devices <= collectives.RING or devices == 13:
        assert stages == [None]
        return
    # Each row meets each column in one device.
    for groups in stages:
        assert sorted(device for group in groups for device in group) == list(range(devices))
    (columns, rows), (across, along) = stages, (len(stages[0][0]), len(stages[1][0]))
    assert across * along == devices
    assert all(len(set(column) & set(row)) == 1 for column in columns for row in rows)
    assert all(row == list(range(row[0], row[0] + along)) for row in rows)


def reductions(ring):
    """[[kind, bytes]] that 16 TPUs send for a pool's gradient, with stages for groups of more than `ring` devices."""
    tpu.prepare_environment()
    mesh = make_mesh(MeshConfig(fsdp=16), tpu.devices_of("v5e:4x4"))
    spec = PartitionSpec(None, "fsdp")
    axes, whole = ("parts", "embed", "mlp"), (4, 1280, 640)

    def device(x):
        return jax.grad(lambda x: jnp.square(gather(x, axes, whole)).sum())(x)

    mapped = jax.jit(jax.shard_map(device, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False))
    x = jax.ShapeDtypeStruct(whole, jnp.float32, sharding=NamedSharding(mesh, spec))
    with building(mesh) as platforms, pytest.MonkeyPatch.context() as patch:
        patch.setattr(collectives, "RING", ring)
        text = mapped.trace(x).lower(lowering_platforms=platforms).compile().as_text()
    return [[one.kind, one.bytes] for one in hlo.count(text).collectives]


@pytest.mark.slow
@needs_libtpu
def test_reduce_scatters_stay_what_they_are_on_a_plane_of_tpus():
    size = 4 * 4 * 1280 * 640
    for ring, kinds, sent in (
        (8, ["reduce-scatter"] * 2, size * 15 // 16),
        (16, ["all-reduce"], 2 * size * 15 // 16),  # in one stage
    ):
        found = [one for one in on_eight(reductions, ring, for_tpu=True) if one[0] != "all-gather"]
        assert [kind for kind, _ in found] == kinds
        assert sum(moved for _, moved in found) == sent
