"""Loopback Binance WebSockets, spot and USD-M (docs/exchanges.md 1 and 2). REST is in `binance_rest`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Final, Literal

import anyio
import msgspec
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed

from wadm_mcp.model import Instrument
from wadm_mcp.simulator.binance_rest import BinanceRest
from wadm_mcp.simulator.client import Client
from wadm_mcp.simulator.faults import Reply
from wadm_mcp.simulator.state import Batch, Frame, Route, SimulatorState
from wadm_mcp.simulator.tape import Aggregate, Print
from wadm_mcp.simulator.venue import Venue

MAX_STREAMS: Final = 1_024
"""Most streams of one connection (docs/exchanges.md 1.4)."""

_MAX_FRAME_BYTES: Final = 4_096
"""A larger frame from a client is ignored without an error (docs/exchanges.md 1.3)."""

_PUBLIC_STREAMS: Final = re.compile(r".+@(trade|bookTicker|depth.*|rpiDepth@500ms)")
"""USD-M streams of `/public`, and of URLs without a route; all others belong to `/market` (docs/exchanges.md 2.1)."""

_METHODS: Final = ("SUBSCRIBE", "UNSUBSCRIBE", "LIST_SUBSCRIPTIONS", "SET_PROPERTY", "GET_PROPERTY")
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9]{0,36}")


class BinanceVenue(Venue):
    """The common part of both Binance hosts: control messages, heartbeats, raw and combined streams."""

    exchange = "binance"

    def __init__(self, state: SimulatorState) -> None:
        super().__init__(state)
        (self.market,) = self.markets
        self._rest = BinanceRest(state, self.market)
        timing = state.timing
        spot = self.market == "spot"
        self._ping = timing.binance_spot_ping if spot else timing.binance_linear_ping
        self._pong = timing.binance_spot_pong if spot else timing.binance_linear_pong

    def rest(self, path: str, params: Mapping[str, str], headers: Headers) -> Reply:
        return self._rest.answer(path, params, headers)

    def instrument_of(self, market: str, topic: str) -> Instrument | None:
        """Stream names have lower-case symbols; a name in upper case is a different stream, which never delivers."""
        symbol, _, stream = topic.partition("@")
        return Instrument(self.exchange, market, symbol.upper()) if stream in ("trade", "aggTrade") and symbol == symbol.lower() else None

    def _named(self, path: str, query: Mapping[str, str], name: str) -> Route | None:
        if path == "/stream":
            streams = [stream for stream in query.get("streams", "").split("/") if stream]
            return Route(self.market, name, combined=True, topics=streams[:MAX_STREAMS])
        if path == "/ws" or path.startswith("/ws/"):
            return Route(self.market, name, topics=[stream for stream in path.split("/")[2:] if stream][:MAX_STREAMS])
        return None

    def join(self, client: Client, topic: str) -> None:
        self.add_topic(client, topic, silent=self._off_route(client.route, topic))

    def _off_route(self, route: Route, topic: str) -> bool:
        return False

    async def heartbeat(self, client: Client) -> None:
        """Pings with the time as payload. Closes the connection if a pong is missing, and at its maximum age."""
        connection, reason = client.connection, "Pong timeout"
        try:
            with anyio.move_on_after(self.state.timing.binance_lifetime) as lifetime:
                while True:
                    await anyio.sleep(self._ping)
                    pong = await connection.ping(str(self.state.clock()))
                    with anyio.move_on_after(self._pong) as wait:
                        await pong
                    if wait.cancelled_caught:
                        break
            if lifetime.cancelled_caught:
                reason = "Connection reached its maximum age"
            await client.close(1008, reason)
        except ConnectionClosed:
            return

    async def receive(self, client: Client, message: bytes) -> None:
        if len(message) > _MAX_FRAME_BYTES:
            return
        try:
            request = msgspec.json.decode(message)
        except (msgspec.DecodeError, UnicodeDecodeError):
            client.offer(_text({"code": 3, "msg": "Invalid JSON: expected value at line 1 column 1"}))
            return
        client.offer(_text(self._answer(client, request)))

    def _answer(self, client: Client, request: Any) -> dict[str, object]:
        if not isinstance(request, dict) or "method" not in request:
            return {"code": 2, "msg": "Invalid request: missing field `method` at line 1 column 1"}
        method, params, number = request["method"], request.get("params", []), request.get("id")
        if not _is_request_id(number):
            return {"code": 2, "msg": "Invalid request: request ID must be an unsigned integer"}
        if method not in _METHODS:
            return {"code": 2, "msg": f"Invalid request: unknown variant `{method}`, expected one of {', '.join(_METHODS)}"}
        if method == "LIST_SUBSCRIPTIONS":
            return {"result": list(client.topics), "id": number}
        if method in ("SUBSCRIBE", "UNSUBSCRIBE"):
            return self._subscribe(client, method == "SUBSCRIBE", params, number)
        return _property(client, method, params, number)

    def _subscribe(self, client: Client, subscribe: bool, params: Any, number: object) -> dict[str, object]:
        """Acknowledges any stream name, also unknown ones and those of another route."""
        if not isinstance(params, list) or not all(isinstance(name, str) and name for name in params):
            return {"error": {"code": 2, "msg": "Invalid request: invalid stream"}, "id": number}
        if subscribe and len(client.topics.keys() | set(params)) > MAX_STREAMS:
            return {"error": {"code": 4, "msg": "Too many subscriptions"}, "id": number}
        for name in params:
            if subscribe:
                self.join(client, name)
            else:
                self.remove_topic(client, name)
        return {"result": None, "id": number}


class BinanceSpot(BinanceVenue):
    """The spot host: `/ws` and `/stream`, one `@trade` frame per fill, and `@aggTrade`."""

    markets = ("spot",)
    messages_per_second = 5

    def route(self, path: str, query: Mapping[str, str]) -> Route | None:
        return self._named(path, query, "")

    def frames(self, instrument: Instrument, batch: Batch, event_time: int | None) -> Iterator[Frame]:
        symbol = instrument.symbol
        for one in batch.prints:
            topic = f"{symbol.lower()}@trade"
            yield Frame(topic, 1, _writer(topic, partial(_spot_trade, symbol, one, event_time or one.time + 1)))
        for whole in batch.aggregates:
            topic = f"{symbol.lower()}@aggTrade"
            yield Frame(topic, 0, _writer(topic, partial(_spot_aggregate, symbol, whole, event_time or whole.time + 1)))


class BinanceLinear(BinanceVenue):
    """The USD-M host with its routes: `@aggTrade` on `/market`, `@trade` on `/public` and on URLs without a route."""

    markets = ("linear",)
    messages_per_second = 10

    def route(self, path: str, query: Mapping[str, str]) -> Route | None:
        for name in ("public", "market"):
            if path.startswith(f"/{name}/"):
                return self._named(path.removeprefix(f"/{name}"), query, name)
        return self._named(path, query, "public")

    def ledger(self, market: str) -> Literal["prints", "aggregates"]:
        return "aggregates"

    def _off_route(self, route: Route, topic: str) -> bool:
        return (_PUBLIC_STREAMS.fullmatch(topic) is not None) != (route.name == "public")

    def frames(self, instrument: Instrument, batch: Batch, event_time: int | None) -> Iterator[Frame]:
        symbol = instrument.symbol
        for one in batch.prints:
            topic = f"{symbol.lower()}@trade"
            yield Frame(topic, 0, _writer(topic, partial(_linear_trade, symbol, one, event_time or one.time + 1)))
        for whole in batch.aggregates:
            topic = f"{symbol.lower()}@aggTrade"
            yield Frame(topic, 1, _writer(topic, partial(_linear_aggregate, symbol, whole, event_time or whole.time + 1)))


def _spot_trade(symbol: str, one: Print, event: int) -> str:
    return (
        f'{{"e":"trade","E":{event},"s":"{symbol}","t":{one.number},"p":"{one.price}","q":"{one.quantity}",'
        f'"T":{one.time},"m":{_json(not one.buy)},"M":{_json(one.best)}}}'
    )


def _spot_aggregate(symbol: str, whole: Aggregate, event: int) -> str:
    return (
        f'{{"e":"aggTrade","E":{event},"s":"{symbol}","a":{whole.number},"p":"{whole.price}","q":"{whole.quantity}",'
        f'"f":{whole.first},"l":{whole.last},"T":{whole.time},"m":{_json(not whole.buy)},"M":true}}'
    )


def _linear_trade(symbol: str, one: Print, event: int) -> str:
    return (
        f'{{"e":"trade","E":{event},"T":{one.time},"s":"{symbol}","t":{one.number},"p":"{one.price}","q":"{one.quantity}",'
        f'"X":"{one.kind}","m":{_json(not one.buy)},"st":1}}'
    )


def _linear_aggregate(symbol: str, whole: Aggregate, event: int) -> str:
    return (
        f'{{"e":"aggTrade","E":{event},"s":"{symbol}","a":{whole.number},"p":"{whole.price}","q":"{whole.quantity}","nq":"{whole.plain}",'
        f'"f":{whole.first},"l":{whole.last},"T":{whole.time},"m":{_json(not whole.buy)},"st":1}}'
    )


def _writer(topic: str, event: Callable[[], str]) -> Callable[[bool], str]:
    return lambda combined: f'{{"stream":"{topic}","data":{event()}}}' if combined else event()


def _property(client: Client, method: str, params: Any, number: object) -> dict[str, object]:
    if not isinstance(params, list) or not params or params[0] != "combined":
        return {"code": 0, "msg": "Unknown property", "id": number}
    if method == "GET_PROPERTY":
        return {"result": client.combined, "id": number}
    if len(params) != 2 or not isinstance(params[1], bool):
        return {"code": 1, "msg": "Invalid value type: expected Boolean", "id": number}
    client.combined = params[1]
    return {"result": None, "id": number}


def _is_request_id(value: object) -> bool:
    if isinstance(value, str):
        return _REQUEST_ID.fullmatch(value) is not None
    return value is None or (isinstance(value, int) and not isinstance(value, bool) and -(1 << 63) <= value < 1 << 63)


def _json(value: bool) -> str:
    return "true" if value else "false"


def _text(answer: dict[str, object]) -> str:
    return msgspec.json.encode(answer).decode()
