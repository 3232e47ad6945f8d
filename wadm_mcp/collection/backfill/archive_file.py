"""Verifies and reads a daily file of an exchange's archive on the local disk. Blocking: call it in a worker thread."""

from __future__ import annotations

import gzip
import hashlib
import io
import re
import zipfile
import zlib
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import IO, Final

from wadm_mcp.errors import ArchiveError, printable

_SHA256: Final = re.compile(r"[0-9a-fA-F]{64}")
_MAX_LINE_CHARS: Final = 4_096
"""A row of either exchange has fewer than 200."""
_DAMAGE: Final = (zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, EOFError, NotImplementedError, RuntimeError)
"""What unpacking raises if the bytes are incomplete, changed, encrypted, or compressed in a way that no archive uses."""
_QUOTED_CHARS: Final = 80
_UTF8_NAME: Final = 1 << 11
"""The bit of a member in a `.zip` that says that its name is UTF-8. Without it Python reads the name as cp437."""


def verify(path: Path, checksum: str) -> None:
    """Compare the file with the exchange's SHA-256. `checksum` is the text of its `.CHECKSUM` file. `ArchiveError` if they differ."""
    published = checksum.split()[0] if checksum.split() else ""
    if not _SHA256.fullmatch(published):
        raise ArchiveError(f"{_name(path)}: its checksum file has no SHA-256: {printable(checksum.strip(), _QUOTED_CHARS)}")
    with _archive_errors(path), path.open("rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if actual != published.lower():
        raise ArchiveError(
            f"{_name(path)}: its SHA-256 is {actual[:12]}..., the exchange publishes {published[:12].lower()}...; download it again"
        )


def lines(path: Path, symbol: str = "") -> Iterator[str]:
    """The lines of a `.zip` with one file in it, of a `.gz`, or of plain text, in UTF-8. `ArchiveError` if it is damaged.

    The name of the file in a `.zip` has to begin with `symbol`, or it is an `ArchiveError` too.
    """
    with _unpacked(path, symbol) as file, io.TextIOWrapper(file, "utf-8-sig") as text:
        for line in iter(partial(text.readline, _MAX_LINE_CHARS), ""):
            if len(line) == _MAX_LINE_CHARS:
                raise ArchiveError(f"{_name(path)}: a line has more than {_MAX_LINE_CHARS:,} characters; this is not a file of trades")
            yield line


@contextmanager
def _unpacked(path: Path, symbol: str) -> Generator[IO[bytes] | gzip.GzipFile]:
    with _archive_errors(path):
        if zipfile.is_zipfile(path) or path.suffix == ".zip":
            with zipfile.ZipFile(path) as packed:
                members = packed.infolist()
                if len(members) != 1:
                    raise ArchiveError(f"{_name(path)}: it contains {len(members)} files, a daily archive contains one")
                if not any(name.startswith(symbol) for name in _names(members[0])):
                    raise ArchiveError(
                        f"{_name(path)}: it contains {printable(members[0].filename, _QUOTED_CHARS)}, which is not of {symbol}"
                    )
                with packed.open(members[0]) as member:
                    yield member
        elif path.suffix == ".gz":
            with gzip.open(path) as file:
                yield file
        else:
            with path.open("rb") as plain:
                yield plain


@contextmanager
def _archive_errors(path: Path) -> Generator[None]:
    """Whatever reading raises, as an `ArchiveError` that names the file."""
    try:
        yield
    except _DAMAGE as error:
        raise ArchiveError(f"{_name(path)}: it is incomplete or damaged ({printable(error, _QUOTED_CHARS)}); download it again") from None
    except UnicodeDecodeError:
        raise ArchiveError(f"{_name(path)}: it contains bytes that are not UTF-8; use the exchange's own daily file") from None
    except OSError as error:
        raise ArchiveError(f"{_name(path)}: it cannot be read ({error.strerror}); check that it exists and is readable") from None


def _names(member: zipfile.ZipInfo) -> list[str]:
    """The name of a file in a `.zip`, in each way it may be meant: programs write names beyond ASCII without saying how."""
    names = [member.filename]
    if not member.flag_bits & _UTF8_NAME:
        for encoding in ("utf-8", "gb18030"):
            with suppress(UnicodeError):
                names.append(member.filename.encode("cp437").decode(encoding))
    return names


def _name(path: Path) -> str:
    return printable(path.name, _QUOTED_CHARS)
