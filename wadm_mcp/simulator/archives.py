"""Loopback archives: the daily files that both exchanges publish (docs/exchanges.md 4.4), generated from the simulated trades.

A file has the same bytes each time it is requested. It is generated off the event loop, from a copy of the tape, and cached.
"""

from __future__ import annotations

import gzip
import io
import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, date, datetime
from decimal import Decimal
from hashlib import sha256
from typing import Final, NamedTuple

from anyio import CapacityLimiter, to_process, to_thread

from wadm_mcp.model import DAY, Instrument
from wadm_mcp.simulator.faults import ArchiveFaults, Reply
from wadm_mcp.simulator.state import SimulatorState
from wadm_mcp.simulator.tape import Aggregate, Tape

_DATE: Final = r"([0-9]{4}-[0-9]{2}-[0-9]{2})"
_MICROSECONDS_FROM_MS: Final = 1_735_689_600_000
"""2025-01-01: spot files have times in microseconds from this day on."""
_MAX_FILES: Final = 8
_BUSY_PRINTS_PER_DAY: Final = 100_000
"""A day with more prints than this is generated in another process."""


class _FileKind(NamedTuple):
    """One kind of file: its path, its market, and the generator of its lines."""

    path: re.Pattern[str]
    market: str
    zipped: bool
    lines: Callable[[Tape, Instrument, int, int], Iterator[str]]
    quantity: int
    """The column of the quantity."""


class Archives:
    """The archive of one exchange; every host of the exchange serves it."""

    def __init__(self, state: SimulatorState, exchange: str) -> None:
        self._state = state
        self._exchange = exchange
        self._files: OrderedDict[tuple[Instrument, str], bytes] = OrderedDict()
        self._making = CapacityLimiter(1)
        self.asked: OrderedDict[str, int] = OrderedDict()
        """Bytes sent so far, by path of the file."""

    async def answer(self, path: str, headers: Mapping[str, str]) -> Reply | None:
        """The reply with the file at a path, or the part that a `Range` header requests.

        404 if there is no such file, None if the path is not one of an archive.
        """
        file_path = path.removesuffix(".CHECKSUM")
        for kind in _FILE_KINDS[self._exchange]:
            found = kind.path.fullmatch(file_path)
            if found is None:
                continue
            body = await self._file(kind, file_path, Instrument(self._exchange, kind.market, found[1]), found[2])
            if body is None:
                return Reply(404, {"message": "NoSuchKey"})
            if file_path != path:
                if not kind.zipped:
                    return Reply(404, {"message": "NoSuchKey"})
                return Reply(200, f"{sha256(body).hexdigest()}  {file_path.rpartition('/')[2]}\n".encode())
            return self._ranged(path, body, headers.get("Range", ""))
        return None

    def size(self, path: str) -> int:
        """Size in bytes of a file that was requested before."""
        return max((len(body) for (_, name), body in self._files.items() if name == path), default=0)

    def _ranged(self, path: str, body: bytes, requested: str) -> Reply:
        first = re.fullmatch(r"bytes=([0-9]{1,15})-([0-9]{0,15})", requested)
        if first is None:
            part, reply = body, Reply(200, body)
        elif int(first[1]) >= len(body):
            return Reply(416, b"", {"Content-Range": f"bytes */{len(body)}"})
        else:
            start = int(first[1])
            part = body[start : int(first[2]) + 1 if first[2] else len(body)]
            reply = Reply(206, part, {"Content-Range": f"bytes {start}-{start + len(part) - 1}/{len(body)}"})
        self.asked[path] = self.asked.get(path, 0) + len(part)
        return reply

    async def _file(self, kind: _FileKind, path: str, instrument: Instrument, day: str) -> bytes | None:
        start = _start(day)
        tape = self._state.tapes.get(instrument)
        if start is None or tape is None or start + DAY + self._state.faults.archive_delay > self._state.clock():
            return None
        key = instrument, path
        if key not in self._files:
            async with self._making:
                if key not in self._files:
                    # The simulator must not slow down the process it serves, so a busy day is generated in another process.
                    run = to_process.run_sync if tape.prints_per_day > _BUSY_PRINTS_PER_DAY else to_thread.run_sync
                    body = await run(_file_bytes, path, tape.copy(), instrument, start, self._state.faults.archive_rows)
                    self._files[key] = body
                    if len(self._files) > _MAX_FILES:
                        self._files.popitem(last=False)
        return self._files[key] or None


def _start(day: str) -> int | None:
    try:
        return round(datetime.combine(date.fromisoformat(day), datetime.min.time(), UTC).timestamp() * 1_000)
    except ValueError:
        return None


def _file_bytes(path: str, tape: Tape, instrument: Instrument, start: int, faults: ArchiveFaults) -> bytes:
    """The bytes of a file; empty if nothing was traded that day."""
    kind = next(kind for kind in _FILE_KINDS[instrument.exchange] if kind.path.fullmatch(path))
    lines: Iterable[str] = kind.lines(tape, instrument, start, start + DAY)
    if any(faults):
        lines = _faulty([line for line in lines if line], kind.quantity, faults)
    text = "".join(lines).encode()
    if not text:
        return b""
    if not kind.zipped:
        return gzip.compress(text, 6, mtime=0)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        member = zipfile.ZipInfo(path.rpartition("/")[2].removesuffix(".zip") + ".csv", (1980, 1, 1, 0, 0, 0))
        member.compress_type = zipfile.ZIP_DEFLATED
        archive.writestr(member, text)
    return packed.getvalue()


def _faulty(lines: list[str], quantity: int, faults: ArchiveFaults) -> Iterator[str]:
    """The lines of a file as a faulty one has them."""
    headed = bool(lines) and lines[0][0].isalpha()
    rows = lines[headed:]
    if headed:
        yield lines[0].rstrip("\n") + (",another\n" if faults.extra_column else "\n")
    if faults.unsorted:
        half = len(rows) // 2
        rows = [row for pair in zip(rows[:half], rows[half : 2 * half], strict=True) for row in pair] + rows[2 * half :]
    for place, row in enumerate(rows, 1):
        texts = row.rstrip("\n").split(",")
        if faults.exponents:
            texts[quantity] = f"{Decimal(texts[quantity]):e}"
        if faults.extra_column:
            texts.append("0.5")
        line = ",".join(texts) + "\n"
        yield line
        if faults.repeated_every and place % faults.repeated_every == 0:
            yield line


def _spot_time(at: int) -> int:
    return at * 1_000 if at >= _MICROSECONDS_FROM_MS else at


def _spot_trades(tape: Tape, instrument: Instrument, start: int, end: int) -> Iterator[str]:
    for row in tape.prints(start, end):
        quote = _product(row.price, row.quantity)
        yield f"{row.number},{row.price},{row.quantity},{quote},{_spot_time(row.time)},{not row.buy},{row.best}\n"


def _spot_aggregates(tape: Tape, instrument: Instrument, start: int, end: int) -> Iterator[str]:
    for row in _aggregates_of_day(tape, start, end):
        yield f"{row.number},{row.price},{row.quantity},{row.first},{row.last},{_spot_time(row.time)},{not row.buy},True\n"


def _linear_aggregates(tape: Tape, instrument: Instrument, start: int, end: int) -> Iterator[str]:
    header = "agg_trade_id,price,quantity,first_trade_id,last_trade_id,transact_time,is_buyer_maker\n"
    for row in _aggregates_of_day(tape, start, end):
        yield header
        header = ""
        yield f"{row.number},{row.price},{row.quantity},{row.first},{row.last},{row.time},{'false' if row.buy else 'true'}\n"


def _bybit_linear(tape: Tape, instrument: Instrument, start: int, end: int) -> Iterator[str]:
    header = "timestamp,symbol,side,size,price,tickDirection,trdMatchID,grossValue,homeNotional,foreignNotional,RPI\n"
    symbol = instrument.symbol
    for row in tape.prints(start, end):
        yield header
        header = ""
        at = f"{row.time // 1_000}.{row.time % 1_000:03d}0"
        value = _product(row.price, row.quantity)
        side = "Buy" if row.buy else "Sell"
        yield f"{at},{symbol},{side},{row.quantity},{row.price},ZeroPlusTick,{row.trade_id},{value},{row.quantity},{value},0\n"


def _bybit_spot(tape: Tape, instrument: Instrument, start: int, end: int) -> Iterator[str]:
    header = "id,timestamp,price,volume,side,rpi\n"
    for number, row in enumerate(tape.prints(start, end), 1):
        yield header
        header = ""
        yield f"{number},{row.time},{row.price},{row.quantity},{'buy' if row.buy else 'sell'},0\n"


def _aggregates_of_day(tape: Tape, start: int, end: int) -> Iterable[Aggregate]:
    return (row for row in tape.aggregates(start, end + 1_000) if start <= row.time < end)


def _product(price: str, quantity: str) -> str:
    """Price times quantity, truncated to eight decimals."""
    whole, _, fraction = price.partition(".")
    units, _, part = quantity.partition(".")
    decimals = len(fraction) + len(part)
    value = int(whole + fraction) * int(units + part)
    value = value // 10 ** (decimals - 8) if decimals > 8 else value * 10 ** (8 - decimals)
    return f"{value // 100_000_000}.{value % 100_000_000:08d}"


def _file_kind(
    path: str, market: str, zipped: bool, lines: Callable[[Tape, Instrument, int, int], Iterator[str]], quantity: int
) -> _FileKind:
    return _FileKind(re.compile(path, re.ASCII), market, zipped, lines, quantity)


_SYMBOL: Final = r"([^/]{1,40}?)"
_FILE_KINDS: Final = {
    "binance": (
        _file_kind(rf"/data/spot/daily/trades/{_SYMBOL}/\1-trades-{_DATE}\.zip", "spot", True, _spot_trades, 2),
        _file_kind(rf"/data/spot/daily/aggTrades/{_SYMBOL}/\1-aggTrades-{_DATE}\.zip", "spot", True, _spot_aggregates, 2),
        _file_kind(rf"/data/futures/um/daily/aggTrades/{_SYMBOL}/\1-aggTrades-{_DATE}\.zip", "linear", True, _linear_aggregates, 2),
    ),
    "bybit": (
        _file_kind(rf"/trading/{_SYMBOL}/\1{_DATE}\.csv\.gz", "linear", False, _bybit_linear, 3),
        _file_kind(rf"/spot/{_SYMBOL}/\1_{_DATE}\.csv\.gz", "spot", False, _bybit_spot, 3),
    ),
}
