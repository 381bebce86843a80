"""Mixture-of-Modules language models in JAX and Flax NNX.

>>> import mom_jax as mom
>>> from flax import nnx
>>> model = mom.MoM(mom.ModelConfig(vocab_size=256, d_model=64, num_heads=4), rngs=nnx.Rngs(0))
"""

import importlib
from typing import TYPE_CHECKING, Any

# The version of the whole project; pyproject.toml reads it here.
__version__ = "0.1.0"

if TYPE_CHECKING:
    from mom_jax.assembly import Noise
    from mom_jax.config import (
        BalanceConfig,
        ChoiceConfig,
        DropoutConfig,
        ModelConfig,
        RouterConfig,
    )
    from mom_jax.fields import ConfigError
    from mom_jax.generation import Decoder, generate
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

# The modules that define those names. They are imported when a name is first used: a program that asks for a
# configuration, or only for its flags, starts without JAX.
_HOMES = {
    "config": ("BalanceConfig", "ChoiceConfig", "DropoutConfig", "ModelConfig", "RouterConfig"),
    "fields": ("ConfigError",),
    "model": ("Cache", "MoM", "Output", "parameters", "with_parameters"),
    "assembly": ("Noise",),
    "generation": ("Decoder", "generate"),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}


if not TYPE_CHECKING:  # with it, no name would be wrong

    def __getattr__(name: str) -> Any:
        if name not in _HOME:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
