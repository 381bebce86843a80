"""Parameters by their paths."""

from collections.abc import Callable
from typing import Any

import jax


def path_name(path: tuple) -> str:
    """`chunks/0/attention/qkv_kernel` for a path of keys as JAX gives it."""
    return "/".join(str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", key)))) for key in path)


def named(function: Callable[[str], Any]) -> Callable[[Any], Any]:
    """A function of trees like the parameters, which has `function` of each leaf's name in its place."""
    return lambda tree: jax.tree_util.tree_map_with_path(lambda path, leaf: function(path_name(path)), tree)
