"""What the troubles of a MongoDB server mean in plain words. No word of the driver's, and nothing of a URL but host, port and database."""

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

DUPLICATE: Final = 11000
_REFUSED: Final = (11, 18, 8000)
_FORBIDDEN: Final = 13
_DISK_FULL: Final = 14031
_INDEX_CONFLICT: Final = (85, 86)
_TOO_SLOW: Final = (50, 202, 262)
_CHANGING: Final = (91, 189, 10058, 10107, 11600, 11602, 13435, 13436)
"""The server stops, or is not the primary that takes writes."""

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
    ("response id", "what answers there is not MongoDB"),
    ("no primary", "it has no primary that takes writes"),
)


@contextmanager
def plain_words(place: str) -> Generator[None]:
    """Turns what the driver raises into a `StoreError` for the reader; `place` is host, port and database."""
    try:
        yield
    except PyMongoError as error:
        raise _explained(error, place) from error
    except OverflowError as error:
        raise StoreError(f"{place} holds whole numbers of up to 64 bits, and one of these is larger; it was not written") from error


def is_duplicate(error: BulkWriteError) -> bool:
    """Did nothing go wrong but that documents were there already?"""
    return not _failures(error)


def is_refusal_of_user(error: BaseException | None) -> bool:
    """Does the server not know, or not trust, whoever asks?"""
    return isinstance(error, OperationFailure) and error.code in (*_REFUSED, _FORBIDDEN)


def damaged(place: str, what: str) -> StoreError:
    """What to say of a document that no WADM wrote."""
    return StoreError(f"{place} is damaged ({what}): restore a backup, or delete that document and what it held")


def _explained(error: PyMongoError, place: str) -> StoreError:
    if isinstance(error, BulkWriteError):
        failure = _failures(error)[0]
        return _refusal(int(failure.get("code") or 0), str(failure.get("errmsg", "")), str(failure.get("codeName", "")), place)
    if isinstance(error, NotPrimaryError):
        return _refusal(_CHANGING[0], "", "", place)
    if isinstance(error, OperationFailure):
        return _refusal(error.code or 0, str(error), str((error.details or {}).get("codeName", "")), place)
    if isinstance(error, NetworkTimeout):
        return _unreachable("it does not answer in time", place)
    if isinstance(error, ConnectionFailure):
        said = str(error).lower()
        return _unreachable(next((reason for sign, reason in _REASONS if sign in said), "the connection fails"), place)
    if isinstance(error, ConfigurationError) and any(sign in str(error).lower() for sign in ("dns", "resol")):
        return _unreachable("its name cannot be looked up", place)
    if isinstance(error, InvalidOperation):
        return StoreError(f"the connection to MongoDB at {place} is closed")
    return StoreError(f"MongoDB at {place} cannot be used as asked ({type(error).__name__}); nothing more is known")


def _unreachable(reason: str, place: str) -> StoreUnreachable:
    return StoreUnreachable(f"MongoDB at {place} cannot be reached, {reason}: start it, or set MONGODB_URL to one that runs")


def _refusal(code: int, message: str, name: str, place: str) -> StoreError:
    database = place.rpartition("/")[2]
    said = message.lower()
    if code == _DISK_FULL or "no space left" in said:
        return StoreUnreachable(f"the disk of MongoDB at {place} is full: not all of this write was kept; free some space there")
    if code in _REFUSED:
        return StoreError(f"MongoDB at {place} refuses the user or the password of MONGODB_URL: correct them, or add ?authSource=admin")
    if code == _FORBIDDEN:
        return StoreError(
            f"MongoDB at {place} does not allow this to the user of MONGODB_URL, or wants one: grant it readWrite and dbAdmin on {database}"
        )
    if code in _CHANGING:
        return StoreUnreachable(
            f"MongoDB at {place} takes no writes now, it stops or is no primary: wait, or set MONGODB_URL to the primary"
        )
    if code in _TOO_SLOW:
        return StoreUnreachable(f"MongoDB at {place} is too slow, it gave up on a request: wait, or give it more memory")
    if "read-only" in said or "read only" in said:
        return StoreError(f"MongoDB at {place} is read-only: nothing was changed; start it for writing, or set MONGODB_URL to another one")
    if code in _INDEX_CONFLICT:
        return StoreError(f"an index at {place} has a name or a key of WADM's and is another one: drop it, and start again")
    return StoreError(f"MongoDB at {place} refused a request ({name or f'code {code}'}); its own log says more")


def _failures(error: BulkWriteError) -> list[Mapping[str, Any]]:
    """What went wrong in a bulk besides documents that were there already."""
    failed = [each for each in error.details.get("writeErrors", ()) if each.get("code") != DUPLICATE]
    return [*failed, *error.details.get("writeConcernErrors", ())]
