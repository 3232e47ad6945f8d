"""Translates errors of the MongoDB driver into `StoreError`s that say what to do.

The texts contain nothing of the driver's text, and of a URL only host, port and database.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from pymongo.errors import (
    BulkWriteError,
    ConfigurationError,
    ConnectionFailure,
    InvalidOperation,
    NetworkTimeout,
    NotPrimaryError,
    OperationFailure,
    PyMongoError,
)

from wadm_mcp.errors import StoreError, StoreUnreachable
from wadm_mcp.texts import one_line

DUPLICATE: Final = 11000
_WRONG_CREDENTIALS: Final = (11, 18, 8000)
_NOT_ALLOWED: Final = 13
_DISK_FULL: Final = 14031
_INDEX_CONFLICT: Final = (85, 86)
_TOO_SLOW: Final = (50, 202, 262)
_NOT_WRITABLE: Final = (91, 189, 10058, 10107, 11600, 11602, 13435, 13436)
"""The server is stopping, or is not the primary."""
_NAME_CHARS: Final = 40

_REASONS: Final = (
    ("refused", "nothing listens there"),
    ("timed out", "it does not answer in time"),
    ("name or service", "its name is not known"),
    ("nodename", "its name is not known"),
    ("name resolution", "its name cannot be looked up"),
    ("ssl", "TLS with it fails"),
    ("certificate", "TLS with it fails"),
    ("closed", "it closed the connection"),
    ("reset", "it closed the connection"),
    ("response id", "the server there is not MongoDB"),
    ("no primary", "it has no primary that takes writes"),
)
"""What the driver's text contains, in lower case, and the reason that it stands for."""


@contextmanager
def translate_errors(place: str) -> Generator[None]:
    """Translates errors of the driver into a `StoreError`; `place` is host, port and database."""
    try:
        yield
    except PyMongoError as error:
        raise _translate(error, place) from error
    except OverflowError as error:
        raise StoreError(f"{place} stores integers of up to 64 bits, and one of these is larger; it was not written") from error


def is_duplicate(error: BulkWriteError) -> bool:
    """Whether the only failures are documents that exist already."""
    return not _failures(error)


def is_refusal_of_user(error: BaseException | None) -> bool:
    """Whether the server refuses our user: wrong credentials or missing rights."""
    return isinstance(error, OperationFailure) and error.code in (*_WRONG_CREDENTIALS, _NOT_ALLOWED)


def damaged_document(place: str, what: str) -> StoreError:
    """The error for a document that no WADM wrote."""
    return StoreError(f"{place} is damaged ({what}): restore a backup, or delete that document")


def _translate(error: PyMongoError, place: str) -> StoreError:
    if isinstance(error, BulkWriteError):
        failure = _failures(error)[0]
        return _refusal(int(failure.get("code") or 0), str(failure.get("errmsg", "")), str(failure.get("codeName", "")), place)
    if isinstance(error, NotPrimaryError):
        return _refusal(_NOT_WRITABLE[0], "", "", place)
    if isinstance(error, OperationFailure):
        return _refusal(error.code or 0, str(error), str((error.details or {}).get("codeName", "")), place)
    if isinstance(error, NetworkTimeout):
        return _unreachable("it does not answer in time", place)
    if isinstance(error, ConnectionFailure):
        text = str(error).lower()
        return _unreachable(next((reason for sign, reason in _REASONS if sign in text), "the connection fails"), place)
    if isinstance(error, ConfigurationError) and any(sign in str(error).lower() for sign in ("dns", "resol")):
        return _unreachable("its name cannot be looked up", place)
    if isinstance(error, InvalidOperation):
        return StoreError(f"the connection to MongoDB at {place} is closed")
    return StoreError(f"unexpected error of the MongoDB driver at {place}: {type(error).__name__}; check the server's own log")


def _unreachable(reason: str, place: str) -> StoreUnreachable:
    return StoreUnreachable(f"MongoDB at {place} cannot be reached, {reason}: start it, or set MONGODB_URL to one that runs")


def _refusal(code: int, message: str, name: str, place: str) -> StoreError:
    database = place.rpartition("/")[2]
    text = message.lower()
    if code == _DISK_FULL or "no space left" in text:
        return StoreUnreachable(f"the disk of MongoDB at {place} is full: not all of this write was stored; free some space there")
    if code in _WRONG_CREDENTIALS:
        return StoreError(f"MongoDB at {place} refuses the user or the password of MONGODB_URL: correct them, or add ?authSource=admin")
    if code == _NOT_ALLOWED:
        return StoreError(
            f"MongoDB at {place}: not authorised. The user in MONGODB_URL needs the roles readWrite and dbAdmin on {database}; "
            "a URL without a user needs one"
        )
    if code in _NOT_WRITABLE:
        return StoreUnreachable(
            f"MongoDB at {place} accepts no writes now: it is stopping or not the primary; wait, or set MONGODB_URL to the primary"
        )
    if code in _TOO_SLOW:
        return StoreUnreachable(f"MongoDB at {place} is too slow, a request exceeded its time limit: wait, or give it more memory")
    if "read-only" in text or "read only" in text:
        return StoreError(f"MongoDB at {place} is read-only: nothing was changed; start it for writing, or set MONGODB_URL to another one")
    if code in _INDEX_CONFLICT:
        return StoreError(
            f"{place}: an existing index has the name or the key of one of WADM's, with other options; drop it and restart WADM"
        )
    named = one_line(name, _NAME_CHARS) or f"code {code}"
    return StoreError(f"MongoDB at {place} refused a request ({named}); see its own log for the reason")


def _failures(error: BulkWriteError) -> list[Mapping[str, Any]]:
    """The failures of a bulk write, other than documents that exist already."""
    failed = [each for each in error.details.get("writeErrors", ()) if each.get("code") != DUPLICATE]
    return [*failed, *error.details.get("writeConcernErrors", ())]
