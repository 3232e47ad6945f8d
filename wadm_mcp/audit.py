"""Audits of stored figures: against the exchange's candles, and against the stored trades.

Only minutes that are covered and settled are compared. With the exchange's candles: the volume everywhere, on Binance also the trade
count and the taker buy volume. On Binance spot the exchange's first id of each hour, and the id before it, must be covered; REST candles
have no ids, so the first id is requested by time. With the stored trades: the footprint of every minute, and every longer bar with its
cumulative delta, is computed again.

Trades that an exchange counts in its candles and WADM keeps out of its bars (block trades, prints that are not market trades) show as
differences.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final, NamedTuple

import anyio
from anyio import to_thread

from wadm_mcp.analytics.footprint import Bar, Footprint
from wadm_mcp.analytics.order_flow import session_start
from wadm_mcp.collection.recording.minute import build_minute
from wadm_mcp.collection.rest.client import RestClient
from wadm_mcp.collection.rest.rate_limit import Priority
from wadm_mcp.coverage.judge import is_covered
from wadm_mcp.coverage.spans import Span, SpanReason
from wadm_mcp.errors import ExchangeError, StoreError
from wadm_mcp.exchanges.exchange import Candle, Venue
from wadm_mcp.health import Health, State
from wadm_mcp.logs import log
from wadm_mcp.model import HOUR, MINUTE, Instrument, Listing, Retention, Timeframe, Window, rescale, to_decimal
from wadm_mcp.queries.numbers import decimal_text, iso
from wadm_mcp.storage.store import OrderFlow, Store, all_trades

_SETTLE_MS: Final = 5 * MINUTE
"""Time after its end at which an hour is settled, so that the exchange's candles of it are final."""
_POLL_SECONDS: Final = 30.0
_MAX_LOGGED: Final = 20
"""Differences of an hour that are logged one by one."""


class Difference(NamedTuple):
    """A stored figure that differs from the expected one. `source` says where that comes from: `exchange` or `trades`."""

    instrument: Instrument
    timeframe: Timeframe
    start: int
    figure: str
    stored: str
    expected: str
    source: str

    def __str__(self) -> str:
        says = "the exchange says" if self.source == "exchange" else "its trades give"
        return f"{self.instrument} {self.timeframe} {iso(self.start)}: {self.figure} is {self.stored}, {says} {self.expected}"


class Audited(NamedTuple):
    """The result for one instrument: `compared` of the window's `minutes` were covered, and `recomputed` of those still have trades."""

    instrument: Instrument
    window: Window
    minutes: int
    compared: int
    recomputed: int
    differences: tuple[Difference, ...]


class ExchangeFigures(NamedTuple):
    """The exchange's own figures: its candles, and where ids are gapless the first id at or after each of some times (ms)."""

    candles: Sequence[Candle]
    edges: Mapping[int, int]


class Auditor:
    """Audits the figures of a store. `now` returns the wall time (ms)."""

    def __init__(self, store: Store, retention: Retention, now: Callable[[], int]) -> None:
        self._store = store
        self._retention = retention
        self._now = now

    async def comparable_minutes(self, instrument: Instrument, window: Window) -> list[int]:
        """Starts of the window's minutes that are covered and settled: those that an audit compares."""
        spans = await self._store.spans(instrument, window)
        dirty = {each.minute for each in await self._store.dirty_minutes() if each.instrument == instrument}
        minutes = range(window.start, window.end, MINUTE)
        return [minute for minute in minutes if minute not in dirty and is_covered(spans, Window(minute, minute + MINUTE), self._now())]

    async def audit(self, listing: Listing, window: Window, figures: ExchangeFigures | None) -> Audited:
        """Compare the covered minutes of a window with the exchange's figures, where there are any, and with their own trades."""
        instrument = listing.instrument
        spans = await self._store.spans(instrument, window)
        covered = await self.comparable_minutes(instrument, window)
        bars = {row.start: row.bar for row in await self._store.order_flow(instrument, Timeframe.M1, window)}
        differences: list[Difference] = []
        if figures is not None:
            candles = {candle.start: candle for candle in figures.candles}
            for minute in covered:
                if minute in candles:
                    differences += _candle_differences(instrument, bars.get(minute, Bar(listing.scale)), candles[minute])
            differences += _id_differences(instrument, spans, figures.edges, set(covered))
        raw = [minute for minute in covered if minute >= self._now() - self._retention.trades]
        for minute in raw:
            differences += await self._trade_differences(listing, minute, bars.get(minute))
        for timeframe in Timeframe:
            differences += await self._minute_differences(listing, timeframe, window, set(covered))
        return Audited(instrument, window, window.length // MINUTE, len(covered), len(raw), tuple(differences))

    async def _trade_differences(self, listing: Listing, minute: int, bar: Bar | None) -> list[Difference]:
        instrument, window = listing.instrument, Window(minute, minute + MINUTE)
        trades = await all_trades(self._store, instrument, window)
        footprint = await to_thread.run_sync(build_minute, trades, await self._store.pieces(instrument, window))
        stored = await self._store.footprints(instrument, Timeframe.M1, window)
        differences = _bar_differences(instrument, Timeframe.M1, minute, bar or Bar(listing.scale), footprint.bar)
        if not _same_cells(stored[0].footprint if stored else Footprint(listing.scale), footprint):
            differences.append(Difference(instrument, Timeframe.M1, minute, "footprint", "wrong", "other cells", "trades"))
        return differences

    async def _minute_differences(self, listing: Listing, timeframe: Timeframe, window: Window, covered: set[int]) -> list[Difference]:
        """Compare the longer bars, and every cumulative delta, with the stored minutes."""
        instrument = listing.instrument
        differences: list[Difference] = []
        rows = await self._store.order_flow(instrument, timeframe, window)
        if not rows:
            return []
        since = min(session_start(row.start) for row in rows)
        minutes = await self._store.order_flow(instrument, Timeframe.M1, Window(since, rows[-1].start + timeframe.ms))
        for row in rows:
            inside = [each for each in minutes if row.start <= each.start < row.start + timeframe.ms]
            if timeframe is not Timeframe.M1 and covered.issuperset(range(row.start, row.start + timeframe.ms, MINUTE)):
                merged = Bar(listing.scale)
                for each in inside:
                    merged = merged.merge_later(each.bar)
                differences += _bar_differences(instrument, timeframe, row.start, row.bar, merged)
            total, decimals = _delta_until(minutes, session_start(row.start), row.start + timeframe.ms)
            stored = row.cumulative_delta, row.bar.scale.quantity
            if to_decimal(*stored) != to_decimal(total, decimals):
                differences.append(
                    Difference(instrument, timeframe, row.start, "cumulative_delta", _text(*stored), _text(total, decimals), "trades")
                )
        return differences


class HourlyAudit:
    """Audits each closed hour of every recorded instrument once, and reports to `health` as the part `audit`.

    The number of differences and the latest one stay in the report until the process ends. The part's state remains OK.
    """

    def __init__(
        self,
        auditor: Auditor,
        recorded: Callable[[], Sequence[Listing]],
        fetch_figures: Callable[[Listing, Window], Awaitable[ExchangeFigures]],
        health: Health,
        now: Callable[[], int],
    ) -> None:
        self._auditor = auditor
        self._recorded = recorded
        self._fetch_figures = fetch_figures
        self._health = health
        self._now = now
        self._audited_hours: dict[Instrument, int] = {}
        self._latest: Difference | None = None

    async def run(self) -> None:
        """Audit the hours that have settled, until cancelled."""
        while True:
            hour = Timeframe.H1.floor(self._now() - _SETTLE_MS) - HOUR
            for listing in self._recorded():
                if self._audited_hours.get(listing.instrument, hour - HOUR) < hour:
                    await self._audit(listing, Window(hour, hour + HOUR))
            await anyio.sleep(_POLL_SECONDS)

    async def _audit(self, listing: Listing, hour: Window) -> None:
        try:
            minutes = await self._auditor.comparable_minutes(listing.instrument, hour)
            figures = await self._fetch_figures(listing, Window(minutes[0], minutes[-1] + MINUTE)) if minutes else None
            audited = await self._auditor.audit(listing, hour, figures)
        except (ExchangeError, StoreError) as error:
            log.warning("audit.failed", instrument=listing.instrument, hour=iso(hour.start), error=error)
            return
        self._audited_hours[listing.instrument] = hour.start
        self._health.count("audit.minutes", audited.compared)
        if audited.differences:
            self._health.count("audit.differences", len(audited.differences))
            self._latest = audited.differences[0]
            for difference in audited.differences[:_MAX_LOGGED]:
                log.warning("audit.difference", detail=str(difference))
        if self._latest is not None:
            detail = f"{self._health.counts['audit.differences']} differences, the last: {self._latest}"
        else:
            detail = f"{audited.compared} of {audited.minutes} minutes of {listing.instrument} at {iso(hour.start)} compared"
        self._health.report("audit", State.OK, detail)


async def exchange_figures(rest: RestClient, venue: Venue, listing: Listing, window: Window) -> ExchangeFigures:
    """The exchange's candles of a window, and on Binance spot its first id of each hour in it. `ExchangeError` as of `RestClient`."""
    candles: list[Candle] = []
    start = window.start
    while start < window.end:
        page = await rest.candles(venue, listing, Window(start, window.end))
        candles += [candle for candle in page if start <= candle.start < window.end]
        if not page or page[-1].start < start:
            break
        start = page[-1].start + MINUTE
    edges: dict[int, int] = {}
    if venue.traits.folds_history:
        for hour in range(window.start - window.start % -HOUR, window.end + 1, HOUR):
            rows = await rest.aggregates(venue, listing, start=hour, priority=Priority.HISTORY)
            if rows:
                edges[hour] = rows[0].trade.seq
    return ExchangeFigures(candles, edges)


def _id_differences(instrument: Instrument, spans: Sequence[Span], edges: Mapping[int, int], covered: set[int]) -> list[Difference]:
    """First ids of hours, and the ids before them, that no span has although their minutes are covered."""
    differences: list[Difference] = []
    for hour, first in edges.items():
        for minute, number in ((hour, first), (hour - MINUTE, first - 1)):
            found = any(span.reason is not SpanReason.ABSENT and span.first_seq <= number <= span.last_seq for span in spans)
            if minute in covered and not found:
                differences.append(Difference(instrument, Timeframe.H1, hour, "id", "not recorded", str(number), "exchange"))
    return differences


def _candle_differences(instrument: Instrument, bar: Bar, candle: Candle) -> list[Difference]:
    ours, theirs = bar.scale.quantity, candle.decimals
    figures = [("volume", bar.volume, candle.volume), ("buy_volume", bar.buy_volume, candle.buy_volume)]
    differences = [
        Difference(instrument, Timeframe.M1, candle.start, name, _text(stored, ours), _text(expected, theirs), "exchange")
        for name, stored, expected in figures
        if expected is not None and to_decimal(stored, ours) != to_decimal(expected, theirs)
    ]
    if candle.trade_count is not None and candle.trade_count != bar.trade_count:
        counts = str(bar.trade_count), str(candle.trade_count)
        differences.append(Difference(instrument, Timeframe.M1, candle.start, "trade_count", *counts, "exchange"))
    return differences


def _bar_differences(instrument: Instrument, timeframe: Timeframe, start: int, bar: Bar, expected: Bar) -> list[Difference]:
    scale = bar.scale.finest(expected.scale)
    one, two = bar.rescaled(scale), expected.rescaled(scale)
    prices = [(name, getattr(one, name), getattr(two, name), scale.price) for name in ("open", "high", "low", "close")]
    volumes = [(name, getattr(one, name), getattr(two, name), scale.quantity) for name in ("buy_volume", "sell_volume")]
    paths = [
        (name, getattr(one, name), getattr(two, name), scale.quantity)
        for name in ("min_delta", "max_delta")
        if getattr(one, name) is not None and getattr(two, name) is not None
    ]
    differences = [
        Difference(instrument, timeframe, start, name, _text(mine, decimals), _text(summed, decimals), "trades")
        for name, mine, summed, decimals in (*prices, *volumes, *paths)
        if mine != summed
    ]
    if one.trade_count != two.trade_count:
        counts = str(one.trade_count), str(two.trade_count)
        differences.append(Difference(instrument, timeframe, start, "trade_count", *counts, "trades"))
    return differences


def _same_cells(one: Footprint, two: Footprint) -> bool:
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


def _text(value: int | None, decimals: int) -> str:
    return "null" if value is None else decimal_text(to_decimal(value, decimals))
