"""Loopback Binance REST, spot and USD-M: listings, trade history, request weights, errors (docs/exchanges.md 4.1, 4.2, 6)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from decimal import Decimal
from itertools import chain, islice, takewhile
from typing import Final, NamedTuple

from websockets.datastructures import Headers

from wadm_mcp.model import HOUR, MINUTE, SECOND, Instrument
from wadm_mcp.simulator.candles import binance_row, candles
from wadm_mcp.simulator.faults import Reply
from wadm_mcp.simulator.listings import assets_of
from wadm_mcp.simulator.state import SimulatorState
from wadm_mcp.simulator.tape import MARKET_PRINTS, Aggregate, Print, PushedTape, Tape

_REQUEST_WEIGHTS: Final = {
    "/api/v3/time": 1,
    "/api/v3/exchangeInfo": 20,
    "/api/v3/historicalTrades": 25,
    "/api/v3/trades": 25,
    "/api/v3/aggTrades": 4,
    "/api/v3/klines": 2,
    "/fapi/v1/time": 1,
    "/fapi/v1/exchangeInfo": 1,
    "/fapi/v1/historicalTrades": 200,
    "/fapi/v1/trades": 5,
    "/fapi/v1/aggTrades": 20,
    "/fapi/v1/klines": 5,
}
_WEIGHT_PER_MINUTE: Final = {"spot": 6_000, "linear": 2_400}
_REFUSALS_BEFORE_BAN: Final = 10
"""Requests over the limit that are answered with 429 before the address is banned with 418."""

_ADVICE: Final = "Please use WebSocket Streams for live updates to avoid"
_BAN_MS: Final = 2 * MINUTE
_AGGREGATED_MS: Final = {"spot": 1, "linear": 100}
_LINEAR_HISTORY_MS: Final = 48 * HOUR
"""USD-M serves only aggregates of the last 48 hours."""

_NUMBER: Final = re.compile(r"[0-9]{1,18}", re.ASCII)


class _RefusedError(Exception):
    def __init__(self, code: int, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.reply = Reply(status, {"code": code, "msg": message})


class _Page(NamedTuple):
    tape: Tape
    limit: int
    from_id: int | None
    start: int | None
    end: int | None
    now: int


class BinanceRest:
    """The REST side of one Binance market."""

    def __init__(self, state: SimulatorState, market: str) -> None:
        self._state = state
        self._market = market
        self._prefix = "/api/v3" if market == "spot" else "/fapi/v1"
        self._minute, self._used, self._over, self._banned_until = 0, 0, 0, 0

    def answer(self, path: str, params: Mapping[str, str], headers: Headers) -> Reply:
        """The reply to a GET request; its headers state the request weight used in this minute."""
        weight = _REQUEST_WEIGHTS.get(path)
        if weight is None or not path.startswith(self._prefix):
            return Reply(404, {"code": -5000, "msg": f"Path {path}, Method GET is invalid"})
        refusal = self._spend(weight)
        used = {"X-MBX-USED-WEIGHT-1M": str(self._used)}
        if refusal is not None:
            return refusal._replace(headers={**used, **refusal.headers})
        try:
            reply = Reply(200, self._body(path.removeprefix(self._prefix), params, headers))
        except _RefusedError as refused:
            reply = refused.reply
        return reply._replace(headers=used)

    def _spend(self, weight: int) -> Reply | None:
        now, limit = self._state.wall(), _WEIGHT_PER_MINUTE[self._market]
        if now // MINUTE != self._minute:
            self._minute, self._used, self._over = now // MINUTE, 0, 0
        if now < self._banned_until:
            text = f"Way too much request weight used; IP banned until {self._banned_until}. {_ADVICE} bans."
            return Reply(418, {"code": -1003, "msg": text}, {"Retry-After": str(-(-(self._banned_until - now) // SECOND))})
        self._used += weight
        if self._used <= limit:
            return None
        self._over += 1
        if self._over > _REFUSALS_BEFORE_BAN:
            self._banned_until = now + _BAN_MS
        text = f"Too much request weight used; current limit is {limit} request weight per 1 MINUTE. {_ADVICE} polling the API."
        return Reply(429, {"code": -1003, "msg": text}, {"Retry-After": str(max(1, (MINUTE - now % MINUTE) // SECOND))})

    def _body(self, name: str, params: Mapping[str, str], headers: Headers) -> object:
        spot = self._market == "spot"
        match name:
            case "/time":
                return {"serverTime": self._state.clock()}
            case "/exchangeInfo":
                return self._exchange_info(params)
            case "/aggTrades":
                return [self._aggregate_row(row) for row in self._aggregates(self._page(params, 1000))]
            case "/klines":
                return self._klines(params)
            case "/trades":
                return [self._trade_row(row) for row in self._prints(self._page(params, 1000)._replace(from_id=None))]
            case "/historicalTrades" if not spot and not headers.get("X-MBX-APIKEY"):
                raise _RefusedError(-2014, "API-key format invalid.", 401)
            case _:
                page = self._page(params, 1000 if spot else 500, default=500 if spot else 100)
                return [self._trade_row(row) for row in self._prints(page)]

    def _page(self, params: Mapping[str, str], most: int, default: int = 500) -> _Page:
        symbol = params.get("symbol", "")
        if not symbol:
            raise _RefusedError(-1102, "Mandatory parameter 'symbol' was not sent, was empty/null, or malformed.")
        instrument = Instrument("binance", self._market, symbol)
        tape = self._state.tapes.get(instrument)
        if tape is None or self._state.status(instrument) == "":
            raise _RefusedError(-1121, "Invalid symbol.")
        limit = _number(params, "limit")
        if limit == 0:
            raise _RefusedError(-1130, "Data sent for parameter 'limit' is not valid.")
        now = self._state.clock() - self._state.faults.lag("binance", self._market)
        return _Page(
            tape, min(limit or default, most), _number(params, "fromId"), _number(params, "startTime"), _number(params, "endTime"), now
        )

    def _klines(self, params: Mapping[str, str]) -> list[list[object]]:
        """Minute candles that open from `startTime` to `endTime`, oldest first; without a start the newest. No other interval is served."""
        page = self._page(params, 1_000)
        if params.get("interval") != "1m":
            raise _RefusedError(-1120, "Invalid interval.")
        last = min(page.now, page.now if page.end is None else page.end)
        last -= last % MINUTE
        first = last - (page.limit - 1) * MINUTE if page.start is None else -(-page.start // MINUTE) * MINUTE
        published = self._state.candles[Instrument("binance", self._market, params["symbol"])]
        starts = range(first, last + 1, MINUTE)[: page.limit]
        return [binance_row(candle) for candle in candles(page.tape, starts, page.now, published)]

    def _prints(self, page: _Page) -> list[Print]:
        """USD-M omits prints that are not market trades, so a page may skip ids."""
        if page.from_id is not None:
            rows = page.tape.prints_from(page.from_id, page.now)
            return list(islice((row for row in rows if row.kind in MARKET_PRINTS), page.limit))
        rows = page.tape.newest_prints(page.limit + 10, page.now)
        return [row for row in rows if row.kind in MARKET_PRINTS][-page.limit :]

    def _aggregates(self, page: _Page) -> list[Aggregate]:
        tape, now = page.tape, page.now
        pushed = isinstance(tape, PushedTape)
        oldest = now - _LINEAR_HISTORY_MS if self._market == "linear" and not pushed else 0
        rows: Iterator[Aggregate]
        if page.from_id is not None:
            rows = tape.aggregates_from(page.from_id, now)
            first = next(rows, None)
            rows = iter(()) if first is None else tape.aggregates(oldest, now) if first.time < oldest else chain((first,), rows)
        elif page.start is not None:
            self._check_span(page.start, page.end)
            start, last = max(page.start, oldest), now if page.end is None else page.end
            rows = takewhile(lambda row: row.time <= last, (row for row in tape.aggregates(start, now) if row.time >= start))
        else:
            # The window of an aggregate with the time `endTime` has ended this much later.
            end = now if page.end is None or pushed else min(now, page.end + _AGGREGATED_MS[self._market])
            rows = (row for row in tape.newest_aggregates(page.limit, end) if row.time >= oldest)
        return list(islice(rows, page.limit))

    def _check_span(self, start: int, end: int | None) -> None:
        if end is not None and start > end:
            raise _RefusedError(-1127, "startTime must not be after endTime.")
        if end is not None and self._market == "linear" and end - start >= HOUR:
            raise _RefusedError(-1127, "More than 1 hours between startTime and endTime.")

    def _trade_row(self, row: Print) -> dict[str, object]:
        price, quantity = Decimal(row.price), Decimal(row.quantity)
        places = Decimal(1).scaleb(-8) if self._market == "spot" else Decimal(row.price)
        common: dict[str, object] = {
            "id": row.number,
            "price": row.price,
            "qty": row.quantity,
            "quoteQty": f"{(price * quantity).quantize(places):f}",
        }
        common |= {"time": row.time, "isBuyerMaker": not row.buy}
        return common | ({"isBestMatch": row.best} if self._market == "spot" else {"isRPITrade": row.kind == "RPI"})

    def _aggregate_row(self, row: Aggregate) -> dict[str, object]:
        common: dict[str, object] = {"a": row.number, "p": row.price, "q": row.quantity}
        if self._market == "linear":
            common["nq"] = row.plain
        common |= {"f": row.first, "l": row.last, "T": row.time, "m": not row.buy}
        return common | ({"M": True} if self._market == "spot" else {})

    def _exchange_info(self, params: Mapping[str, str]) -> dict[str, object]:
        listed = self._state.listed("binance", self._market)
        wanted = list(listed)
        if self._market == "spot" and ("symbol" in params or "symbols" in params):
            wanted = [params["symbol"]] if "symbol" in params else re.findall(r'"([^"]*)"', params["symbols"])
            if not wanted or any(symbol not in listed for symbol in wanted):
                raise _RefusedError(-1121, "Invalid symbol.")
        limits = {"rateLimitType": "REQUEST_WEIGHT", "interval": "MINUTE", "intervalNum": 1, "limit": _WEIGHT_PER_MINUTE[self._market]}
        return {
            "timezone": "UTC",
            "serverTime": self._state.clock(),
            "rateLimits": [limits],
            "exchangeFilters": [],
            "symbols": [self._listing(symbol, listed[symbol] or "TRADING") for symbol in wanted],
        }

    def _listing(self, symbol: str, status: str) -> dict[str, object]:
        steps = self._state.steps_of(Instrument("binance", self._market, symbol))
        base, quote = assets_of(symbol)
        filters = [
            {"filterType": "PRICE_FILTER", "minPrice": steps.tick_text, "maxPrice": steps.price(10**9), "tickSize": steps.tick_text},
            {"filterType": "LOT_SIZE", "minQty": steps.lot_text, "maxQty": steps.quantity(10**9), "stepSize": steps.lot_text},
        ]
        common: dict[str, object] = {"symbol": symbol, "status": status, "baseAsset": base, "quoteAsset": quote}
        if self._market == "spot":
            common |= {"baseAssetPrecision": 8, "quotePrecision": 8, "quoteAssetPrecision": 8, "isSpotTradingAllowed": True}
        else:
            common |= {"pair": symbol, "contractType": "PERPETUAL", "marginAsset": quote, "pricePrecision": 2, "quantityPrecision": 3}
        return common | {"filters": filters}


def _number(params: Mapping[str, str], name: str) -> int | None:
    text = params.get(name)
    if text is None:
        return None
    if not text:
        raise _RefusedError(-1105, f"Parameter '{name}' was empty.")
    if _NUMBER.fullmatch(text) is None:
        raise _RefusedError(-1100, f"Illegal characters found in parameter '{name}'; legal range is '^[0-9]{{1,20}}$'.")
    return int(text)
