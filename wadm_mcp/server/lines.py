"""Lines of a file descriptor, each of bounded length, and what can be said about one that is no message: the id of its request."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from typing import Final, NamedTuple

MAX_LINE_BYTES: Final = 4 << 20
"""Bytes of a line that is read, as many as a request over HTTP may have. Of a longer one only both ends are kept."""

_CHUNK_BYTES: Final = 1 << 16
_HEAD_BYTES: Final = 1 << 16
_TAIL_BYTES: Final = 1 << 10
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"
_TOKEN: Final = re.compile(r'"(?:[^"\\]|\\.)*(?:"|\\?\Z)|[{}\[\],:]|[^\s{}\[\],:"]+', re.DOTALL)
_LAST_ID: Final = re.compile(r'"id"\s*:\s*([^\s{}\[\],:"]+|"[^"\\]*")\s*\}\s*\Z')
_WHOLE_NUMBER: Final = re.compile(r"-?[0-9]{1,18}", re.ASCII)
_MAX_ID_CHARS: Final = 200


class Line(NamedTuple):
    """A line without its end. `text` is only its head and its tail if the line has more than `MAX_LINE_BYTES`; `size` is in bytes."""

    text: str
    size: int

    @property
    def whole(self) -> bool:
        """Whether `text` is the whole line."""
        return self.size <= MAX_LINE_BYTES

    @property
    def request_id(self) -> int | str | None:
        """The id of the request that the line was meant to be; None where it cannot be told, or where it is none."""
        found = _members(self.text[:_HEAD_BYTES])
        if "method" not in found:
            return None
        last = _LAST_ID.search(self.text[-_TAIL_BYTES:])
        return _id(found.get("id") or (last[1] if last is not None else ""))


def read_lines(fd: int) -> Iterator[Line]:
    """The lines of a descriptor until its end, blank ones left out. A byte-order mark at the beginning is skipped."""
    line, first = _Partial(), True
    while chunk := _read(fd):
        *ends, tail = chunk.split(b"\n")
        for end in ends:
            line.add(end)
            if (read := line.line(first)) is not None:
                yield read
            line, first = _Partial(), False
        line.add(tail)
    if (read := line.line(first)) is not None:
        yield read


class _Partial:
    """A line that is being read."""

    def __init__(self) -> None:
        self._kept = bytearray()
        self._tail = b""
        self._size = 0

    def add(self, part: bytes) -> None:
        self._size += len(part)
        if self._size <= MAX_LINE_BYTES:
            self._kept += part
        else:
            self._tail = (self._tail + part)[-_TAIL_BYTES:]
            del self._kept[_HEAD_BYTES:]

    def line(self, first: bool) -> Line | None:
        """The line, None if it is blank. The `first` one may begin with a byte-order mark."""
        kept = bytes(self._kept) + self._tail
        text = (kept.removeprefix(_BYTE_ORDER_MARK) if first else kept).decode(errors="replace")
        return Line(text, self._size) if text and not text.isspace() else None


def _members(text: str) -> dict[str, str]:
    """The members of a JSON object whose values are neither objects nor arrays, as JSON text. The text may be damaged or cut off."""
    members: dict[str, str] = {}
    depth, name, of_value = 0, "", False
    for found in _TOKEN.finditer(text):
        token = found[0]
        if token in "{}[]":
            depth += 1 if token in "{[" else -1
        elif depth == 1 and token == ",":
            name, of_value = "", False
        elif depth == 1 and token == ":":
            of_value = True
        elif depth == 1 and of_value:
            members.setdefault(name, token)
        elif depth == 1:
            name = token.strip('"')
    return members


def _id(token: str) -> int | str | None:
    """The id that a JSON text is. A long one is of no request that was meant well."""
    if _WHOLE_NUMBER.fullmatch(token):
        return int(token)
    if not token.startswith('"') or len(token) > _MAX_ID_CHARS:
        return None
    try:
        value = json.loads(token)
        value.encode()
    except ValueError:
        return None
    return value if isinstance(value, str) else None


def _read(fd: int) -> bytes:
    """The next bytes; none at the end of input, without such a descriptor, and when its terminal has gone."""
    try:
        return os.read(fd, _CHUNK_BYTES)
    except OSError:
        return b""
