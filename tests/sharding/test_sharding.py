"""One training step on meshes of eight simulated devices: the same numbers as on one, and where arrays and work lie."""

import math
import re

import jax
import numpy as np
import optax
import pytest
from devices import on_eight
from flax import nnx
from jax.sharding import AbstractMesh, PartitionSpec
from small import change

from configs import mom_small
from mom_jax import pool
from mom_jax.analysis import hlo
from mom_jax.config import ModelConfig, RouterConfig
from mom_jax.dispatch import PooledWeights, blocked
from mom_jax.fields import ConfigError
from mom_jax.model import MoM, parameters
from mom_jax.router import Selection
from mom_jax.sharding import AXES, RULES, MeshConfig, batch_sharding, check_mesh, make_mesh, partition
from train.config import OptimConfig
from train.data.packing import pack
from train.steps.optimizer import make_optimizer
from train.steps.state import abstract_model, abstract_state, init_state
from train.steps.train_step import jit_train_step

MESHES = [(8, 1, 1, 1), (1, 8, 1, 1), (1, 1, 8, 1), (1, 1, 1, 8), (2, 2, 2, 1), (2, 1, 2, 2), (1, 2, 2, 2)]

MODEL = ModelConfig(
    vocab_size=61,
    context_length=16,
    d_model=32,
    num_heads=8,
    d_ff=64,
    num_attn_modules=4,
    num_ffn_modules=4,
    num_steps=3,
    top_k=1,
    anchor_after_chunk=True,
    router=RouterConfig(dim=16, temperature=0.5),
)
# name -> fields that differ, and a seed whose routing has gaps that rounding does not cross in five steps.
MODELS = {
    "k1": ({}, 3),
    "k3": ({"top_k": 3}, 3),
    "uneven": ({"num_attn_modules": 3, "num_ffn_modules": 5, "top_k": 2, "d_ff": 40}, 3),
    "capacity": ({"capacity_factor": 8.0, "top_k": 2}, 3),
    "straight-through": ({"router": {"straight_through": True, "scoring": "raw"}, "weighted_qkv": True}, 3),
    "shared": ({"num_attn_modules": 1, "num_chunks": 2}, 3),
    "megablox": ({"dispatch": "megablox"}, 3),
    "splash": ({"attention_kernel": "splash", "context_length": 128, "num_steps": 2}, 3),
    "full": ({"remat": "full"}, 3),
    "none": ({"remat": "none"}, 3),
    "untied": ({"tie_embeddings": False}, 3),
}
STEPS = 5


def model_of(name):
    if name == "vanilla":
        return MODEL.vanilla()
    return change(MODEL, **MODELS[name][0])


def seed_of(name):
    return MODELS.get(name, ({}, 3))[1]


def setting(config, optimizer, mesh, seed):
    """(a state with parameters large enough that routing spreads, the step)."""

    def make():
        params = parameters(MoM(config, rngs=nnx.Rngs(seed)))
        return init_state(jax.tree.map(lambda x: 3 * x if x.ndim > 1 else x, params), optimizer)

    placed = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(config, optimizer, mesh))
    return jax.jit(make, out_shardings=placed)(), placed


def batch(step, mesh, size=16):
    tokens = np.random.default_rng(step).integers(0, MODEL.vocab_size, (size, 16)).astype(np.int32)
    mask = np.ones(tokens.shape, np.bool_)
    mask[1, 5:] = mask[6, 11:] = mask[size - 1] = False
    return jax.device_put({"tokens": tokens, "mask": mask}, batch_sharding(mesh))


def packed_batch(mesh, length):
    """Documents in windows with some padding; the last row is all padding, as where there are too few windows."""
    rng = np.random.default_rng(0)
    starts = np.concatenate([[0], np.cumsum(rng.choice([3, 5, 7, 9], 48) * length // 16)])
    packing, tokens = pack(starts, length), rng.integers(0, MODEL.vocab_size, starts[-1])
    windows = [packing.window(i, tokens) for i in range(16)]
    rows = {name: np.stack([window[name] for window in windows]) for name in windows[0]}
    for row in rows.values():
        row[-1] = 0
    segments = rows["segment_ids"]
    assert (segments[:-1].max(1) > 1).all()
    assert (segments[:-1] == 0).any()
    return jax.device_put(rows, batch_sharding(mesh))


def train(name, shape, accumulation=1):
    """(losses of five steps, parameters after them, how often the step was compiled)."""
    config, mesh = model_of(name), make_mesh(None if shape is None else MeshConfig(*shape))
    optimizer = make_optimizer(OptimConfig(learning_rate=3e-4), 100)
    state, placed = setting(config, optimizer, mesh, seed_of(name))
    step, losses = jit_train_step(config, optimizer, accumulation, 0, mesh), []
    for i in range(STEPS):
        state, report = step(state, batch(i, mesh))
        losses.append(jax.device_get(report.losses))
    assert jax.tree.map(lambda leaf: leaf.sharding, state) == placed
    return losses, jax.tree.map(np.asarray, state.params), step._cache_size()


def gradient(name, shape, accumulation=1, packed=False):
    """(the report of one step, the gradient): SGD with a rate of 1 subtracts it."""
    config, mesh = model_of(name), make_mesh(None if shape is None else MeshConfig(*shape))
    optimizer = optax.sgd(1.0)
    state, _ = setting(config, optimizer, mesh, seed_of(name))
    before = jax.tree.map(np.asarray, state.params)
    step = jit_train_step(config, optimizer, accumulation, 0, mesh)
    state, report = step(state, packed_batch(mesh, config.context_length) if packed else batch(0, mesh))
    return jax.device_get(report), jax.tree.map(lambda a, b: a - np.asarray(b), before, state.params)


def worst(a, b):
    """The largest difference of two trees, each array's in units of its largest value where that is above 1."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return float(max(np.max(np.abs(x - y)) / max(1, np.max(np.abs(x))) for x, y in pairs))


# These run on eight devices.


def compare_training(name, shapes):
    losses, params, _ = train(name, None)
    result = []
    for shape in shapes:
        other_losses, other_params, compiled = train(name, shape)
        result.append([worst(losses, other_losses), worst(params, other_params), compiled])
    return [losses[0].total.item(), losses[-1].total.item(), result]


def compare_gradients(name, shapes, accumulation, packed=False):
    report, want = gradient(name, None, packed=packed)
    result = []
    for shape in shapes:
        other_report, got = gradient(name, shape, accumulation, packed)
        result.append([worst(report, other_report), worst(want, got)])
    return result


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("k1", [(2, 2, 2, 1)]),
        *(
            pytest.param(name, shapes, marks=pytest.mark.slow)
            for name, shapes in [
                ("k1", [(8, 1, 1, 1), (1, 1, 8, 1), (2, 1, 2, 2)]),
                ("k3", [(1, 8, 1, 1), (1, 1, 1, 8), (2, 2, 2, 1), (1, 2, 2, 2)]),
                ("vanilla", [(1, 2, 2, 2)]),
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


@pytest.mark.parametrize(
    ("name", "shapes", "accumulation"),
    [
        ("uneven", [(1, 2, 2, 2)], 1),
        *(
            pytest.param(name, shapes, accumulation, marks=pytest.mark.slow)
            for name, shapes, accumulation in [
                ("uneven", [(1, 1, 8, 1), (1, 4, 2, 1)], 1),
                ("capacity", [(8, 1, 1, 1)], 1),
                ("straight-through", [(2, 1, 2, 2), (1, 2, 2, 2)], 1),
                ("shared", [(1, 2, 2, 2)], 1),
                ("megablox", [(1, 2, 2, 2)], 1),
                ("full", [(1, 2, 2, 2)], 1),
                ("none", [(1, 2, 2, 2)], 1),
                ("untied", [(1, 2, 2, 2)], 1),
                ("k1", [(2, 2, 1, 1), (1, 2, 2, 1)], 2),
            ]
        ),
    ],
)
def test_gradients_on_a_mesh_are_those_on_one_device(name, shapes, accumulation):
    for report, gradients in on_eight(compare_gradients, name, shapes, accumulation):
        assert report < 1e-5
        assert gradients < 1e-5


@pytest.mark.parametrize(
    ("name", "shapes", "accumulation"),
    [
        pytest.param(name, shapes, accumulation, marks=pytest.mark.slow)
        for name, shapes, accumulation in [
            ("k1", [(1, 2, 2, 2)], 1),
            ("k3", [(1, 1, 2, 4)], 2),
            ("splash", [(1, 2, 2, 2)], 1),
        ]
    ],
)
def test_a_step_on_packed_windows_is_that_on_one_device(name, shapes, accumulation):
    for report, gradients in on_eight(compare_gradients, name, shapes, accumulation, True):
        assert report < 1e-5
        assert gradients < 1e-5


# Where arrays lie.


def logical_axes(config):
    """{path: names of the axes} of the parameters."""
    state = nnx.to_flat_state(nnx.state(abstract_model(config), nnx.Param))
    return {path: param.axes for path, param in state}


@pytest.mark.parametrize("sizes", [*MESHES, (1, 4, 2, 1), (1, 32, 8, 1), (2, 4, 4, 4)])
def test_a_device_has_its_part_of_every_array(sizes):
    """All mesh axes that the rules name for an array divide it: mom_small's, whose pools have 8 modules."""
    config, mesh = mom_small.get_config().model, AbstractMesh(sizes, AXES)
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
    assert set(RULES) <= used
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
    ],
)
def test_a_mesh_that_cannot_divide_the_model_is_refused(sizes, message):
    with pytest.raises(ConfigError) as error:
        check_mesh(change(MODEL, d_ff=36), dict(zip(AXES, sizes, strict=True)))
    assert str(error.value) == message


# What a device does.

WIDE = {"d_model": 64, "d_ff": 128, "vocab_size": 31}  # pools' matrices are larger than a step's activations


def compiled_step(fields, shape, sequences=8):
    config, mesh = change(MODEL, **WIDE, **fields), make_mesh(MeshConfig(*shape))
    optimizer = optax.sgd(1.0)
    step = jit_train_step(config, optimizer, 1, 0, mesh)
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


@pytest.mark.parametrize(
    "fields", [{"top_k": 1}, pytest.param({"top_k": 3, "dispatch": "ragged"}, marks=pytest.mark.slow)]
)
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


@pytest.mark.slow
def test_a_gather_in_the_loop_is_seen():
    found = on_eight(loop_collectives, {"top_k": 1}, (1, 2, 2, 1), True)
    assert any(depth and size >= 2 * 64 * 64 for _, depth, _, size in found)


def device_flops(shape):
    # One product of a fixed number of rows a module, which the program says.
    return hlo.count(compiled_step({"capacity_factor": 1.0, "num_steps": 6}, shape, 16)).flops


def test_a_quarter_of_the_modules_is_a_quarter_of_the_work():
    whole, quarter = (on_eight(device_flops, shape) for shape in ((1, 1, 1, 1), (1, 1, 4, 1)))
    assert 0.24 * whole < quarter < 1.15 * whole / 4


def routed_rows(modules):
    """Rows in blocks on each of four devices, of choices that are balanced: without a capacity."""
    config = change(MODEL, num_ffn_modules=16, num_attn_modules=16, top_k=2, dispatch="blocked")
    mesh = make_mesh(MeshConfig(module=modules))
    tokens = 4096
    index = np.stack([np.arange(tokens), np.arange(tokens) + 7], 1).astype(np.int32) % 16

    def rows(index):
        chosen = Selection(index, index.astype(np.float32))
        stacked = {"ffn": PooledWeights((), ())}  # in training
        plan = pool.make_plan(stacked, chosen, np.ones(len(index), bool), config, "ffn")
        return (-(-plan.sizes_N // blocked.UNIT) * blocked.UNIT).sum()[None]

    spec = PartitionSpec(AXES)
    return jax.jit(jax.shard_map(rows, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False))(index).tolist()


def test_without_a_capacity_a_device_multiplies_its_own_modules_rows_only():
    for rows in on_eight(routed_rows, 8):
        assert 4096 * 2 / 8 <= rows <= 1.15 * 4096 * 2 / 8
