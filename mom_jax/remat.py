"""What the backward pass keeps and what it computes again.

What costs more to make again than to keep (matrix products, and plans, which are sorts) is named where it is made, by
`save`; a policy then says which names are kept. JAX's own policies for products do not see those inside loops and
kernels, where routed products are.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name

from mom_jax.config import ModelConfig

PRODUCT = "product"


def _is_attention(primitive: Any, *_: Any, **__: Any) -> bool:
    """Whether it is the forward pass of cuDNN's attention, whose results JAX gives no names."""
    return primitive.name == "dot_product_attention_fwd_wrapper"


POLICIES = {
    "dots": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.save_only_these_names(PRODUCT), _is_attention
    ),
    "full": jax.checkpoint_policies.nothing_saveable,
}


def save(x: Any) -> Any:
    """`x`, which `remat="dots"` keeps."""
    return jax.tree.map(lambda leaf: checkpoint_name(leaf, PRODUCT), x)


def remat(function: Callable, config: ModelConfig, *, scanned: bool) -> Callable:
    """`function`, recomputed in the backward pass as `config.remat` says. scanned: whether it is the body of a scan."""
    if config.remat == "none":
        return function
    # A scan keeps forward and backward pass apart by itself; elsewhere XLA would merge the recomputation away.
    return jax.checkpoint(function, policy=POLICIES[config.remat], prevent_cse=not scanned)
