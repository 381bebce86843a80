"""The platform that a program is built for: the default backend's, or another one in compilations ahead of time."""

import contextlib
import contextvars
from collections.abc import Iterator

import jax

_TARGET: contextvars.ContextVar[str | None] = contextvars.ContextVar("platform", default=None)


def platform() -> str:
    """`cpu`, `gpu` or `tpu`."""
    return _TARGET.get() or jax.default_backend()


@contextlib.contextmanager
def building_for(name: str) -> Iterator[None]:
    """What is traced within is for the platform `name`. A function that was traced before is not traced again."""
    token = _TARGET.set(name)
    try:
        yield
    finally:
        _TARGET.reset(token)
