"""State dicts of PyTorch models, to our parameters and back, by a list of entries that says what goes where.

A state dict is a mapping from names to numpy arrays; parameters are our model's nested dictionaries of arrays. The
mapping may load an array when it is asked for it: it is asked once for each, and what it gives is not kept where it has
to be stacked, so that a model is converted in little more memory than it takes itself.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from mom_jax.config import ModelConfig, Side
from mom_jax.fields import ConfigError

PREFIX = "transformer."  # of everything but the heads
Path = tuple[str | int, ...]
MOST_NAMED = 20  # arrays that do not fit, in one message


class Entry(NamedTuple):
    """One array of a state dict: its name, its shape there, and where it is in our tree.

    module: the row of our array, where ours is stacked over modules. transposed: theirs is [out, in], ours [in, out].
    copy: a second name of an array that has an entry before this one; a state dict may lack it.
    """

    name: str
    shape: tuple[int, ...]
    path: Path
    module: int | None = None
    transposed: bool = False
    copy: bool = False


def head(config: ModelConfig) -> Entry:
    """The language model's output head, a copy where it is tied."""
    path: Path = ("embed", "tokens") if config.tie_embeddings else ("lm_head", "kernel")
    return Entry("lm_head.weight", (config.vocab_size, config.d_model), path, copy=config.tie_embeddings)


def sublayer(
    config: ModelConfig, side: Side, names: tuple[str, str, str], path: Path, module: int | None = None
) -> Iterator[Entry]:
    """The arrays of a sublayer at `path`. names: theirs, for the layer norm, the first linear map and the second, each
    with a `weight` [in, out] and a `bias`."""
    d, inner = config.d_model, config.inner_width
    first, middle, last = ("qkv", 3 * d, d) if side == "attention" else ("in", inner, inner)
    shapes: dict[str, tuple[int, ...]] = {"norm_scale": (d,), f"{first}_kernel": (d, middle), "out_kernel": (last, d)}
    for name, (ours, shape) in zip(names, shapes.items(), strict=True):
        yield Entry(f"{name}.weight", shape, (*path, side, ours), module)
        yield Entry(f"{name}.bias", shape[-1:], (*path, side, f"{ours.partition('_')[0]}_bias"), module)


def read(
    arrays: Mapping[str, Any], entries: Iterable[Entry], shapes: Mapping[str, tuple[int, ...]] | None = None
) -> dict:
    """Our parameters, float32, from a state dict, in which the prefix `transformer.` may be missing.

    shapes: of all the arrays, by name; without them the arrays are asked, which loads them. Nothing is loaded before
    names and shapes are known to be right. Raises `ConfigError` naming every array that is missing, surplus or of the
    wrong shape, and a copy that is none.
    """
    if shapes is None:
        shapes = {name: np.shape(array) for name, array in arrays.items()}
    if not any(name.startswith(PREFIX) for name in shapes):
        entries = [entry._replace(name=entry.name.removeprefix(PREFIX)) for entry in entries]
    entries = [entry for entry in entries if not entry.copy or entry.name in shapes]
    copies = {entry.name: entry.path for entry in entries if entry.copy}
    originals = {entry.path: entry for entry in entries if not entry.copy}
    wanted = {entry.name: entry.shape for entry in entries if not entry.copy}
    check(wanted, {name: shape for name, shape in shapes.items() if name not in copies})
    for name, path in copies.items():
        if shapes[name] != originals[path].shape:
            raise _differs(name, shapes[name], originals[path])

    whole = _our_shapes(entries)
    flat: dict[Path, np.ndarray] = {}
    for entry in entries:
        array = np.asarray(arrays[entry.name], np.float32)
        array = (array.T if entry.transposed else array).reshape(_our_shape(entry))
        if entry.copy:
            if not np.array_equal(array, flat[entry.path]):
                raise _differs(entry.name, entry.shape, originals[entry.path])
        elif entry.module is None:
            flat[entry.path] = array
        else:
            if entry.path not in flat:
                flat[entry.path] = np.empty(whole[entry.path], np.float32)
            flat[entry.path][entry.module] = array
    return nest(flat)


def write(params: Mapping[Any, Any], entries: Iterable[Entry]) -> dict[str, np.ndarray]:
    """The state dict of our parameters, as views of them.

    Raises `ConfigError` naming every array that is missing, surplus or of the wrong shape.
    """
    entries = list(entries)
    flat = {path: np.asarray(value) for path, value in flatten(params)}
    wanted = {dotted(path): shape for path, shape in _our_shapes(entries).items()}
    check(wanted, {dotted(path): array.shape for path, array in flat.items()})
    result = {}
    for entry in entries:
        array = flat[entry.path] if entry.module is None else flat[entry.path][entry.module]
        result[entry.name] = array.T if entry.transposed else array.reshape(entry.shape)
    return result


def _our_shape(entry: Entry) -> tuple[int, ...]:
    """Of our array, or of one module's row in it: query, key and value have an axis of their own."""
    shape = entry.shape[::-1] if entry.transposed else entry.shape
    return (*shape[:-1], 3, shape[-1] // 3) if str(entry.path[-1]).startswith("qkv_") else shape


def _our_shapes(entries: Iterable[Entry]) -> dict[Path, tuple[int, ...]]:
    """Of all our arrays. Modules are listed in order: the last one's entry tells how many there are."""
    return {
        entry.path: _our_shape(entry) if entry.module is None else (entry.module + 1, *_our_shape(entry))
        for entry in entries
    }


def check(wanted: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]) -> None:
    """Raises `ConfigError` naming arrays that are missing, surplus or of another shape than the one wanted."""
    problems = [f"{name} {shape} is missing" for name, shape in wanted.items() if name not in found]
    problems += [f"{name} {shape} is surplus" for name, shape in found.items() if name not in wanted]
    problems += [
        f"{name} has the shape {found[name]} instead of {shape}"
        for name, shape in wanted.items()
        if name in found and found[name] != shape
    ]
    if len(problems) > MOST_NAMED:
        problems[MOST_NAMED:] = [f"and {len(problems) - MOST_NAMED} more"]
    if problems:
        raise ConfigError("parameters do not fit the configuration: " + "; ".join(problems))


def _differs(name: str, shape: tuple[int, ...], original: Entry) -> ConfigError:
    to = f"{original.name} {original.shape}, to which tie_word_embeddings=True ties it"
    return ConfigError(f"{name} {shape}: must equal {to}")


# Nested dictionaries.


def dotted(path: Path) -> str:
    """A path as one name."""
    return ".".join(map(str, path))


def flatten(tree: Mapping[Any, Any], path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """The leaves with their paths."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from flatten(value, (*path, key))
        else:
            yield (*path, key), value


def nest(flat: Mapping[Path, Any]) -> dict:
    """The dictionaries of which `flatten` gives `flat`."""
    tree: dict = {}
    for path, value in flat.items():
        node = tree
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = value
    return tree
