"""The mesh of devices, as it is asked for."""

import dataclasses
from collections.abc import Mapping
from typing import Literal

from mom_jax.fields import check_types, require

AXES = ("data", "fsdp", "module", "tensor")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """The mesh of devices: sizes of its axes.

    Attributes:
        data: replicas of the parameters; None: as many as the devices that the other axes leave.
        fsdp: parts into which parameters and optimizer state are divided.
        module: groups of devices among which a pool's modules are divided.
        tensor: devices among which heads and inner widths are divided.
        room: along `module`, rows that a device takes at a time, as a multiple of an even share. What does not fit
            takes another round, so that no routing needs more memory.
        gather: when parameters that `fsdp` divides are put together. `chunk`: a chunk's before it is used, for each
            micro-batch and once more on the way back. `step`: all of them once for all micro-batches of an optimizer
            step, whose gradients are scattered once: the least communication, and room in float32 for all parameters
            that a device computes with, and for their gradient.
    """

    data: int | None = None
    fsdp: int = 1
    module: int = 1
    tensor: int = 1
    room: float = 1.5
    gather: Literal["chunk", "step"] = "chunk"

    def __post_init__(self) -> None:
        check_types(self)
        for name in AXES:
            size = getattr(self, name)
            require(size is None or size >= 1, name, size, "must be at least 1")
        require(self.room > 0, "room", self.room, "must be positive")

    def sizes(self, devices: int) -> dict[str, int]:
        """The axes' sizes on so many devices. Raises ConfigError where they are too few."""
        rest = self.fsdp * self.module * self.tensor
        data = max(1, devices // rest) if self.data is None else self.data
        sizes = {"data": data, "fsdp": self.fsdp, "module": self.module, "tensor": self.tensor}
        require(data * rest <= devices, "mesh", describe_mesh(sizes), f"is {data * rest} devices, there are {devices}")
        return sizes


def describe_mesh(sizes: Mapping[str, int]) -> str:
    """The axes' sizes in words."""
    return " x ".join(f"{name} {size}" for name, size in sizes.items())
