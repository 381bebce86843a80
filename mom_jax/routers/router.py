"""What a router is: logits for every token and class, from the residual stream and, with a state, the steps before.

`Router` is the interface; the kinds are in feedforward.py, recurrent.py and history.py, and users register their own
(registry.py).
"""

from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from mom_jax.checks import check_array
from mom_jax.config import ModelConfig, Side
from mom_jax.layers import normal, normalise, zeros
from mom_jax.products import product
from mom_jax.remat import save


class RouterStep(NamedTuple):
    """What a router may read of an assembly step beside the residual stream.

    number: h, int32, the same for all tokens. key: for random numbers; None in a pass that draws none, as evaluation
    does. noise: what the caller gives a `gru_random` router instead, uniform on [0, 1), [T, R].
    """

    number: jax.Array | int = 0
    key: jax.Array | None = None
    noise: jax.Array | None = None


class Router(nnx.Module):
    """Scores the classes of one side; shared by a chunk's steps. Subclasses make their parameters in `__init__`, and
    are called once a step. `nnx.Param`s are all that a router may have of variables.

    random: whether it reads `RouterStep.key`. prunable: whether a module's logit is the same when other modules go.
    computed: the names of the matrices that are multiplied in the compute dtype.
    """

    # What `make_router` gives routers of all kinds, where the configuration asks for it.
    step_bias: nnx.Param
    balance_bias: nnx.Param

    random: ClassVar[bool] = False
    prunable: ClassVar[bool] = True
    computed: ClassVar[tuple[str, ...]] = ()

    def __init__(self, config: ModelConfig, side: Side, *, rngs: nnx.Rngs):
        self.config, self.side = config, side

    def initial_state(self, tokens: int) -> Any:
        """The state before a chunk's first step: any tree of arrays whose first axis is the token, or None."""
        return None

    def __call__(self, x_TxD: jax.Array, state: Any, step: RouterStep) -> tuple[jax.Array, Any]:
        """(logits [T, C] in float32, the next state, of the same structure, shapes and dtypes).

        x: the residual stream in the compute dtype or float32, as `router.norm` has it.
        """
        raise NotImplementedError

    def cast(self) -> nnx.State:
        """The parameters with the matrices `computed` in the compute dtype, for many uses."""
        router = nnx.merge(*nnx.split(self))
        for name in self.computed:
            kernel = getattr(router, name)
            setattr(router, name, kernel.replace(kernel[...].astype(self.config.dtype)))
        return nnx.state(router)

    # What the kinds share.

    def _make_scores(self, width: int, rngs: nnx.Rngs) -> None:
        """The parameters of the last map, from `width` to the classes."""
        classes = self.config.classes(self.side)
        std = self.config.router.score_init
        self.score_kernel = normal(rngs, width, classes, axes=("width", "classes"), std=std)
        self.score_bias = zeros(classes, axes=("classes",))

    def _scores(self, hidden: jax.Array) -> jax.Array:
        """The last map: it decides discrete choices, so in full float32 also where the platform's default is less."""
        logits = jnp.matmul(hidden, self.score_kernel[...], precision=jax.lax.Precision.HIGHEST)
        return save(logits + self.score_bias[...][None])

    def _project(self, x: jax.Array, kernel: jax.Array, bias: jax.Array | None = None) -> jax.Array:
        """x · kernel + bias in float32, multiplied in the compute dtype."""
        projected = product(x.astype(self.config.dtype), kernel)
        return projected if bias is None else projected + bias[None]


def score(router: Router, x_TxD: jax.Array, state: Any, step: RouterStep) -> tuple[jax.Array, Any]:
    """A router's logits [T, C] and its next state, checked. x: the raw residual stream.

    Raises AssertionError, one line with the router's class, for arrays of other shapes or dtypes.
    """
    config, name = router.config, type(router).__name__
    check_array("Router: x_TxD", x_TxD, (None, config.d_model), float)
    if config.router.norm == "layer":
        x_TxD = normalise(x_TxD, config.layer_norm_epsilon)
    logits, following = router(x_TxD, state, step)
    check_array(f"{name}: logits_TxC", logits, (x_TxD.shape[0], config.classes(router.side)), jnp.float32)
    before, after = (
        jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype.name), (tree, None)) for tree in (state, following)
    )
    assert before == after, f"{name}: the next state is {after[0]}, and must be as the one before: {before[0]}"
    return logits, following
