"""The platform that a program is built for: the default backend's, or another one in compilations ahead of time."""

import contextlib
import contextvars
from collections.abc import Iterator
from typing import NamedTuple

import jax

Capability = tuple[int, int]  # an NVIDIA GPU's compute capability: (9, 0) is Hopper
AMPERE: Capability = (8, 0)  # the first that multiplies bfloat16, which kernels for GPUs need


class _Target(NamedTuple):
    platform: str
    capability: Capability | None
    kind: str | None


_TARGET: contextvars.ContextVar[_Target | None] = contextvars.ContextVar("target", default=None)


def platform() -> str:
    """`cpu`, `gpu` or `tpu`."""
    target = _TARGET.get()
    return jax.default_backend() if target is None else target.platform


def compute_capability() -> Capability | None:
    """The GPU's compute capability; None where the platform is another one, or a GPU that has none (AMD's)."""
    target = _TARGET.get()
    if target is not None:
        return target.capability
    if jax.default_backend() != "gpu":
        return None
    major, _, minor = str(getattr(jax.devices()[0], "compute_capability", "")).partition(".")
    return (int(major), int(minor)) if major.isdigit() and minor.isdigit() else None


def has_capability(least: Capability) -> bool:
    """Whether the platform is a GPU of at least this compute capability."""
    capability = compute_capability()
    return capability is not None and capability >= least


def device_kind() -> str | None:
    """Such as `TPU v5 lite`; None where a program is built for a platform without saying for which of its devices."""
    target = _TARGET.get()
    return jax.devices()[0].device_kind if target is None else target.kind


@contextlib.contextmanager
def building_for(name: str, capability: Capability | None = None, kind: str | None = None) -> Iterator[None]:
    """What is traced within is for the platform `name`, for a GPU of that compute capability, and for devices of that
    kind. A function that was traced before is not traced again."""
    token = _TARGET.set(_Target(name, capability, kind))
    try:
        yield
    finally:
        _TARGET.reset(token)
