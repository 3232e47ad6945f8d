"""Waiting, within a bound, until the tape shows something: for clients that cannot subscribe."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from decimal import Decimal
from typing import Any, Final, Literal, NamedTuple, Protocol, TypeAlias

import anyio

from wadm_mcp.analytics.footprint import Bar
from wadm_mcp.analytics.order_flow import imbalance_ratio
from wadm_mcp.coverage.judge import IN_TRANSIT
from wadm_mcp.model import MINUTE, SECOND, Scale, Timeframe, Trade, Window, at_decimals
from wadm_mcp.queries.arguments import ALL, Example, read_amount, read_choice, read_detail, read_signed, read_timeframe, read_whole
from wadm_mcp.queries.coverage import coverage
from wadm_mcp.queries.figures import merged_bars
from wadm_mcp.queries.numbers import decimal_number, decimal_text, iso, iso_ms, maybe, number, places
from wadm_mcp.queries.scope import Scope, ask, read_scope
from wadm_mcp.queries.view import View

Condition: TypeAlias = Literal["price_crosses", "delta_beyond", "volume_beyond", "bar_closed", "coverage_back"]

CONDITIONS: Final[tuple[Condition, ...]] = ("price_crosses", "delta_beyond", "volume_beyond", "bar_closed", "coverage_back")
LONGEST: Final = 300
"""Seconds."""
BROKEN: Final = ("price", "bar")

_VALUED: Final = ("price_crosses", "delta_beyond", "volume_beyond")
_EVERY: Final = 0.5
"""Seconds between two looks."""
_TOLD_EVERY: Final = 2.0
"""Seconds between two words of progress."""
_PAGE: Final = 5_000
"""Trades read at once."""


class Progress(Protocol):
    """How far a call is: seconds done of seconds in all, and what it sees now."""

    async def __call__(self, progress: float, total: float | None = None, message: str | None = None) -> None: ...


async def _untold(progress: float, total: float | None = None, message: str | None = None) -> None:
    return None


class _Met(NamedTuple):
    """When the condition was met (market time, ms), and the bar (its start) in which."""

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
    timeout: object = 30,  # noqa: ASYNC109 - an argument of the question; running out is an answer, not an error
    progress: Progress = _untold,
) -> dict[str, Any]:
    """Answers as soon as the condition is met, or when `timeout` seconds are over, with `met` false.

    `price_crosses`: a trade at or beyond `value`, from the side on which the last trade was. `delta_beyond` and `volume_beyond`: the open
    bar of `timeframe` reaches `value`, delta below 0 downwards. `bar_closed`: the bar that is open now is over, and its trades are here.
    `coverage_back`: nothing is missing in the last `timeframe`. Only what is traded after the question counts.
    """
    call = ask(view, "wait_for", condition="bar_closed", timeframe="1m")
    scope = read_scope(view, call, symbol=symbol, exchange=exchange, market=market, window="15m")
    if condition is None:
        raise scope.call.refuse("condition", None, f"one is needed: {', '.join(CONDITIONS)}")
    wanted: Condition = read_choice(scope.call, "condition", condition, CONDITIONS, CONDITIONS[3])
    length = read_timeframe(scope.call, timeframe, Timeframe.M1)
    seconds = read_whole(scope.call, "timeout", timeout, 1, LONGEST, 30)
    if wanted not in _VALUED and value is not None:
        raise scope.call.refuse("value", value, f"{wanted} takes none", condition=wanted)
    level: Decimal | None = None
    if wanted in _VALUED:
        example = Decimal(1)
        if value is None:
            raise scope.call.refuse("value", None, f"{wanted} needs one", condition=wanted, value=example)
        works: dict[str, Example | None] = {"condition": wanted}
        level = (
            read_signed(scope.call, "value", value, example=example, **works)
            if wanted == "delta_beyond"
            else read_amount(scope.call, "value", value, zero=False, example=example, **works)
        )
    shown = read_detail(scope.call, detail)
    watch = _Watch(view, scope, length, wanted, level or Decimal(0))
    await watch.begin()
    met = None
    waited, told = 0.0, 0.0
    began = anyio.current_time()
    while met is None:
        met = await watch.look()
        waited = anyio.current_time() - began
        if met is not None or waited >= seconds:
            break
        if waited >= told:
            told = waited + _TOLD_EVERY
            await progress(round(waited, 1), float(seconds), watch.words)
        await anyio.sleep(min(_EVERY, seconds - waited))
    told = await watch.tell(met, round(waited, 1))
    return {**told, "bar": None} if shown == "brief" else told


class _Watch:
    """What a question waits for, and how far it has looked."""

    def __init__(self, view: View, scope: Scope, length: Timeframe, condition: Condition, level: Decimal) -> None:
        self._view, self._scope, self._length, self._condition, self._level = view, scope, length, condition, level
        self._asked = view.clock()
        self._bar = length.floor(self._asked)
        self._last: dict[Any, Trade | None] = {}
        self._above: dict[Any, bool | None] = {}
        self._crossed: Trade | None = None
        self._judged: Window | None = None
        self.words = "waiting"

    async def begin(self) -> None:
        for instrument in self._scope.instruments:
            newest = self._view.newest(instrument)
            self._last[instrument] = newest
            self._above[instrument] = None if newest is None else self._side(newest)

    async def look(self) -> _Met | None:
        """Whether it is met by now. Each look is a reading of its own: while the store is away the live tape is asked."""
        self._view = self._view.reading()
        looks: dict[str, Callable[[], Awaitable[_Met | None]]] = {
            "price_crosses": self._price,
            "delta_beyond": self._sums,
            "volume_beyond": self._sums,
            "bar_closed": self._closed,
            "coverage_back": self._covered,
        }
        return await looks[self._condition]()

    async def tell(self, met: _Met | None, waited: float) -> dict[str, Any]:
        """The answer, with the coverage of the bar it tells, or of the stretch whose coverage was waited for."""
        now = self._view.clock()
        start = met.bar if met is not None else self._length.floor(now)
        end = min(start + self._length.ms, -(-now // MINUTE) * MINUTE)
        scope = replace(self._scope, window=self._judged or Window(start, max(start, end)), now=now)
        covered = await coverage(self._view, scope, figures=BROKEN)
        bar = (await merged_bars(self._view, scope, self._length, scope.window)).get(start, Bar(Scale(0, 0)))
        trade = self._crossed or self._newest()
        value = self._level if self._condition in _VALUED else None
        told = {
            "condition": self._condition,
            "value": decimal_number(value),
            "met": met is not None,
            "met_at": iso_ms(met.at) if met is not None else None,
            "waited_s": waited,
            "price": number(trade.price, trade.scale.price) if trade is not None else None,
            "timeframe": self._length.value,
            "bar": _told(start, bar),
        }
        what = self._condition.replace("_", " ") + (f" {decimal_text(value)}" if value is not None else "")
        ended = f"met after {waited} s" if met is not None else f"not met in {waited} s"
        reading = f"{scope.name}: {what} {ended}; last price {told['price']}; coverage {covered['ratio']}."
        return {**scope.heading(covered), **told, "reading": reading}

    async def _price(self) -> _Met | None:
        """Every trade since the question, in order, so that no spike between two looks is missed."""
        for instrument in self._scope.instruments:
            while True:
                last = self._last[instrument]
                since = self._asked if last is None else last.timestamp
                window = Window(since, max(since, self._view.clock()) + MINUTE)
                fresh = await self._view.trades(instrument, window, after=None if last is None else last.order, limit=_PAGE)
                for trade in fresh:
                    side = self._side(trade)
                    if self._above[instrument] is None:
                        self._above[instrument] = side
                    if side is None or side != self._above[instrument]:
                        self._crossed = trade
                        return _Met(trade.timestamp, self._length.floor(trade.timestamp))
                if fresh:
                    self._last[instrument] = fresh[-1]
                    self.words = f"last price {number(fresh[-1].price, fresh[-1].scale.price)}"
                if len(fresh) < _PAGE:
                    break
        return None

    async def _sums(self) -> _Met | None:
        """The bar that was open at the last look, in its final form too, then the one that is open now."""
        now = self._view.clock()
        newest = self._length.floor(now)
        bars = await merged_bars(self._view, self._scope, self._length, Window(self._bar, newest + self._length.ms))
        for start, bar in sorted(bars.items()):
            reached = bar.volume if self._condition == "volume_beyond" else bar.delta
            self.words = f"{'volume' if self._condition == 'volume_beyond' else 'delta'} {number(reached, bar.scale.quantity)}"
            if _beyond(reached, bar.scale.quantity, self._level):
                return _Met(min(now, max(bar.last_at, self._asked)), start)
        # A closed bar is looked at once more: its last trades may come late by as much as they are in transit.
        if now >= self._bar + self._length.ms + IN_TRANSIT:
            self._bar = newest
        return None

    async def _closed(self) -> _Met | None:
        now, end = self._view.clock(), self._bar + self._length.ms
        if now < end:
            self.words = f"bar closes in {(end - now) // SECOND} s"
            return None
        seen = [self._view.alive_until(instrument) for instrument in self._scope.instruments]
        here = all(until is not None and until >= end for until in seen)
        return _Met(end, self._bar) if here or now >= end + IN_TRANSIT else None

    async def _covered(self) -> _Met | None:
        end = self._view.clock()
        now = -(-end // MINUTE) * MINUTE
        scope = replace(self._scope, window=Window(now - self._length.ms, now), now=end)
        self._judged = scope.window
        ratio = (await coverage(self._view, scope))["ratio"]
        self.words = f"coverage {ratio} since {iso(scope.window.start)}"
        return _Met(end, self._length.floor(now - 1)) if ratio == 1 else None

    def _side(self, trade: Trade) -> bool | None:
        """Is the trade above the level? None at it."""
        decimals = max(places(self._level), trade.scale.price)
        price, level = trade.price * 10 ** (decimals - trade.scale.price), at_decimals(self._level, decimals)
        return None if price == level else price > level

    def _newest(self) -> Trade | None:
        known = [trade for one in self._scope.instruments if (trade := self._view.newest(one)) is not None]
        return max(known, key=lambda trade: trade.timestamp, default=None)


def _beyond(reached: int, decimals: int, level: Decimal) -> bool:
    finest = max(decimals, places(level))
    value, bound = reached * 10 ** (finest - decimals), at_decimals(level, finest)
    return value >= bound if bound > 0 else value <= bound


def _told(start: int, bar: Bar) -> dict[str, Any]:
    prices, quantities = bar.scale
    return {
        "timestamp": iso(start),
        **{name: maybe(getattr(bar, name), prices) for name in ("open", "high", "low", "close")},
        "volume": number(bar.volume, quantities),
        "delta": number(bar.delta, quantities),
        "imbalance_ratio": decimal_number(imbalance_ratio(bar.buy_volume, bar.sell_volume)),
        "trade_count": bar.trade_count,
    }
