"""One segment file of the journal: how entries are written as records, and read back.

A segment is an eight-byte header and records. A record is a frame (the payload's length and its CRC-32, 32 bits each, big-endian) and
the payload: a version byte, the number of trades in 32 bits, and MessagePack.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Annotated, BinaryIO, Final, NamedTuple, Self
from zlib import crc32

import msgspec

from wadm_mcp.analytics.footprint import Footprint
from wadm_mcp.coverage.spans import Basis, GapReason, Span, SpanReason
from wadm_mcp.model import Instrument, Scale, Trade, TradeType
from wadm_mcp.storage.store import PartialFootprint

VERSION: Final = 1
HEADER: Final = b"WADMSEG" + bytes([VERSION])
_FRAME: Final = struct.Struct(">II")
_PREFIX: Final = struct.Struct(">BI")
_PREFIX_START: Final = bytes([VERSION, 0, 0])
"""The first bytes of every payload: its version and the two high bytes of its number of trades."""
_MAX_RECORD_BYTES: Final = 64_000_000
_PARTIAL_WEIGHT: Final = 100
"""A partial footprint takes about as much memory as this many trades."""

_Integer = Annotated[int, msgspec.Meta(le=(1 << 63) - 1)]
_Time = Annotated[int, msgspec.Meta(ge=-(1 << 62), le=1 << 62)]
_Index = Annotated[int, msgspec.Meta(ge=0)]
_TradeRow = tuple[_Index, _Time, _Integer, _Integer, _Integer, bool, _Integer, str | None]
"""Index into the scales, ms after the first trade, seq, price, quantity, is it a buy, fills, and trade_id, None if it is the seq."""


class _SpanRow(msgspec.Struct, array_like=True):
    instrument: Instrument
    start: _Time
    end: _Time
    first_seq: _Integer
    last_seq: _Integer
    basis: Basis
    reason: SpanReason
    opened_by: GapReason
    raw: bool = True


class _PartialRow(msgspec.Struct, array_like=True):
    instrument: Instrument
    minute: _Time
    first_seq: _Integer
    last_seq: _Integer
    packed: bytes


class _Content(msgspec.Struct, array_like=True):
    scales: list[tuple[Instrument, Scale]]
    base: _Time
    rows: list[_TradeRow]
    spans: list[_SpanRow]
    partials: list[_PartialRow] = []


_ENCODER: Final = msgspec.msgpack.Encoder()
_DECODER: Final[msgspec.msgpack.Decoder[_Content]] = msgspec.msgpack.Decoder(_Content)


class Entry(NamedTuple):
    """A batch of the recorder: trades and partial footprints (`pieces`), and the coverage that is valid once they are stored."""

    trades: Sequence[Trade]
    spans: Sequence[tuple[Instrument, Span]]
    pieces: Sequence[PartialFootprint] = ()

    @property
    def weight(self) -> int:
        """About how much memory it takes, as a number of trades."""
        return len(self.trades) + len(self.spans) + _PARTIAL_WEIGHT * len(self.pieces)


class Place(NamedTuple):
    """A position in the journal: a record by its segment and byte, or some trades into it. Places sort in the order of the journal."""

    segment: int
    offset: int
    trades_before: int
    """Trades of the segment before this record."""
    trades_read: int
    """Trades of this record that were returned before."""


class Unreadable(Exception):
    """A record cannot be read. `why` says the reason and `place` where the record begins."""

    def __init__(self, why: str, place: Place) -> None:
        super().__init__(why)
        self.why = why
        self.place = place


class SegmentReader:
    """Reads one segment. The file is opened by the first read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO | None = None
        self._size = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def check_header(self, number: int) -> bool:
        """True if the header is complete. It is synced before the first record, so a segment without it has no acknowledged record."""
        place = Place(number, 0, 0, 0)
        header = self._read(place, 0, len(HEADER))
        if not HEADER.startswith(header):
            raise Unreadable("invalid segment header", place)
        return header == HEADER

    def record(self, place: Place) -> bytes:
        """The payload of the record at a place, with a valid checksum."""
        frame = self._read(place, place.offset, _FRAME.size)
        length, checksum = _FRAME.unpack(frame) if len(frame) == _FRAME.size else (_PREFIX.size, 0)
        if not _PREFIX.size <= length <= _MAX_RECORD_BYTES:
            raise Unreadable("invalid record length", place)
        if place.offset + _FRAME.size + length > self._size:
            raise Unreadable("incomplete record", place)
        payload = self._read(place, place.offset + _FRAME.size, length)
        if len(payload) < length or crc32(payload) != checksum:
            raise Unreadable("checksum mismatch", place)
        return payload

    def entry(self, place: Place) -> tuple[Entry, Place]:
        """The content of the record at a place, and the place of the next record."""
        payload = self.record(place)
        try:
            entry = unpack(payload)
        except ValueError as error:
            raise Unreadable(str(error), place) from error
        return entry, Place(place.segment, place.offset + _FRAME.size + len(payload), place.trades_before + len(entry.trades), 0)

    def size(self, place: Place) -> tuple[int, int]:
        """Bytes of the record at a place with its frame, and the number of trades it states. Verifies the checksum, not the content."""
        payload = self.record(place)
        return _FRAME.size + len(payload), _PREFIX.unpack_from(payload)[1]

    def intact_record_after(self, place: Place) -> bool:
        """True if a readable record follows the one at this place: then that one is damaged, and not an interrupted append."""
        tail = self._read(place, place.offset, _MAX_RECORD_BYTES)
        payload = tail.find(_PREFIX_START, _FRAME.size + 1)
        while payload >= 0:
            length, checksum = _FRAME.unpack_from(tail, payload - _FRAME.size)
            if _PREFIX.size <= length <= len(tail) - payload and crc32(memoryview(tail)[payload : payload + length]) == checksum:
                return True
            payload = tail.find(_PREFIX_START, payload + 1)
        return False

    def _read(self, place: Place, offset: int, length: int) -> bytes:
        try:
            if self._file is None:
                self._file = self._path.open("rb")
                self._size = os.fstat(self._file.fileno()).st_size
            self._file.seek(offset)
            return self._file.read(length)
        except FileNotFoundError as error:
            raise Unreadable("file not found", place) from error
        except OSError as error:
            # Opening may succeed later (too many open files). A failed read of an open file is damage.
            if self._file is None:
                raise
            raise Unreadable(f"the disk cannot read it ({error.strerror})", place) from error


def pack(entry: Entry) -> bytes:
    """An entry as a record with its frame. `OverflowError` if a price, quantity or seq does not fit 64 bits."""
    scales: dict[tuple[Instrument, Scale], int] = {}
    base = entry.trades[0].timestamp if entry.trades else 0
    rows = [
        (
            scales.setdefault((trade.instrument, trade.scale), len(scales)),
            trade.timestamp - base,
            trade.seq,
            trade.price,
            trade.quantity,
            trade.trade_type is TradeType.BUY,
            trade.fills,
            None if trade.trade_id == str(trade.seq) else trade.trade_id,
        )
        for trade in entry.trades
    ]
    spans = [(instrument, *msgspec.structs.astuple(span)) for instrument, span in entry.spans]
    partials = [(one.instrument, one.minute, one.first_seq, one.last_seq, one.footprint.pack()) for one in entry.pieces]
    payload = _PREFIX.pack(VERSION, len(rows)) + _ENCODER.encode((list(scales), base, rows, spans, partials))
    if len(payload) > _MAX_RECORD_BYTES:
        raise ValueError(f"a journal record may have at most {_MAX_RECORD_BYTES:,} bytes, this one has {len(payload):,}")
    return _FRAME.pack(len(payload), crc32(payload)) + payload


def unpack(payload: bytes) -> Entry:
    """The entry of a record's payload. `ValueError` says in a few words what is wrong with the payload."""
    if len(payload) < _PREFIX.size:
        raise ValueError("incomplete record")
    version, count = _PREFIX.unpack_from(payload)
    if version != VERSION:
        raise ValueError(f"unknown record version {version}")
    try:
        content = _DECODER.decode(memoryview(payload)[_PREFIX.size :])
        scales, base = content.scales, content.base
        trades = [
            Trade(
                scales[index][0],
                base + offset,
                seq,
                str(seq) if trade_id is None else trade_id,
                price,
                quantity,
                TradeType.BUY if bought else TradeType.SELL,
                fills,
                scales[index][1],
            )
            for index, offset, seq, price, quantity, bought, fills, trade_id in content.rows
        ]
        partials = [
            PartialFootprint(row.instrument, row.minute, row.first_seq, row.last_seq, Footprint.unpack(row.packed))
            for row in content.partials
        ]
    except (msgspec.MsgspecError, IndexError, ValueError) as error:
        raise ValueError("content does not match the format of its version") from error
    if len(trades) != count:
        raise ValueError(f"{len(trades):,} trades instead of the {count:,} stated")
    return Entry(trades, [(row.instrument, _span(row)) for row in content.spans], partials)


def _span(row: _SpanRow) -> Span:
    return Span(row.start, row.end, row.first_seq, row.last_seq, row.basis, row.reason, row.opened_by, row.raw)
