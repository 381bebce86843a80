"""Memory: how much there is, and the C library's on a CPU: when what was freed stays with the process, and when it goes
back."""

import ctypes
import os
import platform
from collections.abc import Sequence
from typing import Any

M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8  # from malloc.h


def memory_of(devices: Sequence[Any]) -> int | None:
    """Bytes that these devices of JAX have together, the machines' own memory if they are CPUs; None if unknown."""
    if devices[0].platform == "cpu":
        machines = len({device.process_index for device in devices})
        try:
            return machines * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        except (ValueError, OSError):
            return None
    of_one = [device for device in devices if device.process_index == devices[0].client.process_index()][:1]
    limit = ((of_one[0].memory_stats() if of_one else None) or {}).get("bytes_limit")
    return None if limit is None else limit * len(devices)


def gib(size: float) -> str:
    """A number of bytes for people."""
    return f"{size / 2**30:,.1f} GiB"


def keep_freed_memory() -> None:
    """Tells glibc to keep freed memory; does nothing with another C library.

    XLA's CPU backend allocates a step's temporaries anew each time. By default glibc gives that memory back and has the
    kernel clear fresh pages for every step: some percent of the time on an idle machine (benchmarks/freed_memory.py),
    far more on a busy one.
    """
    libc = _glibc()
    if libc is None:
        return
    # Steps run on threads of their own, whose arenas are too small for large buffers: those would be mapped regardless.
    libc.mallopt(M_ARENA_MAX, 1)
    libc.mallopt(M_MMAP_MAX, 0)
    libc.mallopt(M_TRIM_THRESHOLD, -1)


def return_freed_memory() -> None:
    """Has glibc give back the free pages between what is in use; does nothing with another C library.

    The threads that read and unpack a large array free their pieces in any order, and what lies between two pieces that
    are still in use stays with the process: a model read in parts took up to a third more than its size.
    """
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
