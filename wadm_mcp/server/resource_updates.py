"""Resource updates, pushed to whoever subscribed, in both protocol eras: on trades and when a bar closes, at most once a second per URI.

Since 2026-07-28 a client opens a `subscriptions/listen` stream, which the SDK serves from the runtime's bus; before, it sends
`resources/subscribe` and is notified on its own connection, for which the SDK has no hook. An update is a cue to read again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from typing import Any, Final, Protocol

import anyio
from mcp.server.connection import Connection
from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
from mcp.server.lowlevel import Server
from mcp.server.subscriptions import ResourceUpdated, SubscriptionBus
from mcp.shared.exceptions import MCPError
from mcp_types import INVALID_PARAMS, EmptyResult, SubscribeRequestParams, UnsubscribeRequestParams

from wadm_mcp.coverage.judge import IN_TRANSIT
from wadm_mcp.logs import log
from wadm_mcp.model import Instrument, Timeframe
from wadm_mcp.queries.arguments import ALL
from wadm_mcp.queries.view import View

_EVERY: Final = 1.0
"""Seconds between two rounds of updates."""
_SENT_WITHIN: Final = 1.0
"""Seconds a client may take to accept its updates before it is left out of this round."""
_MOST_URIS: Final = 256
"""URIs one client may subscribe to."""
_LONGEST_URI: Final = 256


class _Source(Protocol):
    """Where the publisher looks. The runtime is one."""

    @property
    def view(self) -> View: ...

    @property
    def bus(self) -> SubscriptionBus: ...


class Publisher:
    """Knows who subscribed to what, and tells them when an instrument's newest trade has changed or a bar of theirs has closed; of market
    structure, which is judged on closed bars, only when one has. Subscriptions are by exact URI."""

    def __init__(self, source: _Source) -> None:
        self._source = source
        self._listening: Counter[str] = Counter()
        self._subscribed: dict[Connection, set[str]] = {}
        self._seen: dict[Instrument, object] = {}
        self._looked_at = source.view.clock() - IN_TRANSIT

    def serve(self, server: Server[Any]) -> None:
        """Serve `resources/subscribe` and `resources/unsubscribe`, the way of the protocol before 2026-07-28."""
        server.add_request_handler("resources/subscribe", SubscribeRequestParams, self._subscribe)
        server.add_request_handler("resources/unsubscribe", UnsubscribeRequestParams, self._unsubscribe)

    async def watch(self, ctx: ServerRequestContext[Any, Any], call_next: CallNext) -> HandlerResult:
        """Middleware: a `subscriptions/listen` call lasts as long as its stream, and so does the interest in its URIs."""
        if ctx.method != "subscriptions/listen":
            return await call_next(ctx)
        with self._interest(_listened_to(ctx.params)):
            return await call_next(ctx)

    @property
    def watched(self) -> set[str]:
        """Every URI that somebody subscribed to."""
        return set(self._listening).union(*self._subscribed.values())

    async def run(self) -> None:
        """Rounds of updates, until cancelled."""
        while True:
            try:
                await self.publish()
            except Exception as error:  # noqa: BLE001 - updates are a courtesy; recording goes on without them
                log.error("updates.failed", exc_info=error)
            await anyio.sleep(_EVERY)

    async def publish(self) -> None:
        """One round: tell every subscriber of an instrument that traded, or of a bar that closed, since the last one."""
        changed, closed = self._changed(), self._closed()
        if not changed and not closed:
            return
        for uri in [uri for uri in self._listening if _concerns(uri, changed, closed)]:
            await self._source.bus.publish(ResourceUpdated(uri=uri))
        async with anyio.create_task_group() as tasks:
            for connection, uris in self._subscribed.items():
                if told := [uri for uri in uris if _concerns(uri, changed, closed)]:
                    tasks.start_soon(_tell, connection, told)

    def _changed(self) -> set[Instrument]:
        """Instruments with a new newest trade; each also under the exchange `all`, as merged answers name it."""
        view, changed = self._source.view, set[Instrument]()
        for listing in view.listings:
            instrument = listing.instrument
            newest = view.newest(instrument)
            if newest is not None and self._seen.get(instrument) != newest.order:
                self._seen[instrument] = newest.order
                changed |= {instrument, instrument._replace(exchange=ALL)}
        return changed

    def _closed(self) -> set[str]:
        """Timeframes of which a bar has closed, and long enough ago for its last trades to be here."""
        before, self._looked_at = self._looked_at, self._source.view.clock() - IN_TRANSIT
        return {str(one) for one in Timeframe if one.floor(before) < one.floor(self._looked_at)}

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
        _bounded({*uris, uri})
        uris.add(uri)
        return EmptyResult()

    async def _unsubscribe(self, context: ServerRequestContext[Any, Any], params: UnsubscribeRequestParams) -> EmptyResult:
        self._subscribed.get(context.session._connection, set()).discard(str(params.uri))
        return EmptyResult()


async def _tell(connection: Connection, uris: Iterable[str]) -> None:
    with anyio.move_on_after(_SENT_WITHIN):
        for uri in uris:
            await connection.send_resource_updated(uri)


def _concerns(uri: str, changed: set[Instrument], closed: set[str]) -> bool:
    match uri.removeprefix("wadm://").split("/"):
        case ["markets"]:
            return bool(changed)
        case [_, _, _, "market-structure", timeframe]:
            return timeframe in closed
        case [_, _, _, _, timeframe] if timeframe in closed:
            return True
        case [exchange, market, symbol, *_]:
            return Instrument(exchange.lower(), market.lower(), symbol.upper()) in changed
        case _:
            return False


def _listened_to(params: Mapping[str, Any] | None) -> set[str]:
    """URIs of a listen request that the SDK has not yet validated."""
    wanted = (params or {}).get("notifications")
    uris = wanted.get("resourceSubscriptions") if isinstance(wanted, Mapping) else None
    return _bounded({uri for uri in uris if isinstance(uri, str)}) if isinstance(uris, list) else set()


def _bounded(uris: set[str]) -> set[str]:
    if len(uris) > _MOST_URIS:
        raise MCPError(INVALID_PARAMS, f"too many subscriptions: one client may have {_MOST_URIS} URIs")
    if any(len(uri) > _LONGEST_URI for uri in uris):
        raise MCPError(INVALID_PARAMS, f"a resource URI of WADM has at most {_LONGEST_URI} characters; see resources/templates/list")
    return uris
