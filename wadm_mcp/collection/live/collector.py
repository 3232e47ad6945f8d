"""Keeps a WebSocket connection to an exchange open: connects, subscribes, detects a dead connection and reconnects.

A collector follows some instruments of one market over one connection at a time, and reconnects without end. It replaces a connection
that nears the exchange's age limit, or whose end the exchange announces, while that still delivers: the old one is closed when the new
one has delivered, and where ids are not gapless only when every instrument is delivered by another connection too. A silent instrument
among others that deliver is subscribed again alone. Only frames of trades prove that a subscription works: Binance linear acknowledges a
stream on the wrong route and then sends nothing (docs/exchanges.md 2.1).
"""

from __future__ import annotations

import math
import random
import re
import ssl
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import count
from typing import Final, Protocol

import anyio
from anyio.lowlevel import checkpoint
from websockets.exceptions import ConnectionClosed, PayloadTooBig, ProtocolError, WebSocketException

from wadm_mcp.backoff import Backoff
from wadm_mcp.clock import Clock
from wadm_mcp.collection.live.frame_socket import FrameSocket, NotReadingError
from wadm_mcp.collection.live.silence import SilenceWatch
from wadm_mcp.collection.live.staleness import StaleDetector
from wadm_mcp.collection.network import ClosedSocketHosts, SocketFailure, SocketHosts, connect, socket_options, socket_url
from wadm_mcp.coverage.spans import GapReason
from wadm_mcp.errors import FrameError
from wadm_mcp.exchanges.exchange import Acknowledged, Pong, Refused, ShuttingDown, Trades, Venue
from wadm_mcp.health import Health, State
from wadm_mcp.logs import RateLimitedWarning, log
from wadm_mcp.model import Instrument, Listing
from wadm_mcp.texts import quoted, redacted_url

_MAX_FRAME_BYTES: Final = 1024 * 1024
"""A larger frame ends the connection. The largest valid one (1,024 Bybit trades) has about 300 kB."""
_FIRST_PAUSE_SECONDS: Final = 0.5
_MAX_PAUSE_SECONDS: Final = 60.0
_HEALTHY_SECONDS: Final = 60.0
"""A connection that lived this long and delivered resets the backoff."""
_REPLACEMENT_SECONDS: Final = 60.0
"""Time in which a new connection should deliver every instrument. After it the old connection is closed all the same, where ids are gapless
or other connections deliver what it delivers."""
_LIFETIME_USED: Final = 0.97
"""Share of the exchange's age limit after which a connection is replaced."""
_BACKPRESSURE_SECONDS: Final = 1.0
"""If the sink takes longer than this, the socket was not read meanwhile, and the silence is not the exchange's."""
_WATCH_SECONDS: Final = 1.0
"""How often a connection is checked."""
_UNSUBSCRIBE_SECONDS: Final = 5.0
"""How long the answer to an unsubscription may take, before the instrument is subscribed again without it."""
_REFUSED_PAUSE_SECONDS: Final = 60.0
_MAX_REFUSED_PAUSE_SECONDS: Final = 3_600.0
"""Bounds of the pause before a refused subscription is requested again."""
_LOGGED_CHARS: Final = 200
"""How much of an exchange's message is logged."""
_connection_numbers: Iterator[int] = count(1)


class Sink(Protocol):
    """What a collector reports to: the recorder."""

    def connected(self, connection: int) -> None: ...

    async def take(self, connection: int, *messages: Trades) -> None: ...

    def frame_unreadable(self, connection: int, instruments: Iterable[Instrument]) -> None: ...

    def connection_lost(self, connection: int, instruments: Sequence[Instrument], reason: GapReason, detail: str) -> None: ...

    def subscription_lost(self, connection: int, instrument: Instrument, reason: GapReason, detail: str) -> None: ...

    def withdrawn(self, connection: int, instruments: Iterable[Instrument]) -> None: ...

    def delivered_only_by(self, connections: Collection[int], instrument: Instrument) -> bool: ...

    def staleness(self, instrument: Instrument) -> StaleDetector: ...

    def is_trading(self, instrument: Instrument) -> bool: ...

    def doubt_listing(self, instrument: Instrument) -> None: ...


class Collector:
    """Delivers the trades of some instruments of a market to the sink until it is cancelled."""

    def __init__(
        self,
        venue: Venue,
        listings: Sequence[Listing],
        sink: Sink,
        health: Health,
        clock: Clock,
        certificates: ssl.SSLContext | None = None,
        closed_hosts: ClosedSocketHosts | None = None,
    ) -> None:
        self.venue = venue
        self.listings = listings
        self.hosts = SocketHosts(venue, clock, closed_hosts)
        self.sink = sink
        self.health = health
        self.clock = clock
        self.limits = venue.exchange.limits(venue.market)
        self.certificates = certificates
        """The certificate authorities that TLS trusts; None for Python's default."""
        self.bad_frame = RateLimitedWarning("frame.bad", clock.monotonic)
        """Shared by all connections, so that reconnecting does not reset its rate limit."""
        self.connections: list[Connection] = []
        """The connection that delivers, and its replacement while there is one."""
        self.given_up: Counter[Instrument] = Counter()
        """By instrument: its connections in a row that were given up as stale. Each collector has its own: that one of two redundant
        connections is stale must not make the other one more patient."""

    async def run(self) -> None:
        """Connect, and connect again whenever the connection has ended or should be replaced."""
        backoff = Backoff(_FIRST_PAUSE_SECONDS, _MAX_PAUSE_SECONDS, jitter=True)
        async with anyio.create_task_group() as tasks:
            connection = Connection(self)
            tasks.start_soon(connection.run)
            while True:
                self.connections = [connection]
                await connection.attention.wait()
                if connection.ended:
                    if connection.was_healthy:
                        backoff.reset()
                    await anyio.sleep(max(backoff.next(), self.hosts.wait))
                    connection = Connection(self)
                    tasks.start_soon(connection.run)
                    continue
                replacement = Connection(self, connection)
                tasks.start_soon(replacement.run)
                self.connections = [connection, replacement]
                with anyio.move_on_after(_REPLACEMENT_SECONDS):
                    await replacement.delivering.wait()
                # Redundant connections may be replaced at the same time: then the first to close leaves its instruments to the others.
                while True:
                    if replacement.ended or connection.ended or not self._needs([connection]):
                        break
                    await anyio.sleep(_WATCH_SECONDS)
                if not replacement.ended:
                    backoff.reset()
                    log.info("connection.replaced", **self.venue.log_fields, old=connection.number, new=replacement.number)
                    connection.close()
                    connection = replacement
                else:
                    await anyio.sleep(max(backoff.next(), self.hosts.wait))

    @property
    def needed(self) -> bool:
        """True while it alone delivers an instrument whose ids do not show what is missing."""
        return self._needs(self.connections)

    def close(self) -> None:
        """Another collector delivers what this one did: others must not count on its connections any more. The caller cancels it."""
        for connection in self.connections:
            connection.close()

    def _needs(self, connections: Sequence[Connection]) -> bool:
        """`needed` for some of its connections. One that is silent or does not trade is not waited for."""
        if self.venue.traits.has_gapless_ids:
            return False
        numbers = {connection.number for connection in connections}
        return any(
            self.sink.is_trading(listing.instrument)
            and self.sink.delivered_only_by(numbers, listing.instrument)
            and not any(connection.is_silent(listing.instrument) for connection in connections)
            for listing in self.listings
        )

    def connected_to(self, base_url: str) -> None:
        """Report the host of a new connection, if it is not the market's first one."""
        part, note = f"{self.venue.name} socket", self.hosts.note(base_url)
        if note:
            log.warning("host.fallback", **self.venue.log_fields, fallback=redacted_url(base_url), reason=note)
            self.health.report(part, State.OK, note)
        else:
            self.health.forget(part)


class Connection:
    """One socket from the handshake to its end. `run` reports to the sink why it ended, and returns."""

    def __init__(self, collector: Collector, predecessor: Connection | None = None) -> None:
        self._collector = collector
        self._instruments = {listing.instrument: listing for listing in collector.listings}
        self._refused: dict[Instrument, float] = {}
        """Instruments whose subscription was refused, and when (monotonic seconds) it is requested again."""
        self._refusals: dict[Instrument, Backoff] = {}
        """Of instruments that were refused and have not delivered since: the pauses between the requests."""
        self._not_awaited = {one for one in self._instruments if predecessor is not None and predecessor.is_silent(one)}
        """Instruments that were silent on the connection that this one replaces: they may stay so."""
        self._subscribe_singly: dict[Instrument, None] = {}
        """Instruments to subscribe once more, each by a request of its own, in this order."""
        self._resubscribe: dict[Instrument, None] = {}
        """Instruments to unsubscribe and subscribe again, in this order."""
        self._requested = anyio.Event()
        """Set when one of these is not empty."""
        self._unsubscribing: dict[str, tuple[Instrument, anyio.Event]] = {}
        """By request: the instrument that is being unsubscribed, and what is set once the exchange has answered."""
        self._subscribed_singly = False
        self._requests = count(1)
        """Numbers of the requests."""
        self._ping_at = collector.clock.monotonic() + (math.inf if collector.limits.ping_every is None else collector.limits.ping_every)
        """When the next ping is due (monotonic seconds)."""
        self._pinged_at: float | None = None
        """When the ping without a pong so far was sent (monotonic seconds)."""
        self._began = self._read_since = collector.clock.monotonic()
        """`_read_since`: since this time there was no backpressure, so missing frames are the exchange's fault."""
        self._silence = SilenceWatch(self._instruments, self._began)
        self._in_sink = False
        self._scope = anyio.CancelScope()
        self._end: tuple[GapReason, str] | None = None
        self.number = next(_connection_numbers)
        self.attention = anyio.Event()
        """Set when the connection has ended or should be replaced."""
        self.delivering = anyio.Event()
        """Set when every instrument that trades and was not silent on the predecessor has delivered, or when the connection has ended."""
        self.ended = False

    @property
    def was_healthy(self) -> bool:
        """True if it delivered, and lived for long enough to reset the backoff."""
        return self._silence.any_heard and self._collector.clock.monotonic() - self._began >= _HEALTHY_SECONDS

    def is_silent(self, instrument: Instrument) -> bool:
        """True if the instrument is not expected to deliver here soon: its silence is too long, or its subscription was refused."""
        return instrument in self._refused or self._silence.is_silent(instrument)

    def close(self) -> None:
        """End the connection, because a newer one has replaced it."""
        self._give_up(GapReason.DISCONNECT, "replaced by a newer connection")

    async def run(self) -> None:
        """Deliver until the exchange, the network, a watchdog or `close` ends the connection. Raises nothing but cancellation and bugs."""
        reason, detail = GapReason.DISCONNECT, "the process stops"
        try:
            with self._scope:
                detail = await self._connect_and_deliver()
        finally:
            if self._end is not None:
                reason, detail = self._end
            self.ended = True
            self._collector.sink.connection_lost(self.number, list(self._instruments), reason, detail)
            self.attention.set()
            self.delivering.set()
        log.info("connection.ended", **self._collector.venue.log_fields, connection=self.number, reason=detail)

    async def _connect_and_deliver(self) -> str:
        """Connect and deliver until the connection ends. Returns why it ended, in a few words."""
        collector = self._collector
        base_url = collector.hosts.base_url
        url = socket_url(collector.venue, base_url)
        try:
            socket = await connect(
                url,
                compression=None,
                ping_interval=None,
                close_timeout=1,
                max_size=_MAX_FRAME_BYTES,
                create_connection=FrameSocket,
                **socket_options(url, collector.certificates),
            )
        except (OSError, ValueError, WebSocketException) as error:
            failure = SocketFailure.of(error, base_url, collector.venue, collector.clock.now())
            collector.hosts.failed(base_url, failure)
            return failure.reason
        assert isinstance(socket, FrameSocket)
        try:
            collector.connected_to(base_url)
            collector.sink.connected(self.number)
            for instrument in self._instruments:
                collector.sink.staleness(instrument).connected(collector.clock.monotonic())
            detail = ""
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._send, socket)
                tasks.start_soon(self._watch, socket)
                tasks.start_soon(socket.batch_reads)
                detail = await self._receive(socket)
                tasks.cancel_scope.cancel()
            return detail
        finally:
            with anyio.move_on_after(2, shield=True):
                await socket.close()

    async def _receive(self, socket: FrameSocket) -> str:
        """Decode every frame and give its trades to the sink until the connection closes. Returns why it closed."""
        decoder = self._collector.venue.exchange.decoder(self._collector.venue.market, list(self._instruments.values()))
        while True:
            try:
                frames = await socket.frames()
            except ConnectionClosed as closed:
                return self._why_closed(closed)
            trades: list[Trades] = []
            for frame in frames:
                try:
                    message = decoder.decode(frame)
                except FrameError as error:
                    # The sink has to see the trades before the bad frame first: coverage ends with them.
                    await self._deliver(trades)
                    trades = []
                    self._bad_frame(error)
                    continue
                if type(message) is Trades:
                    trades.append(message)
                elif isinstance(message, Acknowledged | Refused) and message.request_id in self._unsubscribing:
                    # The sink has to see the trades before this answer first: they are the last of the subscription.
                    await self._deliver(trades)
                    trades = []
                    self._unsubscribed(message.request_id)
                elif isinstance(message, Pong):
                    self._pinged_at = None
                elif isinstance(message, Refused):
                    self._request_refused(message)
                elif isinstance(message, ShuttingDown):
                    self.attention.set()
            await self._deliver(trades)
            # While frames are buffered, `frames` does not wait and other tasks would not run.
            await checkpoint()

    def _why_closed(self, closed: ConnectionClosed) -> str:
        match closed.__cause__:
            case PayloadTooBig():
                self._collector.health.count("frames.oversized")
                return f"the exchange sent a frame of more than {_MAX_FRAME_BYTES:,} bytes"
            case ProtocolError() as error:
                self._collector.health.count("frames.refused")
                return f"the exchange broke the WebSocket protocol: {error}"
            case NotReadingError() as error:
                self._collector.health.count("connections.unread")
                return f"the exchange does not read what is sent to it: {error}"
            case _:
                return f"the connection closed with code {closed.rcvd.code if closed.rcvd is not None else 1006}"

    async def _deliver(self, trades: Sequence[Trades]) -> None:
        if not trades:
            return
        began = self._collector.clock.monotonic()
        for instrument in {message.instrument for message in trades}:
            self._refusals.pop(instrument, None)
            if self._silence.heard(instrument, began):
                log.info("instrument.live", instrument=instrument, connection=self.number)
                self._check_delivering()
            self._resubscribe.pop(instrument, None)
            if self._collector.given_up:
                self._collector.given_up.pop(instrument, None)
        self._in_sink = True
        await self._collector.sink.take(self.number, *trades)
        self._in_sink = False
        taken_at = self._collector.clock.monotonic()
        if taken_at - began > _BACKPRESSURE_SECONDS:
            self._read_since = taken_at

    async def _send(self, socket: FrameSocket) -> None:
        """Subscribe in batches, then again what should be, within the exchange's message rate. Pings are sent in between."""
        venue, limits = self._collector.venue, self._collector.limits
        symbols = [instrument.symbol for instrument in self._instruments]
        try:
            for first in range(0, len(symbols), limits.names_per_request):
                names = symbols[first : first + limits.names_per_request]
                await socket.send(venue.exchange.subscribe(venue.market, names, next(self._requests)))
                await self._pause(socket)
            while True:
                if self._resubscribe:
                    await self._renew(socket, next(iter(self._resubscribe)))
                elif self._subscribe_singly:
                    await self._subscribe(socket, next(iter(self._subscribe_singly)))
                else:
                    self._requested = anyio.Event()
                    with anyio.move_on_after(max(0.0, self._ping_at - self._collector.clock.monotonic())):
                        await self._requested.wait()
                    await self._ping_if_due(socket)
        except ConnectionClosed:
            return

    async def _pause(self, socket: FrameSocket) -> None:
        """Wait as long as the exchange's message rate demands between two requests."""
        await self._ping_if_due(socket)
        await anyio.sleep(1 / self._collector.limits.requests_per_second)

    async def _ping_if_due(self, socket: FrameSocket) -> None:
        venue, limits, now = self._collector.venue, self._collector.limits, self._collector.clock.monotonic()
        if limits.ping_every is not None and now >= self._ping_at:
            self._ping_at = now + limits.ping_every
            self._pinged_at = self._pinged_at or now
            await socket.send(venue.exchange.ping(next(self._requests)))

    async def _subscribe(self, socket: FrameSocket, instrument: Instrument) -> None:
        """Subscribe an instrument by a request of its own."""
        venue = self._collector.venue
        self._subscribe_singly.pop(instrument, None)
        await socket.send(venue.exchange.subscribe(venue.market, [instrument.symbol], next(self._requests)))
        await self._pause(socket)

    async def _renew(self, socket: FrameSocket, instrument: Instrument) -> None:
        """Unsubscribe an instrument and subscribe it again; later, if another connection does so just now."""
        staleness, now = self._collector.sink.staleness(instrument), self._collector.clock.monotonic()
        del self._resubscribe[instrument]
        if not staleness.replaceable(now, self._collector):
            self._resubscribe[instrument] = None
            await self._pause(socket)
            return
        staleness.gave_up(now, self._collector)
        await self._unsubscribe(socket, instrument, next(self._requests))
        await self._subscribe(socket, instrument)

    async def _unsubscribe(self, socket: FrameSocket, instrument: Instrument, request: int) -> None:
        """Unsubscribe an instrument, and return once the exchange has answered, or did not for a few seconds."""
        venue, answered = self._collector.venue, anyio.Event()
        self._unsubscribing[str(request)] = instrument, answered
        await socket.send(venue.exchange.unsubscribe(venue.market, [instrument.symbol], request))
        await self._pause(socket)
        with anyio.move_on_after(_UNSUBSCRIBE_SECONDS):
            await answered.wait()
        if str(request) in self._unsubscribing:
            self._unsubscribed(str(request))

    def _unsubscribed(self, request: str) -> None:
        """What the connection covers of the instrument ends here: trades before the next subscription are missed."""
        instrument, answered = self._unsubscribing.pop(request)
        self._collector.sink.subscription_lost(self.number, instrument, GapReason.MUTE, "it delivered nothing and is subscribed again")
        answered.set()

    async def _watch(self, socket: FrameSocket) -> None:
        """End the connection when it delivers nothing, and have it replaced before it reaches the exchange's age limit.

        An instrument that is silent while others deliver is subscribed again.
        """
        collector, limits = self._collector, self._collector.limits
        began = collector.clock.monotonic()
        replace_at = None if limits.lifetime is None else began + limits.lifetime * _LIFETIME_USED * random.uniform(0.98, 1.0)
        while True:
            await anyio.sleep(_WATCH_SECONDS)
            now = collector.clock.monotonic()
            if replace_at is not None and now >= replace_at:
                self.attention.set()
            read_since = now if self._in_sink else self._read_since
            if self._pinged_at is not None and now - max(self._pinged_at, read_since) > limits.pong_within:
                self._give_up(GapReason.MUTE, f"no pong came within {limits.pong_within:g} s")
            if limits.bytes_within is not None and now - max(socket.heard_at, read_since) > limits.bytes_within:
                self._give_up(GapReason.MUTE, f"no byte came within {limits.bytes_within:g} s, although the exchange pings more often")
            self._retry_refused(now)
            if self._judge_silence(now, read_since):
                return
            self._check_delivering()

    def _retry_refused(self, now: float) -> None:
        """Subscribe again what was refused, as long as its exchange's list says that it trades."""
        for instrument in [one for one, at in self._refused.items() if now >= at and self._collector.sink.is_trading(one)]:
            del self._refused[instrument]
            self._subscribe_singly[instrument] = None
            self._requested.set()

    def _judge_silence(self, now: float, read_since: float) -> bool:
        """Act on instruments that are silent for longer than they usually pause. True if the connection is given up."""
        sink, given_up = self._collector.sink, self._collector.given_up

        def timeout(instrument: Instrument) -> float:
            return sink.staleness(instrument).timeout(given_up[instrument])

        def count_stale() -> None:
            for instrument in verdict.stale:
                given_up[instrument] += 1
                sink.staleness(instrument).gave_up(now, self._collector)

        def ready(instrument: Instrument) -> bool:
            # Where only this connection delivers it, another one that just subscribed it again should first have had the time to deliver.
            within = timeout(instrument) if sink.delivered_only_by((self.number,), instrument) else 0.0
            return sink.staleness(instrument).replaceable(now, self._collector, within)

        verdict = self._silence.judge(now, read_since, timeout, sink.is_trading, self._refused, ready)
        for instrument in verdict.stale:
            sink.doubt_listing(instrument)
        if verdict.mute is not None:
            instrument, silent = verdict.mute
            if not sink.staleness(instrument).replaceable(now, self._collector):
                return False
            count_stale()
            self._give_up(GapReason.MUTE, f"{instrument} delivered nothing for {silent:.0f} s, longer than it usually pauses")
            return True
        for instrument in verdict.resubscribe:
            log.info("instrument.resubscribed", instrument=instrument, connection=self.number)
            self._collector.health.count("subscriptions.renewed")
            self._refused.pop(instrument, None)
            self._resubscribe[instrument] = None
            sink.staleness(instrument).gave_up(now, self._collector)
            sink.withdrawn(self.number, (instrument,))
            self._requested.set()
        if verdict.replace:
            count_stale()
            self.attention.set()
        return False

    def _request_refused(self, refused: Refused) -> None:
        """One bad topic voids its whole request (docs/exchanges.md 3.3), so subscribe to each instrument singly: only the bad one fails."""
        self._collector.health.count("requests.refused")
        if refused.already_subscribed:
            return
        message = quoted(refused.message, _LOGGED_CHARS)
        log.warning("request.refused", **self._collector.venue.log_fields, message=message)
        if not self._subscribed_singly:
            self._subscribed_singly = True
            self._subscribe_singly.update(dict.fromkeys(self._silence.unheard()))
            self._requested.set()
            return
        for instrument in self._instruments:
            # The whole name only: a refusal of WBTCUSDT must not exclude BTCUSDT.
            if re.search(rf"(?<!\w){re.escape(instrument.symbol)}(?!\w)", refused.message):
                pauses = self._refusals.setdefault(instrument, Backoff(_REFUSED_PAUSE_SECONDS, _MAX_REFUSED_PAUSE_SECONDS))
                self._refused[instrument] = self._collector.clock.monotonic() + pauses.next()
                self._collector.sink.subscription_lost(
                    self.number, instrument, GapReason.DISCONNECT, f"the exchange refused the subscription and says: {message}"
                )
                self._collector.sink.doubt_listing(instrument)

    def _check_delivering(self) -> None:
        """Set `delivering` if only instruments that cannot deliver have not delivered yet."""
        if self._silence.any_heard and not any(self._is_awaited(one) for one in self._silence.unheard()):
            self.delivering.set()

    def _is_awaited(self, instrument: Instrument) -> bool:
        return instrument not in self._refused and instrument not in self._not_awaited and self._collector.sink.is_trading(instrument)

    def _bad_frame(self, error: FrameError) -> None:
        self._collector.health.count("frames.bad")
        self._collector.sink.frame_unreadable(self.number, self._instruments)
        self._collector.bad_frame(**self._collector.venue.log_fields, error=error)

    def _give_up(self, reason: GapReason, detail: str) -> None:
        if self._end is None:
            self._end = (reason, detail)
            self._collector.sink.withdrawn(self.number, self._instruments)
        self._scope.cancel()
