"""The conditions that questions wait for. All waits for one condition share a watch, so that the tape is read once for all of them.

The waits themselves take turns: the first one that finds a check due does it for the others, so that a watch needs no task of its own
and ends with its last wait.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from decimal import Decimal
from functools import partial
from typing import Any, Final, Literal, NamedTuple, TypeAlias

import anyio

from wadm_mcp.analytics.footprint import Bar
from wadm_mcp.analytics.order_flow import imbalance_ratio
from wadm_mcp.coverage.judge import IN_TRANSIT
from wadm_mcp.errors import Busy
from wadm_mcp.model import MINUTE, SECOND, Instrument, Scale, Timeframe, Trade, Window, at_decimals
from wadm_mcp.queries.callers import Caller, Shares, current_caller
from wadm_mcp.queries.coverage import coverage
from wadm_mcp.queries.figures import merged_bars
from wadm_mcp.queries.numbers import decimal_number, decimal_text, iso, iso_ms, number, optional_number, places
from wadm_mcp.queries.scope import Scope
from wadm_mcp.queries.view import View

Condition: TypeAlias = Literal["price_crosses", "delta_beyond", "volume_beyond", "bar_closed", "coverage_back"]

WITH_VALUE: Final = ("price_crosses", "delta_beyond", "volume_beyond")
"""The conditions that need a value."""
BROKEN: Final = ("price", "bar")
_SUMS: Final = ("delta_beyond", "volume_beyond")
CHECK_SECONDS: Final = 0.5
"""Time between two checks of a condition."""
MAX_WAITS: Final = 512
"""Waits at once, of all clients."""
_RETRY_SECONDS: Final = 30
_PAGE_TRADES: Final = 5_000
"""Trades read at once."""


class Met(NamedTuple):
    """When a condition was met (market time, ms), the start of the bar in which it was met, and the trade that met it, if one did."""

    at: int
    bar: int
    trade: Trade | None = None


@dataclass(eq=False, slots=True)
class Wait:
    """One question that waits. `asked` is the time of the question (ms); `ended` is set once its condition is met, or with `busy` when it
    made room for another one."""

    asked: int
    group: _Group
    ended: anyio.Event = field(default_factory=anyio.Event)
    busy: Busy | None = None


@dataclass(eq=False, slots=True)
class _Group:
    """Waits that have seen the same: a condition is met for all of them at once, and groups that have come to see the same are joined.

    `bar` is the start of the first bar that counts. `since` and `above` are, by instrument, the order of the last trade that was seen,
    and whether its price is above the level (None if unknown).
    """

    bar: int
    since: dict[Instrument, tuple[Any, ...]] = field(default_factory=dict)
    above: dict[Instrument, bool | None] = field(default_factory=dict)
    waits: set[Wait] = field(default_factory=set)
    met: Met | None = None

    @property
    def seen(self) -> tuple[Any, ...]:
        return self.bar, tuple(self.since.items()), tuple(self.above.items()), self.met


class Watches:
    """The watches of a process. Beyond `max_waits` the address with most waits makes room, and of its sessions the one with most."""

    def __init__(self, max_waits: int = MAX_WAITS) -> None:
        self._max_waits = max_waits
        self._watches: dict[tuple[Any, ...], Watch] = {}
        self._waits = Shares[Wait]()

    @property
    def waits(self) -> int:
        """Questions that wait."""
        return len(self._waits)

    @contextmanager
    def waiting(
        self, view: View, scope: Scope, timeframe: Timeframe, condition: Condition, level: Decimal
    ) -> Generator[tuple[Watch, Wait]]:
        """A wait for a condition, and the watch that it shares with the other waits for it. `Busy` where there is no room and none is made
        for this caller (`Shares.makes_room_for`)."""
        caller = current_caller()
        if self.waits >= self._max_waits:
            self._make_room(caller)
        key = (scope.name, scope.listings, timeframe, condition, level)
        watch = self._watches.get(key) or Watch(view, scope, timeframe, condition, level)
        wait = watch.join()
        self._watches[key] = watch
        self._waits.add(wait, caller)
        try:
            yield watch, wait
        finally:
            self._waits.discard(wait)
            if not watch.leave(wait):
                del self._watches[key]

    def _make_room(self, caller: Caller) -> None:
        """End the oldest wait of the caller with most waits. One whose condition is met is ending anyway, and gets its answer."""
        waiting = f"{self.waits} wait_for calls are waiting, as many as are served at once; ask again in {_RETRY_SECONDS} s"
        greediest = self._waits.makes_room_for(caller)
        if greediest is None:
            raise Busy(f"busy: {waiting}", _RETRY_SECONDS)
        wait = self._waits.of(greediest)[0]
        self._waits.discard(wait)
        if not wait.ended.is_set():
            wait.busy = Busy(f"busy: this one made room for a newer one, because {waiting}", _RETRY_SECONDS)
            wait.ended.set()


class Watch:
    """The condition of one instrument, or of one merged answer, that at least one question waits for."""

    def __init__(self, view: View, scope: Scope, timeframe: Timeframe, condition: Condition, level: Decimal) -> None:
        self._view, self._scope, self._timeframe, self._level = view, scope, timeframe, level
        self._condition: Condition = condition
        self._groups: list[_Group] = []
        self._lock = anyio.Lock()
        self._checked_at: float | None = None
        self._asked = view.clock()
        self._last: dict[Instrument, Trade | None] = {one: view.newest(one) for one in scope.instruments}
        self._coverage_window: Window | None = None
        self._answers: dict[Met | None, dict[str, Any]] = {}
        self.status = "waiting"
        """What the last check found, in words."""

    def join(self) -> Wait:
        """Begin a wait. Later trades count, and a crossing starts from the side of the newest trade."""
        asked = self._view.clock()
        group = _Group(0 if self._condition == "price_crosses" else self._timeframe.floor(asked))
        if self._condition == "price_crosses":
            for instrument in self._scope.instruments:
                newest = self._newest_of(instrument)
                group.since[instrument] = (asked,) if newest is None else newest.order
                group.above[instrument] = None if newest is None else self._is_above(newest)
        wait = Wait(asked, group)
        group.waits.add(wait)
        self._groups.append(group)
        return wait

    def leave(self, wait: Wait) -> bool:
        """End a wait. Returns whether others go on."""
        wait.group.waits.discard(wait)
        self._groups = [group for group in self._groups if group.waits]
        return bool(self._groups)

    async def check(self, every: float = CHECK_SECONDS) -> None:
        """Check the condition for all waits, unless that was done within the last `every` seconds."""
        async with self._lock:
            if self._checked_at is not None and anyio.current_time() - self._checked_at < every:
                return
            # Each check uses a new reading of the view, so that it works from the live tape if the store fails.
            self._view = self._view.reading()
            self._answers.clear()
            match self._condition:
                case "price_crosses":
                    await self._check_price()
                case "delta_beyond" | "volume_beyond":
                    await self._check_sums()
                case "bar_closed":
                    self._check_closed()
                case "coverage_back":
                    await self._check_coverage()
            for wait in [wait for group in self._groups if group.met is not None for wait in group.waits]:
                wait.ended.set()
            self._unite()
            self._checked_at = anyio.current_time()

    async def answer(self, wait: Wait, waited: float) -> dict[str, Any]:
        """The answer after `waited` seconds, with the coverage of its bar, or of the window that `coverage_back` waited for."""
        met = wait.group.met
        async with self._lock:
            if met not in self._answers:
                self._answers[met] = await self._view.consistent(partial(self._answer, met))
            answer = self._answers[met]
        at = None if met is None else max(met.at, wait.asked) if self._condition in _SUMS else met.at
        outcome = f"met after {waited} s" if met is not None else f"not met in {waited} s"
        what = self._condition.replace("_", " ") + (f" {decimal_text(self._level)}" if self._condition in WITH_VALUE else "")
        reading = f"{self._scope.name}: {what} {outcome}; last price {answer['price']}; coverage {answer['coverage']['ratio']}."
        return {**answer, "met_at": iso_ms(at) if at is not None else None, "waited_s": waited, "reading": reading}

    async def _answer(self, met: Met | None, view: View) -> dict[str, Any]:
        """The part of an answer that all waits share for which the condition was met at once."""
        now = self._view.clock()
        start = met.bar if met is not None else self._timeframe.floor(now)
        end = min(start + self._timeframe.ms, -(-now // MINUTE) * MINUTE)
        scope = replace(self._scope, window=self._coverage_window or Window(start, max(start, end)), now=now)
        covered = await coverage(view, scope, self._timeframe, figures=BROKEN)
        bar = (await merged_bars(view, scope, self._timeframe, scope.window)).get(start, Bar(Scale(0, 0)))
        trade = (met.trade if met is not None else None) or self._newest()
        return {
            **scope.heading(covered),
            "condition": self._condition,
            "value": decimal_number(self._level if self._condition in WITH_VALUE else None),
            "met": met is not None,
            "met_at": None,
            "waited_s": 0.0,
            "price": number(trade.price, trade.scale.price) if trade is not None else None,
            "timeframe": self._timeframe.value,
            "bar": _bar_answer(start, bar),
            "reading": "",
        }

    @property
    def _waiting(self) -> list[_Group]:
        return [group for group in self._groups if group.met is None]

    async def _check_price(self) -> None:
        """Reads every trade since the last check, so that no spike in between is missed."""
        for instrument in self._scope.instruments:
            while True:
                last = self._last[instrument]
                since = self._asked if last is None else last.timestamp
                window = Window(since, max(since, self._view.clock()) + MINUTE)
                trades = await self._view.trades(instrument, window, after=None if last is None else last.order, limit=_PAGE_TRADES)
                # Nothing is awaited until the page is seen by every group, also by those that joined meanwhile.
                for group in self._waiting:
                    self._see(group, instrument, trades)
                if trades:
                    self._last[instrument] = trades[-1]
                    self.status = f"last price {number(trades[-1].price, trades[-1].scale.price)}"
                if len(trades) < _PAGE_TRADES:
                    break

    def _see(self, group: _Group, instrument: Instrument, trades: Sequence[Trade]) -> None:
        for trade in trades:
            if trade.order <= group.since[instrument]:
                continue
            group.since[instrument] = trade.order
            above = self._is_above(trade)
            if group.above[instrument] is None:
                group.above[instrument] = above
            if above is None or above != group.above[instrument]:
                group.met = Met(trade.timestamp, self._timeframe.floor(trade.timestamp), trade)
                return

    async def _check_sums(self) -> None:
        """Checks the bars that were open at the last check and the bars since then, up to the one that is open now."""
        now = self._view.clock()
        newest = self._timeframe.floor(now)
        first = min(group.bar for group in self._groups)
        bars = await merged_bars(self._view, self._scope, self._timeframe, Window(first, newest + self._timeframe.ms))
        sums = {start: bar.volume if self._condition == "volume_beyond" else bar.delta for start, bar in sorted(bars.items())}
        for start, reached in sums.items():
            self.status = f"{'volume' if self._condition == 'volume_beyond' else 'delta'} {number(reached, bars[start].scale.quantity)}"
        over = [start for start, reached in sums.items() if _reached(reached, bars[start].scale.quantity, self._level)]
        for group in self._waiting:
            start = next((start for start in over if start >= group.bar), None)
            if start is not None:
                group.met = Met(min(now, bars[start].last_at), start)
            # A closed bar is checked until its last trades can no longer be in transit.
            elif now >= group.bar + self._timeframe.ms + IN_TRANSIT:
                group.bar = newest

    def _check_closed(self) -> None:
        now = self._view.clock()
        known_until = [self._view.alive_until(instrument) for instrument in self._scope.instruments]
        for group in self._waiting:
            end = group.bar + self._timeframe.ms
            if now < end:
                self.status = f"bar closes in {(end - now) // SECOND} s"
            elif now >= end + IN_TRANSIT or all(until is not None and until >= end for until in known_until):
                group.met = Met(end, group.bar)

    async def _check_coverage(self) -> None:
        end = self._view.clock()
        now = -(-end // MINUTE) * MINUTE
        scope = replace(self._scope, window=Window(now - self._timeframe.ms, now), now=end)
        ratio = (await coverage(self._view, scope, self._timeframe))["ratio"]
        self._coverage_window = scope.window
        self.status = f"coverage {ratio} since {iso(scope.window.start)}"
        for group in self._waiting if ratio == 1 else ():
            group.met = Met(end, self._timeframe.floor(now - 1))

    def _unite(self) -> None:
        """Join the groups that have seen the same."""
        found: dict[tuple[Any, ...], _Group] = {}
        for group in self._groups:
            first = found.setdefault(group.seen, group)
            if first is not group:
                for wait in group.waits:
                    wait.group = first
                first.waits |= group.waits
        self._groups = list(found.values())

    def _is_above(self, trade: Trade) -> bool | None:
        """Whether the trade is above the level. None if it is at the level."""
        decimals = max(places(self._level), trade.scale.price)
        price, level = trade.price * 10 ** (decimals - trade.scale.price), at_decimals(self._level, decimals)
        return None if price == level else price > level

    def _newest_of(self, instrument: Instrument) -> Trade | None:
        """The newest trade that is known: the store may have one that the tape of a standby process has not."""
        known = [trade for trade in (self._view.newest(instrument), self._last[instrument]) if trade is not None]
        return max(known, key=lambda trade: trade.order, default=None)

    def _newest(self) -> Trade | None:
        known = [trade for one in self._scope.instruments if (trade := self._view.newest(one)) is not None]
        return max(known, key=lambda trade: trade.timestamp, default=None)


def _reached(figure: int, decimals: int, level: Decimal) -> bool:
    finest = max(decimals, places(level))
    value, bound = figure * 10 ** (finest - decimals), at_decimals(level, finest)
    return value >= bound if bound > 0 else value <= bound


def _bar_answer(start: int, bar: Bar) -> dict[str, Any]:
    prices, quantities = bar.scale
    return {
        "timestamp": iso(start),
        **{name: optional_number(getattr(bar, name), prices) for name in ("open", "high", "low", "close")},
        "volume": number(bar.volume, quantities),
        "delta": number(bar.delta, quantities),
        "imbalance_ratio": decimal_number(imbalance_ratio(bar.buy_volume, bar.sell_volume)),
        "trade_count": bar.trade_count,
    }
