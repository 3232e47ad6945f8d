"""Resource updates, sent to subscribed clients of both protocol versions: on trades and when a bar closes, at most once a second per URI.

Since 2026-07-28 a client opens a `subscriptions/listen` stream, which the SDK serves from the publisher's bus. An older client sends
`resources/subscribe` and is notified on its own connection, for which the SDK has no hook. An update has no content: the client reads
the resource again. Only resources that exist can be subscribed to, and subscriptions are bounded over all clients.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Awaitable, Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from typing import Any, Final, NamedTuple, Protocol
from urllib.parse import unquote

import anyio
from anyio.lowlevel import checkpoint
from mcp.server.connection import Connection
from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
from mcp.server.lowlevel import Server
from mcp.server.subscriptions import InMemorySubscriptionBus, ResourceUpdated, ServerEvent
from mcp.shared.exceptions import MCPError
from mcp_types import INTERNAL_ERROR, INVALID_PARAMS, EmptyResult, Resource, SubscribeRequestParams, UnsubscribeRequestParams

from wadm_mcp.coverage.judge import IN_TRANSIT
from wadm_mcp.exchanges.names import MARKET_WORDS, read_name
from wadm_mcp.exchanges.registry import canonical_instrument
from wadm_mcp.logs import log
from wadm_mcp.model import Instrument, Timeframe
from wadm_mcp.queries.arguments import ALL, listed, shown
from wadm_mcp.queries.callers import Shares, current_caller
from wadm_mcp.queries.view import View
from wadm_mcp.suggest import plain

MAX_SUBSCRIPTIONS: Final = 2_048
"""Subscriptions of all clients: each URI counts once for every client."""
_OWN_SUBSCRIPTIONS: Final = 8
"""Subscriptions that each client may have although all together have `MAX_SUBSCRIPTIONS`."""
_MAX_LISTENERS: Final = 512
"""Streams of `subscriptions/listen` at once. A further one ends the oldest one of the caller with most."""
_PUBLISH_SECONDS: Final = 1.0
"""Time between two rounds of updates."""
_PUBLISH_SHARE: Final = 4
"""A pause is at least so many times as long as the round before it, so that updates never take more than a fifth of the time."""
_SEND_SECONDS: Final = 1.0
"""Time in which a client must accept its updates; the rest of this round is then skipped for it."""
_RETRY_SECONDS: Final = 30
_MAX_URIS: Final = 256
"""URIs that one client may subscribe to."""
_MAX_URI_CHARS: Final = 256
_CACHED_NAMES: Final = 4_096
"""Spellings of instruments in URIs that are remembered."""
_SINGLE: Final = ("markets", "guide")
_BY_TIMEFRAME: Final = ("volume-profile", "order-flow", "market-structure")

_listened_now: ContextVar[frozenset[str]] = ContextVar("listened_now", default=frozenset())
"""The URIs of the `subscriptions/listen` call that is being served."""


class _Source(Protocol):
    """What the publisher needs of the runtime."""

    @property
    def view(self) -> View: ...


class _Bus(InMemorySubscriptionBus):
    """Delivers an update of a resource only to those who listen to its URI; the SDK's own bus would ask all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.by_uri: defaultdict[str, dict[object, Callable[[ServerEvent], None]]] = defaultdict(dict)

    def subscribe(self, listener: Callable[[ServerEvent], None]) -> Callable[[], None]:
        """Register the listener of the call that is being served."""
        unsubscribe_all, uris, token = super().subscribe(listener), _listened_now.get(), object()
        for uri in uris:
            self.by_uri[uri][token] = listener

        def unsubscribe() -> None:
            unsubscribe_all()
            for uri in uris:
                self.by_uri[uri].pop(token, None)
                if not self.by_uri[uri]:
                    del self.by_uri[uri]

        return unsubscribe

    async def publish(self, event: ServerEvent) -> None:
        """Deliver an event to those who asked for it. The listeners are the SDK's, which do not raise."""
        if not isinstance(event, ResourceUpdated):
            return await super().publish(event)
        for listener in list(self.by_uri.get(event.uri, {}).values()):
            listener(event)
        await checkpoint()
        return None


class _Resource(NamedTuple):
    """What a URI names. The parts of an instrument are empty for a resource without one, and so is the timeframe."""

    kind: str
    exchange: str = ""
    market: str = ""
    symbol: str = ""
    timeframe: str = ""


class Publisher:
    """Keeps the subscriptions, by exact URI, and sends updates: when an instrument has a new trade and when a bar of the URI's timeframe
    closes. Market structure is computed on closed bars, so it is updated only when one closes.

    `resources` lists the resources of the server. `listens(session_id)` is whether a session over Streamable HTTP has a stream for
    notifications; without one nothing is sent to it.
    """

    def __init__(
        self, source: _Source, resources: Callable[[], Awaitable[Iterable[Resource]]], max_subscriptions: int = MAX_SUBSCRIPTIONS
    ) -> None:
        self._source = source
        self._resources = resources
        self._max_subscriptions = max_subscriptions
        self.bus = _Bus()
        self.listens: Callable[[str], bool] = lambda session_id: True
        self._listeners = Shares[anyio.CancelScope]()
        self._subscribers: defaultdict[str, set[Connection]] = defaultdict(set)
        self._subscribed: dict[Connection, set[str]] = {}
        self._count = 0
        """Subscriptions of both kinds."""
        self._published: dict[Instrument, object] = {}
        self._followed: frozenset[str] = frozenset()
        """Symbols of followed instruments, as in `_symbols`."""
        self._closed_until = source.view.clock() - IN_TRANSIT

    def serve(self, server: Server[Any]) -> None:
        """Handle `resources/subscribe` and `resources/unsubscribe` of the protocol before 2026-07-28."""
        server.add_request_handler("resources/subscribe", SubscribeRequestParams, self._subscribe)
        server.add_request_handler("resources/unsubscribe", UnsubscribeRequestParams, self._unsubscribe)

    async def watch(self, ctx: ServerRequestContext[Any, Any], call_next: CallNext) -> HandlerResult:
        """Middleware: checks and counts the URIs of a `subscriptions/listen` call, which lasts as long as its stream."""
        if ctx.method != "subscriptions/listen":
            return await call_next(ctx)
        uris = frozenset(_listened_to(ctx.params))
        await self._check_uris(uris)
        self._check_room(len(uris), 0)
        with self._listening(uris):
            return await call_next(ctx)
        raise _busy(f"this stream made room for a newer one; {_MAX_LISTENERS} clients are listening")

    @property
    def watched(self) -> set[str]:
        """All URIs that a client is subscribed to."""
        return {*self.bus.by_uri, *self._subscribers}

    async def run(self) -> None:
        """Send updates round by round, until cancelled."""
        while True:
            began = anyio.current_time()
            try:
                await self.publish()
            except Exception as error:  # noqa: BLE001 - recording must go on without updates
                log.error("updates.failed", exc_info=error)
            await anyio.sleep(max(_PUBLISH_SECONDS, _PUBLISH_SHARE * (anyio.current_time() - began)))

    async def publish(self) -> None:
        """One round: notify the subscribers of instruments that traded and of bars that closed since the last round."""
        changed, closed = self._changed(), self._closed()
        if not changed and not closed:
            return
        followed = self._followed
        for uri in [uri for uri in self.bus.by_uri if _concerns(uri, changed, closed, followed)]:
            await self.bus.publish(ResourceUpdated(uri=uri))
        due: defaultdict[Connection, list[str]] = defaultdict(list)
        for uri in [uri for uri in self._subscribers if _concerns(uri, changed, closed, followed)]:
            for connection in self._subscribers[uri]:
                due[connection].append(uri)
        async with anyio.create_task_group() as tasks:
            for connection, uris in due.items():
                if connection.session_id is None or self.listens(connection.session_id):
                    tasks.start_soon(_notify, connection, uris)

    def _changed(self) -> set[Instrument]:
        """Instruments that traded since the last round, with plain symbols; each also with the exchange `all`, as in merged answers."""
        view, changed = self._source.view, set[Instrument]()
        self._refresh_followed()
        for listing in view.listings:
            instrument = listing.instrument
            newest = view.newest(instrument)
            if newest is not None and self._published.get(instrument) != newest.order:
                self._published[instrument] = newest.order
                for symbol in _symbols(instrument):
                    changed |= {instrument._replace(symbol=symbol), Instrument(ALL, instrument.market, symbol)}
        return changed

    def _closed(self) -> set[str]:
        """Timeframes of which a bar has closed, long enough ago for its last trades to have arrived."""
        before, self._closed_until = self._closed_until, self._source.view.clock() - IN_TRANSIT
        return {str(one) for one in Timeframe if one.floor(before) < one.floor(self._closed_until)}

    def _refresh_followed(self) -> None:
        followed = frozenset(symbol for listing in self._source.view.listings for symbol in _symbols(listing.instrument))
        if followed != self._followed:
            # Kept while it is equal, so that a look-up in the cache of names compares one object with itself.
            self._followed = followed

    @contextmanager
    def _listening(self, uris: frozenset[str]) -> Generator[None]:
        """Serve a `subscriptions/listen` call: the bus takes its URIs from here. The scope is left early where it makes room."""
        caller = current_caller()
        if len(self._listeners) >= _MAX_LISTENERS:
            greediest = self._listeners.makes_room_for(caller)
            if greediest is None:
                raise _busy(f"{len(self._listeners)} clients are listening")
            oldest = self._listeners.of(greediest)[0]
            self._listeners.discard(oldest)
            oldest.cancel()
        token = _listened_now.set(uris)
        self._count += len(uris)
        with anyio.CancelScope() as stream:
            self._listeners.add(stream, caller)
            try:
                yield
            finally:
                self._count -= len(uris)
                self._listeners.discard(stream)
                _listened_now.reset(token)

    def _check_room(self, new: int, before: int) -> None:
        """Check that a client which has `before` subscriptions may have `new` ones more."""
        if before + new > _MAX_URIS:
            raise MCPError(INVALID_PARAMS, f"too many subscriptions: one client may have {_MAX_URIS} URIs; unsubscribe from some first")
        if self._count + new > self._max_subscriptions and before + new > _OWN_SUBSCRIPTIONS:
            raise _busy(f"{self._count} subscriptions exist")

    async def _check_uris(self, uris: Iterable[str]) -> None:
        """Check that resources exist. `MCPError` for the first that does not."""
        self._refresh_followed()
        known = {
            Instrument(exchange, one.market, symbol)
            for one in (*(listing.instrument for listing in self._source.view.listings), *self._source.view.awaited)
            for symbol in _symbols(one)
            for exchange in (one.exchange, ALL)
        }
        fixed = {str(one.uri) for one in await self._resources()}
        for uri in uris:
            if uri in fixed:
                continue
            if len(uri) > _MAX_URI_CHARS:
                raise MCPError(
                    INVALID_PARAMS, f"a resource URI of WADM has at most {_MAX_URI_CHARS} characters; see resources/templates/list"
                )
            named = _parsed(uri)
            if named is None or (named.symbol and _instrument(named.exchange, named.market, named.symbol, self._followed) not in known):
                symbols = listed(sorted({one.symbol for one in known}))
                raise MCPError(
                    INVALID_PARAMS,
                    f"resource {shown(uri)} does not exist, so it has no updates. Followed: {symbols}. "
                    "See resources/list and resources/templates/list",
                )

    async def _subscribe(self, context: ServerRequestContext[Any, Any], params: SubscribeRequestParams) -> EmptyResult:
        connection, uri = context.session._connection, str(params.uri)
        await self._check_uris([uri])
        uris = self._subscribed.get(connection, set[str]())
        if uri in uris:
            return EmptyResult()
        self._check_room(1, len(uris))
        if connection not in self._subscribed:
            self._subscribed[connection] = uris
            connection.exit_stack.callback(self._forget, connection)
        uris.add(uri)
        self._subscribers[uri].add(connection)
        self._count += 1
        return EmptyResult()

    async def _unsubscribe(self, context: ServerRequestContext[Any, Any], params: UnsubscribeRequestParams) -> EmptyResult:
        connection, uri = context.session._connection, str(params.uri)
        if uri in self._subscribed.get(connection, ()):
            self._subscribed[connection].discard(uri)
            self._remove(connection, uri)
        return EmptyResult()

    def _forget(self, connection: Connection) -> None:
        """The connection has ended."""
        for uri in self._subscribed.pop(connection, ()):
            self._remove(connection, uri)

    def _remove(self, connection: Connection, uri: str) -> None:
        self._count -= 1
        self._subscribers[uri].discard(connection)
        if not self._subscribers[uri]:
            del self._subscribers[uri]


async def _notify(connection: Connection, uris: Iterable[str]) -> None:
    with anyio.move_on_after(_SEND_SECONDS):
        for uri in uris:
            await connection.send_resource_updated(uri)


def _symbols(instrument: Instrument) -> set[str]:
    """The symbols of an instrument, written without separators: the exchange's own and the canonical one."""
    return {plain(instrument.symbol), plain(canonical_instrument(instrument).symbol)}


def _concerns(uri: str, changed: set[Instrument], closed: set[str], followed: frozenset[str]) -> bool:
    match _parsed(uri):
        case None | _Resource("guide"):
            return False
        case _Resource("markets"):
            return bool(changed)
        case _Resource("market-structure", timeframe=timeframe):
            return timeframe in closed
        case named:
            return named.timeframe in closed or _instrument(named.exchange, named.market, named.symbol, followed) in changed


@lru_cache(_CACHED_NAMES)
def _parsed(uri: str) -> _Resource | None:
    """What a URI names; None for one that is no resource of any instrument."""
    scheme, _, path = uri.partition("://")
    match path.split("/") if scheme == "wadm" else ():
        case [kind] if kind in _SINGLE:
            return _Resource(kind)
        case [exchange, market, symbol, "trades"]:
            return _Resource("trades", exchange, market, symbol)
        case [exchange, market, symbol, kind, timeframe] if kind in _BY_TIMEFRAME and timeframe in tuple(Timeframe):
            return _Resource(kind, exchange, market, symbol, timeframe)
        case _:
            return None


@lru_cache(_CACHED_NAMES)
def _instrument(exchange: str, market: str, symbol: str, followed: frozenset[str]) -> Instrument:
    """The instrument of a URI, by plain symbol, spelled in any way in which the resource can be read.

    As in questions, a symbol that is `followed` is not searched for endings: Bybit has a BTCPERP.
    """
    market = unquote(market).strip().lower()
    named = read_name(unquote(symbol), followed.__contains__)
    return Instrument(unquote(exchange).strip().lower(), MARKET_WORDS.get(market, market), named.symbol)


def _listened_to(params: Mapping[str, Any] | None) -> set[str]:
    """The URIs of a listen request, which the SDK has not validated yet."""
    wanted = (params or {}).get("notifications")
    uris = wanted.get("resourceSubscriptions") if isinstance(wanted, Mapping) else None
    return {uri for uri in uris if isinstance(uri, str)} if isinstance(uris, list) else set()


def _busy(reason: str) -> MCPError:
    return MCPError(INTERNAL_ERROR, f"busy: {reason}, as many as are served at once; ask again in {_RETRY_SECONDS} s")
