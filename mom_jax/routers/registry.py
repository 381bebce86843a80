"""The registry of routers: kinds by name, and a router made of a configuration."""

from collections.abc import Callable
from typing import TypeVar

import jax.numpy as jnp
from flax import nnx

from mom_jax.config import ModelConfig, Side
from mom_jax.config.router import KINDS
from mom_jax.fields import ConfigError, require
from mom_jax.layers import parameter, zeros
from mom_jax.routers.balance import has_balance_bias
from mom_jax.routers.prior import favoured_classes
from mom_jax.routers.router import Router

R = TypeVar("R", bound=type[Router])


def register(name: str) -> Callable[[R], R]:
    """A class decorator: `router.kind=name` then makes routers of the class, a subclass of `Router`.

    Raises ConfigError for a name that is no plain word or that another class has, and TypeError for other classes.
    """
    require(name.isidentifier(), "kind", name, "must be a plain word to be registered")

    def add(cls: R) -> R:
        if not (isinstance(cls, type) and issubclass(cls, Router)):
            raise TypeError(f"register({name!r}): {cls!r} must be a subclass of mom_jax.routers.Router")
        other = KINDS.get(name)
        # A file that is run again makes its classes anew.
        same = other is None or (other.__module__, other.__qualname__) == (cls.__module__, cls.__qualname__)
        require(same, "kind", name, f"is the name of {other and other.__qualname__} already")
        KINDS[name] = cls
        return cls

    return add


def router_class(config: ModelConfig) -> type[Router]:
    """The class of a model's routers."""
    cls = KINDS[config.router.kind]
    assert cls is not None
    return cls


def make_router(config: ModelConfig, side: Side, *, rngs: nnx.Rngs) -> Router:
    """A side's router, with what routers of all kinds may have: `step_bias` [H, C] and `balance_bias` [C].

    Raises ConfigError for a router of one's own that has these names already, or variables that are no parameters.
    """
    cls = router_class(config)
    router = cls(config, side, rngs=rngs)
    for name in ("step_bias", "balance_bias"):
        require(not hasattr(router, name), "kind", config.router.kind, f"{cls.__name__} must not have a {name}")
    value = config.router.step_bias
    if value is not None:
        table = jnp.where(favoured_classes(config, side), jnp.float32(value), 0.0)
        router.step_bias = parameter(table, ("steps", "classes"))
    if has_balance_bias(config, side):
        router.balance_bias = zeros(config.classes(side), axes=("classes",))
    for path, node in nnx.iter_graph(router):
        if isinstance(node, nnx.Variable):
            _complete(node, f"router.kind={config.router.kind!r}: {cls.__name__}.{'.'.join(map(str, path))}")
    return router


def _complete(variable: nnx.Variable, name: str) -> None:
    """Gives a parameter without logical axes some, so that every device has all of it."""
    if not isinstance(variable, nnx.Param):
        raise ConfigError(f"{name} is {type(variable).__name__}; a router may have nnx.Param only")
    if "axes" not in variable.get_metadata():
        shape = variable[...].shape
        variable.set_metadata(axes=("",) * len(shape), whole=shape)
