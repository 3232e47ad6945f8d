"""HTTP responses that would last as long as their client: event streams. A server that stops has to end them itself."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import anyio
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from wadm_mcp.logs import log


class Streams:
    """Knows the work in progress that has no end of its own, and can end it."""

    def __init__(self) -> None:
        self._open: set[anyio.CancelScope] = set()
        self._ended = False

    @contextmanager
    def endable(self) -> Generator[anyio.CancelScope]:
        """A stretch of work that `end` cuts short."""
        with anyio.CancelScope() as scope:
            self._open.add(scope)
            try:
                if self._ended:
                    scope.cancel()
                yield scope
            finally:
                self._open.discard(scope)

    def wrap(self, app: ASGIApp) -> ASGIApp:
        """An application whose requests `end` cuts short; what was sent of a response is then closed as a whole one."""

        async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
            unfinished = False

            async def note(message: Message) -> None:
                nonlocal unfinished
                unfinished = message["type"] == "http.response.start" or bool(message.get("more_body"))
                await send(message)

            with self.endable() as request:
                await app(scope, receive, note)
            if request.cancelled_caught and unfinished:
                await send({"type": "http.response.body", "body": b"", "more_body": False})

        return Endpoint(wrapped)

    def end(self) -> None:
        """End what is in progress, and from now on whatever begins."""
        self._ended = True
        for scope in list(self._open):
            scope.cancel()


class Endpoint:
    """A route's bare ASGI application, for which a client that leaves in the middle is no error."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._app(scope, receive, send)
        except* (ClientDisconnect, anyio.BrokenResourceError, anyio.ClosedResourceError):
            log.debug("request.abandoned", path=scope["path"])
