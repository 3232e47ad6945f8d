"""A daily file of an exchange's archive on this disk: proven whole first, then read line by line. Blocking: for a worker thread."""

from __future__ import annotations

import gzip
import hashlib
import io
import re
import zipfile
import zlib
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Final

from wadm_mcp.errors import ArchiveError, printable

_SHA256: Final = re.compile(r"[0-9a-fA-F]{64}")
_LONGEST_LINE: Final = 4_096
"""Characters; a row of either exchange has fewer than 200."""
_DAMAGE: Final = (zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, EOFError, NotImplementedError, RuntimeError)
"""What unpacking raises of bytes that are cut, changed, encrypted or packed in a way that no archive uses."""
_NAMED: Final = 80


def verify(path: Path, checksum: str) -> None:
    """Is this the file that the exchange's SHA-256 was made of? `checksum` is the text of its `.CHECKSUM` file; `ArchiveError` if not."""
    stated = checksum.split()[0] if checksum.split() else ""
    if not _SHA256.fullmatch(stated):
        raise ArchiveError(f"{_name(path)}: its checksum file holds no SHA-256 ({printable(checksum.strip(), _NAMED)})")
    with _reading(path), path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != stated.lower():
        raise ArchiveError(f"{_name(path)}: its SHA-256 is {found[:12]}..., the exchange states {stated[:12].lower()}...; fetch it again")


def lines(path: Path, symbol: str = "") -> Iterator[str]:
    """The lines of a `.zip` with one file in it, a `.gz`, or plain text. `ArchiveError` where it ends in damage.

    The file in a `.zip` is called by its symbol first; another one than `symbol` is an `ArchiveError` too.
    """
    with _unpacked(path, symbol) as file, io.TextIOWrapper(file, "ascii") as text:
        for line in iter(partial(text.readline, _LONGEST_LINE), ""):
            if len(line) == _LONGEST_LINE:
                raise ArchiveError(f"{_name(path)}: a line has more than {_LONGEST_LINE:,} characters; this is no archive of trades")
            yield line


@contextmanager
def _unpacked(path: Path, symbol: str) -> Generator[IO[bytes] | gzip.GzipFile]:
    with _reading(path):
        if zipfile.is_zipfile(path) or path.suffix == ".zip":
            with zipfile.ZipFile(path) as packed:
                members = packed.namelist()
                if len(members) != 1:
                    raise ArchiveError(f"{_name(path)}: it holds {len(members)} files, an archive's day is one")
                if not members[0].startswith(symbol):
                    raise ArchiveError(f"{_name(path)}: it holds {printable(members[0], _NAMED)}, which is not of {symbol}")
                with packed.open(members[0]) as member:
                    yield member
        elif path.suffix == ".gz":
            with gzip.open(path) as file:
                yield file
        else:
            with path.open("rb") as plain:
                yield plain


@contextmanager
def _reading(path: Path) -> Generator[None]:
    try:
        yield
    except _DAMAGE as error:
        raise ArchiveError(f"{_name(path)}: it is cut short or damaged ({printable(error, _NAMED)}); fetch it again") from None
    except UnicodeDecodeError:
        raise ArchiveError(f"{_name(path)}: it is damaged or no text; give a daily file as the exchange publishes it") from None
    except OSError as error:
        raise ArchiveError(f"{_name(path)}: it cannot be read ({error.strerror})") from None


def _name(path: Path) -> str:
    return printable(path.name, _NAMED)
