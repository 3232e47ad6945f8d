"""Waits for a condition of the tape, up to a timeout. For clients that cannot subscribe to resources."""

from __future__ import annotations

from decimal import Decimal
from typing import Any, Final, Protocol

import anyio

from wadm_mcp.errors import QueryError
from wadm_mcp.model import Timeframe, Window, to_decimal
from wadm_mcp.queries.arguments import ALL, Example, read_amount, read_choice, read_detail, read_signed, read_timeframe, read_whole
from wadm_mcp.queries.figures import merged_bars
from wadm_mcp.queries.scope import Scope, ask, read_scope
from wadm_mcp.queries.view import View
from wadm_mcp.queries.watches import CHECK_SECONDS, WITH_VALUE, Condition, Watches

CONDITIONS: Final[tuple[Condition, ...]] = ("price_crosses", "delta_beyond", "volume_beyond", "bar_closed", "coverage_back")
MAX_WAIT_SECONDS: Final = 300

_LAST_CHECK_SECONDS: Final = 0.05
"""A wait that ends uses a check at most this old."""
_PROGRESS_SECONDS: Final = 2.0
"""Time between two progress notifications."""


class ProgressCallback(Protocol):
    """Receives the progress of a call: the seconds that passed, the seconds in total, and a message about the current state."""

    async def __call__(self, progress: float, total: float | None = None, message: str | None = None) -> None: ...


async def _no_progress(progress: float, total: float | None = None, message: str | None = None) -> None:
    return None


async def _value_not_met_yet(view: View, scope: Scope, condition: Condition, timeframe: Timeframe) -> Decimal | None:
    """A value that the condition may meet, and has not met yet: a price 1 % above the newest one, or twice what the last two bars had.

    None where nothing was traded.
    """
    if condition == "price_crosses":
        known = [trade for one in scope.instruments if (trade := view.newest(one)) is not None]
        newest = max(known, key=lambda trade: trade.timestamp, default=None)
        return None if newest is None else to_decimal(newest.price + max(1, newest.price // 100), newest.scale.price)
    start = timeframe.floor(scope.now)
    bars = (await merged_bars(view, scope, timeframe, Window(start - timeframe.ms, start + timeframe.ms))).values()
    sums = [to_decimal(bar.volume if condition == "volume_beyond" else abs(bar.delta), bar.scale.quantity) for bar in bars]
    return 2 * max(sums) if any(sums) else None


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
    watches: Watches | None = None,
) -> dict[str, Any]:
    """Answers as soon as the condition is met, or after `timeout` seconds with `met` false. Only trades after the question count.

    - `price_crosses`: a trade at or beyond `value`, seen from the side of the last trade before the question.
    - `delta_beyond`, `volume_beyond`: the open bar of `timeframe` reaches `value`; a `value` below 0 is reached downwards.
    - `bar_closed`: the bar that is open now has ended, and its trades have arrived.
    - `coverage_back`: no trade is missing in the last `timeframe`.

    With `watches`, waits for the same condition share one look at the tape; `Busy` where too many questions wait there and this one's
    caller has most of them.
    """
    call = ask(view, "wait_for", condition="bar_closed", timeframe="1m")
    scope = read_scope(view, call, symbol=symbol, exchange=exchange, market=market, window="15m")
    if condition is None:
        raise QueryError(f"condition is missing; allowed are {', '.join(CONDITIONS)}. Try {scope.call.example()}")
    chosen: Condition = read_choice(scope.call, "condition", condition, CONDITIONS, CONDITIONS[3])
    length = read_timeframe(scope.call, timeframe, Timeframe.M1)
    seconds = read_whole(scope.call, "timeout", timeout, 1, MAX_WAIT_SECONDS, 30)
    if chosen not in WITH_VALUE and value is not None:
        raise scope.call.refuse("value", value, f"the condition {chosen} takes no value", condition=chosen)
    level: Decimal | None = None
    if chosen in WITH_VALUE:
        example = await _value_not_met_yet(view, scope, chosen, length)
        # Where nothing was traded no value makes sense.
        works: dict[str, Example | None] = {"condition": chosen, "timeframe": length.value} if example is not None else {}
        if value is None:
            raise QueryError(f"value is missing; the condition {chosen} needs one. Try {scope.call.example(**works, value=example)}")
        level = (
            read_signed(scope.call, "value", value, example=example, **works)
            if chosen == "delta_beyond"
            else read_amount(scope.call, "value", value, zero=False, example=example, **works)
        )
    chosen_detail = read_detail(scope.call, detail)
    with (watches or Watches()).waiting(view, scope, length, chosen, level or Decimal(0)) as (watch, wait):
        began = anyio.current_time()
        next_progress = 0.0
        while True:
            left = seconds - (anyio.current_time() - began)
            await watch.check(CHECK_SECONDS if left > 0 else _LAST_CHECK_SECONDS)
            waited = anyio.current_time() - began
            if wait.busy is not None:
                raise wait.busy
            if wait.ended.is_set() or waited >= seconds:
                break
            if waited >= next_progress:
                next_progress = waited + _PROGRESS_SECONDS
                await progress(round(waited, 1), float(seconds), watch.status)
            with anyio.move_on_after(min(CHECK_SECONDS, seconds - waited)):
                await wait.ended.wait()
        answer = await watch.answer(wait, round(waited, 1))
    return {**answer, "bar": None} if chosen_detail == "brief" else answer
