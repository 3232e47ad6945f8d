"""Single trades of a window, oldest first, page by page.

Trades of several exchanges are ordered by (timestamp, exchange, `Trade.order`). A cursor contains the window and the last trade that was
read, so that the pages of a window that is still open fit together.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from hashlib import blake2b
from typing import Annotated, Any, Final, NamedTuple, TypeAlias

import msgspec

from wadm_mcp.model import MINUTE, Instrument, Trade, TradeType, Window, at_decimals
from wadm_mcp.queries.arguments import ALL, read_amount, read_detail, read_whole
from wadm_mcp.queries.coverage import coverage, nothing_traded
from wadm_mcp.queries.figures import table
from wadm_mcp.queries.numbers import decimal_text, iso_ms, number, places
from wadm_mcp.queries.scope import MAX_WINDOW_MS, Scope, ask, read_scope
from wadm_mcp.queries.view import View

COLUMNS: Final = ("timestamp", "price", "quantity", "trade_type", "trade_id", "exchange")

BRIEF: Final = COLUMNS[:4]

MAX_PAGE_ROWS: Final = 1_000
"""Most rows of one page."""

MAX_SCANNED: Final = 50_000
"""Most trades that one call reads; after that it returns the rows found so far and a cursor."""

_BATCH_TRADES: Final = 5_000
_MAX_CURSOR_CHARS: Final = 1_000

_Int64: TypeAlias = Annotated[int, msgspec.Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
"""A 64-bit integer, which every store can compare with."""

_Order: TypeAlias = tuple[_Int64, _Int64, _Int64, str]


class _Key(NamedTuple):
    """The position of a trade in the merged order."""

    timestamp: int
    exchange: str
    order: _Order


class _Cursor(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """`question` is a digest of the arguments, `start` and `end` are the window of the first page; the rest is the last trade read."""

    question: bytes
    start: int
    end: int
    timestamp: int
    exchange: str
    order: _Order

    @property
    def key(self) -> _Key:
        return _Key(self.timestamp, self.exchange, self.order)


_CURSOR: Final = msgspec.msgpack.Decoder(_Cursor)


async def trades(
    view: View,
    *,
    symbol: object,
    exchange: object = ALL,
    market: object = None,
    window: object = None,
    start: object = None,
    end: object = None,
    as_of: object = None,
    limit: object = 100,
    cursor: object = None,
    min_notional: object = None,
    detail: object = "standard",
) -> dict[str, Any]:
    """Up to `limit` trades of at least `min_notional` (price times quantity) each, and a cursor for the next page, null at the end.

    If few trades are large enough, a page may have fewer than `limit` rows although a cursor follows.
    """
    call = ask(view, "get_trades", window="15m")
    scope = read_scope(view, call, symbol=symbol, exchange=exchange, market=market, window=window, start=start, end=end, as_of=as_of)
    page_rows = read_whole(scope.call, "limit", limit, 1, MAX_PAGE_ROWS, 100)
    minimum_notional = read_amount(scope.call, "min_notional", min_notional, zero=True, example=10_000)
    only = BRIEF if read_detail(scope.call, detail) == "brief" else None
    question = _digest(scope, minimum_notional)
    after: _Key | None = None
    if cursor is not None:
        page = _read_cursor(scope, cursor, question, view.clock())
        scope, after = replace(scope, window=Window(page.start, page.end)), page.key
    covered = await coverage(view, scope, raw=True, figures=("trades",))
    rows, last = await _scan(view, scope, after, page_rows, _size_filter(minimum_notional))
    return {
        **scope.heading(covered),
        "trades": table(COLUMNS, [_row(trade) for trade in rows], only=only),
        "next_cursor": None if last is None else _write_cursor(_Cursor(question, scope.window.start, scope.window.end, *last)),
        "reading": _reading(scope, covered, rows, minimum_notional, paged=after is not None or last is not None),
    }


async def newest_trades(view: View, *, symbol: object, exchange: object, market: object, window: object, limit: int) -> dict[str, Any]:
    """As `trades`, but with the last `limit` trades of the window instead of the first."""
    scope = read_scope(view, ask(view, "get_trades"), symbol=symbol, exchange=exchange, market=market, window=window)
    covered = await coverage(view, scope, raw=True, figures=("trades",))
    found = [trade for one in scope.instruments for trade in await view.trades(one, scope.window, limit=limit, newest=True)]
    found.sort(key=_key)
    return {
        **scope.heading(covered),
        "trades": table(COLUMNS, [_row(trade) for trade in found[-limit:]]),
        "next_cursor": None,
        "reading": _reading(scope, covered, found[-limit:]),
    }


async def _scan(
    view: View, scope: Scope, after: _Key | None, page_rows: int, fits: Callable[[Trade], bool] | None
) -> tuple[list[Trade], _Key | None]:
    """The next trades that fit, and the key after which the next page begins, None at the end."""
    rows: list[Trade] = []
    batch, scanned = (page_rows + 1, 0) if fits is None else (_BATCH_TRADES, 0)
    while True:
        found, more = await _batch(view, scope, after, min(batch, MAX_SCANNED - scanned))
        for trade in found:
            if fits is None or fits(trade):
                if len(rows) == page_rows:
                    return rows, _key(rows[-1])
                rows.append(trade)
        scanned += len(found)
        if not more:
            return rows, None
        after = _key(found[-1])
        if scanned >= MAX_SCANNED:
            return rows, after


async def _batch(view: View, scope: Scope, after: _Key | None, size: int) -> tuple[list[Trade], bool]:
    """Up to `size` trades after `after` in merged order, and whether there are more."""
    found: list[Trade] = []
    for instrument in scope.instruments:
        window, order = _rest_after(instrument, scope.window, after)
        found += await view.trades(instrument, window, after=order, limit=size + 1)
    found.sort(key=_key)
    return found[:size], len(found) > size


def _rest_after(instrument: Instrument, window: Window, after: _Key | None) -> tuple[Window, _Order | None]:
    """The window and the trade after which an instrument's trades follow a key of the merged order."""
    if after is None:
        return window, None
    if instrument.exchange == after.exchange:
        return window, after.order
    start = after.timestamp + (instrument.exchange < after.exchange)
    return Window(min(max(start, window.start), window.end), window.end), None


def _key(trade: Trade) -> _Key:
    return _Key(trade.timestamp, trade.instrument.exchange, trade.order)


def _row(trade: Trade) -> list[Any]:
    return [
        iso_ms(trade.timestamp),
        number(trade.price, trade.scale.price),
        number(trade.quantity, trade.scale.quantity),
        trade.trade_type.value,
        trade.trade_id,
        trade.instrument.exchange,
    ]


def _reading(
    scope: Scope, covered: Mapping[str, Any], rows: Sequence[Trade], minimum_notional: Decimal | None = None, *, paged: bool = False
) -> str:
    if not rows:
        if not minimum_notional and not paged:
            return nothing_traded(scope, covered)
        size = f" of at least {decimal_text(minimum_notional)}" if minimum_notional else ""
        place = "on this page" if paged else "recorded in this window"
        return f"{scope.name}: no trades{size} {place}; coverage {covered['ratio']}."
    bought = sum(trade.trade_type is TradeType.BUY for trade in rows)
    stretch = f"{iso_ms(rows[0].timestamp)} to {iso_ms(rows[-1].timestamp)}"
    return f"{scope.name}: {len(rows)} trades from {stretch}, {bought} of them bought by takers; coverage {covered['ratio']}."


def _size_filter(minimum_notional: Decimal | None) -> Callable[[Trade], bool] | None:
    """Compares the notional of a trade with a minimum, exactly. None without a minimum."""
    if not minimum_notional:
        return None
    decimals = places(minimum_notional)
    minimum = at_decimals(minimum_notional, decimals)

    def fits(trade: Trade) -> bool:
        return trade.price * trade.quantity * 10**decimals >= minimum * 10 ** (trade.scale.price + trade.scale.quantity)

    return fits


def _digest(scope: Scope, minimum_notional: Decimal | None) -> bytes:
    """Identifies a question by its instruments, window and `min_notional`, whatever the `limit`, the `detail` and the time of the call."""
    asked = (scope.name, *scope.asked, decimal_text(minimum_notional) if minimum_notional else None)
    return blake2b(msgspec.msgpack.encode(asked), digest_size=8).digest()


def _write_cursor(cursor: _Cursor) -> str:
    return base64.urlsafe_b64encode(msgspec.msgpack.encode(cursor)).decode().rstrip("=")


def _read_cursor(scope: Scope, given: object, question: bytes, now: int) -> _Cursor:
    refusal = scope.call.refuse("cursor", given, "it must be the unchanged next_cursor of the previous page")
    if not isinstance(given, str) or len(given) > _MAX_CURSOR_CHARS or not given.isascii():
        raise refusal
    try:
        padded = given.strip() + "=" * (-len(given.strip()) % 4)
        cursor = _CURSOR.decode(base64.b64decode(padded, altchars=b"-_", validate=True))
    except (binascii.Error, msgspec.DecodeError, UnicodeDecodeError):
        raise refusal from None
    if cursor.question != question:
        raise scope.call.refuse("cursor", given, "it belongs to another question; send it with the arguments of the previous page")
    if not 0 <= cursor.start <= cursor.end <= now + MINUTE or cursor.end - cursor.start > MAX_WINDOW_MS + 2 * MINUTE:
        raise refusal
    if not cursor.start <= cursor.timestamp < cursor.end or cursor.timestamp != cursor.order[0]:
        raise refusal
    return cursor
