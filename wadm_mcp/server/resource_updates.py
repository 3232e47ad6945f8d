"""Resource updates, sent to subscribed clients of both protocol versions: on trades and when a bar closes, at most once a second per URI.

Since 2026-07-28 a client opens a `subscriptions/listen` stream, which the SDK serves from the runtime's bus. An older client sends
`resources/subscribe` and is notified on its own connection, for which the SDK has no hook. An update has no content: the client reads
the resource again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, Final, Protocol
from urllib.parse import unquote

import anyio
from mcp.server.connection import Connection
from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
from mcp.server.lowlevel import Server
from mcp.server.subscriptions import ResourceUpdated, SubscriptionBus
from mcp.shared.exceptions import MCPError
from mcp_types import INVALID_PARAMS, EmptyResult, SubscribeRequestParams, UnsubscribeRequestParams

from wadm_mcp.coverage.judge import IN_TRANSIT
from wadm_mcp.exchanges.names import MARKET_WORDS, read_name
from wadm_mcp.exchanges.registry import canonical_instrument
from wadm_mcp.logs import log
from wadm_mcp.model import Instrument, Timeframe
from wadm_mcp.queries.arguments import ALL
from wadm_mcp.queries.view import View
from wadm_mcp.suggest import plain

_PUBLISH_SECONDS: Final = 1.0
"""Time between two rounds of updates."""
_SEND_SECONDS: Final = 1.0
"""Time in which a client must accept its updates; the rest of this round is then skipped for it."""
_MAX_URIS: Final = 256
"""URIs that one client may subscribe to."""
_MAX_URI_CHARS: Final = 256
_CACHED_NAMES: Final = 4_096
"""Spellings of instruments in URIs that are remembered."""


class _Source(Protocol):
    """What the publisher needs of the runtime."""

    @property
    def view(self) -> View: ...

    @property
    def bus(self) -> SubscriptionBus: ...


class Publisher:
    """Keeps the subscriptions, by exact URI, and sends updates: when an instrument has a new trade and when a bar of the URI's timeframe
    closes. Market structure is computed on closed bars, so it is updated only when one closes."""

    def __init__(self, source: _Source) -> None:
        self._source = source
        self._listening: Counter[str] = Counter()
        self._subscribed: dict[Connection, set[str]] = {}
        self._published: dict[Instrument, object] = {}
        self._followed: frozenset[str] = frozenset()
        """Symbols of followed instruments, as in `_symbols`."""
        self._closed_until = source.view.clock() - IN_TRANSIT

    def serve(self, server: Server[Any]) -> None:
        """Handle `resources/subscribe` and `resources/unsubscribe` of the protocol before 2026-07-28."""
        server.add_request_handler("resources/subscribe", SubscribeRequestParams, self._subscribe)
        server.add_request_handler("resources/unsubscribe", UnsubscribeRequestParams, self._unsubscribe)

    async def watch(self, ctx: ServerRequestContext[Any, Any], call_next: CallNext) -> HandlerResult:
        """Middleware: counts the URIs of a `subscriptions/listen` call, which lasts as long as its stream."""
        if ctx.method != "subscriptions/listen":
            return await call_next(ctx)
        with self._interest(_listened_to(ctx.params)):
            return await call_next(ctx)

    @property
    def watched(self) -> set[str]:
        """All URIs that a client is subscribed to."""
        return set(self._listening).union(*self._subscribed.values())

    async def run(self) -> None:
        """Send updates round by round, until cancelled."""
        while True:
            try:
                await self.publish()
            except Exception as error:  # noqa: BLE001 - recording must go on without updates
                log.error("updates.failed", exc_info=error)
            await anyio.sleep(_PUBLISH_SECONDS)

    async def publish(self) -> None:
        """One round: notify the subscribers of instruments that traded and of bars that closed since the last round."""
        changed, closed = self._changed(), self._closed()
        if not changed and not closed:
            return
        followed = self._followed
        for uri in [uri for uri in self._listening if _concerns(uri, changed, closed, followed)]:
            await self._source.bus.publish(ResourceUpdated(uri=uri))
        async with anyio.create_task_group() as tasks:
            for connection, uris in self._subscribed.items():
                if due := [uri for uri in uris if _concerns(uri, changed, closed, followed)]:
                    tasks.start_soon(_notify, connection, due)

    def _changed(self) -> set[Instrument]:
        """Instruments that traded since the last round, with plain symbols; each also with the exchange `all`, as in merged answers."""
        view, changed = self._source.view, set[Instrument]()
        followed = frozenset(symbol for listing in view.listings for symbol in _symbols(listing.instrument))
        if followed != self._followed:
            # Kept while it is equal, so that a look-up in the cache of names compares one object with itself.
            self._followed = followed
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

    @contextmanager
    def _interest(self, uris: Iterable[str]) -> Generator[None]:
        interest = Counter(uris)
        self._listening.update(interest)
        try:
            yield
        finally:
            self._listening -= interest

    async def _subscribe(self, context: ServerRequestContext[Any, Any], params: SubscribeRequestParams) -> EmptyResult:
        connection, uri = context.session._connection, str(params.uri)
        uris = self._subscribed.get(connection)
        if uris is None:
            uris = self._subscribed[connection] = set()
            connection.exit_stack.callback(self._subscribed.pop, connection, None)
        _checked({*uris, uri})
        uris.add(uri)
        return EmptyResult()

    async def _unsubscribe(self, context: ServerRequestContext[Any, Any], params: UnsubscribeRequestParams) -> EmptyResult:
        self._subscribed.get(context.session._connection, set()).discard(str(params.uri))
        return EmptyResult()


async def _notify(connection: Connection, uris: Iterable[str]) -> None:
    with anyio.move_on_after(_SEND_SECONDS):
        for uri in uris:
            await connection.send_resource_updated(uri)


def _symbols(instrument: Instrument) -> set[str]:
    """The symbols of an instrument, written without separators: the exchange's own and the canonical one."""
    return {plain(instrument.symbol), plain(canonical_instrument(instrument).symbol)}


def _concerns(uri: str, changed: set[Instrument], closed: set[str], followed: frozenset[str]) -> bool:
    match uri.removeprefix("wadm://").split("/"):
        case ["markets"]:
            return bool(changed)
        case [_, _, _, "market-structure", timeframe]:
            return timeframe in closed
        case [_, _, _, _, timeframe] if timeframe in closed:
            return True
        case [exchange, market, symbol, *_]:
            return _instrument(exchange, market, symbol, followed) in changed
        case _:
            return False


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
    return _checked({uri for uri in uris if isinstance(uri, str)}) if isinstance(uris, list) else set()


def _checked(uris: set[str]) -> set[str]:
    if len(uris) > _MAX_URIS:
        raise MCPError(INVALID_PARAMS, f"too many subscriptions: one client may have {_MAX_URIS} URIs; unsubscribe from some first")
    if any(len(uri) > _MAX_URI_CHARS for uri in uris):
        raise MCPError(INVALID_PARAMS, f"a resource URI of WADM has at most {_MAX_URI_CHARS} characters; see resources/templates/list")
    return uris
