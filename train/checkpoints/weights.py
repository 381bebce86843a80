"""Arrays in the files of PyTorch's world, read one by one: safetensors and pickled state dicts, whole or in shards."""

import json
import pickle
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors

from mom_jax.fields import ConfigError
from train.steps.finite import complaint, count

# Of these names a folder has one; a shard index names the files.
SAFETENSORS, PICKLED = "model.safetensors", "pytorch_model.bin"


class Weights(Mapping[str, np.ndarray]):
    """Named arrays in files, each read when it is asked for; floats of 16 bits come as float32. Raises ConfigError for
    one that has NaN or infinite numbers.

    shapes: of all arrays, by name, known without reading them. files: where they are.
    """

    def __init__(self, files: list[Path], field: str) -> None:
        self.files = files
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._read: dict[str, Callable[[str], Any]] = {}
        for file in files:
            read, shapes = (_open_safetensors if file.suffix == ".safetensors" else _open_pickled)(file, field)
            self.shapes |= shapes
            self._read |= dict.fromkeys(shapes, read)

    def __getitem__(self, name: str) -> np.ndarray:
        array = np.asarray(self._read[name](name))
        if array.dtype.itemsize == 2 and array.dtype.kind in "fV":
            array = array.astype(np.float32)
        bad = count(array) if array.dtype.kind == "f" else 0
        if bad:
            raise ConfigError(complaint(name, bad, array.size))
        return array

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


def open_weights(folder: Path, field: str) -> Weights:
    """The weights in a folder. Raises `ConfigError` naming `field` where there are none, or they are not whole."""
    for name in (SAFETENSORS, PICKLED):
        if (folder / name).is_file():
            return Weights([folder / name], field)
        index = folder / f"{name}.index.json"
        if index.is_file():
            try:
                names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                raise ConfigError(f"{field}: {index} cannot be read ({type(error).__name__}: {error})") from None
            for missing in (folder / part for part in names if not (folder / part).is_file()):
                raise ConfigError(f"{field}: {missing} is missing, which {index.name} names")
            return Weights([folder / part for part in names], field)
    raise ConfigError(f"{field}={str(folder)!r}: has no weights ({SAFETENSORS} or {PICKLED})")


def metadata(file: Path, field: str) -> dict[str, str]:
    """The texts in the header of a safetensors file."""
    with _safe_open(file, field) as opened:
        return opened.metadata() or {}


def _safe_open(file: Path, field: str) -> Any:
    try:
        # Mapped pages would count as this process's memory beside the arrays that are made of them.
        return safetensors.safe_open(str(file), framework="np", backend="pread")
    except (safetensors.SafetensorError, OSError) as error:
        message = f"is no whole safetensors file ({str(error).splitlines()[0]})"
        raise ConfigError(f"{field}={str(file)!r}: {message}") from None


def _open_safetensors(file: Path, field: str) -> tuple[Callable[[str], Any], dict[str, tuple[int, ...]]]:
    opened = _safe_open(file, field)  # stays open as long as its arrays can be asked for
    return opened.get_tensor, {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118


def _open_pickled(file: Path, field: str) -> tuple[Callable[[str], Any], dict[str, tuple[int, ...]]]:
    try:
        import torch
    except ImportError:
        message = "needs PyTorch (the extra [torch]) to be read; or save the model as safetensors"
        raise ConfigError(f"{field}={str(file)!r}: {message}") from None
    try:
        # A pickle can run any program: only tensors are let in. The file is mapped, not read.
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    except (pickle.UnpicklingError, RuntimeError, OSError, EOFError, AttributeError, ValueError) as error:
        message = f"is no whole state dict of tensors only ({str(error).splitlines()[0]})"
        raise ConfigError(f"{field}={str(file)!r}: {message}") from None

    def read(name: str) -> Any:
        tensor = state[name].detach()
        return (tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor).numpy()

    return read, shapes
