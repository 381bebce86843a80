"""The C library's memory on a CPU: what a step frees stays for the next one."""

import ctypes
import platform

M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8  # from malloc.h


def keep_freed_memory() -> None:
    """Tells glibc to keep freed memory; does nothing with another C library.

    XLA's CPU backend allocates a step's temporaries anew each time. By default glibc gives that memory back and has the
    kernel clear fresh pages for every step: some percent of the time on an idle machine (benchmarks/freed_memory.py),
    far more on a busy one.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    # Steps run on threads of their own, whose arenas are too small for large buffers: those would be mapped regardless.
    libc.mallopt(M_ARENA_MAX, 1)
    libc.mallopt(M_MMAP_MAX, 0)
    libc.mallopt(M_TRIM_THRESHOLD, -1)
