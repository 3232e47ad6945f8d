"""What a client may ask for at once, checked before a request reaches its handler: the size of its arguments, and the number of requests
in progress in one session."""

from __future__ import annotations

from collections import Counter
from typing import Any, Final

from mcp.server.connection import Connection
from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
from mcp.shared.exceptions import MCPError
from mcp_types import INTERNAL_ERROR, INVALID_PARAMS

from wadm_mcp.queries.arguments import too_large

MAX_REQUESTS: Final = 32
"""Requests of one session that are answered at once."""
_RETRY_SECONDS: Final = 5
_UNCOUNTED: Final = ("initialize", "ping", "subscriptions/listen")
"""Requests that cost nothing, and the one that lasts as long as its stream: `resource_updates` bounds it."""
_DESCRIBING: Final = ("initialize", "server/discover")
"""Requests in which a client describes itself, in texts of any length."""


class RequestLimits:
    """Middleware that refuses what is too large or too much. A client that is refused may go on."""

    def __init__(self, max_requests: int = MAX_REQUESTS) -> None:
        self._max_requests = max_requests
        self._in_progress: Counter[object] = Counter()

    def busy(self, session_id: str) -> bool:
        """Whether a request of this Streamable HTTP session is being answered."""
        return session_id in self._in_progress

    async def __call__(self, ctx: ServerRequestContext[Any, Any], call_next: CallNext) -> HandlerResult:
        """Refuse the request, or pass it on and count it while it is in progress."""
        if ctx.request_id is None:
            return await call_next(ctx)
        # A tool reports the arguments of its call as an error result, which the model reads.
        text = ctx.method not in _DESCRIBING and ctx.method != "tools/call"
        if ctx.params and (problem := too_large(ctx.params, text=text)):
            raise MCPError(INVALID_PARAMS, problem)
        session = _session_of(ctx.session._connection)
        if session is None or ctx.method in _UNCOUNTED:
            return await call_next(ctx)
        if self._in_progress[session] >= self._max_requests:
            raise MCPError(
                INTERNAL_ERROR,
                f"busy: {self._max_requests} requests of this session are in progress, as many as it may have; "
                f"ask again when one of them is answered, or in {_RETRY_SECONDS} s",
            )
        self._in_progress[session] += 1
        try:
            return await call_next(ctx)
        finally:
            self._in_progress[session] -= 1
            if not self._in_progress[session]:
                del self._in_progress[session]


def _session_of(connection: Connection) -> object | None:
    """What the requests of one session have in common. None for a request over HTTP since 2026-07-28, which belongs to none and has a
    connection of its own."""
    if connection.session_id is not None:
        return connection.session_id
    return connection.outbound if connection.has_standalone_channel else None
