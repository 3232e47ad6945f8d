"""Reads recordings of Binance frames into the rows that a venue plays.

A recording has one `<receive time> <JSON frame>` per line, plain or gzipped. Frames are those of a combined stream; only `@trade` frames
are used, all others (book, mark price, REST snapshots) are ignored. Spot trades are played as recorded. USD-M prints are aggregated as
Binance does: consecutive market prints with one price and side within an aligned window of 100 ms.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from io import BufferedReader
from operator import attrgetter
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from wadm_mcp.errors import WadmError
from wadm_mcp.model import parse_decimal
from wadm_mcp.simulator.tape import MARKET_PRINTS, Aggregate, Print, aggregate_of, extended, extends

MAX_TRADES: Final = 2_000_000
"""Most trades of one recording; they are kept in memory, some 500 bytes each."""

WINDOW: Final = 100
_MAX_LINE_BYTES: Final = 4 << 20
_MAX_NOTES: Final = 20
_EXPECTED: Final = "expected lines `<receive time> <JSON>` with combined-stream frames of Binance @trade"
_GZIP: Final = b"\x1f\x8b"
_TIME_UNITS: Final = ((10**18, 1_000), (10**15, 1))
"""A receive time of at least the first number is in ns, of at least the second in us; divided by the other number it is in us."""


class Recorded(NamedTuple):
    """A row to play: its receive time (us), the event time (ms) of its frame, and the row with its recorded time."""

    receive_us: int
    event: int
    symbol: str
    row: Print | Aggregate


@dataclass(frozen=True, slots=True)
class Recording:
    """The content of the files. `rows` are spot prints or USD-M aggregates in order of time; `fills` counts the market prints in them.

    `set_aside` counts prints that are not trades of the book, `skipped` the lines (and truncated ends) that could not be read; `notes`
    describes the first of these.
    """

    market: str
    symbols: Sequence[str]
    rows: Sequence[Recorded]
    fills: int
    set_aside: int
    skipped: int
    notes: Sequence[str]

    @property
    def duration(self) -> float:
        """Seconds from the first row received to the last."""
        return (self.rows[-1].receive_us - self.rows[0].receive_us) / 1e6


class _Event(msgspec.Struct, gc=False):
    E: int
    s: str
    t: int
    p: str
    q: str
    T: int
    m: bool
    X: str | None = None
    M: bool | None = None


class _Frame(msgspec.Struct, gc=False):
    data: msgspec.Raw
    stream: str = ""


class _RecordedPrint(NamedTuple):
    receive_us: int
    event: int
    symbol: str
    row: Print


@dataclass(slots=True)
class _Report:
    skipped: int = 0
    notes: list[str] = field(default_factory=list[str])

    def skip(self, note: str) -> None:
        self.skipped += 1
        if len(self.notes) < _MAX_NOTES:
            self.notes.append(note)


def read_recording(paths: Iterable[str | Path]) -> Recording:
    """Reads files, given in any order, into one recording. Blocks: call it before the event loop starts, or in a thread.

    Raises `WadmError` for a file without `@trade` frames, or with trades of another market than the others. Invalid lines, a truncated
    end and repeated trades are skipped and counted.
    """
    report = _Report()
    files = [(Path(path), _read(Path(path), report)) for path in paths]
    if not files:
        raise WadmError(f"no recording given: {_EXPECTED}")
    files.sort(key=lambda one: one[1][1][0].receive_us)
    market, (first, _) = files[0][1][0], files[0]
    for path, (other, _) in files:
        if other != market:
            raise WadmError(f"{path}: line 1: contains {other} trades, but {first} contains {market} trades; replay one market at a time")
    prints = _in_order([raws for _, (_, raws) in files], report)
    if len(prints) > MAX_TRADES:
        raise WadmError(f"{first}: {len(prints)} trades in {len(files)} files; a replay takes at most {MAX_TRADES}, give fewer files")
    kept = [one for one in prints if one.row.kind in MARKET_PRINTS]
    rows = _fold(kept) if market == "linear" else [Recorded(*one) for one in kept]
    symbols = list(dict.fromkeys(row.symbol for row in rows))
    return Recording(market, symbols, rows, len(kept), len(prints) - len(kept), report.skipped, report.notes)


def _read(path: Path, report: _Report) -> tuple[str, list[_RecordedPrint]]:
    """Market and trades of one file, in the file's order; a receive time lower than one before it is raised to that one."""
    raws: list[_RecordedPrint] = []
    market, bad, number, newest = "", 0, 0, 0
    for number, line in _lines(path, report):
        try:
            raw, found = _parse(line)
        except (ValueError, msgspec.DecodeError, msgspec.ValidationError) as error:
            bad = bad or number
            report.skip(f"{path}: line {number}: skipped, {error}")
            continue
        if raw is None:
            continue
        if market and found != market:
            raise WadmError(f"{path}: line {number}: a {found} trade among {market} ones; expected one market a file")
        market, newest = found, max(newest, raw.receive_us)
        raws.append(raw._replace(receive_us=newest))
        if len(raws) > MAX_TRADES:
            raise WadmError(f"{path}: line {number}: more than {MAX_TRADES} trades; a replay takes at most that many")
    if not any(raw.row.kind in MARKET_PRINTS for raw in raws):
        raise WadmError(f"{path}: line {bad or max(1, number)}: no trade to replay; {_EXPECTED}")
    return market, raws


def _lines(path: Path, report: _Report) -> Iterator[tuple[int, bytes]]:
    number = 0
    try:
        with _opened(path) as file:
            while line := file.readline(_MAX_LINE_BYTES):
                number += 1
                yield number, line
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        report.skip(f"{path}: line {number + 1}: the file is truncated here ({error}); the lines before are used")
    except OSError as error:
        raise WadmError(f"{path}: line {number + 1}: cannot be read ({error.strerror or error}); {_EXPECTED}") from error


def _opened(path: Path) -> gzip.GzipFile | BufferedReader:
    with path.open("rb") as file:
        zipped = file.read(2) == _GZIP
    return gzip.GzipFile(path) if zipped else path.open("rb")


def _parse(line: bytes) -> tuple[_RecordedPrint | None, str]:
    """A line's trade and market; no trade for a valid line of another stream. Raises `ValueError` or msgspec's errors if invalid."""
    head, _, body = line.partition(b" ")
    if not head.isdigit() or not body.endswith(b"\n"):
        raise ValueError("no newline at its end, so it is incomplete" if head.isdigit() else "it has no receive time")
    if b'"stream"' not in body[:16]:
        msgspec.json.decode(body, type=msgspec.Raw)
        return None, ""
    frame = msgspec.json.decode(body, type=_Frame)
    if not frame.stream.endswith("@trade"):
        return None, ""
    event = msgspec.json.decode(frame.data, type=_Event)
    if (event.X is None) == (event.M is None):
        raise ValueError("a trade must have either `M` (spot) or `X` (USD-M)")
    parse_decimal(event.p, 0)
    parse_decimal(event.q, 0)
    received = next((int(head) // divisor for size, divisor in _TIME_UNITS if int(head) >= size), None)
    if received is None:
        raise ValueError("its receive time must be in us or ns since the epoch")
    row = Print(event.t, str(event.t), event.t, event.T, event.p, event.q, not event.m, event.X or "MARKET", event.M is not False)
    return _RecordedPrint(received, event.E, event.s, row), "spot" if event.X is None else "linear"


def _in_order(files: Sequence[Sequence[_RecordedPrint]], report: _Report) -> list[_RecordedPrint]:
    """Trades of all files by receive time, without repeated ones."""
    ordered = sorted((raw for raws in files for raw in raws), key=attrgetter("receive_us"))
    newest: dict[str, int] = {}
    fresh: list[_RecordedPrint] = []
    for raw in ordered:
        if raw.row.number <= newest.get(raw.symbol, -1):
            report.skip(f"{raw.symbol} trade {raw.row.number}: repeated or out of order, skipped")
            continue
        newest[raw.symbol] = raw.row.number
        fresh.append(raw)
    return fresh


def _fold(prints: Iterable[_RecordedPrint]) -> list[Recorded]:
    """USD-M prints as aggregates, numbered per symbol from the id of its first print.

    An aggregate has the time of its first print and the event time of its last.
    """
    rows: list[Recorded] = []
    latest: dict[str, int] = {}
    for one in prints:
        place = latest.get(one.symbol)
        if place is not None:
            before = rows[place].row
            assert isinstance(before, Aggregate)
            if extends(before, one.row, WINDOW):
                rows[place] = Recorded(one.receive_us, one.event, one.symbol, extended(before, one.row))
                continue
            number = before.number + 1
        else:
            number = one.row.number
        latest[one.symbol] = len(rows)
        rows.append(Recorded(one.receive_us, one.event, one.symbol, aggregate_of(number, one.row)))
    return rows
