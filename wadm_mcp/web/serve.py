"""uvicorn inside the caller's own scope: it binds, serves, and stops on the first SIGINT or SIGTERM with exit status 0.

The runtime is entered around uvicorn and not by it, so that a start that fails is an error here and not an exit there, and what is
recorded is flushed whatever the last connections do.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Generator
from contextlib import AbstractAsyncContextManager, ExitStack, closing, contextmanager
from typing import Final

import anyio
import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from wadm_mcp.errors import SettingError, WadmError, printable
from wadm_mcp.process.signals import stop_signals
from wadm_mcp.server.context import Runtime, one_error
from wadm_mcp.settings import Settings
from wadm_mcp.web.streams import Streams

_ANSWERED_WITHIN: Final = 0.3
"""Seconds that open requests get once a stop is asked for; then streams are ended."""
_CLOSED_WITHIN: Final = 1
"""Seconds after which uvicorn drops the connections that are left."""
_PAUSE: Final = 0.01
_CONNECTIONS: Final = 1_000
"""Connections at once; one more gets 503."""


class WebApp:
    """A whole ASGI application and what it takes to serve it: `running` enters the runtime, once, `streams` ends what would not end."""

    def __init__(self, app: ASGIApp, runtime: Runtime, streams: Streams, running: Callable[[], AbstractAsyncContextManager[None]]) -> None:
        self._app = app
        self.runtime = runtime
        self.streams = streams
        self.running = running

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers, which would raise the signal again once it has stopped."""

    def __init__(self, config: uvicorn.Config, started: Callable[[], None]) -> None:
        super().__init__(config)
        self._tell_started = started

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        # A runtime that failed while it was entered says so in this pause, and nothing has started then.
        await anyio.sleep(_PAUSE)
        if not self.should_exit:
            self._tell_started()


async def serve_http(app: WebApp, settings: Settings, *, on_started: Callable[[str], None] | None = None) -> None:
    """Serve until a signal asks to stop, or the caller's scope is cancelled; then return. A second signal drops open connections.

    `on_started` is called with the base URL once the port answers. `SettingError` when host and port cannot be used as they are set;
    the `WadmError` the runtime failed with, once all is shut down.
    """
    if not settings.binds_loopback and settings.API_KEY is None:
        raise SettingError(f"WADM_HOST={settings.WADM_HOST}: beyond loopback API_KEY must be set, so that nobody else can ask")
    failures: list[WadmError] = []
    with one_error(), stop_signals() as asked, ExitStack() as bound:
        sockets = [bound.enter_context(closing(one)) for one in await _bind(settings.WADM_HOST, settings.WADM_PORT)]
        url = _url(settings.WADM_HOST, sockets[0])
        config = uvicorn.Config(
            app,
            lifespan="off",
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=_CONNECTIONS,
            timeout_graceful_shutdown=_CLOSED_WITHIN,
        )
        server = _Server(config, lambda: on_started(url) if on_started is not None else None)
        async with app.running(), anyio.create_task_group() as tasks:
            stop = anyio.Event()

            async def heed_signals() -> None:
                while True:
                    await asked()
                    server.force_exit = stop.is_set()
                    stop.set()

            async def heed_failure() -> None:
                failures.append(await app.runtime.failed())
                stop.set()

            async def end() -> None:
                try:
                    await stop.wait()
                    server.should_exit = True
                    await anyio.sleep(_ANSWERED_WITHIN)
                finally:
                    # Reached on cancellation too: uvicorn itself is shielded, since a cut one leaves its sockets open.
                    server.should_exit = True
                    app.streams.end()

            for task in (heed_signals, heed_failure, end):
                tasks.start_soon(task)
            with anyio.CancelScope(shield=True):
                await server.serve(sockets)
            tasks.cancel_scope.cancel()
    if failures:
        raise failures[0]


async def _bind(host: str, port: int) -> list[socket.socket]:
    """Sockets bound to the host's addresses, before anything starts: a taken port must not cost a start."""
    try:
        found = await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise _bind_error(host, port, error) from error
    with ExitStack() as bound:
        sockets: list[socket.socket] = []
        for family, kind, protocol, _, address in dict.fromkeys(found):
            try:
                sockets.append(bound.enter_context(closing(_bound(family, kind, protocol, address))))
            except OSError as error:
                # A name may stand for an address of a family that this machine has switched off.
                if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT) or (address == found[-1][4] and not sockets):
                    raise _bind_error(host, port, error) from error
        bound.pop_all()
        return sockets


def _bound(family: int, kind: int, protocol: int, address: tuple[object, ...]) -> socket.socket:
    one = socket.socket(family, kind, protocol)
    try:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        one.bind(address)
        one.setblocking(False)
    except OSError:
        one.close()
        raise
    return one


def _bind_error(host: str, port: int, error: OSError) -> SettingError:
    match error.errno:
        case errno.EADDRINUSE:
            return SettingError(f"WADM_PORT={port}: the port is already in use on {host}; stop what holds it or set another WADM_PORT")
        case errno.EACCES | errno.EPERM:
            return SettingError(f"WADM_PORT={port}: this user may not use the port; set a WADM_PORT of 1024 or more")
        case _:
            return SettingError(
                f"WADM_HOST={printable(host, 80)}: this is no address of this machine; 127.0.0.1 is loopback, 0.0.0.0 every address"
            )


def _url(host: str, bound: socket.socket) -> str:
    port = bound.getsockname()[1]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
