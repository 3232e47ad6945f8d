"""Loopback Bybit v5 REST: listings, recent trades, minute candles, time (docs/exchanges.md 4.3, 6).

Numbers are sent as text, errors with HTTP status 200.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Mapping
from typing import Final
from urllib.parse import quote

from wadm_mcp.model import MINUTE, SECOND, Instrument
from wadm_mcp.simulator.candles import bybit_row, candles
from wadm_mcp.simulator.faults import Reply
from wadm_mcp.simulator.listings import Steps, assets_of
from wadm_mcp.simulator.state import SimulatorState
from wadm_mcp.simulator.tape import Print

RECENT: Final = {"spot": 60, "linear": 1_000}
"""Most trades that `recent-trade` returns."""

_DEFAULT: Final = {"spot": 60, "linear": 500}
_MAX_REQUESTS: Final = 600
_MAX_INSTRUMENTS: Final = 1_000
_CURSOR: Final = re.compile("first=([^&%]+)&last=([^&%]+)(?:&page=([0-9]{1,9}))?")
"""The first and the last symbol of the page before, and with `Faults.fresh_cursors` its number."""
_STATUSES: Final = {"spot": ("Trading",), "linear": ("PreLaunch", "Trading", "Delivering", "Closed")}
"""Values of `status`; without it a list has the symbols that trade."""


class _RefusedError(Exception):
    pass


class BybitRest:
    """The REST side of Bybit. More than 600 requests in 5 seconds are answered with 403."""

    def __init__(self, state: SimulatorState) -> None:
        self._state = state
        self._requests: deque[int] = deque(maxlen=_MAX_REQUESTS)

    def answer(self, path: str, params: Mapping[str, str]) -> Reply:
        """The reply to a GET request."""
        now = self._state.clock()
        wall = self._state.wall()
        if len(self._requests) == _MAX_REQUESTS and wall - self._requests[0] < 5 * SECOND:
            return Reply(403, {"retCode": 10018, "retMsg": "access too frequent", "result": {}, "retExtInfo": {}, "time": now})
        self._requests.append(wall)
        try:
            match path:
                case "/v5/market/time":
                    result: dict[str, object] = {"timeSecond": str(now // SECOND), "timeNano": str(now * 1_000_000)}
                case "/v5/market/instruments-info":
                    result = self._instruments(params)
                case "/v5/market/recent-trade":
                    result = self._recent(params, now)
                case "/v5/market/kline":
                    result = self._klines(params, now)
                case _:
                    return Reply(404, {})
        except _RefusedError as refused:
            return Reply(200, {"retCode": 10001, "retMsg": f"params error: {refused}", "result": {}, "retExtInfo": {}, "time": now})
        return Reply(200, {"retCode": 0, "retMsg": "OK", "result": result, "retExtInfo": {}, "time": now})

    def _recent(self, params: Mapping[str, str], now: int) -> dict[str, object]:
        category = _category(params)
        tape = self._state.tapes.get(Instrument("bybit", category, params.get("symbol", "")))
        if tape is None:
            raise _RefusedError("symbol invalid")
        limit = _limit(params, RECENT[category], _DEFAULT[category])
        until = now - self._state.faults.lag("bybit", category)
        newest = [_recent_row(params["symbol"], row) for row in reversed(tape.newest_prints(limit, until))]
        return {"category": category, "list": newest}

    def _klines(self, params: Mapping[str, str], now: int) -> dict[str, object]:
        """Minute candles that open from `start` to `end`, newest first; the newest ones if they exceed the limit. No other interval."""
        category = _category(params)
        instrument = Instrument("bybit", category, params.get("symbol", ""))
        tape = self._state.tapes.get(instrument)
        if tape is None:
            raise _RefusedError("symbol invalid")
        if params.get("interval") != "1":
            raise _RefusedError("interval invalid")
        limit = _limit(params, 1_000, 200)
        last = min(now, _time(params, "end", now))
        last -= last % MINUTE
        first = max(last - (limit - 1) * MINUTE, -(-_time(params, "start", 0) // MINUTE) * MINUTE)
        until = now - self._state.faults.lag("bybit", category)
        published = self._state.candles[instrument]
        rows = [bybit_row(candle) for candle in candles(tape, range(first, last + 1, MINUTE), until, published)]
        return {"category": category, "symbol": params["symbol"], "list": rows[::-1]}

    def _instruments(self, params: Mapping[str, str]) -> dict[str, object]:
        category = _category(params)
        known = self._state.listed("bybit", category)
        wanted = params.get("status", "Trading")
        if wanted not in _STATUSES[category]:
            raise _RefusedError("status invalid")
        symbols = [symbol for symbol, status in known.items() if (status or "Trading") == wanted]
        if "symbol" in params:
            symbols = [symbol for symbol in symbols if symbol == params["symbol"]]
            if not symbols:
                raise _RefusedError("symbol invalid")
        if category == "spot":
            return {
                "category": category,
                "list": [_spot_listing(symbol, self._state.steps_of(Instrument("bybit", category, symbol))) for symbol in symbols],
            }
        faults = self._state.faults
        limit = min(_limit(params, _MAX_INSTRUMENTS, 500), faults.listings_page or _MAX_INSTRUMENTS)
        first, page_number = 0, 1
        if cursor := params.get("cursor", ""):
            # A cursor that was encoded twice still has its percent signs.
            found = _CURSOR.fullmatch(cursor)
            if found is None or found[2] not in symbols:
                raise _RefusedError("cursor invalid")
            first = limit if faults.repeats_page else symbols.index(found[2]) + 1
            page_number = int(found[3] or 1) + 1
        names = symbols[first : first + limit]
        ends = first + limit >= len(symbols) and not (faults.repeats_page and cursor)
        fresh = f"&page={page_number}" if faults.fresh_cursors else ""
        following = "" if ends or not names else quote(f"first={names[0]}&last={names[-1]}{fresh}", safe="")
        page = [_linear_listing(symbol, wanted, self._state.steps_of(Instrument("bybit", category, symbol))) for symbol in names]
        return {"category": category, "list": page, "nextPageCursor": following}


def _category(params: Mapping[str, str]) -> str:
    category = params.get("category", "")
    if category not in RECENT:
        raise _RefusedError("category invalid" if category else "category is required")
    return category


def _time(params: Mapping[str, str], name: str, default: int) -> int:
    text = params.get(name, str(default))
    if not text.isascii() or not text.isdigit() or len(text) > 15:
        raise _RefusedError(f"{name} invalid")
    return int(text)


def _limit(params: Mapping[str, str], most: int, default: int) -> int:
    text = params.get("limit", str(default))
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 1_000:
        raise _RefusedError("limit invalid")
    return min(int(text), most)


def _recent_row(symbol: str, row: Print) -> dict[str, object]:
    return {
        "execId": row.trade_id,
        "symbol": symbol,
        "price": row.price,
        "size": row.quantity,
        "side": "Buy" if row.buy else "Sell",
        "time": str(row.time),
        "isBlockTrade": False,
        "isRPITrade": False,
        "seq": str(row.seq),
    }


def _spot_listing(symbol: str, steps: Steps) -> dict[str, object]:
    base, quote = assets_of(symbol)
    return {
        "symbol": symbol,
        "baseCoin": base,
        "quoteCoin": quote,
        "innovation": "0",
        "status": "Trading",
        "marginTrading": "utaOnly",
        "lotSizeFilter": {
            "basePrecision": steps.lot_text,
            "quotePrecision": "0.0000001",
            "minOrderQty": steps.lot_text,
            "maxOrderQty": steps.quantity(10**9),
        },
        "priceFilter": {"tickSize": steps.tick_text},
    }


def _linear_listing(symbol: str, status: str, steps: Steps) -> dict[str, object]:
    base, quote = assets_of(symbol)
    return {
        "symbol": symbol,
        "contractType": "LinearPerpetual",
        "status": status,
        "baseCoin": base,
        "quoteCoin": quote,
        "launchTime": "1585526400000",
        "deliveryTime": "0",
        "priceScale": str(steps.price_decimals),
        "priceFilter": {"minPrice": steps.tick_text, "maxPrice": steps.price(10**9), "tickSize": steps.tick_text},
        "lotSizeFilter": {"maxOrderQty": steps.quantity(10**9), "minOrderQty": steps.lot_text, "qtyStep": steps.lot_text},
        "settleCoin": quote,
    }
