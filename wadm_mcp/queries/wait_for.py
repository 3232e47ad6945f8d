"""Waits for a condition of the tape, up to a timeout. For clients that cannot subscribe to resources."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from decimal import Decimal
from typing import Any, Final, Literal, NamedTuple, Protocol, TypeAlias

import anyio

from wadm_mcp.analytics.footprint import Bar
from wadm_mcp.analytics.order_flow import imbalance_ratio
from wadm_mcp.coverage.judge import IN_TRANSIT
from wadm_mcp.errors import QueryError
from wadm_mcp.model import MINUTE, SECOND, Scale, Timeframe, Trade, Window, at_decimals
from wadm_mcp.queries.arguments import ALL, Example, read_amount, read_choice, read_detail, read_signed, read_timeframe, read_whole
from wadm_mcp.queries.coverage import coverage
from wadm_mcp.queries.figures import merged_bars
from wadm_mcp.queries.numbers import decimal_number, decimal_text, iso, iso_ms, number, optional_number, places
from wadm_mcp.queries.scope import Scope, ask, read_scope
from wadm_mcp.queries.view import View

Condition: TypeAlias = Literal["price_crosses", "delta_beyond", "volume_beyond", "bar_closed", "coverage_back"]

CONDITIONS: Final[tuple[Condition, ...]] = ("price_crosses", "delta_beyond", "volume_beyond", "bar_closed", "coverage_back")
MAX_WAIT_SECONDS: Final = 300
BROKEN: Final = ("price", "bar")

_WITH_VALUE: Final = ("price_crosses", "delta_beyond", "volume_beyond")
_POLL_SECONDS: Final = 0.5
"""Time between two checks of the condition."""
_PROGRESS_SECONDS: Final = 2.0
"""Time between two progress notifications."""
_PAGE_TRADES: Final = 5_000
"""Trades read at once."""


class ProgressCallback(Protocol):
    """Receives the progress of a call: the seconds that passed, the seconds in total, and a message about the current state."""

    async def __call__(self, progress: float, total: float | None = None, message: str | None = None) -> None: ...


async def _no_progress(progress: float, total: float | None = None, message: str | None = None) -> None:
    return None


class _Met(NamedTuple):
    """When the condition was met (market time, ms), and the start of the bar in which it was met."""

    at: int
    bar: int


async def wait_for(
    view: View,
    *,
    symbol: object,
    condition: object,
    value: object = None,
    exchange: object = ALL,
    market: object = None,
    timeframe: object = "1m",
    detail: object = "standard",
    timeout: object = 30,  # noqa: ASYNC109 - an argument of the question; a timeout is an answer, not an error
    progress: ProgressCallback = _no_progress,
) -> dict[str, Any]:
    """Answers as soon as the condition is met, or after `timeout` seconds with `met` false. Only trades after the question count.

    - `price_crosses`: a trade at or beyond `value`, seen from the side of the last trade before the question.
    - `delta_beyond`, `volume_beyond`: the open bar of `timeframe` reaches `value`; a `value` below 0 is reached downwards.
    - `bar_closed`: the bar that is open now has ended, and its trades have arrived.
    - `coverage_back`: no trade is missing in the last `timeframe`.
    """
    call = ask(view, "wait_for", condition="bar_closed", timeframe="1m")
    scope = read_scope(view, call, symbol=symbol, exchange=exchange, market=market, window="15m")
    if condition is None:
        raise QueryError(f"condition is missing; allowed are {', '.join(CONDITIONS)}. Try {scope.call.example()}")
    chosen: Condition = read_choice(scope.call, "condition", condition, CONDITIONS, CONDITIONS[3])
    length = read_timeframe(scope.call, timeframe, Timeframe.M1)
    seconds = read_whole(scope.call, "timeout", timeout, 1, MAX_WAIT_SECONDS, 30)
    if chosen not in _WITH_VALUE and value is not None:
        raise scope.call.refuse("value", value, f"the condition {chosen} takes no value", condition=chosen)
    level: Decimal | None = None
    if chosen in _WITH_VALUE:
        example = Decimal(1)
        if value is None:
            raise QueryError(
                f"value is missing; the condition {chosen} needs one. Try {scope.call.example(condition=chosen, value=example)}"
            )
        works: dict[str, Example | None] = {"condition": chosen}
        level = (
            read_signed(scope.call, "value", value, example=example, **works)
            if chosen == "delta_beyond"
            else read_amount(scope.call, "value", value, zero=False, example=example, **works)
        )
    chosen_detail = read_detail(scope.call, detail)
    watch = _Watch(view, scope, length, chosen, level or Decimal(0))
    await watch.begin()
    met = None
    waited, next_progress = 0.0, 0.0
    began = anyio.current_time()
    while met is None:
        met = await watch.check()
        waited = anyio.current_time() - began
        if met is not None or waited >= seconds:
            break
        if waited >= next_progress:
            next_progress = waited + _PROGRESS_SECONDS
            await progress(round(waited, 1), float(seconds), watch.status)
        await anyio.sleep(min(_POLL_SECONDS, seconds - waited))
    answer = await watch.answer(met, round(waited, 1))
    return {**answer, "bar": None} if chosen_detail == "brief" else answer


class _Watch:
    """The condition that a question waits for, and the part of the tape that was already checked."""

    def __init__(self, view: View, scope: Scope, length: Timeframe, condition: Condition, level: Decimal) -> None:
        self._view, self._scope, self._length, self._condition, self._level = view, scope, length, condition, level
        self._asked = view.clock()
        self._bar = length.floor(self._asked)
        self._last: dict[Any, Trade | None] = {}
        self._above: dict[Any, bool | None] = {}
        self._crossing_trade: Trade | None = None
        self._coverage_window: Window | None = None
        self.status = "waiting"

    async def begin(self) -> None:
        """Notes the newest trade of each instrument: later trades count, and crossings start from its side of the level."""
        for instrument in self._scope.instruments:
            newest = self._view.newest(instrument)
            self._last[instrument] = newest
            self._above[instrument] = None if newest is None else self._is_above(newest)

    async def check(self) -> _Met | None:
        """Checks the condition once. Each check uses a new reading of the view, so that it works from the live tape if the store fails."""
        self._view = self._view.reading()
        checks: dict[str, Callable[[], Awaitable[_Met | None]]] = {
            "price_crosses": self._price,
            "delta_beyond": self._sums,
            "volume_beyond": self._sums,
            "bar_closed": self._closed,
            "coverage_back": self._covered,
        }
        return await checks[self._condition]()

    async def answer(self, met: _Met | None, waited: float) -> dict[str, Any]:
        """The answer, with the coverage of its bar, or of the window that `coverage_back` waited for."""
        now = self._view.clock()
        start = met.bar if met is not None else self._length.floor(now)
        end = min(start + self._length.ms, -(-now // MINUTE) * MINUTE)
        scope = replace(self._scope, window=self._coverage_window or Window(start, max(start, end)), now=now)
        covered = await coverage(self._view, scope, figures=BROKEN)
        bar = (await merged_bars(self._view, scope, self._length, scope.window)).get(start, Bar(Scale(0, 0)))
        trade = self._crossing_trade or self._newest()
        value = self._level if self._condition in _WITH_VALUE else None
        answer = {
            "condition": self._condition,
            "value": decimal_number(value),
            "met": met is not None,
            "met_at": iso_ms(met.at) if met is not None else None,
            "waited_s": waited,
            "price": number(trade.price, trade.scale.price) if trade is not None else None,
            "timeframe": self._length.value,
            "bar": _bar_answer(start, bar),
        }
        what = self._condition.replace("_", " ") + (f" {decimal_text(value)}" if value is not None else "")
        outcome = f"met after {waited} s" if met is not None else f"not met in {waited} s"
        reading = f"{scope.name}: {what} {outcome}; last price {answer['price']}; coverage {covered['ratio']}."
        return {**scope.heading(covered), **answer, "reading": reading}

    async def _price(self) -> _Met | None:
        """Reads every trade since the last check, so that no spike in between is missed."""
        for instrument in self._scope.instruments:
            while True:
                last = self._last[instrument]
                since = self._asked if last is None else last.timestamp
                window = Window(since, max(since, self._view.clock()) + MINUTE)
                trades = await self._view.trades(instrument, window, after=None if last is None else last.order, limit=_PAGE_TRADES)
                for trade in trades:
                    above = self._is_above(trade)
                    if self._above[instrument] is None:
                        self._above[instrument] = above
                    if above is None or above != self._above[instrument]:
                        self._crossing_trade = trade
                        return _Met(trade.timestamp, self._length.floor(trade.timestamp))
                if trades:
                    self._last[instrument] = trades[-1]
                    self.status = f"last price {number(trades[-1].price, trades[-1].scale.price)}"
                if len(trades) < _PAGE_TRADES:
                    break
        return None

    async def _sums(self) -> _Met | None:
        """Checks the bar that was open at the last check and the bars since then, up to the one that is open now."""
        now = self._view.clock()
        newest = self._length.floor(now)
        bars = await merged_bars(self._view, self._scope, self._length, Window(self._bar, newest + self._length.ms))
        for start, bar in sorted(bars.items()):
            reached = bar.volume if self._condition == "volume_beyond" else bar.delta
            self.status = f"{'volume' if self._condition == 'volume_beyond' else 'delta'} {number(reached, bar.scale.quantity)}"
            if _reached(reached, bar.scale.quantity, self._level):
                return _Met(min(now, max(bar.last_at, self._asked)), start)
        # A closed bar is checked until its last trades can no longer be in transit.
        if now >= self._bar + self._length.ms + IN_TRANSIT:
            self._bar = newest
        return None

    async def _closed(self) -> _Met | None:
        now, end = self._view.clock(), self._bar + self._length.ms
        if now < end:
            self.status = f"bar closes in {(end - now) // SECOND} s"
            return None
        known_until = [self._view.alive_until(instrument) for instrument in self._scope.instruments]
        arrived = all(until is not None and until >= end for until in known_until)
        return _Met(end, self._bar) if arrived or now >= end + IN_TRANSIT else None

    async def _covered(self) -> _Met | None:
        end = self._view.clock()
        now = -(-end // MINUTE) * MINUTE
        scope = replace(self._scope, window=Window(now - self._length.ms, now), now=end)
        self._coverage_window = scope.window
        ratio = (await coverage(self._view, scope))["ratio"]
        self.status = f"coverage {ratio} since {iso(scope.window.start)}"
        return _Met(end, self._length.floor(now - 1)) if ratio == 1 else None

    def _is_above(self, trade: Trade) -> bool | None:
        """Whether the trade is above the level. None if it is at the level."""
        decimals = max(places(self._level), trade.scale.price)
        price, level = trade.price * 10 ** (decimals - trade.scale.price), at_decimals(self._level, decimals)
        return None if price == level else price > level

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
