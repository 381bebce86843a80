"""`ModelConfig` and its parts: everything that defines a Mixture-of-Modules model, checked when it is made.

Letters used throughout the library: B batch, L sequence, T = B·L tokens, D width, F inner width, V vocabulary,
N modules in a pool, K modules taken per step, H assembly steps per chunk, S chunks, R router width, C router classes.
"""

from mom_jax.config.choice import SIDES, ChoiceConfig, Side
from mom_jax.config.mesh import MeshConfig
from mom_jax.config.model import ModelConfig
from mom_jax.config.parts import BalanceConfig, DropoutConfig
from mom_jax.config.router import RouterConfig

__all__ = [
    "SIDES",
    "BalanceConfig",
    "ChoiceConfig",
    "DropoutConfig",
    "MeshConfig",
    "ModelConfig",
    "RouterConfig",
    "Side",
]
