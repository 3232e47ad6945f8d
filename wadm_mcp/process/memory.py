"""Memory that was freed goes back to the system only if the C library is told so. This module is where that is done."""

from __future__ import annotations

import ctypes
import gc
from typing import Final

_ARENA_MAX: Final = -8
_MMAP_THRESHOLD: Final = -3
"""Options of glibc's `mallopt`, from its `malloc.h`."""
_LARGE_BYTES: Final = 128 << 10
"""A block of this size comes from the system and goes back to it when it is freed. glibc begins with this size and raises it."""


def _find(name: str) -> ctypes._NamedFuncPointer | None:  # pyright: ignore[reportPrivateUsage]
    """A function of glibc; None with any other C library."""
    try:
        return getattr(ctypes.CDLL(None), name)
    except (AttributeError, OSError, TypeError):  # musl and macOS have no such function, Windows no such library
        return None


_trim: Final = _find("malloc_trim")
_set_option: Final = _find("mallopt")


def share_heap() -> None:
    """Let all threads use one heap, before any of them has one of its own. Does nothing without glibc.

    glibc gives each thread a heap, and `release_free_memory` cannot return the end of any but the main one.
    """
    if _set_option is not None:
        _set_option(_ARENA_MAX, 1)
        _set_option(_MMAP_THRESHOLD, _LARGE_BYTES)


def release_free_memory() -> None:
    """Give memory that is not used any more back to the system. It takes some milliseconds.

    Refused and cancelled requests leave reference cycles: what is recent of them is freed first. glibc keeps what was freed for later
    allocations, so that the process stays as large as it ever was; without glibc that is not changed.
    """
    gc.collect(1)
    if _trim is not None:
        _trim(0)
