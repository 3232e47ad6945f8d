"""Single trades of a window, oldest first, page by page.

Trades of several exchanges are told in order of (timestamp, exchange, `Trade.order`). A cursor holds the window and the last trade
looked at, so that the pages of a window that is still open agree with each other.
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
from wadm_mcp.queries.coverage import coverage, expired_trades, nothing_traded
from wadm_mcp.queries.figures import table
from wadm_mcp.queries.numbers import decimal_text, iso_ms, number, places
from wadm_mcp.queries.scope import LONGEST, Scope, ask, read_scope
from wadm_mcp.queries.view import View

COLUMNS: Final = ("timestamp", "price", "quantity", "trade_type", "trade_id", "exchange")

BRIEF: Final = COLUMNS[:4]

MOST: Final = 1_000
"""Rows of one page."""

SCANNED: Final = 50_000
"""Trades that one call looks at; then it returns what it found and a cursor to go on from."""

_BATCH: Final = 5_000
_LONGEST_CURSOR: Final = 1_000

_Word: TypeAlias = Annotated[int, msgspec.Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
"""An integer that every store can compare with."""

_Order: TypeAlias = tuple[_Word, _Word, _Word, str]


class _Key(NamedTuple):
    """Where a trade stands in the merged order."""

    timestamp: int
    exchange: str
    order: _Order


class _Cursor(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """`question` is a digest of the arguments; `start` and `end` are the window of the first page; the rest is the last trade looked at."""

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
    """Up to `limit` trades, of at least `min_notional` (price times quantity) each, and a cursor to the next page, null at the end.

    Where few trades are large enough a page may hold fewer rows than asked for, and a cursor all the same.
    """
    call = ask(view, "get_trades", window="15m")
    scope = read_scope(view, call, symbol=symbol, exchange=exchange, market=market, window=window, start=start, end=end, as_of=as_of)
    rows_wanted = read_whole(scope.call, "limit", limit, 1, MOST, 100)
    least = read_amount(scope.call, "min_notional", min_notional, zero=True, example=10_000)
    only = BRIEF if read_detail(scope.call, detail) == "brief" else None
    question = _digest(scope, least)
    after: _Key | None = None
    if cursor is not None:
        page = _read_cursor(scope, cursor, question, view.clock())
        scope, after = replace(scope, window=Window(page.start, page.end)), page.key
    covered = await coverage(view, scope, expired_trades(view.retention, view.clock(), scope.window), raw=True, figures=("trades",))
    rows, last = await _scan(view, scope, after, rows_wanted, _large_enough(least))
    return {
        **scope.heading(covered),
        "trades": table(COLUMNS, [_row(trade) for trade in rows], only=only),
        "next_cursor": None if last is None else _write_cursor(_Cursor(question, scope.window.start, scope.window.end, *last)),
        "reading": _reading(scope, covered, rows),
    }


async def newest_trades(view: View, *, symbol: object, exchange: object, market: object, window: object, limit: int) -> dict[str, Any]:
    """As `trades` answers, but the last `limit` rows of the window instead of the first."""
    scope = read_scope(view, ask(view, "get_trades"), symbol=symbol, exchange=exchange, market=market, window=window)
    covered = await coverage(view, scope, expired_trades(view.retention, view.clock(), scope.window), raw=True, figures=("trades",))
    found = [trade for one in scope.instruments for trade in await view.trades(one, scope.window, limit=limit, newest=True)]
    found.sort(key=_key)
    return {
        **scope.heading(covered),
        "trades": table(COLUMNS, [_row(trade) for trade in found[-limit:]]),
        "next_cursor": None,
        "reading": _reading(scope, covered, found[-limit:]),
    }


async def _scan(
    view: View, scope: Scope, after: _Key | None, wanted: int, fits: Callable[[Trade], bool] | None
) -> tuple[list[Trade], _Key | None]:
    """The next rows, and the key to go on from where there is more to look at."""
    rows: list[Trade] = []
    batch, seen = (wanted + 1, 0) if fits is None else (_BATCH, 0)
    while True:
        found, more = await _batch(view, scope, after, min(batch, SCANNED - seen))
        for trade in found:
            if fits is None or fits(trade):
                if len(rows) == wanted:
                    return rows, _key(rows[-1])
                rows.append(trade)
        seen += len(found)
        if not more:
            return rows, None
        after = _key(found[-1])
        if seen >= SCANNED:
            return rows, after


async def _batch(view: View, scope: Scope, after: _Key | None, size: int) -> tuple[list[Trade], bool]:
    """At least one and at most `size` trades behind `after` in merged order, and whether there are more."""
    found: list[Trade] = []
    for instrument in scope.instruments:
        window, order = _behind(instrument, scope.window, after)
        found += await view.trades(instrument, window, after=order, limit=size + 1)
    found.sort(key=_key)
    return found[:size], len(found) > size


def _behind(instrument: Instrument, window: Window, after: _Key | None) -> tuple[Window, _Order | None]:
    """Where an instrument's trades behind a key begin: in which window, and after which trade."""
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


def _reading(scope: Scope, covered: Mapping[str, Any], rows: Sequence[Trade]) -> str:
    if not rows:
        return nothing_traded(scope, covered).replace("no trade is held", "no such trade is held")
    bought = sum(trade.trade_type is TradeType.BUY for trade in rows)
    stretch = f"{iso_ms(rows[0].timestamp)} to {iso_ms(rows[-1].timestamp)}"
    return f"{scope.name}: {len(rows)} trades from {stretch}, {bought} of them bought by takers; coverage {covered['ratio']}."


def _large_enough(least: Decimal | None) -> Callable[[Trade], bool] | None:
    if not least:
        return None
    decimals = places(least)
    wanted = at_decimals(least, decimals)

    def fits(trade: Trade) -> bool:
        return trade.price * trade.quantity * 10**decimals >= wanted * 10 ** (trade.scale.price + trade.scale.quantity)

    return fits


def _digest(scope: Scope, least: Decimal | None) -> bytes:
    """What makes two questions the same one: everything but the page's length, and not the moment at which they are asked."""
    asked = (scope.name, *scope.asked, decimal_text(least) if least else None)
    return blake2b(msgspec.msgpack.encode(asked), digest_size=8).digest()


def _write_cursor(cursor: _Cursor) -> str:
    return base64.urlsafe_b64encode(msgspec.msgpack.encode(cursor)).decode().rstrip("=")


def _read_cursor(scope: Scope, given: object, question: bytes, now: int) -> _Cursor:
    refusal = scope.call.refuse("cursor", given, "it must be the next_cursor of the page before, unchanged")
    if not isinstance(given, str) or len(given) > _LONGEST_CURSOR or not given.isascii():
        raise refusal
    try:
        padded = given.strip() + "=" * (-len(given.strip()) % 4)
        cursor = _CURSOR.decode(base64.b64decode(padded, altchars=b"-_", validate=True))
    except (binascii.Error, msgspec.DecodeError, UnicodeDecodeError):
        raise refusal from None
    if cursor.question != question:
        raise scope.call.refuse("cursor", given, "it belongs to another question; send it with the arguments of the page before")
    if not 0 <= cursor.start <= cursor.end <= now + MINUTE or cursor.end - cursor.start > LONGEST + 2 * MINUTE:
        raise refusal
    if not cursor.start <= cursor.timestamp < cursor.end or cursor.timestamp != cursor.order[0]:
        raise refusal
    return cursor
