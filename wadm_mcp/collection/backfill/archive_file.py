"""Verifies and reads a daily file of an exchange's archive on the local disk. Blocking: call it in a worker thread.

A file may be made to cost much: a megabyte may unpack to gigabytes, or list a million files. So what is unpacked, read at once and read
in all is bounded, far above what any day of an exchange has (docs/exchanges.md 4.4).
"""

from __future__ import annotations

import hashlib
import io
import re
import zipfile
import zlib
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

from wadm_mcp.errors import ArchiveError
from wadm_mcp.texts import printable

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_SHA256: Final = re.compile(r"[0-9a-fA-F]{64}")
_MAX_LINE_CHARS: Final = 4_096
"""A row of either exchange has fewer than 200."""
_MAX_BYTES: Final = 4 << 30
"""Bytes of a file, unpacked. The busiest days have less than two gigabytes."""
_MAX_RATIO: Final = 25
_ANY_RATIO_BYTES: Final = 64 << 20
"""How many times its size a file may have unpacked, and the bytes that any may have. Real files have three to eight times their size."""
_MAX_LINES: Final = 50_000_000
"""Lines of a file. The busiest days have less than twenty million."""
_MAX_READ_BYTES: Final = 128 * 1024
"""Bytes that are read at once. The list of files in a `.zip` is read at once; one entry has about a hundred bytes."""
_MAX_MEMBERS: Final = 100_000
"""Compressed parts that a `.gz` may consist of; some programs write one for each 64 kB."""
_GZIP: Final = 16 + zlib.MAX_WBITS
"""What makes zlib read the format of `.gz`, checksums included."""
_METHODS: Final = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_DAMAGE: Final = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError)
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
    """The lines of a `.zip` with one file in it, of a `.gz`, or of plain text, in UTF-8. `ArchiveError` if it is damaged or too large.

    The name of the file in a `.zip` has to begin with `symbol`, or it is an `ArchiveError` too.
    """
    with _unpacked(path, symbol) as file, io.TextIOWrapper(file, "utf-8-sig") as text:
        left = allowed = min(_MAX_BYTES, max(_ANY_RATIO_BYTES, _MAX_RATIO * path.stat().st_size))
        for number, line in enumerate(iter(partial(text.readline, _MAX_LINE_CHARS), "")):
            if len(line) == _MAX_LINE_CHARS:
                raise ArchiveError(f"{_name(path)}: a line has more than {_MAX_LINE_CHARS:,} characters; this is not a file of trades")
            left -= len(line)
            if left < 0 or number == _MAX_LINES:
                bound = f"{allowed:,} bytes" if left < 0 else f"{_MAX_LINES:,} lines"
                raise ArchiveError(f"{_name(path)}: it unpacks to more than {bound}; no day of an exchange has as much")
            yield line


@contextmanager
def _unpacked(path: Path, symbol: str) -> Generator[IO[bytes] | io.BufferedReader]:
    with _archive_errors(path), _BoundedFile(path) as file:
        if zipfile.is_zipfile(file) or path.suffix == ".zip":
            with zipfile.ZipFile(file) as packed:
                members = packed.infolist()
                if len(members) != 1:
                    raise ArchiveError(f"{_name(path)}: it contains {len(members)} files, a daily archive contains one")
                if not any(name.startswith(symbol) for name in _names(members[0])):
                    raise ArchiveError(
                        f"{_name(path)}: it contains {printable(members[0].filename, _QUOTED_CHARS)}, which is not of {symbol}"
                    )
                if members[0].compress_type not in _METHODS:
                    raise ArchiveError(
                        f"{_name(path)}: it is compressed by method {members[0].compress_type}; daily archives use "
                        f"{_METHODS[1]} (deflate), or none"
                    )
                with packed.open(members[0]) as member:
                    yield member
            return
        file.seek(0)
        if path.suffix == ".gz":
            with io.BufferedReader(_Gunzipped(file)) as unpacked:
                yield unpacked
        else:
            yield io.BufferedReader(file)


class _BoundedFile(io.FileIO):
    """A file for reading that refuses to read more than `_MAX_READ_BYTES` at once, whatever a library wants to read."""

    def read(self, size: int | None = -1, /) -> bytes:
        """See `FileIO.read`. `ArchiveError` where it would be more."""
        if size is not None and 0 <= size <= _MAX_READ_BYTES:
            return super().read(size)
        data = super().read(_MAX_READ_BYTES + 1)
        if len(data) > _MAX_READ_BYTES:
            raise ArchiveError(f"{_name(Path(str(self.name)))}: its list of files is too long; a daily archive contains one file")
        return data


class _Gunzipped(io.RawIOBase):
    """The unpacked bytes of a `.gz`. The standard library's own reader takes a Python loop for each byte of a header."""

    def __init__(self, file: _BoundedFile) -> None:
        self._file = file
        self._packed = b""
        self._member = zlib.decompressobj(_GZIP)
        self._members = 1

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        """`EOFError` where the file ends too early, `zlib.error` where it is damaged."""
        place = memoryview(buffer)
        while not self._member.eof or self._begin_member():
            ended = not self._packed and not self._read()
            data = self._member.decompress(self._packed, len(place))
            self._packed = self._member.unused_data if self._member.eof else self._member.unconsumed_tail
            if data:
                place[: len(data)] = data
                return len(data)
            if ended and not self._member.eof:
                raise EOFError("it ends too early")
        return 0

    def _begin_member(self) -> bool:
        """Begin the next compressed part; False at the end of the file. Zeros may follow a part."""
        self._packed = self._packed.lstrip(b"\0")
        while not self._packed:
            if not self._read():
                return False
            self._packed = self._packed.lstrip(b"\0")
        self._members += 1
        if self._members > _MAX_MEMBERS:
            raise ArchiveError(f"{_name(Path(str(self._file.name)))}: it consists of more than {_MAX_MEMBERS:,} compressed parts")
        self._member = zlib.decompressobj(_GZIP)
        return True

    def _read(self) -> bool:
        self._packed = self._file.read(_MAX_READ_BYTES)
        return bool(self._packed)


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
