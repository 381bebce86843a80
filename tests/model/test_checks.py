"""Checks of shapes while tracing, and of values inside a step: what is wrong is named, in one line."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from small import SMALL, random_ids, random_params, run

from mom_jax import checks, dispatch, losses, pool
from mom_jax.attention import View, attend
from mom_jax.routers import RouterStep, Selection, make_router, score, select
from mom_jax.routing import collect

B, L, D = 2, 5, SMALL.d_model
T, C, K = B * L, SMALL.classes("ffn"), SMALL.top_k


def router(x, state):
    return score(make_router(SMALL, "ffn", rngs=nnx.Rngs(0)), x, state, RouterStep())


def routed_ffn(x=None, index=None, weight=None):
    x = jnp.zeros((B, L, D)) if x is None else x
    index = jnp.zeros((T, K), jnp.int32) if index is None else index
    weight = jnp.ones((T, K)) if weight is None else weight
    plan = dispatch.make_plan(jnp.zeros((T, K), jnp.int32), SMALL.modules("ffn"), "blocked")
    return pool.routed_ffn({}, x, Selection(index, weight), plan, SMALL)


def routed(multiplier):
    plan = dispatch.make_plan(jnp.zeros((T, K), jnp.int32), 2, "dense")
    weights = dispatch.pooled((jnp.zeros((2, D, 3)), jnp.zeros((2, 3))), "dense", "float32")
    return dispatch.routed(dispatch.weighted_linear, jnp.zeros((T, D)), weights, multiplier, plan, "dense")


def attention(qkv, visible):
    return attend(qkv, View(visible), SMALL, key=None, cache=None)


def collected(valid):
    return collect(
        *select(jnp.zeros((T, C)), SMALL, "ffn"), jnp.zeros(T), jnp.zeros(()), jnp.int32(0), valid, SMALL, "ffn"
    )


def model(ids, **given):
    return run(SMALL, random_params(SMALL), ids, **given)


IDS = jnp.zeros((B, L), jnp.int32)
WRONG = {
    "Router: x_TxD": lambda: router(jnp.zeros((T, D + 1)), jnp.zeros((T, SMALL.router.dim))),
    "Router: state_TxR": lambda: router(jnp.zeros((T, D)), jnp.zeros((T, SMALL.router.dim + 1))),
    "select: logits_TxC": lambda: select(jnp.zeros((T, C + 1)), SMALL, "ffn"),
    "select: prior": lambda: select(jnp.zeros((T, C)), SMALL, "ffn", jnp.zeros(C - 1)),
    "make_plan: index_TxK": lambda: dispatch.make_plan(jnp.zeros((T, K)), 2, "dense"),
    "routed: multiplier_TxK": lambda: routed(jnp.ones((T, K + 1))),
    "routed_ffn: x": lambda: routed_ffn(x=jnp.zeros((B, L, D), jnp.bfloat16)),
    "routed_ffn: selection.index_TxK": lambda: routed_ffn(index=jnp.zeros((T, K + 1), jnp.int32)),
    "routed_ffn: selection.weight_TxK": lambda: routed_ffn(weight=jnp.ones((T, K), jnp.bfloat16)),
    "attend: qkv": lambda: attention(jnp.zeros((B, 3 * D)), jnp.ones((1, L, L), bool)),
    "attend: view.visible": lambda: attention(jnp.zeros((B, L, 3 * D)), jnp.ones((L, L), bool)),
    "collect: valid_T": lambda: collected(jnp.ones(T)),
    "cross_entropy: labels": lambda: losses.cross_entropy(jnp.zeros((B, L, 7)), jnp.zeros(B, jnp.int32)),
    "MoM: ids": lambda: model(jnp.zeros(L, jnp.int32)),
    "MoM: mask": lambda: model(IDS, mask=jnp.ones((B, L + 1))),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_array_is_named_in_one_line(name):
    with pytest.raises(AssertionError) as error:
        WRONG[name]()
    [line] = str(error.value).splitlines()
    assert line.endswith(f"[{name}]"), line


class VariantsTest(chex.TestCase):
    """The same with and without jit, with arrays on the host and on a device."""

    @chex.variants(with_jit=True, without_jit=True, with_device=True, without_device=True)
    def test_select(self):
        logits = np.random.default_rng(0).standard_normal((T, C)).astype(np.float32)
        chosen, scores = self.variant(lambda logits: select(jnp.asarray(logits), SMALL, "ffn"))(logits)
        chex.assert_shape(list(chosen), (T, K))
        chex.assert_trees_all_close(scores.reported_TxC.sum(-1), np.ones(T, np.float32), rtol=1e-6)
        order = np.argsort(-np.asarray(scores.reported_TxC), axis=1, kind="stable")[:, :K]
        np.testing.assert_array_equal(chosen.index_TxK, order)

    @chex.variants(with_jit=True, without_jit=True)
    def test_cross_entropy(self):
        logits = np.random.default_rng(1).standard_normal((B, L, 7)).astype(np.float32)
        labels = (np.arange(T).reshape(B, L) % 7).astype(np.int32)
        labels[0, 0] = losses.IGNORE
        nll, count = self.variant(losses.cross_entropy)(jnp.asarray(logits), jnp.asarray(labels))
        log_p = np.asarray(jax.nn.log_softmax(logits))
        want = sum(-log_p[b, l, labels[b, l]] for b in range(B) for l in range(L) if (b, l) != (0, 0))
        chex.assert_trees_all_close(nll, np.float32(want), rtol=1e-6)
        assert count == T - 1


def test_the_number_of_the_step_is_no_constant_of_the_program():
    params, ids = random_params(SMALL), random_ids()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def hidden(step):
        return run(SMALL, params, ids, step=step).hidden

    chex.assert_trees_all_equal_shapes(hidden(jnp.int32(0)), hidden(jnp.int32(7)))


# Values.

ROW = "choices have another row than the plan says"


def faults(plan=None, *, backend="blocked", **wrong):
    """The faults of a sound routing in which some arrays are replaced, and its plan."""
    logits = jnp.asarray(np.random.default_rng(2).standard_normal((T, C)), jnp.float32)
    chosen, scores = select(logits, SMALL, "ffn")
    room = 0.5 if backend == "capacity" else None
    plan = plan or dispatch.make_plan(chosen.index_TxK, SMALL.modules("ffn"), backend, room)
    arrays = {"logits_TxC": scores.logits_TxC, "reported_TxC": scores.reported_TxC, **chosen._asdict()}
    found = checks.routing_faults(**(arrays | wrong), plans=[plan], config=SMALL, side="ffn")
    return {name: int(count) for name, count in found.items() if int(count)}, plan


@pytest.mark.parametrize("backend", ["dense", "blocked", "ragged", "megablox", "triton", "capacity"])
def test_sound_routing_has_no_faults(backend):
    assert faults(backend=backend)[0] == {}


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ({"logits_TxC": jnp.zeros((T, C)).at[3, 1].set(jnp.nan)}, {"router logits are not finite": 1}),
        ({"weight_TxK": jnp.full((T, K), jnp.inf)}, {"weights of choices are not finite": T * K}),
        ({"index_TxK": jnp.full((T, K), C + 1)}, {f"choices are outside of the {C} classes": T * K}),
        ({"index_TxK": jnp.full((T, K), -1)}, {f"choices are outside of the {C} classes": T * K}),
        ({"index_TxK": jnp.full((T, K), C)}, {}),  # forbidden by a prior
        ({"reported_TxC": jnp.full((T, C), 1.1 / C)}, {"router probabilities do not sum to 1": T}),
    ],
)
def test_a_fault_is_counted(wrong, expected):
    assert faults(**wrong)[0] == expected


def test_a_plan_that_is_no_permutation_is_found():
    _, plan = faults()
    first, second, *_ = np.flatnonzero(np.asarray(plan.choice_P) < T * K)
    swapped = plan.choice_P.at[first].set(plan.choice_P[second]).at[second].set(plan.choice_P[first])
    assert faults(plan._replace(choice_P=swapped))[0] == {ROW: 2}
    for broken in (
        plan._replace(sizes_N=plan.sizes_N.at[0].add(1)),
        plan._replace(choice_P=plan.choice_P.at[first].set(T * K)),
        plan._replace(module_P=jnp.full_like(plan.module_P, 1)),
    ):
        assert list(faults(broken)[0]) == [ROW]


def test_a_pass_counts_them_by_chunk_and_step():
    params, ids = random_params(SMALL), random_ids()
    captured_by = jax.jit(lambda params: run(SMALL, params, ids, capture=("faults",)).captured)
    captured = captured_by(params)
    assert {name.split("/")[0] for name in captured} == {"faults"}
    chex.assert_shape(list(captured.values()), (SMALL.num_chunks, SMALL.num_steps))
    chex.assert_trees_all_equal(captured, jax.tree.map(jnp.zeros_like, captured))
    params["chunks"][0]["ffn_router"]["score_bias"] *= jnp.nan
    assert int(captured_by(params)["faults/ffn router logits are not finite"][0, 0]) == ids.size * C
