"""Optimizers by name against plain formulas, matrix by matrix; parameters that wait; the states in checkpoints."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from tiny import by_name

import mom_jax as mom
from mom_jax.fields import ConfigError
from mom_jax.sharding import make_mesh
from train.checkpoints.manager import Checkpoints, Meta
from train.config import Config, DataConfig, OptimConfig, Phase
from train.steps.optimizer import check_patterns, is_decayed, make_optimizer
from train.steps.optimizer.names import path_name
from train.steps.state import TrainState, abstract_state, init_state, optimizer_bytes

MODEL = mom.ModelConfig(
    vocab_size=7,
    context_length=5,
    d_model=4,
    num_heads=2,
    d_ff=6,
    num_top=0,
    num_attn_modules=2,
    num_ffn_modules=3,
    num_steps=2,
    router=mom.RouterConfig(dim=3),
)
PARAMS = mom.parameters(mom.MoM(MODEL, rngs=nnx.Rngs(0)))
# The gradients' norm is below 50, unless there are infinite ones among them.
PLAIN = {"schedule": "constant", "learning_rate": 0.1, "clip_norm": 50.0}
RULES = {
    "adamw": OptimConfig(**PLAIN),
    "adafactor": OptimConfig(**PLAIN, optimizer="adafactor"),
    "lion": OptimConfig(**PLAIN, optimizer="lion"),
    "muon": OptimConfig(**PLAIN, optimizer="muon"),
    "waiting": OptimConfig(**PLAIN, freeze_until=(("chunks/0/ffn/*", 2), ("embed/*", 1))),
}


def gradients(seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape), jnp.float32), PARAMS)


@functools.cache
def compiled(rule):
    """(the optimizer, its update): compiling takes most of the time."""
    optimizer = make_optimizer(RULES[rule], 100)
    return optimizer, jax.jit(optimizer.update)


@pytest.fixture(autouse=True)
def _optax_mixes_types():
    with jax.numpy_dtype_promotion("standard"):
        yield


@functools.cache
def updates_of(rule):
    """What an optimizer makes of the same parameters and each of three gradients, by name."""
    (optimizer, update), result = compiled(rule), []
    state = optimizer.init(PARAMS)
    for i in range(3):
        updates, state = update(gradients(i), state, PARAMS)
        result.append(by_name(updates))
    return result


@pytest.fixture
def adamw():
    return updates_of("adamw")


def orthogonal(matrix):
    """Newton-Schulz as https://kellerjordan.github.io/posts/muon has it, five times, of one matrix."""
    x = matrix / np.linalg.norm(matrix)
    x = x.T if matrix.shape[0] > matrix.shape[1] else x
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x


def each_matrix(name, array):
    """Views of an array's matrices [in, out]: one a module, and one each for queries, keys and values."""
    for stack in array if name.startswith("chunks/") else [array]:
        yield from ([stack[:, i] for i in range(3)] if name.endswith("qkv_kernel") else [stack])


def test_muon_by_hand(adamw):
    """Every matrix by itself; the size of the update is AdamW's whatever the shape; Adam for all else."""
    got = updates_of("muon")
    momenta = {name: np.zeros_like(value) for name, value in by_name(PARAMS).items()}
    orthogonalised = set()
    for i, updates in enumerate(got):
        for name, gradient in by_name(gradients(i)).items():
            part, kind = name.split("/")[-2:]
            if part not in ("attention", "ffn") or not kind.endswith("kernel"):
                np.testing.assert_array_equal(updates[name], adamw[i][name], err_msg=name)
                continue
            orthogonalised.add(kind)
            momenta[name] = 0.95 * momenta[name] + 0.05 * gradient
            # Nesterov's look ahead; the averages are corrected for their start at 0, each for its own step.
            ahead = 0.95 * momenta[name] / (1 - 0.95 ** (i + 2)) + 0.05 * gradient / (1 - 0.95 ** (i + 1))
            decay = 0.1 * by_name(PARAMS)[name]
            rows = (each_matrix(name, array) for array in (ahead, updates[name], decay))
            for source, update, decayed in zip(*rows, strict=True):
                want = 0.2 * np.sqrt(max(source.shape)) * orthogonal(source)
                np.testing.assert_allclose(update, -0.1 * (want + decayed), atol=2e-5, err_msg=name)
    assert orthogonalised == {"qkv_kernel", "out_kernel", "in_kernel"}


def test_lion_by_hand():
    """The sign of a mix of moment and gradient; the moment has the other average."""
    got = updates_of("lion")
    moments = {name: np.zeros_like(value) for name, value in by_name(PARAMS).items()}
    for i, updates in enumerate(got):
        for name, gradient in by_name(gradients(i)).items():
            sign = np.sign(0.9 * moments[name] + 0.1 * gradient)
            moments[name] = 0.95 * moments[name] + 0.05 * gradient
            decay = 0.1 * by_name(PARAMS)[name] if is_decayed(name) else 0.0
            np.testing.assert_allclose(updates[name], -0.1 * (sign + decay), rtol=1e-5, atol=1e-7, err_msg=name)


@pytest.mark.parametrize("beta1", [0.9, 0.0])
def test_adafactor_by_hand(beta1):
    """A stack of two large matrices: rows' and columns' means of squares, each matrix's own."""
    fields = PLAIN | {"clip_norm": 1e6, "weight_decay": 0.0}
    optim = OptimConfig(**fields, optimizer="adafactor", beta1=beta1, beta2=0.5)
    optimizer, rng = make_optimizer(optim, 100), np.random.default_rng(0)
    params = {"kernel": jnp.ones((2, 128, 130))}
    state, rows, columns, moment = optimizer.init(params), 0.0, 0.0, 0.0
    sizes = [leaf.size for leaf in jax.tree.leaves(state) if leaf.ndim > 1]
    assert sorted(sizes) == [2 * 128, 2 * 130, *([2 * 128 * 130] if beta1 else [])]
    update = jax.jit(optimizer.update)
    for step in range(1, 4):
        gradient = rng.normal(size=(2, 128, 130)) * rng.uniform(0.1, 3, (2, 128, 1)) * rng.uniform(0.1, 3, (2, 1, 130))
        updates, state = update({"kernel": jnp.asarray(gradient, jnp.float32)}, state, params)
        decay = min(0.5, 1 - step**-0.8)
        rows = decay * rows + (1 - decay) * np.square(gradient).mean(2, keepdims=True)
        columns = decay * columns + (1 - decay) * np.square(gradient).mean(1, keepdims=True)
        scaled = gradient / np.sqrt(rows * columns / rows.mean(1, keepdims=True))
        scaled /= max(1, np.sqrt(np.square(scaled).mean()))
        moment = beta1 * moment + (1 - beta1) * scaled
        np.testing.assert_allclose(updates["kernel"], -0.1 * moment, rtol=1e-4, atol=1e-6)


# Parameters that wait.


def test_waiting_parameters_begin_as_if_it_were_the_first_step(adamw):
    got = updates_of("waiting")
    params = by_name(PARAMS)
    waits = {name: 2 if name.startswith("chunks/0/ffn/") else int(name.startswith("embed/")) for name in params}
    assert set(waits.values()) == {0, 1, 2}
    for name, wait in waits.items():
        moment = square = 0.0
        for i, updates in enumerate(got):
            if wait == 0:
                np.testing.assert_array_equal(updates[name], adamw[i][name], err_msg=name)
            elif i < wait:
                assert not updates[name].any(), name
            else:
                gradient, t = by_name(gradients(i))[name], i - wait + 1
                moment, square = 0.9 * moment + 0.1 * gradient, 0.95 * square + 0.05 * gradient**2
                adam = moment / (1 - 0.9**t) / (np.sqrt(square / (1 - 0.95**t)) + 1e-5)
                decay = 0.1 * params[name] if is_decayed(name) else 0.0
                np.testing.assert_allclose(updates[name], -0.1 * (adam + decay), rtol=1e-4, atol=1e-6, err_msg=name)


def test_waiting_parameters_have_no_moments_and_no_part_in_the_clipped_norm():
    """Not even where they are no numbers: nothing of them may remain."""

    def changed(factor):
        at = jax.tree_util.tree_map_with_path
        waits = ("chunks/0/ffn/", "embed/")
        return at(lambda path, g: g * factor if path_name(path).startswith(waits) else g, gradients(0))

    optimizer, update = compiled("waiting")
    fresh = optimizer.init(PARAMS)
    got, want = update(changed(jnp.nan), fresh, PARAMS), update(changed(0.0), fresh, PARAMS)
    chex.assert_trees_all_equal(got, want)
    held = {name: leaf for name, leaf in by_name(got[1]).items() if "/embed/" in name}
    assert len(held) == 4  # two moments of two arrays
    assert not any(leaf.any() for leaf in held.values())


# Checkpoints.


@pytest.mark.parametrize(
    "rule", [pytest.param(rule, marks=[pytest.mark.slow] * (rule in ("adamw", "lion"))) for rule in RULES]
)
def test_a_run_that_was_interrupted_goes_on_exactly(rule, tmp_path):
    """Two steps, a checkpoint, two more: the same state, bit by bit, as four steps have."""
    mesh, (optimizer, update) = make_mesh(), compiled(rule)

    def step(state, gradient):
        updates, opt_state = update(gradient, state.opt_state, state.params)
        return TrainState(state.step + 1, optax.apply_updates(state.params, updates), opt_state)

    like, states = abstract_state(MODEL, optimizer, mesh), [init_state(PARAMS, optimizer)]
    assert jax.tree.structure(like) == jax.tree.structure(states[0])
    for i in range(4):
        states.append(step(states[-1], gradients(i)))
    checkpoints = Checkpoints(tmp_path / "phase")
    try:
        config = Config(model=MODEL, data=DataConfig(length=5), phases=(Phase("phase", 100, optim=RULES[rule]),))
        checkpoints.save(states[2], Meta(config, "phase", 2, 0, "none"), None)
        checkpoints.wait()
        assert checkpoints.meta(2).config == config
        state = checkpoints.restore(2, like)
    finally:
        checkpoints.close()
    chex.assert_trees_all_equal(step(step(state, gradients(2)), gradients(3)), states[4])


@pytest.mark.parametrize("rule", RULES)
def test_the_bytes_of_a_state_are_those_that_it_has(rule):
    state = compiled(rule)[0].init(PARAMS)
    counted = sum(leaf.nbytes for leaf in jax.tree.leaves(state) if leaf.ndim)
    assert optimizer_bytes(MODEL, RULES[rule], 100) == counted
    two = 2 * sum(leaf.nbytes for leaf in jax.tree.leaves(PARAMS))
    if rule in ("adamw", "waiting"):
        assert counted == two
    elif rule == "lion":
        assert counted == two // 2
    else:
        assert counted != two


# Configurations.


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"optimizer": "sgd"}, "optimizer='sgd'"),
        ({"momentum": 0.9}, "momentum=0.9: is not used with optimizer='adamw'"),
        ({"optimizer": "lion", "epsilon": 1e-8}, "epsilon=1e-08: is not used with optimizer='lion'"),
        ({"optimizer": "adafactor", "epsilon": 1e-8}, "epsilon"),
        ({"optimizer": "muon", "momentum": 1.0}, "momentum=1.0"),
        ({"freeze_until": (("embed/*", 0),)}, "freeze_until"),
    ],
)
def test_what_an_optimizer_does_not_use_is_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        OptimConfig(**fields)


def test_patterns_that_wait_are_checked():
    optim = OptimConfig(freeze_until=(("chunk/*", 2),))
    with pytest.raises(ConfigError, match=r"phases.x.optim.freeze_until='chunk/\*': matches no parameter"):
        check_patterns(optim, by_name(PARAMS), "phases.x.optim")
    with pytest.raises(ConfigError, match="must have fewer steps than the phase's 2"):
        Phase("phase", 2, optim=optim)
