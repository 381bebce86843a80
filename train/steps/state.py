"""The train state, and its shapes, types and shardings before there is one."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from mom_jax import sharding
from mom_jax.config import ModelConfig
from mom_jax.model import MoM, parameters
from train.config import OptimConfig
from train.steps.optimizer import make_optimizer
from train.steps.placement import WHOLE, placed


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """step: optimizer steps taken in this phase. params: nested dictionaries of float32 arrays."""

    step: jax.Array
    params: dict[Any, Any]
    opt_state: optax.OptState


def abstract_model(config: ModelConfig) -> MoM:
    """A model of shapes and types; nothing is computed."""
    return nnx.eval_shape(lambda: MoM(config, rngs=nnx.Rngs(0)))


def param_specs(config: ModelConfig, mesh: Mesh) -> dict[Any, Any]:
    """The PartitionSpec of every parameter."""
    return sharding.parameter_specs(abstract_model(config), mesh)


def abstract_params(config: ModelConfig, mesh: Mesh | None = None) -> dict[Any, Any]:
    """Shapes, types and, with a mesh, shardings of a model's parameters."""
    model = abstract_model(config)
    params = jax.eval_shape(parameters, model)
    if mesh is None:
        return params
    return jax.tree.map(lambda leaf, spec: placed(leaf, mesh, spec), params, sharding.parameter_specs(model, mesh))


def abstract_state(config: ModelConfig, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """Shapes, types and shardings of a phase's state: moments lie where their parameters do. Factored ones, which have
    other shapes and are small, are whole on every device."""
    params = abstract_params(config, mesh)
    state = jax.eval_shape(functools.partial(init_state, optimizer=optimizer), params)
    rows = {path: (leaf.shape, leaf.sharding.spec) for path, leaf in jax.tree_util.tree_leaves_with_path(params)}

    def place(path: tuple, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        shape, spec = next((row for name, row in rows.items() if path[-len(name) :] == name), ((), WHOLE))
        return placed(leaf, mesh, spec if leaf.shape == shape else WHOLE)

    return jax.tree_util.tree_map_with_path(place, state)


def optimizer_bytes(config: ModelConfig, optim: OptimConfig, steps: int) -> int:
    """Of the optimizer's state for all parameters, its counters aside."""
    state = jax.eval_shape(make_optimizer(optim, steps).init, abstract_params(config))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state) if leaf.ndim)


def init_state(params: dict[Any, Any], optimizer: optax.GradientTransformation) -> TrainState:
    """A state before its first step."""
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))
