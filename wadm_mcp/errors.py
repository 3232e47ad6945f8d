"""The errors that a user or an agent may see. Each message is one line: what was wrong, the value, what is allowed."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import ClassVar

from wadm_mcp.texts import printable, redacted


class WadmError(Exception):
    """Base class of errors whose message is written for users. It never contains the text of a library, a password or a token of a URL, or
    a letter that is not visible."""

    status: ClassVar = 1
    """The process's exit status where this error ends it."""

    def __init__(self, text: str = "") -> None:
        super().__init__(redacted(printable(text)))


def _only_error(group: BaseExceptionGroup[BaseException]) -> BaseException | None:
    """The error that stands for an exception group: its only one, or the first where all are a `WadmError`. None for any other group."""
    errors = list(leaves(group))
    return errors[0] if len(errors) == 1 or all(isinstance(error, WadmError) for error in errors) else None


def leaves(error: BaseException) -> Iterator[BaseException]:
    """The errors in an exception group and its subgroups; of any other error itself."""
    if isinstance(error, BaseExceptionGroup):
        for each in error.exceptions:
            yield from leaves(each)
    else:
        yield error


@contextmanager
def ungrouped() -> Generator[None]:
    """Raise the error of an exception group, as task groups raise them, instead of the group.

    Of several `WadmError` the first is raised. A group of several errors of another kind is raised unchanged.
    """
    try:
        yield
    except BaseExceptionGroup as group:
        error = _only_error(group)
        if error is None:
            raise
        raise error from error.__cause__


class SettingError(WadmError):
    """A setting or a command-line argument is invalid. The process exits with status 2 before it starts."""

    status: ClassVar = 2


class FrameError(WadmError):
    """A message of an exchange that does not match its documentation. It is counted and dropped."""


class ExchangeError(WadmError):
    """An exchange is unreachable or refused a request."""


class HostRefused(ExchangeError):
    """A host does not serve this address at all (HTTP 403 or 451), or cannot be reached. Another host of the exchange may serve it."""


class EndpointMissing(ExchangeError):
    """A host does not serve the path that was requested: HTTP 404, or any refusal of a path that it may lack (`Request.optional`)."""


class RequestRefused(ExchangeError):
    """A host answered, and refused the request in its own words."""


class DiskReserved(WadmError):
    """There is disk space left, and the journal may need it. Nothing more is downloaded or sorted until there is more."""


class ArchiveError(WadmError):
    """An invalid file of an exchange's archive. None of its trades are imported."""


class StoreError(WadmError):
    """The store cannot be used: it is damaged, unreachable, or has another schema."""


class StoreLost(StoreError):
    """The data that this process was writing to was deleted under it."""


class StoreUnreachable(StoreError):
    """The store is unavailable for now: no answer, a failover under way, or a full disk. A retry may succeed."""


class JournalFull(StoreError):
    """The journal accepts no batch for now: its size limit is reached, or its disk is full or not writable. The batch was not kept."""


class QueryError(WadmError):
    """A question with an invalid argument. The text names the argument, its value, what is allowed, and a call that would work."""


class NotReady(WadmError):
    """The symbol is configured, but its exchange has not answered yet with the symbols that it lists. A retry may succeed."""


class Busy(WadmError):
    """WADM does as much of this at once as it allows. The text says when to ask again: in `again_in` seconds."""

    def __init__(self, text: str, again_in: int) -> None:
        super().__init__(text)
        self.again_in = again_in


class UnknownSymbol(QueryError):
    """The symbol is not followed. The text names near matches."""
