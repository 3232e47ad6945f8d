"""One segment of the journal: how entries are written as records, and how a file of them is read back.

A segment is an eight-byte header and records; a record is a length and a CRC-32 (32 bits each, big-endian) and that many bytes: a
version byte, the number of trades in 32 bits, and MessagePack.
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
from wadm_mcp.model import Basis, GapReason, Instrument, Scale, Span, SpanReason, Trade, TradeType
from wadm_mcp.storage.store import PartialFootprint

VERSION: Final = 1
HEADER: Final = b"WADMSEG" + bytes([VERSION])
_FRAME: Final = struct.Struct(">II")
_LEAD: Final = struct.Struct(">BI")
_START_OF_LEAD: Final = bytes([VERSION, 0, 0])
_LONGEST_RECORD: Final = 64_000_000
_PIECE_WEIGHT: Final = 100

_Integer = Annotated[int, msgspec.Meta(le=(1 << 63) - 1)]
_Time = Annotated[int, msgspec.Meta(ge=-(1 << 62), le=1 << 62)]
_Index = Annotated[int, msgspec.Meta(ge=0)]
_TradeRow = tuple[_Index, _Time, _Integer, _Integer, _Integer, bool, _Integer, str | None]
"""Index of instrument and scale, ms after the first trade, seq, price, quantity, bought?, fills, trade_id unless the seq."""


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


class _PieceRow(msgspec.Struct, array_like=True):
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
    pieces: list[_PieceRow] = []


_ENCODER: Final = msgspec.msgpack.Encoder()
_DECODER: Final[msgspec.msgpack.Decoder[_Content]] = msgspec.msgpack.Decoder(_Content)


class Entry(NamedTuple):
    """One batch as the recorder cuts it: trades and pieces, and the coverage that holds once they are in the store."""

    trades: Sequence[Trade]
    spans: Sequence[tuple[Instrument, Span]]
    pieces: Sequence[PartialFootprint] = ()

    @property
    def weight(self) -> int:
        """How much memory it takes, in trades."""
        return len(self.trades) + len(self.spans) + _PIECE_WEIGHT * len(self.pieces)


class Place(NamedTuple):
    """Somewhere in the journal: a record by its segment and byte, the segment's trades before it, and how many of its own were taken."""

    segment: int
    offset: int
    before: int
    taken: int


class Unreadable(Exception):
    """A record that cannot be read: why, and where it begins."""

    def __init__(self, why: str, place: Place) -> None:
        super().__init__(why)
        self.why = why
        self.place = place


class SegmentReader:
    """Reads one segment; the file is opened with the first byte asked for."""

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
        """Is the header whole? It is on disk before the first record, so nothing was ever acknowledged where it is not."""
        place = Place(number, 0, 0, 0)
        header = self._read(place, 0, len(HEADER))
        if not HEADER.startswith(header):
            raise Unreadable("header is not a journal segment's", place)
        return header == HEADER

    def record(self, place: Place) -> bytes:
        """The payload of the record at a place, its checksum verified."""
        frame = self._read(place, place.offset, _FRAME.size)
        length, checksum = _FRAME.unpack(frame) if len(frame) == _FRAME.size else (_LEAD.size, 0)
        if not _LEAD.size <= length <= _LONGEST_RECORD:
            raise Unreadable("length is impossible", place)
        if place.offset + _FRAME.size + length > self._size:
            raise Unreadable("record is cut short", place)
        payload = self._read(place, place.offset + _FRAME.size, length)
        if len(payload) < length or crc32(payload) != checksum:
            raise Unreadable("checksum differs", place)
        return payload

    def entry(self, place: Place) -> tuple[Entry, Place]:
        """What the record at a place holds, and where it ends."""
        payload = self.record(place)
        try:
            entry = unpack(payload)
        except ValueError as error:
            raise Unreadable(str(error), place) from error
        return entry, Place(place.segment, place.offset + _FRAME.size + len(payload), place.before + len(entry.trades), 0)

    def size(self, place: Place) -> tuple[int, int]:
        """Bytes of the record at a place with all that frames it, and the trades it states; its checksum is verified, its content not."""
        payload = self.record(place)
        return _FRAME.size + len(payload), _LEAD.unpack_from(payload)[1]

    def intact_record_after(self, place: Place) -> bool:
        """Does any record that can be read begin behind this place? Then what is wrong there is no torn tail."""
        tail = self._read(place, place.offset, _LONGEST_RECORD)
        lead = tail.find(_START_OF_LEAD, _FRAME.size + 1)
        while lead >= 0:
            length, checksum = _FRAME.unpack_from(tail, lead - _FRAME.size)
            if _LEAD.size <= length <= len(tail) - lead and crc32(memoryview(tail)[lead : lead + length]) == checksum:
                return True
            lead = tail.find(_START_OF_LEAD, lead + 1)
        return False

    def _read(self, place: Place, offset: int, length: int) -> bytes:
        try:
            if self._file is None:
                self._file = self._path.open("rb")
                self._size = os.fstat(self._file.fileno()).st_size
            self._file.seek(offset)
            return self._file.read(length)
        except FileNotFoundError as error:
            raise Unreadable("the file is gone", place) from error
        except OSError as error:
            # A file that cannot be opened (too many are open) may be opened later; a disk that fails on its bytes is damage.
            if self._file is None:
                raise
            raise Unreadable(f"the disk does not read it back ({error.strerror})", place) from error


def pack(entry: Entry) -> bytes:
    """An entry as a record. Prices, quantities and seqs fit 64 bits, or it is an `OverflowError`."""
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
    pieces = [(piece.instrument, piece.minute, piece.first_seq, piece.last_seq, piece.footprint.pack()) for piece in entry.pieces]
    payload = _LEAD.pack(VERSION, len(rows)) + _ENCODER.encode((list(scales), base, rows, spans, pieces))
    if len(payload) > _LONGEST_RECORD:
        raise ValueError(f"a journal record has at most {_LONGEST_RECORD:,} bytes, this one would have {len(payload):,}")
    return _FRAME.pack(len(payload), crc32(payload)) + payload


def unpack(payload: bytes) -> Entry:
    """A record's payload as the entry it was packed from; `ValueError` says in few words why it is none."""
    if len(payload) < _LEAD.size:
        raise ValueError("record is cut short")
    version, count = _LEAD.unpack_from(payload)
    if version != VERSION:
        raise ValueError(f"record version {version} is unknown")
    try:
        content = _DECODER.decode(memoryview(payload)[_LEAD.size :])
        scales, base = content.scales, content.base
        trades = [
            Trade(
                scales[index][0],
                base + late,
                seq,
                str(seq) if trade_id is None else trade_id,
                price,
                quantity,
                TradeType.BUY if bought else TradeType.SELL,
                fills,
                scales[index][1],
            )
            for index, late, seq, price, quantity, bought, fills, trade_id in content.rows
        ]
        pieces = [
            PartialFootprint(row.instrument, row.minute, row.first_seq, row.last_seq, Footprint.unpack(row.packed))
            for row in content.pieces
        ]
    except (msgspec.MsgspecError, IndexError, ValueError) as error:
        raise ValueError("content has another shape than its version") from error
    if len(trades) != count:
        raise ValueError(f"number of trades is not the {count:,} stated")
    return Entry(trades, [(row.instrument, _span(row)) for row in content.spans], pieces)


def _span(row: _SpanRow) -> Span:
    return Span(row.start, row.end, row.first_seq, row.last_seq, row.basis, row.reason, row.opened_by, row.raw)
