"""One connection's life, again and again: connect, subscribe, prove life, reconnect.

A collector follows some instruments of one market over one socket. It never gives up. A connection that is about to reach the
exchange's age limit, or whose end the exchange announces, is relieved: the new one delivers before the old one goes.
Acknowledgements prove nothing: USD-M acknowledges a stream on the wrong route and stays silent (docs/exchanges.md 2.1). Only frames do.
"""

from __future__ import annotations

import random
import re
import ssl
from collections.abc import Iterable, Iterator, Sequence
from itertools import count
from typing import Any, Final, Protocol
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import anyio
from anyio.lowlevel import checkpoint
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, PayloadTooBig, WebSocketException

from wadm_mcp.clock import Clock
from wadm_mcp.collection.live.frame_socket import FrameSocket
from wadm_mcp.collection.live.staleness import StaleDetector
from wadm_mcp.errors import FrameError
from wadm_mcp.exchanges.exchange import Pong, Refused, ShuttingDown, Trades, Venue
from wadm_mcp.health import Health, State
from wadm_mcp.logs import RateLimitedWarning, log
from wadm_mcp.model import GapReason, Instrument, Listing
from wadm_mcp.settings import is_loopback

_FRAME_LIMIT: Final = 4 * 1024 * 1024
"""Bytes of the largest frame that is read; the largest lawful one (1,024 Bybit trades) is near 300 kB."""
_SHORTEST_PAUSE: Final = 0.5
_LONGEST_PAUSE: Final = 60.0
_HEALTHY_AFTER: Final = 60.0
"""Seconds of deliveries after which a connection that ends is met with the shortest pause again."""
_RELIEF_WITHIN: Final = 60.0
"""Seconds that a fresh connection gets to deliver every instrument before it relieves the old one anyway."""
_LIFETIME_USED: Final = 0.97
_NEXT_ADDRESS_AFTER: Final = 0.25
"""Seconds before a host's next address is tried beside one that does not answer (RFC 8305): half of a host's network may be dead."""
_HELD_UP: Final = 1.0
"""Seconds in the sink after which frames that came in meanwhile were not looked for."""
_numbers: Iterator[int] = count(1)


class Sink(Protocol):
    """Where trades go: the recorder."""

    def connected(self, connection: int) -> None: ...

    async def take(self, connection: int, *messages: Trades) -> None: ...

    def frame_unreadable(self, connection: int, instruments: Iterable[Instrument]) -> None: ...

    def connection_lost(self, connection: int, instruments: Sequence[Instrument], reason: GapReason, detail: str) -> None: ...

    def staleness(self, instrument: Instrument) -> StaleDetector: ...


class Collector:
    """Keeps one subscription set of a market delivering into the sink until cancelled."""

    def __init__(
        self,
        venue: Venue,
        listings: Sequence[Listing],
        sink: Sink,
        health: Health,
        clock: Clock,
        certificates: ssl.SSLContext | None = None,
    ) -> None:
        self.venue = venue
        self.listings = listings
        self.url = venue.socket_url + venue.exchange.stream_path(venue.market)
        self.sink = sink
        self.health = health
        self.clock = clock
        self.limits = venue.exchange.limits(venue.market)
        self.certificates = certificates
        """Whom TLS trusts; None for what Python trusts by itself."""
        self.bad_frame = RateLimitedWarning("frame.bad", clock.monotonic)
        """Outlives the connections: one that sends rubbish may be met by another that does."""

    async def run(self) -> None:
        """Connect, and connect again whenever the connection ends or is to be relieved."""
        pause = _SHORTEST_PAUSE
        async with anyio.create_task_group() as tasks:
            connection = Connection(self)
            tasks.start_soon(connection.run)
            while True:
                await connection.attention.wait()
                if connection.ended:
                    pause = _SHORTEST_PAUSE if connection.was_healthy else pause
                    await anyio.sleep(pause * random.uniform(0.5, 1.0))
                    pause = min(_LONGEST_PAUSE, pause * 2)
                    connection = Connection(self)
                    tasks.start_soon(connection.run)
                    continue
                fresh = Connection(self)
                tasks.start_soon(fresh.run)
                with anyio.move_on_after(_RELIEF_WITHIN):
                    await fresh.delivering.wait()
                if not fresh.ended:
                    pause = _SHORTEST_PAUSE
                    log.info("connection.relieved", **self.venue.log_fields, old=connection.number, new=fresh.number)
                    connection.close()
                    connection = fresh
                else:
                    await anyio.sleep(pause * random.uniform(0.5, 1.0))
                    pause = min(_LONGEST_PAUSE, pause * 2)


class Connection:
    """One socket: from the handshake to its end. `run` returns when it is over and reports whatever ended it."""

    def __init__(self, collector: Collector) -> None:
        self._collector = collector
        self._instruments = {listing.instrument: listing for listing in collector.listings}
        self._heard: dict[Instrument, float] = {}
        self._refused: set[Instrument] = set()
        self._singly = anyio.Event()
        self._asked_singly = False
        self._pinged_at: float | None = None
        self._began = self._read_since = collector.clock.monotonic()
        """Since the latter the socket is read; silence before it may be that of a sink that had no room."""
        self._handing_on = False
        self._scope = anyio.CancelScope()
        self._end: tuple[GapReason, str] | None = None
        self.number = next(_numbers)
        self.attention = anyio.Event()
        """Set when the connection ended, or wants to be relieved."""
        self.delivering = anyio.Event()
        """Set when every instrument has delivered, or the connection ended."""
        self.ended = False

    @property
    def was_healthy(self) -> bool:
        """Did it deliver for long enough that its end is an accident and not a habit?"""
        return bool(self._heard) and self._collector.clock.monotonic() - self._began >= _HEALTHY_AFTER

    def close(self) -> None:
        """End the connection; what it covered is covered by its relief."""
        self._give_up(GapReason.DISCONNECT, "relieved")

    async def run(self) -> None:
        """Live until the exchange, the network, a watchdog or `close` ends it. Only cancellation and bugs are raised."""
        reason, detail = GapReason.DISCONNECT, "the process stops"
        try:
            with self._scope:
                detail = await self._live()
        finally:
            if self._end is not None:
                reason, detail = self._end
            self.ended = True
            self._collector.sink.connection_lost(self.number, list(self._instruments), reason, detail)
            self.attention.set()
            self.delivering.set()
        log.info("connection.ended", **self._collector.venue.log_fields, connection=self.number, why=detail)

    async def _live(self) -> str:
        """What ended the connection, in a few words."""
        collector = self._collector
        try:
            socket = await connect(
                collector.url,
                compression=None,
                ping_interval=None,
                open_timeout=10,
                close_timeout=1,
                max_size=_FRAME_LIMIT,
                create_connection=FrameSocket,
                **_network(collector.url, collector.certificates),
            )
        except TimeoutError:
            return f"{collector.url} did not answer the handshake within 10 s"
        except (OSError, WebSocketException) as error:
            return f"cannot connect to {collector.url}: {error}"
        assert isinstance(socket, FrameSocket)
        try:
            collector.sink.connected(self.number)
            for instrument in self._instruments:
                collector.sink.staleness(instrument).connected(collector.clock.monotonic())
            detail = ""
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._talk, socket)
                tasks.start_soon(self._watch, socket)
                tasks.start_soon(socket.batch_reads)
                detail = await self._receive(socket)
                tasks.cancel_scope.cancel()
            return detail
        finally:
            with anyio.move_on_after(2, shield=True):
                await socket.close()

    async def _receive(self, socket: FrameSocket) -> str:
        """Hand every frame on until the connection closes; why it did."""
        decoder = self._collector.venue.exchange.decoder(self._collector.venue.market, list(self._instruments.values()))
        while True:
            try:
                frames = await socket.frames()
            except ConnectionClosed as closed:
                if isinstance(closed.__cause__, PayloadTooBig):
                    self._collector.health.count("frames.oversized")
                    return f"a frame of more than {_FRAME_LIMIT:,} bytes came in"
                code = closed.rcvd.code if closed.rcvd is not None else 1006
                return f"the connection closed with code {code}"
            trades: list[Trades] = []
            for frame in frames:
                try:
                    message = decoder.decode(frame)
                except FrameError as error:
                    # What came before it is vouched for, what comes after it begins anew.
                    await self._hand_on(trades)
                    trades = []
                    self._bad_frame(error)
                    continue
                if type(message) is Trades:
                    trades.append(message)
                elif isinstance(message, Pong):
                    self._pinged_at = None
                elif isinstance(message, Refused):
                    self._refused_request(message)
                elif isinstance(message, ShuttingDown):
                    self.attention.set()
            await self._hand_on(trades)
            # A full socket never waits, and other tasks have their turn too.
            await checkpoint()

    async def _hand_on(self, trades: Sequence[Trades]) -> None:
        if not trades:
            return
        now = self._collector.clock.monotonic()
        for instrument in {message.instrument for message in trades}:
            if instrument not in self._heard:
                self._first_frame(instrument)
            self._heard[instrument] = now
        self._handing_on = True
        await self._collector.sink.take(self.number, *trades)
        self._handing_on = False
        over = self._collector.clock.monotonic()
        if over - now > _HELD_UP:
            self._read_since = over

    async def _talk(self, socket: FrameSocket) -> None:
        """Subscribe in chunks, then keep the heart beating, all within the exchange's message rate."""
        collector, venue, limits = self._collector, self._collector.venue, self._collector.limits
        symbols = [instrument.symbol for instrument in self._instruments]
        request = count(1)
        try:
            for first in range(0, len(symbols), limits.names_per_request):
                names = symbols[first : first + limits.names_per_request]
                await socket.send(venue.exchange.subscribe(venue.market, names, next(request)))
                await anyio.sleep(1 / limits.requests_per_second)
            while True:
                with anyio.move_on_after(limits.ping_every):
                    await self._singly.wait()
                if self._singly.is_set():
                    self._singly = anyio.Event()
                    for instrument in [each for each in self._instruments if each not in self._heard]:
                        await socket.send(venue.exchange.subscribe(venue.market, [instrument.symbol], next(request)))
                        await anyio.sleep(1 / limits.requests_per_second)
                elif limits.ping_every is not None:
                    self._pinged_at = self._pinged_at or collector.clock.monotonic()
                    await socket.send(venue.exchange.ping(next(request)))
        except ConnectionClosed:
            return

    async def _watch(self, socket: FrameSocket) -> None:
        """Take a mute connection for dead, and ask for relief before the exchange's age limit."""
        collector, limits = self._collector, self._collector.limits
        began = collector.clock.monotonic()
        retire = None if limits.lifetime is None else began + limits.lifetime * _LIFETIME_USED * random.uniform(0.98, 1.0)
        while True:
            await anyio.sleep(1.0)
            now = collector.clock.monotonic()
            if retire is not None and now >= retire:
                self.attention.set()
            read_since = now if self._handing_on else self._read_since
            if self._pinged_at is not None and now - max(self._pinged_at, read_since) > limits.pong_within:
                self._give_up(GapReason.MUTE, f"no pong within {limits.pong_within:g} s")
            if limits.bytes_within is not None and now - max(socket.heard_at, read_since) > limits.bytes_within:
                self._give_up(GapReason.MUTE, f"not a byte came in within {limits.bytes_within:g} s, where the exchange pings more often")
            for instrument in self._instruments.keys() - self._refused:
                pace = collector.sink.staleness(instrument)
                silent = now - max(self._heard.get(instrument, began), read_since)
                if silent > pace.timeout:
                    for each in self._instruments:
                        if now - max(self._heard.get(each, began), read_since) > collector.sink.staleness(each).timeout:
                            collector.sink.staleness(each).gave_up()
                    self._give_up(GapReason.MUTE, f"{instrument} has been silent for {silent:.0f} s, longer than it usually is")
                    return

    def _refused_request(self, refused: Refused) -> None:
        """One bad topic voids its whole batch (docs/exchanges.md 3.3): ask for each instrument alone, then only the bad one stays out."""
        self._collector.health.count("requests.refused")
        if refused.already_subscribed:
            return
        log.warning("request.refused", **self._collector.venue.log_fields, message=refused.message[:200])
        if not self._asked_singly:
            self._asked_singly = True
            self._singly.set()
            return
        for instrument in self._instruments:
            # No other symbol whose name is a part of its name: WBTCUSDT is no reason to leave BTCUSDT out.
            if re.search(rf"(?<![A-Za-z0-9]){re.escape(instrument.symbol)}(?![A-Za-z0-9])", refused.message):
                self._refused.add(instrument)
                self._collector.health.report(str(instrument), State.DOWN, f"the exchange refused it: {refused.message[:200]}")

    def _first_frame(self, instrument: Instrument) -> None:
        self._heard[instrument] = self._collector.clock.monotonic()
        log.info("instrument.live", instrument=instrument, connection=self.number)
        if len(self._heard) >= len(self._instruments) - len(self._refused):
            self.delivering.set()

    def _bad_frame(self, error: FrameError) -> None:
        self._collector.health.count("frames.bad")
        self._collector.sink.frame_unreadable(self.number, self._instruments)
        self._collector.bad_frame(**self._collector.venue.log_fields, error=error)

    def _give_up(self, reason: GapReason, detail: str) -> None:
        if self._end is None:
            self._end = (reason, detail)
        self._scope.cancel()


def _network(url: str, certificates: ssl.SSLContext | None) -> dict[str, Any]:
    """How a socket reaches its exchange: by the same trust and the same proxy as REST does, on loopback by none."""
    address = urlsplit(url)
    host = address.hostname or ""
    options: dict[str, Any] = {"happy_eyeballs_delay": _NEXT_ADDRESS_AFTER}
    if address.scheme == "wss" and certificates is not None:
        options["ssl"] = certificates
    if is_loopback(host):
        return options | {"proxy": None}
    proxies = getproxies()
    # What websockets looks for by itself; unlike REST it knows nothing of ALL_PROXY.
    named = any(proxies.get(kind) for kind in ("wss", "socks", "https"))
    return options | {"proxy": True if named or proxy_bypass(host) else proxies.get("all")}
