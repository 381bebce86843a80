"""Fields of a configuration changed by their dotted names."""

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from mom_jax.fields import ConfigError, nearest

C = TypeVar("C")


def changed(config: C, changes: Mapping[str, Any]) -> C:
    """`config` with other values: `{"model.top_k": 2, "phases.mom.optim.router_multiplier": 3.0}`.

    The names are those of flags (`--model.top-k`); a row of a tuple is known by its number or by its `name`. All
    changes of one dataclass happen at once, so that only what comes out of them has to be consistent. Raises
    ConfigError for an unknown name and for what cannot be.
    """
    tree: dict[str, Any] = {}
    for path, value in changes.items():
        *parents, last = path.split(".")
        node = tree
        for name in parents:
            node = node.setdefault(name, {})
            if not isinstance(node, dict):
                raise ConfigError(f"{path}={value!r}: {name!r} is changed as a whole, too")
        if last in node:
            raise ConfigError(f"{path}={value!r}: is changed twice")
        node[last] = value
    result: C = _changed(config, tree, "")
    return result


def _changed(value: Any, tree: Any, path: str) -> Any:
    if not isinstance(tree, dict):
        return tree
    if isinstance(value, tuple):
        rows = list(value)
        for name, change in tree.items():
            i = _row(rows, name, f"{path}.{name}" if path else name)
            rows[i] = _changed(rows[i], change, f"{path}.{name}")
        return tuple(rows)
    names = [field.name for field in dataclasses.fields(value)] if dataclasses.is_dataclass(value) else []
    for name in tree:
        if name not in names:
            hint = nearest(name, names) if names else f"{path} has no fields"
            raise ConfigError(f"{path + '.' if path else ''}{name}: unknown field; {hint}")
    inner = {n: _changed(getattr(value, n), change, f"{path}.{n}" if path else n) for n, change in tree.items()}
    try:
        return dataclasses.replace(value, **inner)
    except ConfigError as error:
        raise ConfigError(f"{path}.{error}" if path else str(error)) from None


def _row(rows: list[Any], name: str, path: str) -> int:
    names = [str(getattr(row, "name", i)) for i, row in enumerate(rows)]
    if name in names:
        return names.index(name)
    try:
        index = int(name)
        rows[index]
    except (ValueError, IndexError):
        raise ConfigError(f"{path}: no such row; there are {', '.join(names)}, or their numbers") from None
    return index
