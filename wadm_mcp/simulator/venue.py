"""The common part of the loopback exchanges: a server for WebSocket and REST on one port, and the subscriptions.

A venue serves both protocols of one host on one port of 127.0.0.1. It uses the server of the `websockets` library without its keepalive,
because each exchange has heartbeats of its own. A client that does not read fills its queue and is dropped; other clients do not wait.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any, Final, Literal
from urllib.parse import parse_qsl, unquote, urlsplit

import anyio
import msgspec
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.datastructures import Headers
from websockets.http11 import Request, Response

from wadm_mcp.model import Instrument
from wadm_mcp.simulator.archives import Archives
from wadm_mcp.simulator.client import Client, Connection
from wadm_mcp.simulator.faults import Reply
from wadm_mcp.simulator.state import Batch, Frame, Route, SimulatorState

_LOGGER: Final = logging.getLogger("wadm_mcp.simulator.websockets")
_LOGGER.setLevel(logging.WARNING)


class Venue:
    """A host of a loopback exchange. Subclasses implement the exchange's protocol; this class serves it.

    `listen` binds a port and serves; `publish` sends rows to their subscribers.
    """

    exchange: str
    markets: tuple[str, ...]
    messages_per_second: int = 0
    """Most frames a second from a client; a connection that exceeds it is closed. 0 for no limit."""

    def __init__(self, state: SimulatorState) -> None:
        self.state = state
        self.port = 0
        self.connections = 0
        """Number of connections so far; each connection has its number."""
        self.clients: set[Client] = set()
        self.muted: set[str] = set()
        self.archives = Archives(state, self.exchange)
        self._listeners: dict[tuple[str, str], dict[Client, None]] = {}
        self._following: Counter[Instrument] = Counter()
        self._followed: dict[Instrument, anyio.Event] = {}
        self._connections: set[ServerConnection] = set()

    # The exchange's protocol, implemented by subclasses.

    def route(self, path: str, query: Mapping[str, str]) -> Route | None:
        """What a WebSocket URL selects; None for an unknown URL (404)."""
        raise NotImplementedError

    async def receive(self, client: Client, message: bytes) -> None:
        """Answers one message of a client."""
        raise NotImplementedError

    async def heartbeat(self, client: Client) -> None:
        """Sends and expects heartbeats as the exchange does; returns when it closes the connection, and is cancelled with it."""
        raise NotImplementedError

    def instrument_of(self, market: str, topic: str) -> Instrument | None:
        """The instrument whose trades a topic carries; None for other topics."""
        raise NotImplementedError

    def ledger(self, market: str) -> Literal["prints", "aggregates"]:
        """Which rows of the market a collector records: those are counted in `sent` and can be skipped."""
        return "prints"

    def frames(self, instrument: Instrument, batch: Batch, event_time: int | None) -> Iterator[Frame]:
        """The frames of a batch, in order. Without an event time a frame is sent 1 ms after its last trade."""
        raise NotImplementedError

    def rest(self, path: str, params: Mapping[str, str], headers: Headers) -> Reply:
        """Answers a REST request."""
        raise NotImplementedError

    # Subscriptions.

    def add_topic(self, client: Client, topic: str, *, silent: bool = False) -> None:
        """Subscribes a client; with `silent` nothing is delivered, as for topics that the exchange acknowledges but never sends."""
        if topic in client.topics:
            return
        client.topics[topic] = None
        instrument = self.instrument_of(client.route.market, topic)
        if silent or instrument is None or instrument not in self.state.tapes:
            return
        self._listeners.setdefault((client.route.market, topic), {})[client] = None
        self._following[instrument] += 1
        self._event(instrument).set()

    def remove_topic(self, client: Client, topic: str) -> None:
        """Ends a subscription; does nothing if there is none."""
        if topic not in client.topics:
            return
        del client.topics[topic]
        key = (client.route.market, topic)
        listeners = self._listeners.get(key, {})
        instrument = self.instrument_of(*key)
        if client not in listeners or instrument is None:
            return
        del listeners[client]
        if not listeners:
            del self._listeners[key]
        self._following[instrument] -= 1
        if not self._following[instrument]:
            del self._following[instrument]
            del self._followed[instrument]

    def stall(self, instrument: Instrument) -> None:
        """Deliver nothing more to the present subscribers of an instrument, whose subscriptions seem to stay."""
        for market, topic in [key for key in self._listeners if self.instrument_of(*key) == instrument]:
            for client in list(self._listeners[market, topic]):
                self.remove_topic(client, topic)
                client.topics[topic] = None

    def following(self) -> list[Instrument]:
        """Instruments that a client is subscribed to."""
        return list(self._following)

    async def followed(self, instrument: Instrument) -> None:
        """Returns when a client is subscribed to the instrument's trades."""
        await self._event(instrument).wait()

    def _event(self, instrument: Instrument) -> anyio.Event:
        return self._followed.setdefault(instrument, anyio.Event())

    # Publishing.

    async def publish(self, instrument: Instrument, batch: Batch, *, event_time: int | None = None, timeout_seconds: float = 0) -> None:
        """Sends rows to their subscribers. With `timeout_seconds` it waits for room in their queues; else a full client is dropped."""
        rows = self.ledger(instrument.market)
        skipped = min(self.state.skips[instrument], len(getattr(batch, rows)))
        if skipped:
            self.state.skips[instrument] -= skipped
            batch = batch._replace(**{rows: getattr(batch, rows)[skipped:]})
        if instrument.market in self.muted:
            return
        for frame in self.frames(instrument, batch, event_time):
            texts: dict[bool, str] = {}
            reached = False
            for client in list(self._listeners.get((instrument.market, frame.topic), ())):
                text = texts.get(client.combined) or texts.setdefault(client.combined, frame.text(client.combined))
                taken = await client.wait_to_offer(text, timeout_seconds) if timeout_seconds else client.offer(text)
                reached = reached or taken
            if reached:
                self.state.sent[instrument] += frame.counted

    def members(self, market: str) -> list[Client]:
        """Open connections of a market."""
        return [client for client in self.clients if client.route.market == market]

    # Sockets.

    @asynccontextmanager
    async def listen(self) -> AsyncGenerator[None]:
        """Serves on a free port until the block ends, then drops all connections."""
        server = await serve(
            self._handle,
            "127.0.0.1",
            0,
            process_request=self._request,
            create_connection=self._connection_type(),
            compression=None,
            ping_interval=None,
            ping_timeout=None,
            close_timeout=1,
            # A file of an archive is generated while its client waits.
            open_timeout=60,
            server_header=None,
            logger=_LOGGER,
        )
        self.port = next(iter(server.sockets)).getsockname()[1]
        try:
            yield
        finally:
            with anyio.CancelScope(shield=True):
                await self._close(server)

    async def _close(self, server: Server) -> None:
        for connection in list(self._connections):
            connection.transport.abort()
        server.close(close_connections=False)
        await server.wait_closed()

    def _connection_type(self) -> type[ServerConnection]:
        venue = self

        class Counted(Connection):
            def connection_made(self, transport: Any) -> None:
                self.allow(venue.messages_per_second)
                venue._connections.add(self)
                super().connection_made(transport)

            def connection_lost(self, exc: Exception | None) -> None:
                venue._connections.discard(self)
                super().connection_lost(exc)

        return Counted

    async def _request(self, connection: ServerConnection, request: Request) -> Response | None:
        url = urlsplit(request.path)
        path, query = unquote(url.path), dict(parse_qsl(url.query, keep_blank_values=True))
        if request.headers.get("Upgrade", "").lower() != "websocket":
            refused = await self.state.faults.requested(self.exchange, path, query)
            if refused is not None:
                return _response(refused)
            file = await self.archives.answer(path, request.headers)
            if file is not None:
                return _response(await self.state.faults.archived(self.exchange, path, file))
            return _response(self.state.faults.answered(self.exchange, path, query, self.rest(path, query, request.headers)))
        refusal = await self.state.faults.connecting(self.exchange, path)
        if refusal is None and self.route(path, query) is None:
            refusal = Reply(404, {})
        return None if refusal is None else _response(refusal)

    async def _handle(self, connection: ServerConnection) -> None:
        assert connection.request is not None
        url = urlsplit(connection.request.path)
        route = self.route(unquote(url.path), dict(parse_qsl(url.query, keep_blank_values=True)))
        assert route is not None
        client = Client(connection, route, self)
        self.clients.add(client)
        try:
            for topic in route.topics:
                self.join(client, topic)
            await client.serve()
        finally:
            self.forget(client)

    def forget(self, client: Client) -> None:
        """Removes a connection and its subscriptions; does nothing if it is removed already."""
        self.clients.discard(client)
        for topic in list(client.topics):
            self.remove_topic(client, topic)

    def join(self, client: Client, topic: str) -> None:
        """Subscribes a client to a stream that is named in its URL."""
        self.add_topic(client, topic)


def _response(reply: Reply) -> Response:
    plain = isinstance(reply.body, bytes)
    body = reply.body if isinstance(reply.body, bytes) else msgspec.json.encode(reply.body)
    headers = Headers(reply.headers)
    if "Content-Type" not in headers:
        headers["Content-Type"] = "application/octet-stream" if plain else "application/json;charset=UTF-8"
    if "Content-Length" not in headers:
        headers["Content-Length"] = str(len(body))
    headers["Connection"] = "close"
    return Response(reply.status, HTTPStatus(reply.status).phrase, headers, body)
