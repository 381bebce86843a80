"""The train step: a pure function of a state and a batch, the same for every phase."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from mom_jax import sharding
from mom_jax.checks import not_finite
from mom_jax.config import ModelConfig, Side
from mom_jax.evaluation import is_random
from mom_jax.losses import Losses, LossSums, finish
from mom_jax.model import gathered_parameters
from mom_jax.routing import Routing
from train.batch import Batch
from train.numbers import WATCH, WatchConfig
from train.steps.balance import balanced
from train.steps.numbers.guard import Guard, Verdict, judge, taken
from train.steps.placement import BATCH, WHOLE
from train.steps.state import TrainState, abstract_state, param_specs
from train.steps.sums import (
    SumsOf,
    accumulated_sums,
    batch_sums,
    label_count,
    micro_batches,
    needs_whole_batch,
)
from train.steps.teaching import Taught, Teaching


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StepReport:
    """losses: of the whole batch. grad_norm: before clipping. count: labels. routing: sums over the batch. faults: with
    `debug_checks` how often each was seen, int32 by name, [S, H] or a scalar. router_norms: by routed side the norm of
    its routers' gradient, of all chunks together, before clipping. router_updates: the root mean square of the
    change of their parameters. verdict: what became of the update, where there is a guard."""

    losses: Losses
    grad_norm: jax.Array
    count: jax.Array
    routing: Routing
    router_norms: dict[Side, jax.Array]
    router_updates: dict[Side, jax.Array]
    faults: dict[str, jax.Array] = dataclasses.field(default_factory=dict)
    verdict: Verdict | None = None


def train_step(
    state: TrainState,
    batch: Batch,
    guard: Guard | None = None,
    teacher: dict[Any, Any] | None = None,
    *,
    config: ModelConfig,
    optimizer: optax.GradientTransformation,
    accumulation: int,
    seed: int | jax.Array,
    mesh: Mesh,
    gather: Literal["chunk", "step"] = "chunk",
    watch: WatchConfig = WATCH,
    debug_checks: bool = False,
    teaching: Teaching | None = None,
) -> tuple[TrainState, StepReport]:
    """One optimizer step. guard: judges it, as `watch` says, and refuses the update where it must; without one all are
    taken. teacher: with `teaching` the parameters of its model. gather: see `MeshConfig`. debug_checks: also counts
    what is wrong with the routing and the gradients."""
    # Keys are a function of the step: nothing random needs to be saved, and a resumed run draws the same numbers.
    key = jax.random.fold_in(jax.random.key(seed), state.step) if is_random(config) else None
    specs = param_specs(config, mesh)
    teacher_specs = None if teaching is None else param_specs(teaching.model, mesh)

    def gradient(params: Any, batch: Batch, key: jax.Array | None, step: jax.Array, teacher: Any) -> tuple:
        taught = None if teaching is None else Taught(teaching, teacher)
        scatter = None
        if gather == "step":
            params, scatter = jax.vjp(lambda params: gathered_parameters(config, params), params)

        def sums_of(params: dict[Any, Any], batch: Batch, key: jax.Array | None) -> LossSums:
            return batch_sums(params, batch, config, key=key, step=step, debug_checks=debug_checks, taught=taught)

        if accumulation > 1 and not needs_whole_batch(config):
            gradients, aux = _of_micro_batches(sums_of, params, batch, key, accumulation, config)
        else:

            def whole(params: dict[Any, Any]) -> LossSums:
                return accumulated_sums(sums_of, params, batch, key, accumulation)

            gradients, aux = _differentiated(whole, lambda sums: finish(sums, config), params)
        if scatter is not None:
            (gradients,) = scatter(gradients)
        return sharding.total_gradient(gradients, specs), aux

    in_specs = (specs, BATCH, WHOLE, WHOLE, teacher_specs)
    everywhere = sharding.on_devices(gradient, mesh, in_specs=in_specs, out_specs=(specs, WHOLE))
    gradients, (losses, sums) = everywhere(state.params, batch, key, state.step, teacher)
    with jax.numpy_dtype_promotion("standard"):  # optax mixes its integer counter with floats
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    params = balanced(optax.apply_updates(state.params, updates), state.params, sums.routing, config)
    faults = sums.faults | ({"gradients are not finite": not_finite(gradients)} if debug_checks else {})
    norms = {side: optax.tree.norm(_of_routers(gradients, side)) for side in config.routed_sides}
    changes = {side: _root_mean_square(_of_routers(updates, side)) for side in config.routed_sides}
    report = StepReport(losses, optax.tree.norm(gradients), sums.count, sums.routing, norms, changes, faults)
    if guard is None:
        return TrainState(state.step + 1, params, opt_state), report
    verdict, take, counts = judge(guard, watch, losses, report.grad_norm, params, state.step)
    params, opt_state = taken(take, (params, opt_state), (state.params, state.opt_state))
    return TrainState(state.step + counts.astype(jnp.int32), params, opt_state), dataclasses.replace(
        report, verdict=verdict
    )


def _of_routers(tree: dict[Any, Any], side: Side) -> list[Any]:
    """The part of a tree like the parameters that belongs to one side's routers, a chunk each."""
    return [chunk[f"{side}_router"] for chunk in tree["chunks"].values()]


def _root_mean_square(tree: Any) -> jax.Array:
    return optax.tree.norm(tree) / math.sqrt(sum(leaf.size for leaf in jax.tree.leaves(tree)))


def _differentiated(
    own_sums: Callable[[dict[Any, Any]], LossSums],
    losses_of: Callable[[LossSums], Losses],
    params: dict[Any, Any],
) -> tuple[dict[Any, Any], tuple[Losses, LossSums]]:
    """This device's part of the gradient, and the losses and sums of all devices."""

    def loss(params: dict[Any, Any]) -> tuple[jax.Array, tuple[Losses, LossSums]]:
        sums = sharding.total(own_sums(params))
        losses = losses_of(sums)
        # What is differentiated is the sum over all devices: each has its share of the one loss.
        return losses.total / sharding.size(*sharding.AXES), (losses, sums)

    return jax.grad(loss, has_aux=True)(params)


def _of_micro_batches(
    sums_of: SumsOf,
    params: dict[Any, Any],
    batch: Batch,
    key: jax.Array | None,
    accumulation: int,
    config: ModelConfig,
) -> tuple[dict[Any, Any], tuple[Losses, LossSums]]:
    """The same where each micro-batch is balanced by itself: then its gradient needs nothing of the others but the
    number of labels, and each takes one forward pass."""
    count = jnp.maximum(sharding.total(label_count(batch)), 1)

    def share(sums: LossSums) -> Losses:
        """Of the whole batch's losses: labels weigh alike wherever they are, the routers' losses are averaged."""
        alone, loss = finish(sums, config), sums.nll / count
        total = sums.task / count + (alone.total - sums.task / jnp.maximum(sums.count, 1)) / accumulation
        balance, z, capacity = (part / accumulation for part in (alone.balance, alone.z, alone.capacity))
        return Losses(total, loss, balance, z, capacity, None if sums.kl is None else sums.kl / count)

    def add(gradient: dict[Any, Any], given: tuple) -> tuple[dict[Any, Any], tuple[Losses, LossSums]]:
        more, aux = _differentiated(lambda params: sums_of(params, *given), share, params)
        return jax.tree.map(jnp.add, gradient, more), aux

    zeros = jax.tree.map(jnp.zeros_like, params)
    gradient, aux = jax.lax.scan(add, zeros, micro_batches(batch, accumulation, key))
    return gradient, jax.tree.map(lambda x: x.sum(0), aux)


def jit_train_step(
    config: ModelConfig,
    optimizer: optax.GradientTransformation,
    accumulation: int,
    seed: int,
    mesh: Mesh,
    *,
    gather: Literal["chunk", "step"] = "chunk",
    watch: WatchConfig = WATCH,
    debug_checks: bool = False,
    teaching: Teaching | None = None,
) -> Any:
    """`train_step` compiled for a phase: (state, batch, guard) -> (state, report), the guard as there; with `teaching`
    the teacher's parameters come last. The state is donated."""
    bound = functools.partial(
        train_step,
        config=config,
        optimizer=optimizer,
        accumulation=accumulation,
        seed=seed,
        mesh=mesh,
        gather=gather,
        watch=watch,
        debug_checks=debug_checks,
        teaching=teaching,
    )
    placed = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(config, optimizer, mesh))
    # Pinned: XLA may choose other shardings for the new state, and the next step would be compiled anew.
    options = sharding.compiler_options(mesh)
    return jax.jit(
        bound, donate_argnums=0, out_shardings=(placed, sharding.replicated(mesh)), compiler_options=options or None
    )
