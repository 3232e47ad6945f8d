"""Sorts the rows of a daily file that is out of order, on disk: a busy day has millions of rows. Blocking: call it in a worker thread.

Real files have rows of two stretches interleaved (docs/exchanges.md 4.4). The rows are written to one temporary file in sorted runs, which
are merged each time they are read. Memory is one run while they are written, and a block of each run while they are read.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator
from heapq import merge
from itertools import islice
from pathlib import Path
from typing import Final, Self

import msgspec

from wadm_mcp.collection.disk_reserve import DiskReserve
from wadm_mcp.errors import ArchiveError
from wadm_mcp.exchanges.exchange import Aggregate
from wadm_mcp.model import Listing, Scale, Trade, TradeType

RUN_ROWS: Final = 50_000
"""Rows of one sorted run: less than 40 MB of memory while it is read and sorted, 3 MB of disk."""
_BLOCK_ROWS: Final = 100
_LENGTH_BYTES: Final = 4


class OutOfOrder(ArchiveError):
    """A row belongs before the rows above it, so that the file has to be sorted first. In a sorted file it contradicts the row above."""


class _Row(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """An `Aggregate` without its instrument."""

    number: int
    last: int
    timestamp: int
    seq: int
    trade_id: str
    price: int
    quantity: int
    trade_type: TradeType
    fills: int
    price_decimals: int
    quantity_decimals: int


_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(list[_Row]).decode


class SortedRows:
    """The rows of a file in the order of `key`; rows with equal keys stay in the file's order. A context manager, iterable several times.

    The temporary file is in `folder`, and gone when the process ends, however it ends. `OSError` where it cannot be written,
    `DiskReserved` where it would leave less than `reserve` free.
    """

    def __init__(
        self, listing: Listing, rows: Iterable[Aggregate], key: Callable[[Aggregate], int], folder: Path, reserve: DiskReserve
    ) -> None:
        self._instrument = listing.instrument
        self._key = key
        self._runs: list[tuple[int, int]] = []
        """Where each run begins and ends in the file."""
        folder.mkdir(parents=True, exist_ok=True)
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by `__exit__`
        try:
            source = iter(rows)
            while run := list(islice(source, RUN_ROWS)):
                reserve.check()
                run.sort(key=key)
                start = self._file.tell()
                for first in range(0, len(run), _BLOCK_ROWS):
                    block = _encode([_spilled(row) for row in run[first : first + _BLOCK_ROWS]])
                    self._file.write(len(block).to_bytes(_LENGTH_BYTES, "big") + block)
                self._runs.append((start, self._file.tell()))
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __iter__(self) -> Iterator[Aggregate]:
        return merge(*(self._run(start, end) for start, end in self._runs), key=self._key)

    def _run(self, at: int, end: int) -> Iterator[Aggregate]:
        file, instrument, scales = self._file, self._instrument, dict[tuple[int, int], Scale]()
        while at < end:
            file.seek(at)
            length = int.from_bytes(file.read(_LENGTH_BYTES), "big")
            block = _decode(file.read(length))
            at = file.tell()
            for row in block:
                decimals = row.price_decimals, row.quantity_decimals
                scale = scales.get(decimals) or scales.setdefault(decimals, Scale(*decimals))
                trade = Trade(instrument, row.timestamp, row.seq, row.trade_id, row.price, row.quantity, row.trade_type, row.fills, scale)
                yield Aggregate(row.number, row.last, trade)


def _spilled(row: Aggregate) -> _Row:
    trade = row.trade
    return _Row(
        row.number,
        row.last,
        trade.timestamp,
        trade.seq,
        trade.trade_id,
        trade.price,
        trade.quantity,
        trade.trade_type,
        trade.fills,
        trade.scale.price,
        trade.scale.quantity,
    )
