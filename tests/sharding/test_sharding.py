"""One training step on meshes of eight simulated devices: the same numbers as on one, and where arrays and work lie."""

import math
import re

import jax
import numpy as np
import optax
import pytest
from devices import on_eight
from flax import nnx
from jax.sharding import AbstractMesh
from mesh_steps import MODEL, compare_gradients, compare_training
from small import EXHAUSTIVE, change

from configs.paper_routing import small as paper_small
from mom_jax import pool
from mom_jax.analysis import hlo
from mom_jax.fields import ConfigError
from mom_jax.sharding import AXES, RULES, MeshConfig, batch_sharding, check_mesh, make_mesh, partition
from train.config import OptimConfig
from train.steps.optimizer import make_optimizer
from train.steps.state import abstract_model, abstract_state
from train.steps.train_step import jit_train_step

MESHES = [(8, 1, 1, 1), (1, 8, 1, 1), (1, 1, 8, 1), (1, 1, 1, 8), (2, 2, 2, 1), (2, 1, 2, 2), (1, 2, 2, 2)]


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("vanilla", [(1, 2, 2, 2)]),
        *(
            pytest.param(name, shapes, marks=marks)
            for name, shapes, marks in [
                ("k1", [(2, 2, 2, 1)], EXHAUSTIVE),
                ("k1", [(1, 1, 1, 8)], EXHAUSTIVE),
                ("k3", [(1, 8, 1, 1), (2, 1, 2, 2)], pytest.mark.slow),
            ]
        ),
    ],
)
def test_training_on_a_mesh_is_training_on_one_device(name, shapes):
    first, last, result = on_eight(compare_training, name, shapes)
    assert abs(first - last) > 1e-3
    for losses, params, compiled in result:
        assert losses < 1e-5
        assert params < 1e-4
        assert compiled == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "rule"), [pytest.param("wide", "adafactor", marks=pytest.mark.exhaustive), ("k1", "muon")]
)
def test_an_optimizer_on_a_mesh_is_the_same_on_one_device(name, rule):
    """Adafactor's moments are factored there; Muon's matrices are divided among devices."""
    first, last, [[losses, params, compiled]] = on_eight(compare_training, name, [(1, 2, 2, 2)], rule)
    assert abs(first - last) > 1e-3
    assert losses < 1e-4
    # Keys' biases have no gradient but rounding, of which Adafactor, without an epsilon, makes whole steps.
    assert params < (1e-4 if rule == "muon" else 5 * 2.1 * 3e-4)
    assert compiled == 1


@pytest.mark.parametrize(
    ("name", "shapes", "accumulation"),
    [
        pytest.param(name, shapes, accumulation, marks=marks)
        for name, shapes, accumulation, marks in [
            ("uneven", [(1, 2, 2, 2)], 1, pytest.mark.slow),
            ("capacity", [(8, 1, 1, 1), (1, 1, 4, 1)], 1, pytest.mark.slow),
            ("straight-through", [(2, 1, 2, 2)], 1, pytest.mark.slow),
            ("shared", [(1, 2, 2, 2)], 1, EXHAUSTIVE),
            ("megablox", [(1, 2, 2, 2)], 1, pytest.mark.slow),
            ("untied", [(1, 2, 2, 2)], 1, EXHAUSTIVE),
            ("scheduled", [(1, 2, 2, 2)], 1, EXHAUSTIVE),
            ("sigmoid", [(1, 2, 2, 2)], 2, pytest.mark.slow),
            ("narrow-values", [(1, 2, 2, 2)], 1, pytest.mark.slow),
            ("k1", [(1, 2, 2, 1)], 2, EXHAUSTIVE),
        ]
    ],
)
def test_gradients_on_a_mesh_are_those_on_one_device(name, shapes, accumulation):
    for report, gradients, _ in on_eight(compare_gradients, name, shapes, accumulation):
        assert report < 1e-5
        assert gradients < 1e-5


@pytest.mark.parametrize(
    ("name", "shapes", "accumulation"),
    [
        pytest.param("k3", [(1, 1, 2, 4)], 2, marks=EXHAUSTIVE),
        pytest.param("special", [(1, 1, 2, 4)], 2, marks=pytest.mark.slow),
        pytest.param("splash", [(1, 2, 2, 2)], 1, marks=pytest.mark.slow),
    ],
)
def test_a_step_on_packed_windows_is_that_on_one_device(name, shapes, accumulation):
    for report, gradients, _ in on_eight(compare_gradients, name, shapes, accumulation, True):
        assert report < 1e-5
        assert gradients < 1e-5


@pytest.mark.parametrize(
    ("name", "shapes", "accumulation"),
    [
        pytest.param("vanilla", [(1, 4, 2, 1)], 2, marks=EXHAUSTIVE),
        pytest.param("uneven", [(1, 2, 2, 2)], 2, marks=pytest.mark.slow),
        pytest.param("k3", [(2, 4, 1, 1), (1, 4, 2, 1)], 1, marks=pytest.mark.slow),
        pytest.param("untied", [(1, 2, 4, 1)], 2, marks=EXHAUSTIVE),
    ],
)
def test_gradients_of_parameters_that_are_gathered_once_are_those_on_one_device(name, shapes, accumulation):
    for report, gradients, _ in on_eight(compare_gradients, name, shapes, accumulation, False, None, "step"):
        assert report < 1e-5
        assert gradients < 1e-5


# Where arrays lie.


def logical_axes(config):
    """{path: names of the axes} of the parameters."""
    state = nnx.to_flat_state(nnx.state(abstract_model(config), nnx.Param))
    return {path: param.axes for path, param in state}


@pytest.mark.parametrize("sizes", [*MESHES, (1, 4, 2, 1), (1, 32, 8, 1), (2, 4, 4, 4)])
def test_a_device_has_its_part_of_every_array(sizes):
    """All mesh axes that the rules name for an array divide it: paper_small's, whose pools have 8 modules."""
    config, mesh = paper_small.get_config().model, AbstractMesh(sizes, AXES)
    state = abstract_state(config, make_optimizer(OptimConfig(), 10), mesh)
    names = logical_axes(config)
    found = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        own = next((names[tail] for i in range(len(path)) if (tail := keys(path[i:])) in names), None)
        over = {axis for name in own or () for axis in RULES.get(name, ())}
        parts = math.prod(mesh.shape[axis] for axis in over)
        assert math.prod(leaf.sharding.shard_shape(leaf.shape)) <= 1.05 * leaf.size / parts, path
        found.append(own)
    # Every parameter and its two moments; beside them the optimizer has counters only.
    assert {own: found.count(own) for own in set(names.values())} == {
        own: 3 * list(names.values()).count(own) for own in set(names.values())
    }
    assert 1 <= found.count(None) <= 5


def keys(path):
    return tuple(getattr(key, "key", getattr(key, "idx", None)) for key in path)


def test_a_pool_that_does_not_divide_lies_divided_by_its_width():
    sizes = {"data": 1, "fsdp": 2, "module": 4, "tensor": 1}
    assert partition(("modules", "embed", "mlp"), (8, 16, 64), sizes) == (("module",), ("fsdp",), ())
    assert partition(("modules", "embed", "mlp"), (5, 16, 64), sizes) == ((), ("fsdp", "module"), ())
    # GPT-2's vocabulary is 29 x 1733.
    assert partition(("vocab", "width"), (50257, 768), sizes) == ((), ("fsdp", "module"))
    assert partition(("vocab", "width"), (50257, 6), sizes) == ((), ("fsdp",))


def test_every_logical_axis_has_a_rule_or_is_known_to_have_none():
    everywhere = {"parts", "layers", "gates", "hidden", "classes", "vocab", "positions"}
    used = {name for axes in logical_axes(MODEL).values() for name in axes}
    used |= {
        name
        for axes in logical_axes(change(MODEL, router={"kind": "mlp"}, num_attn_modules=1)).values()
        for name in axes
    }
    assert used - set(RULES) == everywhere
    assert set(RULES) - {"all modules"} <= used  # which gathers say, no parameter
    assert {axis for axes in RULES.values() for axis in axes} < set(AXES)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"fsdp": 2}, "mesh='data 1 x fsdp 2 x module 1 x tensor 1': is 2 devices, there are 1"),
        ({"data": 4, "tensor": 2}, "mesh='data 4 x fsdp 1 x module 1 x tensor 2': is 8 devices, there are 1"),
    ],
)
def test_a_mesh_that_is_larger_than_the_devices_is_refused(fields, message):
    with pytest.raises(ConfigError) as error:
        make_mesh(MeshConfig(**fields))
    assert str(error.value) == message


def test_a_size_below_one_is_refused():
    with pytest.raises(ConfigError, match="module=0: must be at least 1"):
        MeshConfig(module=0)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((1, 3, 1, 1), "mesh.fsdp=3: must divide model.d_model=32"),
        ((1, 1, 1, 16), "mesh.tensor=16: must divide model.num_heads=8"),
        ((1, 1, 1, 8), "mesh.tensor=8: must divide model.d_ff=36"),
        ((1, 1, 1, 4), "mesh.tensor=4: must divide model.module_d_ff=18"),
    ],
)
def test_a_mesh_that_cannot_divide_the_model_is_refused(sizes, message):
    with pytest.raises(ConfigError) as error:
        check_mesh(change(MODEL, d_ff=36, module_d_ff=18), dict(zip(AXES, sizes, strict=True)))
    assert str(error.value) == message


# What a device does.

WIDE = {"d_model": 64, "d_ff": 128, "vocab_size": 31}  # pools' matrices are larger than a step's activations


def compiled_step(fields, shape, sequences=8, accumulation=1, gather="chunk"):
    config, mesh = change(MODEL, **WIDE, **fields), make_mesh(MeshConfig(*shape))
    optimizer = optax.sgd(1.0)
    step = jit_train_step(config, optimizer, accumulation, 0, mesh, gather=gather)
    tokens = jax.ShapeDtypeStruct((sequences, 8), np.int32, sharding=batch_sharding(mesh))
    return step.trace(abstract_state(config, optimizer, mesh), {"tokens": tokens}).lower().compile().as_text()


def gather_in_the_loop():
    """A change of the model: its steps take the FFNs' weights apart and gather them."""
    original = pool.routed_ffn

    def routed_ffn(own, x, *rest):
        def regather(w):
            if w.ndim < 3:
                return w
            part = w.shape[1] // 2
            own_part = jax.lax.dynamic_slice_in_dim(w * x[0, 0, 0], jax.lax.axis_index("fsdp") * part, part, 1)
            return jax.lax.all_gather(own_part, "fsdp", axis=1, tiled=True)

        weights = jax.tree.map(regather, own["ffn"].weights)
        return original({"ffn": own["ffn"]._replace(weights=weights)}, x, *rest)

    return routed_ffn


def loop_collectives(fields, shape, inside):
    """[[kind, depth, the number of elements of the largest array]] of all collectives of a train step."""
    with pytest.MonkeyPatch.context() as patch:
        if inside:
            patch.setattr(pool, "routed_ffn", gather_in_the_loop())
        found = hlo.count(compiled_step(fields, shape)).collectives
    return [
        [
            c.kind,
            c.depth,
            c.count,
            max(math.prod(map(int, re.findall(r"\d+", a[a.index("[") :]))) for a in c.operands + c.results),
        ]
        for c in found
        if c.group_size > 1
    ]


@pytest.mark.slow
@pytest.mark.parametrize("fields", [{"top_k": 1}, {"top_k": 3, "dispatch": "ragged"}])
def test_pools_are_gathered_outside_of_the_loop(fields):
    matrix = 2 * 64 * 64  # the smallest of a pool's, of 2 modules
    found = on_eight(loop_collectives, fields, (1, 2, 2, 1), False)
    # Tokens do travel in the loop.
    assert any(depth for _, depth, _, _ in found)
    assert all(size < matrix for _, depth, _, size in found if depth)
    # Four matrices, gathered once in each direction; their gradients are scattered once.
    gathers = [count for kind, _, count, size in found if kind == "all-gather" and size >= matrix]
    assert sum(gathers) >= 8
    assert any(
        size >= matrix for kind, depth, _, size in found if not depth and kind in ("reduce-scatter", "all-reduce")
    )


def gathers_in_loops(gather):
    """How many collectives move arrays of a pool's size within loops: the micro-batches are one."""
    fields = {"top_k": 1, "balance": {"over": "micro_batch"}}
    found = hlo.count(compiled_step(fields, (1, 4, 1, 1), 8, 2, gather)).collectives
    sizes = [(c, max(math.prod(map(int, re.findall(r"\d+", a[a.index("[") :]))) for a in c.operands)) for c in found]
    return sum(bool(c.depth) and size >= 2 * 64 * 64 for c, size in sizes if c.group_size > 1)


@pytest.mark.slow
def test_micro_batches_can_share_what_was_gathered():
    assert on_eight(gathers_in_loops, "chunk") > 0
    assert on_eight(gathers_in_loops, "step") == 0


@pytest.mark.slow
def test_a_gather_in_the_loop_is_seen():
    found = on_eight(loop_collectives, {"top_k": 1}, (1, 2, 2, 1), True)
    assert any(depth and size >= 2 * 64 * 64 for _, depth, _, size in found)
