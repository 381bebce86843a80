"""Mixture-of-Modules language models in JAX and Flax NNX.

>>> import mom_jax as mom
>>> from flax import nnx
>>> model = mom.MoM(mom.ModelConfig(vocab_size=256, d_model=64, num_heads=4), rngs=nnx.Rngs(0))
"""

from mom_jax.assembly import Noise
from mom_jax.config import (
    BalanceConfig,
    ChoiceConfig,
    DropoutConfig,
    ModelConfig,
    RouterConfig,
)
from mom_jax.fields import ConfigError
from mom_jax.generate import Decoder, generate
from mom_jax.model import Cache, MoM, Output, parameters, with_parameters

__all__ = [
    "BalanceConfig",
    "Cache",
    "ChoiceConfig",
    "ConfigError",
    "Decoder",
    "DropoutConfig",
    "MoM",
    "ModelConfig",
    "Noise",
    "Output",
    "RouterConfig",
    "generate",
    "parameters",
    "with_parameters",
]
