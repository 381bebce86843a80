"""Arrays in the files of PyTorch's world, read one by one: safetensors and pickled state dicts, whole or in shards."""

import math
import pickle
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from safetensors.numpy import save_file

from mom_jax.analysis.cost import parameter_count
from mom_jax.config import ModelConfig
from mom_jax.fields import ConfigError
from train.files import parse_json, read_json, to_json, within
from train.steps.numbers.finite import complaint, count

# In the header of the safetensors files that we write: of each array the CRC-32 of its bytes, and of the header's other
# texts, as JSON. A second text says that there are some: a bit that flips in the name of the first would else make it a
# file that never had any.
CHECKSUMS = "mom_jax.crc32"
CHECKED, CHECKED_BY = "mom_jax.checked", "crc32"
MARKS = (CHECKSUMS, CHECKED)
_TEXTS = ""  # in the place of an array's name

# Of these names a folder has one; a shard index names the files.
SAFETENSORS, PICKLED = "model.safetensors", "pytorch_model.bin"


_UNREADABLE = (
    *(pickle.UnpicklingError, RuntimeError, OSError, EOFError, AttributeError),
    *(ValueError, TypeError, LookupError, MemoryError, OverflowError, AssertionError),
)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def save_checked(path: Path, arrays: Mapping[str, np.ndarray], texts: Mapping[str, str]) -> None:
    """Writes a safetensors file with `texts` in its header, and with checksums of all that it has."""
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    checksums = {name: _crc_of_array(array) for name, array in contiguous.items()}
    texts = {**texts, CHECKED: CHECKED_BY}
    checksums[_TEXTS] = _crc_of(texts)
    save_file(contiguous, path, metadata={**texts, CHECKSUMS: to_json(checksums).decode().rstrip()})


def _crc_of_array(array: np.ndarray) -> int:
    return zlib.crc32(array.reshape(-1).view(np.uint8).data)


def _crc_of(texts: Mapping[str, str]) -> int:
    return zlib.crc32(to_json(sorted(texts.items())))


def _checksums(texts: dict[str, str], file: Path, field: str) -> dict[str, int]:
    """Of the arrays of a file, as far as its header has any. Raises ConfigError where the header has changed."""
    if CHECKSUMS not in texts:
        if CHECKED in texts:
            raise ConfigError(f"{field}={str(file)!r}: its header has lost the checksums that it was written with")
        return {}
    found = parse_json(texts[CHECKSUMS], f"{field}={str(file)!r}: {CHECKSUMS}")
    others = {name: text for name, text in texts.items() if name != CHECKSUMS}
    good = isinstance(found, dict) and all(type(value) is int for value in found.values())
    if not good or found.get(_TEXTS) != _crc_of(others):
        raise ConfigError(f"{field}={str(file)!r}: its header does not have the checksum that it was written with")
    return found


class Weights(Mapping[str, np.ndarray]):
    """Named arrays in files, each read when it is asked for, as float32. Raises ConfigError for one that is not of
    floats, has NaN or infinite numbers, or not the checksum that the file's header has of it.

    shapes, dtypes (as safetensors has them): of all arrays, by name, known without reading them. files: where they are.
    """

    def __init__(self, files: list[Path], field: str) -> None:
        self.files, self._field = files, field
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}
        self._read: dict[str, Callable[[str], Any]] = {}
        self._checksums: dict[str, int] = {}
        for file in files:
            read, shapes, dtypes = (_open_safetensors if file.suffix == ".safetensors" else _open_pickled)(file, field)
            twice = next((name for name in shapes if name in self.shapes), None)
            if twice is not None:
                raise ConfigError(f"{field}={str(file)!r}: has {twice!r}, which another file has too")
            self.shapes |= shapes
            self.dtypes |= dtypes
            self._read |= dict.fromkeys(shapes, read)
            if file.suffix == ".safetensors":
                known = _checksums(metadata(file, field), file, field)
                if known and known.keys() - {_TEXTS} != shapes.keys():
                    raise ConfigError(f"{field}={str(file)!r}: has other arrays than it was written with")
                self._checksums |= known

    def __getitem__(self, name: str) -> np.ndarray:
        try:
            array = np.asarray(self._read[name](name))
        except (safetensors.SafetensorError, TypeError, ValueError, RuntimeError, OSError) as error:
            raise ConfigError(f"{self._field}: {name!r} cannot be read ({_first_line(error)})") from None
        expected = self._checksums.get(name)
        if expected is not None and _crc_of_array(np.ascontiguousarray(array)) != expected:
            raise ConfigError(f"{name!r} does not have the checksum that it was written with")
        if array.dtype.kind not in "fV":  # V: bfloat16
            raise ConfigError(f"{name!r} must be of floats, not {array.dtype}")
        with np.errstate(over="ignore"):  # what float32 has not is infinite then
            array = array.astype(np.float32, copy=False)
        bad = count(array)
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
            return Weights(_named(folder, index, field), field)
    raise ConfigError(f"{field}={str(folder)!r}: has no weights ({SAFETENSORS} or {PICKLED})")


def _named(folder: Path, index: Path, field: str) -> list[Path]:
    """The files that a shard index names, all in its folder."""
    record = read_json(index, f"{field}: {index}")
    table = record.get("weight_map") if isinstance(record, dict) else None
    if not isinstance(table, dict) or not all(isinstance(part, str) for part in table.values()):
        raise ConfigError(f'{field}: {index} must have a table "weight_map" of files')
    return [within(folder, part, f"{field}: {index}") for part in sorted(set(table.values()))]


def check_claim(config: ModelConfig, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raises `ConfigError` where a configuration is of far more parameters than arrays of these shapes have. Arithmetic
    only: it would take hours, and all memory, to make even the shapes of a model of a billion layers."""
    claimed, have = parameter_count(config).total, sum(math.prod(shape) for shape in shapes.values())
    if claimed > 2 * have + 2**20:
        raise ConfigError(f"its configuration has {claimed:,} parameters, its weights {have:,}")


def metadata(file: Path, field: str) -> dict[str, str]:
    """The texts in the header of a safetensors file."""
    with _safe_open(file, field) as opened:
        return opened.metadata() or {}


def _safe_open(file: Path, field: str) -> Any:
    try:
        if not file.is_file():  # a pipe would make the library wait for ever
            raise OSError("no regular file")
        # Mapped pages would count as this process's memory beside the arrays that are made of them.
        return safetensors.safe_open(str(file), framework="np", backend="pread")
    except (safetensors.SafetensorError, OSError) as error:
        message = f"is no whole safetensors file ({_first_line(error)})"
        raise ConfigError(f"{field}={str(file)!r}: {message}") from None


_Opened = tuple[Callable[[str], Any], dict[str, tuple[int, ...]], dict[str, str]]


def _open_safetensors(file: Path, field: str) -> _Opened:
    opened = _safe_open(file, field)  # stays open as long as its arrays can be asked for
    try:
        slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
        shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
        dtypes = {name: str(part.get_dtype()) for name, part in slices.items()}
    except (safetensors.SafetensorError, TypeError, ValueError, OverflowError) as error:
        raise ConfigError(f"{field}={str(file)!r}: is no whole safetensors file ({_first_line(error)})") from None
    return opened.get_tensor, shapes, dtypes


def _open_pickled(file: Path, field: str) -> _Opened:
    try:
        import torch
    except ImportError:
        message = "needs PyTorch (the extra [torch]) to be read; or save the model as safetensors"
        raise ConfigError(f"{field}={str(file)!r}: {message}") from None
    try:
        # A pickle can run any program: only tensors are let in. The file is mapped, not read.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it has its thoughts on damaged files
            state = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        if not isinstance(state, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
            raise ValueError("it has something else")
        for name, tensor in state.items():
            dense = isinstance(name, str) and tensor.layout == torch.strided and tensor.device.type == "cpu"
            # Numbers that stand once in the file can be many in a tensor: it would be made of them in memory.
            if not dense or tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
                raise ValueError(f"{str(name)[:50]!r} is no plain tensor")
        shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    except _UNREADABLE as error:
        message = f"is no whole state dict of tensors only ({_first_line(error)})"
        raise ConfigError(f"{field}={str(file)!r}: {message}") from None

    def read(name: str) -> Any:
        tensor = state[name].detach()
        return (tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor).numpy()

    return read, shapes, {}
