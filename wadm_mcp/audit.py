"""Does the tape say what the exchange says, and are its figures the sums of its trades?

Two comparisons, of minutes that are held whole and settled. With the exchange's own minutes (klines): volume everywhere, on Binance also
the count of executions and the volume that takers bought; on its spot market the exchange's first id of each hour, and the one before it,
must be held (klines of REST bear no ids, so it is asked for by time). With the raw trades: every minute's footprint, and every bar above
it with its cumulative delta, is summed again.

What is not held whole is told as such and compared with nothing. What an exchange counts into its minutes and WADM keeps out of bars
(prints that are no market trades, block trades) shows as a difference.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from decimal import Decimal
from typing import Final, NamedTuple

import anyio
from anyio import to_thread

from wadm_mcp.analytics.footprint import Bar, Footprint
from wadm_mcp.analytics.order_flow import session_start
from wadm_mcp.collection.recording.minute import build_minute
from wadm_mcp.collection.rest.client import RestClient
from wadm_mcp.collection.rest.rate_limit import Priority
from wadm_mcp.coverage.judge import is_covered
from wadm_mcp.errors import ExchangeError, StoreError
from wadm_mcp.exchanges.exchange import Candle, Venue
from wadm_mcp.health import Health, State
from wadm_mcp.logs import log
from wadm_mcp.model import HOUR, MINUTE, Instrument, Listing, Retention, Span, SpanReason, Timeframe, Window, rescale, to_decimal
from wadm_mcp.queries.numbers import decimal_text, iso
from wadm_mcp.storage.store import OrderFlow, Store, all_trades

_SETTLED: Final = 5 * MINUTE
"""An hour this long over is settled, and known to the exchange's own database."""
_LOOK_EVERY: Final = 30.0
_LOGGED: Final = 20
"""Differences of an hour that the log tells one by one."""


class Difference(NamedTuple):
    """One figure of which two sources say different things. `source` is `exchange` or `trades`."""

    instrument: Instrument
    timeframe: Timeframe
    start: int
    figure: str
    held: str
    told: str
    source: str

    def __str__(self) -> str:
        says = "the exchange says" if self.source == "exchange" else "its trades give"
        return f"{self.instrument} {self.timeframe} {iso(self.start)}: {self.figure} is {self.held}, {says} {self.told}"


class Audited(NamedTuple):
    """What one instrument's window came to. `compared` of its `minutes` were held whole; `recomputed` of those still have their trades."""

    instrument: Instrument
    window: Window
    minutes: int
    compared: int
    recomputed: int
    differences: tuple[Difference, ...]


class ExchangeFigures(NamedTuple):
    """What an exchange says of itself: its minutes, and its first ids at or after some times (ms) where it numbers its trades."""

    candles: Sequence[Candle]
    edges: Mapping[int, int]


class Auditor:
    """Audits what a store holds. `now` gives the wall time (ms)."""

    def __init__(self, store: Store, lives: Retention, now: Callable[[], int]) -> None:
        self._store = store
        self._lives = lives
        self._now = now

    async def held(self, instrument: Instrument, window: Window) -> list[int]:
        """Starts of the window's minutes that are held whole and settled: those that an audit compares."""
        spans = await self._store.spans(instrument, window)
        marked = {mark.minute for mark in await self._store.dirty_minutes() if mark.instrument == instrument}
        minutes = range(window.start, window.end, MINUTE)
        return [minute for minute in minutes if minute not in marked and is_covered(spans, Window(minute, minute + MINUTE), self._now())]

    async def audit(self, listing: Listing, window: Window, told: ExchangeFigures | None) -> Audited:
        """Compare whole minutes of a window with what the exchange has told (None: it did not) and with their own trades."""
        instrument = listing.instrument
        spans = await self._store.spans(instrument, window)
        whole = await self.held(instrument, window)
        bars = {row.start: row.bar for row in await self._store.order_flow(instrument, Timeframe.M1, window)}
        differences: list[Difference] = []
        if told is not None:
            klines = {kline.start: kline for kline in told.candles}
            for minute in whole:
                if minute in klines:
                    differences += _against_exchange(instrument, bars.get(minute, Bar(listing.scale)), klines[minute])
            differences += _edges_not_held(instrument, spans, told.edges, set(whole))
        raw = [minute for minute in whole if minute >= self._now() - self._lives.trades]
        for minute in raw:
            differences += await self._against_trades(listing, minute, bars.get(minute))
        for timeframe in Timeframe:
            differences += await self._against_minutes(listing, timeframe, window, set(whole))
        return Audited(instrument, window, window.length // MINUTE, len(whole), len(raw), tuple(differences))

    async def _against_trades(self, listing: Listing, minute: int, bar: Bar | None) -> list[Difference]:
        instrument, window = listing.instrument, Window(minute, minute + MINUTE)
        trades = await all_trades(self._store, instrument, window)
        footprint = await to_thread.run_sync(build_minute, trades, await self._store.pieces(instrument, window))
        stored = await self._store.footprints(instrument, Timeframe.M1, window)
        differences = _between(instrument, Timeframe.M1, minute, bar or Bar(listing.scale), footprint.bar)
        if not _alike(stored[0].footprint if stored else Footprint(listing.scale), footprint):
            differences.append(Difference(instrument, Timeframe.M1, minute, "footprint", "other cells", "their sums", "trades"))
        return differences

    async def _against_minutes(self, listing: Listing, timeframe: Timeframe, window: Window, whole: set[int]) -> list[Difference]:
        """Bars above the minute, and every cumulative delta, from the stored minutes."""
        instrument = listing.instrument
        differences: list[Difference] = []
        rows = await self._store.order_flow(instrument, timeframe, window)
        if not rows:
            return []
        since = min(session_start(row.start) for row in rows)
        minutes = await self._store.order_flow(instrument, Timeframe.M1, Window(since, rows[-1].start + timeframe.ms))
        for row in rows:
            inside = [each for each in minutes if row.start <= each.start < row.start + timeframe.ms]
            if timeframe is not Timeframe.M1 and whole.issuperset(range(row.start, row.start + timeframe.ms, MINUTE)):
                merged = Bar(listing.scale)
                for each in inside:
                    merged = merged.then(each.bar)
                differences += _between(instrument, timeframe, row.start, row.bar, merged)
            total, decimals = _delta_until(minutes, session_start(row.start), row.start + timeframe.ms)
            mine = row.cumulative_delta, row.bar.scale.quantity
            if _decimal(*mine) != _decimal(total, decimals):
                differences.append(
                    Difference(instrument, timeframe, row.start, "cumulative_delta", _text(*mine), _text(total, decimals), "trades")
                )
        return differences


class HourlyAudit:
    """Audits each closed hour of what is recorded here once, and tells `health` of it as the part `audit`.

    A difference stays told, with the number of all found so far, until the process ends; it does not make the process unfit.
    """

    def __init__(
        self,
        auditor: Auditor,
        recorded: Callable[[], Sequence[Listing]],
        told: Callable[[Listing, Window], Awaitable[ExchangeFigures]],
        health: Health,
        now: Callable[[], int],
    ) -> None:
        self._auditor = auditor
        self._recorded = recorded
        self._told = told
        self._health = health
        self._now = now
        self._done: dict[Instrument, int] = {}
        self._found: Difference | None = None

    async def run(self) -> None:
        """Look for hours that are over, for ever."""
        while True:
            hour = Timeframe.H1.floor(self._now() - _SETTLED) - HOUR
            for listing in self._recorded():
                if self._done.get(listing.instrument, hour - HOUR) < hour:
                    await self._audit(listing, Window(hour, hour + HOUR))
            await anyio.sleep(_LOOK_EVERY)

    async def _audit(self, listing: Listing, hour: Window) -> None:
        try:
            held = await self._auditor.held(listing.instrument, hour)
            told = await self._told(listing, Window(held[0], held[-1] + MINUTE)) if held else None
            audited = await self._auditor.audit(listing, hour, told)
        except (ExchangeError, StoreError) as error:
            log.warning("audit.failed", instrument=listing.instrument, hour=iso(hour.start), error=error)
            return
        self._done[listing.instrument] = hour.start
        self._health.count("audit.minutes", audited.compared)
        if audited.differences:
            self._health.count("audit.differences", len(audited.differences))
            self._found = audited.differences[0]
            for difference in audited.differences[:_LOGGED]:
                log.warning("audit.difference", detail=str(difference))
        many = self._health.counts["audit.differences"]
        last = f"{audited.compared} of {audited.minutes} minutes of {listing.instrument} at {iso(hour.start)} compared"
        self._health.report("audit", State.OK, f"{many} differences, the last: {self._found}" if self._found is not None else last)


async def exchange_figures(rest: RestClient, venue: Venue, listing: Listing, window: Window) -> ExchangeFigures:
    """The exchange's own minutes of a window, and on Binance spot its first id of each hour in it. `ExchangeError` as of `Rest`."""
    klines: list[Candle] = []
    start = window.start
    while start < window.end:
        page = await rest.candles(venue, listing, Window(start, window.end))
        klines += [kline for kline in page if start <= kline.start < window.end]
        if not page or page[-1].start < start:
            break
        start = page[-1].start + MINUTE
    edges: dict[int, int] = {}
    if venue.traits.folds_history:
        for hour in range(window.start - window.start % -HOUR, window.end + 1, HOUR):
            rows = await rest.aggregates(venue, listing, start=hour, priority=Priority.HISTORY)
            if rows:
                edges[hour] = rows[0].trade.seq
    return ExchangeFigures(klines, edges)


def _edges_not_held(instrument: Instrument, spans: Sequence[Span], edges: Mapping[int, int], whole: set[int]) -> list[Difference]:
    """First ids of hours, and the ids before them, that no span holds though the minutes around are held whole."""
    differences: list[Difference] = []
    for hour, first in edges.items():
        for minute, number in ((hour, first), (hour - MINUTE, first - 1)):
            held = any(span.reason is not SpanReason.ABSENT and span.first_seq <= number <= span.last_seq for span in spans)
            if minute in whole and not held:
                differences.append(Difference(instrument, Timeframe.H1, hour, "id", "not held", str(number), "exchange"))
    return differences


def _against_exchange(instrument: Instrument, bar: Bar, kline: Candle) -> list[Difference]:
    figures = [("volume", bar.volume, kline.volume), ("buy_volume", bar.buy_volume, kline.buy_volume)]
    differences = [
        Difference(instrument, Timeframe.M1, kline.start, name, _text(mine, bar.scale.quantity), _text(told, kline.decimals), "exchange")
        for name, mine, told in figures
        if told is not None and _decimal(mine, bar.scale.quantity) != _decimal(told, kline.decimals)
    ]
    if kline.trade_count is not None and kline.trade_count != bar.trade_count:
        counts = str(bar.trade_count), str(kline.trade_count)
        differences.append(Difference(instrument, Timeframe.M1, kline.start, "trade_count", *counts, "exchange"))
    return differences


def _between(instrument: Instrument, timeframe: Timeframe, start: int, bar: Bar, again: Bar) -> list[Difference]:
    scale = bar.scale.finest(again.scale)
    one, two = bar.rescaled(scale), again.rescaled(scale)
    prices = [(name, getattr(one, name), getattr(two, name), scale.price) for name in ("open", "high", "low", "close")]
    volumes = [(name, getattr(one, name), getattr(two, name), scale.quantity) for name in ("buy_volume", "sell_volume")]
    paths = [
        (name, getattr(one, name), getattr(two, name), scale.quantity)
        for name in ("min_delta", "max_delta")
        if getattr(one, name) is not None and getattr(two, name) is not None
    ]
    differences = [
        Difference(instrument, timeframe, start, name, _text(held, decimals), _text(told, decimals), "trades")
        for name, held, told, decimals in (*prices, *volumes, *paths)
        if held != told
    ]
    if one.trade_count != two.trade_count:
        counts = str(one.trade_count), str(two.trade_count)
        differences.append(Difference(instrument, timeframe, start, "trade_count", *counts, "trades"))
    return differences


def _alike(one: Footprint, two: Footprint) -> bool:
    scale = one.scale.finest(two.scale)
    return one.rescaled(scale).cells == two.rescaled(scale).cells


def _delta_until(minutes: Sequence[OrderFlow], since: int, until: int) -> tuple[int, int]:
    total, decimals = 0, 0
    for row in minutes:
        if since <= row.start < until:
            finest = max(decimals, row.bar.scale.quantity)
            total = rescale(total, decimals, finest) + rescale(row.bar.delta, row.bar.scale.quantity, finest)
            decimals = finest
    return total, decimals


def _decimal(value: int, decimals: int) -> Decimal:
    return to_decimal(value, decimals)


def _text(value: int | None, decimals: int) -> str:
    return "null" if value is None else decimal_text(to_decimal(value, decimals))
