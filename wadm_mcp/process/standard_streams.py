"""Standard input, output and error as whoever started the process left them: closed, full, or gone.

A closed one stays None in `sys`, but its descriptor is taken, or the next file or socket would get it and be written to by mistake.
Imports nothing heavy: it comes before everything that opens a file.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterable
from contextlib import suppress
from typing import TextIO

from wadm_mcp.errors import WadmError


def hold_standard_files() -> None:
    """Put the null device where a standard descriptor is closed; what is said on a closed stderr goes nowhere."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free descriptor, which is this one
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - for as long as the process lives
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # the name of a folder may hold anything


def say(text: str) -> None:
    """A line on stderr, for whoever reads it."""
    _write(sys.stderr, text)


def print_lines(lines: Iterable[str]) -> None:
    """Lines on stdout. `WadmError` where they cannot be written."""
    _demand(_write(sys.stdout, "\n".join(lines)))


def flush() -> None:
    """Get rid of what is buffered, so that no exit fails of it. `WadmError` where stdout does not take it."""
    _write(sys.stderr, "", end="")
    _demand(_write(sys.stdout, "", end="") if sys.stdout is not None else None)


def _demand(failure: str | None) -> None:
    if failure is not None:
        raise WadmError(f"standard output cannot be written ({failure})")


def _write(stream: TextIO | None, text: str, end: str = "\n") -> str | None:
    if stream is None:
        return "it is closed"
    try:
        stream.write(text + end)
        stream.flush()
    except OSError as error:
        _empty(stream)
        return error.strerror or str(error)
    return None


def _empty(stream: TextIO) -> None:
    """Send what the stream still holds, and whatever comes, to the null device."""
    with suppress(OSError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
        stream.flush()
