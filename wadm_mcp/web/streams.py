"""Event streams: HTTP responses that last as long as their client. A server that stops has to end them itself."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import anyio
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from wadm_mcp.logs import log


class Streams:
    """The open event streams, which `end` ends."""

    def __init__(self) -> None:
        self._open: set[anyio.CancelScope] = set()
        self._ended = False

    @contextmanager
    def cancellable_scope(self) -> Generator[anyio.CancelScope]:
        """A scope that `end` cancels."""
        with anyio.CancelScope() as scope:
            self._open.add(scope)
            try:
                if self._ended:
                    scope.cancel()
                yield scope
            finally:
                self._open.discard(scope)

    def wrap(self, app: ASGIApp) -> ASGIApp:
        """An application whose requests `end` cancels; a response that was started is then completed."""

        async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
            unfinished = False

            async def send_noted(message: Message) -> None:
                nonlocal unfinished
                unfinished = message["type"] == "http.response.start" or bool(message.get("more_body"))
                await send(message)

            with self.cancellable_scope() as request:
                await app(scope, receive, send_noted)
            if request.cancelled_caught and unfinished:
                await send({"type": "http.response.body", "body": b"", "more_body": False})

        return Endpoint(wrapped)

    def end(self) -> None:
        """End all open streams, and from now on each new one at once."""
        self._ended = True
        for scope in list(self._open):
            scope.cancel()


class Endpoint:
    """A route's bare ASGI application. A client that disconnects during a response is not an error."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._app(scope, receive, send)
        except* (ClientDisconnect, anyio.BrokenResourceError, anyio.ClosedResourceError):
            log.debug("request.abandoned", path=scope["path"])
