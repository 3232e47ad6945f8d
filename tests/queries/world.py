"""A tape and a store with known trades in them, and a `View` upon both: part is live, part rests in the store, some is in both."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from decimal import Decimal
from types import TracebackType
from typing import Any, Self

from tests.market import BYBIT, NOON, SPOT, ManualClock, listing, trade
from wadm_mcp.analytics.footprint import Footprint
from wadm_mcp.coverage.expired import Expired
from wadm_mcp.coverage.spans import Basis, Span
from wadm_mcp.errors import QueryError
from wadm_mcp.model import DAY, Instrument, Listing, Retention, Timeframe, Trade, TradeType, Window
from wadm_mcp.queries.view import View
from wadm_mcp.storage.store import (
    CommitBarrier,
    Derived,
    DirtyMinute,
    OrderFlow,
    PartialFootprint,
    Store,
    StoredFootprint,
    StoreState,
    StoreVersion,
    no_barrier,
)
from wadm_mcp.tape import Tape

LINEAR = Instrument("binance", "linear", "ETHUSDT")
ETH = Instrument("binance", "spot", "ETHUSDT")


class MemoryStore(Store):
    """The `Store` contract as lists."""

    def __init__(self) -> None:
        self.kept: dict[Instrument, list[Trade]] = defaultdict(list)
        self.bars: dict[tuple[Instrument, Timeframe], dict[int, Footprint]] = defaultdict(dict)
        self.held: dict[Instrument, list[Span]] = defaultdict(list)
        self.asked = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        return None

    @property
    def version(self) -> StoreVersion:
        return StoreVersion("memory", 0)

    async def renew_identity(self) -> None:
        return None

    async def check(self) -> None:
        return None

    async def write(
        self,
        trades: Sequence[Trade],
        spans: Sequence[tuple[Instrument, Span]],
        pieces: Sequence[PartialFootprint] = (),
        *,
        barrier: CommitBarrier = no_barrier,
    ) -> None:
        assert not pieces
        for one in trades:
            self.kept[one.instrument].append(one)
        for instrument, span in spans:
            self.held[instrument].append(span)

    async def pieces(self, instrument: Instrument, window: Window) -> list[PartialFootprint]:
        return []

    async def count(self, instrument: Instrument, window: Window) -> int:
        return sum(one.timestamp in window for one in self.kept[instrument])

    async def derive(self, derived: Derived) -> None:
        raise NotImplementedError

    async def dirty_minutes(self) -> list[DirtyMinute]:
        return []

    async def save_listings(self, listings: Sequence[Listing]) -> None:
        raise NotImplementedError

    async def listings(self) -> list[Listing]:
        return []

    async def track(self, instruments: Sequence[Instrument]) -> None:
        raise NotImplementedError

    async def untrack(self, instruments: Sequence[Instrument]) -> None:
        raise NotImplementedError

    async def tracked(self) -> list[Instrument]:
        return []

    async def trades(
        self, instrument: Instrument, window: Window, *, after: tuple[int, int, int, str] | None = None, limit: int, newest: bool = False
    ) -> list[Trade]:
        self.asked += 1
        found = sorted((one for one in self.kept[instrument] if one.timestamp in window), key=lambda one: one.order)
        found = [one for one in found if after is None or one.order > after]
        return found[-limit:] if newest else found[:limit]

    async def footprints(
        self, instrument: Instrument, timeframe: Timeframe, window: Window, *, max_bytes: int | None = None
    ) -> list[StoredFootprint]:
        rows = [
            StoredFootprint(instrument, timeframe, start, footprint.rescaled(footprint.scale))
            for start, footprint in sorted(self.bars[instrument, timeframe].items())
            if start in window
        ]
        # With a limit as few at a time as the contract allows.
        return rows if max_bytes is None else rows[:1]

    async def order_flow(self, instrument: Instrument, timeframe: Timeframe, window: Window) -> list[OrderFlow]:
        rows = await self.footprints(instrument, timeframe, window)
        return [OrderFlow(instrument, timeframe, row.start, row.footprint.bar, 0) for row in rows]

    async def spans(self, instrument: Instrument, window: Window) -> list[Span]:
        every = sorted(self.held[instrument], key=lambda span: span.start)
        before = [span for span in every if span.end < window.start][-1:]
        after = [span for span in every if span.start > window.end][:1]
        return [*before, *(span for span in every if span.start <= window.end and span.end >= window.start), *after]

    async def expire(self, now: int | None, retention: Retention, latest: int | None = None) -> int:
        return 0

    async def expired(self, instrument: Instrument) -> Expired:
        return Expired()

    async def acquire_leases(self, owner: str, instruments: Sequence[Instrument], seconds: float) -> set[Instrument]:
        return set(instruments)

    async def release_leases(self, owner: str) -> None:
        return None

    async def state(self) -> StoreState:
        return StoreState("memory", "tests", 0)


class Held:
    """What the recorder knows, as told."""

    def __init__(self, spans: Sequence[Span] = (), alive: int | None = None) -> None:
        self.spans = spans
        self.alive = alive

    def alive_until(self) -> int | None:
        return self.alive


class World:
    """Followed instruments, their trades, and what asks about them."""

    def __init__(
        self, *followed: Listing, now: int = NOON, markets: Sequence[str] = ("spot", "linear"), lives: Retention | None = None
    ) -> None:
        self.clock = ManualClock(now)
        self.store = MemoryStore()
        self.tape = Tape()
        self.tape.mark_listings_attempted()
        for one in followed or (listing(SPOT), listing(BYBIT)):
            self.tape.follow(one)
        self.view = View(self.store, self.tape, self.clock.now, markets, ("binance", "bybit"), lives)

    def add(self, trades: Iterable[Trade], *, durable_until: int = 0, settled_until: int = 0) -> Self:
        """Trades from `durable_until` on are only in memory; bars that end by `settled_until` are only in the store."""
        for one in trades:
            tape = self.tape[one.instrument]
            if one.timestamp < durable_until:
                self.store.kept[one.instrument].append(one)
            else:
                tape.pending[one.trade_id] = one
            if tape.newest is None or one.timestamp >= tape.newest.timestamp:
                tape.newest = one
            if Timeframe.M1.floor(one.timestamp) + Timeframe.M1.ms > settled_until:
                tape.add([one])
            for length in Timeframe:
                start = length.floor(one.timestamp)
                if start + length.ms <= settled_until:
                    bars = self.store.bars[one.instrument, length]
                    if start not in bars:
                        bars[start] = Footprint(one.scale)
                    bars[start].add(one)
        return self

    def cover(self, instrument: Instrument, start: int, end: int, *, alive: int | None = None, basis: Basis = Basis.OBSERVED) -> Self:
        """The tape of an instrument is complete from start to end."""
        self.tape[instrument].start_recording(Held([Span(start, end, 0, 0, basis)], alive))
        return self


def whole_day(world: World, *instruments: Instrument) -> World:
    """Every instrument complete from two days ago until now."""
    for instrument in instruments or (SPOT, BYBIT):
        world.cover(instrument, world.clock.at - 2 * DAY, world.clock.at + 60_000)
    return world


def made(
    seq: int, at: int, price: int = 6_000_000, quantity: int = 100, side: str = "BUY", instrument: Instrument = SPOT, fills: int = 1
) -> Trade:
    return trade(seq, at, price, quantity, side, instrument, fills)


def exact(value: object) -> Decimal | None:
    """A figure of an answer as its reader would take it: after a round trip through JSON text."""
    if value is None:
        return None
    return Decimal(json.loads(json.dumps(value), parse_float=Decimal, parse_int=Decimal))


def price_of(one: Trade) -> Decimal:
    return Decimal(one.price).scaleb(-one.scale.price)


def quantity_of(one: Trade) -> Decimal:
    return Decimal(one.quantity).scaleb(-one.scale.quantity)


def signed(one: Trade) -> Decimal:
    return quantity_of(one) if one.trade_type is TradeType.BUY else -quantity_of(one)


def rows_of(answer_table: dict[str, Any]) -> list[dict[str, Any]]:
    """A table of an answer as objects."""
    return [dict(zip(answer_table["columns"], row, strict=True)) for row in answer_table["rows"]]


def one_line(error: QueryError) -> str:
    """The text of an error, which is one line."""
    text = str(error)
    assert text
    assert text.isprintable()
    assert len(text) < 1_000
    return text
