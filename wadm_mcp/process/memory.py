"""Memory that was freed goes back to the system only if the C library is told so. This module is where that is done."""

from __future__ import annotations

import ctypes
from typing import Final


def _find_trim() -> ctypes._NamedFuncPointer | None:  # pyright: ignore[reportPrivateUsage]
    """`malloc_trim` of glibc; None with any other C library."""
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # musl and macOS have no such function, Windows no such library
        return None


_trim: Final = _find_trim()


def release_free_memory() -> None:
    """Give memory that is not used any more back to the system. It takes some milliseconds; does nothing without glibc.

    glibc keeps what a thread freed for the next allocation of that thread, so that the process stays as large as it ever was.
    """
    if _trim is not None:
        _trim(0)
