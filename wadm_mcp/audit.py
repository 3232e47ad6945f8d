"""Audits of stored figures: against the exchange's candles, and against the stored trades.

Only minutes that are covered and settled are compared. With the exchange's candles: the volume everywhere, the taker buy volume and the
trade count where the exchange states them. Where a trade merges fills of several milliseconds (`MarketTraits.merges_fills_ms`) its volume
may be in two candles and its fills are not exact, so the volumes of each side are compared with what consecutive candles allow, and
counts are not compared: see `coverage.candles`. On Binance spot the exchange's first id of each hour, and the id before it, must be
covered; REST candles have no ids, so the first id is requested by time. With the stored trades: the footprint of every minute, and every
longer bar with its cumulative delta, is computed again.

Where ids do not count trades, a covered minute whose candle has more volume lacks trades that no connection delivered. The hourly audit
makes it a gap. Trades that an exchange counts in its candles and WADM keeps out of its bars (block trades, prints that are not market
trades) show as differences.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Final, NamedTuple

import anyio
from anyio import to_thread

from wadm_mcp.analytics.footprint import Bar, Footprint
from wadm_mcp.analytics.order_flow import session_start
from wadm_mcp.backoff import Backoff
from wadm_mcp.clock import Clock
from wadm_mcp.collection.recording.minute import build_minute
from wadm_mcp.collection.rest.client import RestClient
from wadm_mcp.collection.rest.rate_limit import Priority
from wadm_mcp.coverage.candles import (
    CandleMinute,
    Disagreement,
    carry_disagreements,
    consecutive,
    exact_disagreements,
    without_boundaries,
)
from wadm_mcp.coverage.expired import Expired
from wadm_mcp.coverage.judge import is_covered
from wadm_mcp.coverage.spans import COVERS_NOTHING, Span
from wadm_mcp.errors import ExchangeError, StoreError
from wadm_mcp.exchanges.exchange import Candle, MarketTraits, Unreadable, Venue
from wadm_mcp.exchanges.registry import find_exchange
from wadm_mcp.health import Health, State
from wadm_mcp.logs import RateLimitedWarning, log
from wadm_mcp.model import HOUR, MINUTE, Instrument, Listing, Retention, Timeframe, TradeType, Window, rescale, to_decimal
from wadm_mcp.queries.numbers import decimal_text, iso
from wadm_mcp.storage.store import OrderFlow, Store, all_trades

_SETTLE_MS: Final = 5 * MINUTE
"""Time after its end at which an hour is settled, so that the exchange's candles of it are final."""
_POLL_SECONDS: Final = 30.0
_MAX_PAUSE_SECONDS: Final = 900.0
"""Longest pause before an hour that could not be audited is tried again. The first pause is that of a poll."""
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
    """The result for one instrument: `compared` of the window's `minutes` were covered, and `recomputed` of those still have trades.

    `incomplete` are those of the differences that show a covered minute to lack trades, where ids do not count them.
    """

    instrument: Instrument
    window: Window
    minutes: int
    compared: int
    recomputed: int
    differences: tuple[Difference, ...]
    incomplete: tuple[Difference, ...] = ()


class ExchangeFigures(NamedTuple):
    """The exchange's own figures: its candles, and where ids are gapless the first id at or after each of some times (ms).

    `unreadable` are rows of candles that could not be read. Their minutes are not compared with the exchange.
    """

    candles: Sequence[Candle]
    edges: Mapping[int, int]
    unreadable: Sequence[Unreadable] = ()


class Auditor:
    """Audits the figures of a store. `now` returns the wall time (ms)."""

    def __init__(self, store: Store, retention: Retention, now: Callable[[], int]) -> None:
        self._store = store
        self._retention = retention
        self._now = now

    async def figures_window(self, instrument: Instrument, window: Window) -> Window | None:
        """The window whose exchange figures the audit of a window needs, None where it has no minute to compare."""
        minutes = await self._comparable_minutes(instrument, _with_neighbours(window))
        return Window(minutes[0], minutes[-1] + MINUTE) if any(minute in window for minute in minutes) else None

    async def audit(self, listing: Listing, window: Window, figures: ExchangeFigures | None) -> Audited:
        """Compare the covered minutes of a window with the exchange's figures, where there are any, and with their own trades."""
        instrument, around = listing.instrument, _with_neighbours(window)
        spans = await self._store.spans(instrument, around)
        expired = await self._expired(instrument)
        comparable = await self._comparable_minutes(instrument, around)
        covered = [minute for minute in comparable if minute in window]
        bars = {row.start: row.bar for row in await self._store.order_flow(instrument, Timeframe.M1, around)}
        differences: list[Difference] = []
        incomplete: list[Difference] = []
        if figures is not None:
            candles = {candle.start: candle for candle in figures.candles}
            compared = [
                _Compared(minute, bars.get(minute, Bar(listing.scale)), candles[minute]) for minute in comparable if minute in candles
            ]
            traits = find_exchange(instrument.exchange).traits[instrument.market]
            if traits.merges_fills_ms:
                found = await self._carry_differences(instrument, compared, traits, spans, expired)
            else:
                found, incomplete = _exact_differences(instrument, compared, traits)
            differences += [each for each in found if each.start in window]
            differences += _id_differences(instrument, spans, figures.edges, set(covered))
        raw = [minute for minute in covered if expired.has_trades(minute)]
        for minute in raw:
            differences += await self._trade_differences(listing, minute, bars.get(minute))
        for timeframe in Timeframe:
            differences += await self._minute_differences(listing, timeframe, window, set(covered))
        incomplete = [each for each in incomplete if each.start in window]
        return Audited(instrument, window, window.length // MINUTE, len(covered), len(raw), tuple(differences), tuple(incomplete))

    async def _comparable_minutes(self, instrument: Instrument, window: Window) -> list[int]:
        """Starts of the window's minutes that are covered, settled and not expired: those that an audit compares."""
        spans, expired = await self._store.spans(instrument, window), await self._expired(instrument)
        dirty = {each.minute for each in await self._store.dirty_minutes() if each.instrument == instrument}

        def is_comparable(minute: Window) -> bool:
            return minute.start not in dirty and is_covered(spans, minute, self._now()) and not expired.of_bars(minute, Timeframe.M1)

        minutes = range(window.start, window.end, MINUTE)
        return [minute for minute in minutes if is_comparable(Window(minute, minute + MINUTE))]

    async def _expired(self, instrument: Instrument) -> Expired:
        return (await self._store.expired(instrument)).older_than(self._retention, self._now())

    async def _carry_differences(
        self, instrument: Instrument, compared: Sequence[_Compared], traits: MarketTraits, spans: Sequence[Span], expired: Expired
    ) -> list[Difference]:
        """The minutes whose volumes their candles do not allow, where a trade merges fills of several milliseconds."""
        bars = {each.start: each.bar for each in compared}
        differences: list[Difference] = []
        for run in consecutive(bars):
            limits = {
                minute: await self._carry_limit(instrument, minute, bars.get(minute), traits, spans, expired)
                for minute in _with_earlier(run)
            }
            rows = [each for each in compared if run[0] <= each.start <= run[-1]]
            decimals = max([limit.decimals for limit in limits.values() if limit is not None] + [row.decimals for row in rows])
            for name in _sides(rows):
                bounds = {minute: None if limit is None else limit.of(name, decimals) for minute, limit in limits.items()}
                minutes = [CandleMinute(row.start, *row.volumes(name, decimals), bounds[row.start]) for row in rows]
                found = carry_disagreements(minutes, bounds[run[0] - MINUTE])
                differences += [_volume_difference(instrument, name, each, decimals) for each in found]
        return sorted(differences, key=lambda difference: difference.start)

    async def _carry_limit(
        self, instrument: Instrument, minute: int, bar: Bar | None, traits: MarketTraits, spans: Sequence[Span], expired: Expired
    ) -> _Volumes | None:
        """Volume of the trades that may reach over the end of a minute; None where it is not known.

        These are the trades of several fills that begin so close to the end. Where single trades are not stored, they are among what is
        stored together with them: partial footprints, or after their retention the whole minute (`bar`; None where it is not covered).
        """
        tail = Window(minute + MINUTE - traits.merges_fills_ms, minute + MINUTE)
        if not expired.has_trades(minute):
            if bar is None:
                return None
            volumes = [_Volumes.of_bar(bar)] if bar.trade_count and bar.last_at >= tail.start else []
        elif bar is None and not is_covered(spans, tail, self._now()):
            return None
        else:
            partials = [partial.footprint.bar for partial in await self._store.pieces(instrument, Window(minute, tail.end))]
            volumes = [_Volumes.of_bar(each) for each in partials if each.last_at >= tail.start]
            for trade in await all_trades(self._store, instrument, tail):
                if trade.fills > 1:
                    bought = trade.quantity if trade.trade_type is TradeType.BUY else 0
                    volumes.append(_Volumes(bought, trade.quantity - bought, trade.scale.quantity))
        return _Volumes.sum(volumes)

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


class _Retry(NamedTuple):
    """An hour (its start) that is to be audited again: from `due` (monotonic seconds) on."""

    hour: int
    due: float
    backoff: Backoff


class HourlyAudit:
    """Audits each closed hour of every recorded instrument once, and reports to `health` as the part `audit`.

    `mark_differing` makes minutes (by start) of an instrument gaps. It is called for minutes that lack trades according to their candles,
    once two readings of the candles have shown the same.
    The number of differences and the latest one stay in the report until the process ends. The part's state remains OK.
    """

    def __init__(
        self,
        auditor: Auditor,
        recorded: Callable[[], Sequence[Listing]],
        fetch_figures: Callable[[Listing, Window], Awaitable[ExchangeFigures]],
        mark_differing: Callable[[Instrument, Iterable[int]], None],
        health: Health,
        clock: Clock,
    ) -> None:
        self._auditor = auditor
        self._recorded = recorded
        self._fetch_figures = fetch_figures
        self._mark_differing = mark_differing
        self._health = health
        self._clock = clock
        self._audited_hours: dict[Instrument, int] = {}
        self._retries: dict[Instrument, _Retry] = {}
        self._unconfirmed: dict[Instrument, tuple[Difference, ...]] = {}
        """Differences that make minutes gaps once a second reading of the candles shows the same."""
        self._latest: Difference | None = None
        self._log_unreadable = RateLimitedWarning("audit.unreadable", clock.monotonic)

    async def run(self) -> None:
        """Audit the hours that have settled, until cancelled."""
        while True:
            hour = Timeframe.H1.floor(self._clock.now() - _SETTLE_MS) - HOUR
            for listing in self._recorded():
                if self._audited_hours.get(listing.instrument, hour - HOUR) < hour and self._is_due(listing.instrument, hour):
                    await self._audit(listing, Window(hour, hour + HOUR))
            await anyio.sleep(_POLL_SECONDS)

    def _is_due(self, instrument: Instrument, hour: int) -> bool:
        retry = self._retries.get(instrument)
        return retry is None or retry.hour != hour or self._clock.monotonic() >= retry.due

    def _retry(self, instrument: Instrument, hour: int) -> None:
        """Audit this hour again after a pause that doubles each time."""
        retry = self._retries.get(instrument)
        backoff = retry.backoff if retry is not None and retry.hour == hour else Backoff(_POLL_SECONDS, _MAX_PAUSE_SECONDS)
        self._retries[instrument] = _Retry(hour, self._clock.monotonic() + backoff.next(), backoff)

    async def _audit(self, listing: Listing, hour: Window) -> None:
        try:
            needed = await self._auditor.figures_window(listing.instrument, hour)
            figures = await self._fetch_figures(listing, needed) if needed is not None else None
            audited = await self._auditor.audit(listing, hour, figures)
        except (ExchangeError, StoreError) as error:
            self._retry(listing.instrument, hour.start)
            log.warning("audit.failed", instrument=listing.instrument, hour=iso(hour.start), error=error)
            return
        earlier = self._unconfirmed.pop(listing.instrument, ())
        if audited.incomplete:
            # Candles are revised now and then, so they are read again before a minute that is covered becomes a gap.
            if audited.incomplete != earlier:
                self._unconfirmed[listing.instrument] = audited.incomplete
                self._retry(listing.instrument, hour.start)
                return
            self._mark_differing(listing.instrument, [each.start for each in audited.incomplete])
            self._health.count("audit.gaps", len(audited.incomplete))
        self._audited_hours[listing.instrument] = hour.start
        self._retries.pop(listing.instrument, None)
        self._health.count("audit.minutes", audited.compared)
        if figures is not None and figures.unreadable:
            self._health.count("audit.unreadable", len(figures.unreadable))
            first = figures.unreadable[0]
            minute = None if first.seq is None else iso(first.seq)
            self._log_unreadable(instrument=listing.instrument, minute=minute, reason=first.why)
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
    unreadable: list[Unreadable] = []
    start = window.start
    while start < window.end:
        page = await rest.candles(venue, listing, Window(start, window.end))
        candles += [candle for candle in page if start <= candle.start < window.end]
        unreadable += page.unreadable
        if not page or page[-1].start < start:
            break
        # The last row may be one that cannot be read. Alone in a reply it would refuse that reply.
        last = max(row.seq or 0 for row in page.unreadable) if page.unreadable else 0
        start = max(page[-1].start, last, start + (page.served - 1) * MINUTE) + MINUTE
    edges: dict[int, int] = {}
    if venue.traits.folds_history:
        for hour in range(window.start - window.start % -HOUR, window.end + 1, HOUR):
            rows = await rest.aggregates(venue, listing, start=hour, priority=Priority.HISTORY)
            if rows:
                edges[hour] = rows[0].trade.seq
    return ExchangeFigures(candles, edges, unreadable)


def _id_differences(instrument: Instrument, spans: Sequence[Span], edges: Mapping[int, int], covered: set[int]) -> list[Difference]:
    """First ids of hours, and the ids before them, that no span has although their minutes are covered."""
    differences: list[Difference] = []
    for hour, first in edges.items():
        for minute, number in ((hour, first), (hour - MINUTE, first - 1)):
            found = any(span.reason not in COVERS_NOTHING and span.first_seq <= number <= span.last_seq for span in spans)
            if minute in covered and not found:
                differences.append(Difference(instrument, Timeframe.H1, hour, "id", "not recorded", str(number), "exchange"))
    return differences


class _Volumes(NamedTuple):
    """Buy and sell volume, as integers at `decimals` decimals."""

    buy: int
    sell: int
    decimals: int

    @classmethod
    def of_bar(cls, bar: Bar) -> _Volumes:
        return cls(bar.buy_volume, bar.sell_volume, bar.scale.quantity)

    @classmethod
    def sum(cls, volumes: Sequence[_Volumes]) -> _Volumes:
        decimals = max((each.decimals for each in volumes), default=0)
        buy, sell = (sum(each.of(name, decimals) for each in volumes) for name in ("buy_volume", "sell_volume"))
        return cls(buy, sell, decimals)

    def of(self, name: str, decimals: int) -> int:
        """The volume of this name, at a scale that is not coarser."""
        value = {"buy_volume": self.buy, "sell_volume": self.sell, "volume": self.buy + self.sell}[name]
        return rescale(value, self.decimals, decimals)


class _Compared(NamedTuple):
    """The recorded figures of a minute and the exchange's candle of it."""

    start: int
    bar: Bar
    candle: Candle

    @property
    def decimals(self) -> int:
        """The finer scale of both."""
        return max(self.bar.scale.quantity, self.candle.decimals)

    def volumes(self, name: str, decimals: int) -> tuple[int, int]:
        """The recorded volume of this name and the candle's."""
        bought = self.candle.buy_volume or 0
        candle = _Volumes(bought, self.candle.volume - bought, self.candle.decimals)
        return _Volumes.of_bar(self.bar).of(name, decimals), candle.of(name, decimals)


def _sides(compared: Sequence[_Compared]) -> tuple[str, ...]:
    """The volumes that add up to the whole, as far as these candles state them."""
    return ("volume",) if any(each.candle.buy_volume is None for each in compared) else ("buy_volume", "sell_volume")


def _with_neighbours(window: Window) -> Window:
    """A window with one minute more at both ends: volumes may have moved over them."""
    return Window(max(0, window.start - MINUTE), window.end + MINUTE)


def _with_earlier(run: Sequence[int]) -> list[int]:
    """Consecutive minutes with the one before them."""
    return [run[0] - MINUTE, *run]


def _exact_differences(
    instrument: Instrument, compared: Sequence[_Compared], traits: MarketTraits
) -> tuple[list[Difference], list[Difference]]:
    """The figures that are not those of the candles; and those of them that show missing trades, where ids do not count trades."""
    decimals = max((each.decimals for each in compared), default=0)
    volumes = exact_disagreements(CandleMinute(each.start, *each.volumes("volume", decimals)) for each in compared)
    if not traits.has_gapless_ids:
        volumes = without_boundaries(volumes)
    differences = [_volume_difference(instrument, "volume", each, decimals) for each in volumes]
    incomplete: list[Difference] = []
    if not traits.has_gapless_ids:
        incomplete = [
            difference for difference, each in zip(differences, volumes, strict=True) if each.minute.candle > each.minute.recorded
        ]
    stated = [each for each in compared if each.candle.buy_volume is not None]
    bought = exact_disagreements(CandleMinute(each.start, *each.volumes("buy_volume", decimals)) for each in stated)
    differences += [_volume_difference(instrument, "buy_volume", each, decimals) for each in bought]
    for start, bar, candle in compared:
        if candle.trade_count is not None and candle.trade_count != bar.trade_count:
            counts = str(bar.trade_count), str(candle.trade_count)
            differences.append(Difference(instrument, Timeframe.M1, start, "trade_count", *counts, "exchange"))
    return sorted(differences, key=lambda difference: difference.start), incomplete


def _volume_difference(instrument: Instrument, figure: str, found: Disagreement, decimals: int) -> Difference:
    """A minute whose candle the recorded volume does not allow. Where it allows several, the difference names their range."""
    if found.most is None:
        recorded = f"at least {_text(found.least, decimals)}"
    elif found.least == found.most:
        recorded = _text(found.least, decimals)
    else:
        recorded = f"{_text(found.least, decimals)} to {_text(found.most, decimals)}"
    candle = _text(found.minute.candle, decimals)
    return Difference(instrument, Timeframe.M1, found.minute.start, figure, recorded, candle, "exchange")


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
