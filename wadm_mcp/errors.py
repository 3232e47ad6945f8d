"""The one family of errors a user or an agent may see. Each message is one line that names what was wrong and what would be right."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import ClassVar


class WadmError(Exception):
    """Anything WADM says no to. The text is written for the reader, never a library's own."""

    status: ClassVar = 1
    """What the process ends with when it ends of this."""


def printable(given: object, most: int | None = None) -> str:
    """What was given as one line, control characters escaped; of one longer than `most` characters the beginning and the length."""
    text = str(given)
    cut = text if most is None else text[:most]
    safe = "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in cut)
    return f"{safe}... ({len(text):,} characters)" if len(cut) < len(text) else safe


def ours(group: BaseExceptionGroup[BaseException]) -> WadmError | None:
    """The one error of ours that a task group wrapped, None where it holds anything else beside."""
    found, rest = group.split(WadmError)
    if found is None or rest is not None:
        return None
    error: WadmError | BaseExceptionGroup[WadmError] = found
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


@contextmanager
def ungrouped() -> Generator[None]:
    """What task groups within raise is raised as itself where it is one error of ours; see `ours`."""
    try:
        yield
    except ExceptionGroup as group:
        error = ours(group)
        if error is None:
            raise
        raise error from error.__cause__


class SettingError(WadmError):
    """A setting or a command-line argument cannot be used; the start stops with status 2."""

    status: ClassVar = 2


class FrameError(WadmError):
    """An exchange sent something that is not what its documents say. Counted; nothing else changes."""


class ExchangeError(WadmError):
    """An exchange could not be reached or refused a request."""


class ArchiveError(WadmError):
    """A file of an exchange's archive is not what it should be. Nothing of it is kept."""


class StoreError(WadmError):
    """The store cannot be used as it is: damaged, of another schema, or out of reach."""


class StoreUnreachable(StoreError):
    """The store cannot be used for now: it does not answer, is changing over, or its disk is full. Trying again later may succeed."""


class JournalFull(StoreError):
    """The journal takes no more for now: its bound is reached, or its disk is full or cannot be written. Nothing of the batch was kept."""


class QueryError(WadmError):
    """A question cannot be answered as asked; the text names the argument, what was given, what is allowed, and a call that would work."""


class NotReady(WadmError):
    """The symbol asked for is configured, but no exchange has told yet what it lists. Asking again later may succeed."""


class UnknownSymbol(QueryError):
    """The symbol asked for is not followed; the text names near matches."""
