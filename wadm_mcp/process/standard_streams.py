"""Standard input, output and error, any of which may be closed, full or gone when the process starts.

A closed one stays None in `sys`, but its descriptor is reserved: otherwise the next file or socket would get that number, and output
would be written to it by mistake. This module imports nothing heavy, since it is loaded before anything opens a file.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterable
from contextlib import suppress
from typing import TextIO

from wadm_mcp.errors import WadmError


def reserve_standard_descriptors() -> None:
    """Open the null device for each standard descriptor that is closed. Output to a closed stderr is discarded."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # returns the lowest free descriptor, which is this one
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - open as long as the process lives
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a path may contain any bytes


def print_stderr(text: str) -> None:
    """Write a line to stderr. A failure is ignored."""
    _write(sys.stderr, text)


def print_lines(lines: Iterable[str]) -> None:
    """Write lines to stdout. `WadmError` where they cannot be written."""
    _check(_write(sys.stdout, "\n".join(lines)))


def flush() -> None:
    """Flush both streams, so that the exit cannot fail on buffered output. `WadmError` where stdout cannot be written."""
    _write(sys.stderr, "", end="")
    _check(_write(sys.stdout, "", end="") if sys.stdout is not None else None)


def _check(failure: str | None) -> None:
    if failure is not None:
        raise WadmError(f"standard output cannot be written ({failure})")


def _write(stream: TextIO | None, text: str, end: str = "\n") -> str | None:
    if stream is None:
        return "it is closed"
    try:
        stream.write(text + end)
        stream.flush()
    except OSError as error:
        _discard(stream)
        return error.strerror or str(error)
    return None


def _discard(stream: TextIO) -> None:
    """Redirect the stream, its buffered output included, to the null device."""
    with suppress(OSError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
        stream.flush()
