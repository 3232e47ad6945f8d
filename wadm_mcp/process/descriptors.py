"""The limit of this process on open file descriptors (`ulimit -n`). Sockets, files of the store and of the journal share it."""

from __future__ import annotations

from contextlib import suppress
from typing import Final

try:
    import resource
except ImportError:  # Windows has no such limit
    resource = None

_WANTED: Final = (65_536, 10_240)
"""Limits to try, the highest first. macOS reports no hard limit and accepts at most its own maximum, which is 10,240 by default."""


def descriptor_limit() -> int:
    """Descriptors that this process may have open: its soft limit, or 65,536 where there is none."""
    if resource is None:
        return _WANTED[0]
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _WANTED[0] if soft == resource.RLIM_INFINITY else soft


def raise_descriptor_limit() -> None:
    """Raise the soft limit to the hard one, at most to 65,536. Where the system refuses that, the limit stays as it is."""
    if resource is None:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for wanted in _WANTED:
        new = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
        if soft == resource.RLIM_INFINITY or soft >= new:
            return
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (new, hard))
            return
