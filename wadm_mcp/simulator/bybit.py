"""Loopback Bybit v5 public WebSockets, spot and linear on one host (docs/exchanges.md 3). REST is in `bybit_rest`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final
from uuid import UUID, uuid5
from zlib import crc32

import anyio
import msgspec
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed

from wadm_mcp.model import Instrument
from wadm_mcp.simulator.bybit_rest import BybitRest
from wadm_mcp.simulator.client import Client
from wadm_mcp.simulator.faults import Reply
from wadm_mcp.simulator.listings import PRICES
from wadm_mcp.simulator.market import EPOCH, Fill
from wadm_mcp.simulator.state import Batch, Frame, Route, SimulatorState
from wadm_mcp.simulator.tape import Print
from wadm_mcp.simulator.venue import Venue

TRADES_PER_MESSAGE: Final = 1_024
SPOT_ARGS: Final = 10

_NAMESPACE: Final = UUID("5d0bc6ab-6df4-5b7a-8d6a-3a0a9e4f2c11")
_SPOT_BASE: Final = 2_290_000_000_000_000_000
_SEQ_BASE: Final = {"spot": 0, "linear": 1 << 44}
_SEQ_PER_MS: Final = 32
"""The cross sequence grows by about 32,000 a second (docs/exchanges.md 3.2)."""

_SLOTS: Final = {symbol: slot for slot, symbol in enumerate(PRICES)}
_OTHER_TOPICS: Final = ("orderbook", "tickers", "kline", "allLiquidation")


def spot_ids(symbol: str, fill: Fill) -> tuple[str, int]:
    """Id and seq of a spot fill: a 19-digit number shared by all symbols, a function of time, symbol and rank."""
    slot = _SLOTS.get(symbol, len(_SLOTS) + crc32(symbol.encode()) % 90)
    return str(_SPOT_BASE + (fill.time - EPOCH) * 100_000 + slot * 1_000 + fill.rank), _seq("spot", fill)


def linear_ids(symbol: str, fill: Fill) -> tuple[str, int]:
    """Id and seq of a linear fill: a version-5 UUID of symbol and fill number."""
    return str(uuid5(_NAMESPACE, f"{symbol}:{fill.id}")), _seq("linear", fill)


def pushed_ids(market: str, symbol: str, number: int) -> tuple[str, int]:
    """Id and seq of a trade that a test pushes; `number` counts all symbols of the market."""
    trade_id = str(_SPOT_BASE + number) if market == "spot" else str(uuid5(_NAMESPACE, f"{symbol}:pushed:{number}"))
    return trade_id, _SEQ_BASE[market] + number * 7


class Bybit(Venue):
    """The public stream host: `/v5/public/spot` and `/v5/public/linear`."""

    exchange = "bybit"
    markets = ("spot", "linear")

    def __init__(self, state: SimulatorState) -> None:
        super().__init__(state)
        self._rest = BybitRest(state)

    def rest(self, path: str, params: Mapping[str, str], headers: Headers) -> Reply:
        return self._rest.answer(path, params)

    def route(self, path: str, query: Mapping[str, str]) -> Route | None:
        return next((Route(market) for market in self.markets if path == f"/v5/public/{market}"), None)

    def instrument_of(self, market: str, topic: str) -> Instrument | None:
        kind, _, symbol = topic.partition(".")
        return Instrument(self.exchange, market, symbol) if kind == "publicTrade" else None

    async def heartbeat(self, client: Client) -> None:
        """Closes a connection on which nothing was received or sent for too long."""
        idle = self.state.timing.bybit_idle
        try:
            deadline = client.last_used + idle
            while deadline > anyio.current_time():
                await anyio.sleep_until(deadline)
                deadline = client.last_used + idle
            await client.close(1001, "idle")
        except ConnectionClosed:
            return

    async def receive(self, client: Client, message: bytes) -> None:
        try:
            request = msgspec.json.decode(message)
        except (msgspec.DecodeError, UnicodeDecodeError):
            request = None
        client.offer(_text(self._answer(client, request if isinstance(request, dict) else {})))

    def _answer(self, client: Client, request: dict[Any, Any]) -> dict[str, object]:
        op, args, number = request.get("op"), request.get("args"), request.get("req_id")
        number = number if isinstance(number, str) else ""
        if op == "ping":
            return self._pong(client, number)
        if op not in ("subscribe", "unsubscribe"):
            return self._refusal(client, "error:invalid op", number, op if isinstance(op, str) else "")
        if not isinstance(args, list) or not args or not all(isinstance(arg, str) for arg in args):
            return self._refusal(client, "error:request args is empty", number, op)
        spot = client.route.market == "spot"
        if spot and len(args) > SPOT_ARGS:
            return self._refusal(client, f"args size >{SPOT_ARGS}", number, op)
        if op == "unsubscribe":
            for topic in args:
                self.remove_topic(client, topic)
        elif (refused := self._refused(client, args)) is not None:
            return self._refusal(client, refused, number, op)
        else:
            for topic in args:
                self.add_topic(client, topic)
        return {"success": True, "ret_msg": op if spot else "", "conn_id": _conn_id(client), "req_id": number, "op": op}

    def _refused(self, client: Client, topics: Sequence[str]) -> str | None:
        """Why a request is refused: a single topic that is unknown or already subscribed fails the whole request."""
        seen: set[str] = set()
        for topic in topics:
            if not self._is_topic(client.route.market, topic):
                return f"error:handler not found,topic:{topic}"
            if topic in client.topics or topic in seen:
                return f"error:already subscribed,topic:{topic}"
            seen.add(topic)
        return None

    def _is_topic(self, market: str, topic: str) -> bool:
        kind, _, rest = topic.partition(".")
        symbol = rest.rpartition(".")[2]
        instrument = Instrument(self.exchange, market, symbol)
        known = instrument in self.state.tapes and self.state.statuses.get(instrument) != ""
        return known and (rest == symbol if kind == "publicTrade" else kind in _OTHER_TOPICS)

    def _pong(self, client: Client, number: str) -> dict[str, object]:
        pong: dict[str, object] = {"success": True, "ret_msg": "pong", "conn_id": _conn_id(client)}
        if client.route.market == "linear":
            pong["req_id"] = number
        return pong | {"op": "ping"}

    def _refusal(self, client: Client, message: str, number: str, op: str) -> dict[str, object]:
        return {"success": False, "ret_msg": message, "conn_id": _conn_id(client), "req_id": number, "op": op}

    def frames(self, instrument: Instrument, batch: Batch, event_time: int | None) -> Iterator[Frame]:
        """Up to 1,024 trades a message; a longer burst is sent as several messages at once."""
        topic = f"publicTrade.{instrument.symbol}"
        for first in range(0, len(batch.prints), TRADES_PER_MESSAGE):
            rows = batch.prints[first : first + TRADES_PER_MESSAGE]
            sent = max(rows[-1].time, event_time or 0)
            yield Frame(topic, len(rows), partial(_message, instrument, topic, rows, sent))


def _message(instrument: Instrument, topic: str, rows: Sequence[Print], sent: int, _combined: bool) -> str:
    write = _spot_row if instrument.market == "spot" else _linear_row
    data = ",".join(write(instrument.symbol, row) for row in rows)
    return f'{{"topic":"{topic}","type":"snapshot","ts":{sent},"data":[{data}]}}'


def _spot_row(symbol: str, row: Print) -> str:
    return (
        f'{{"i":"{row.trade_id}","T":{row.time},"p":"{row.price}","v":"{row.quantity}","S":"{_side(row)}","s":"{symbol}",'
        f'"BT":false,"RPI":false,"seq":{row.seq}}}'
    )


def _linear_row(symbol: str, row: Print) -> str:
    tick = "PlusTick" if row.buy else "MinusTick"
    return (
        f'{{"T":{row.time},"s":"{symbol}","S":"{_side(row)}","v":"{row.quantity}","p":"{row.price}","L":"{tick}",'
        f'"i":"{row.trade_id}","BT":false,"RPI":false,"seq":{row.seq}}}'
    )


def _side(row: Print) -> str:
    return "Buy" if row.buy else "Sell"


def _seq(market: str, fill: Fill) -> int:
    return _SEQ_BASE[market] + (fill.time - EPOCH) * _SEQ_PER_MS + min(fill.order, _SEQ_PER_MS - 1)


def _conn_id(client: Client) -> str:
    return str(client.connection.id)


def _text(answer: dict[str, object]) -> str:
    # Bybit's encoder escapes `>` (docs/exchanges.md 3.3).
    return msgspec.json.encode(answer).decode().replace(">", "\\u003e")
