"""Serving the application with uvicorn, in the caller's own scope. It stops on the first SIGINT or SIGTERM with exit status 0.

The runtime is entered around uvicorn and not by it: a failed start is then an error of the caller and not an exit of uvicorn, and
recorded trades are flushed whatever state the last connections are in.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, ExitStack, closing
from typing import Final

import anyio
import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from wadm_mcp.errors import SettingError, WadmError, ungrouped
from wadm_mcp.process.signals import stop_signals
from wadm_mcp.server.context import ServedRuntime
from wadm_mcp.settings import Settings
from wadm_mcp.texts import printable
from wadm_mcp.web.connections import Connections, connection_limit
from wadm_mcp.web.http_server import HttpServer
from wadm_mcp.web.sessions import Sessions
from wadm_mcp.web.streams import Streams

_ANSWER_SECONDS: Final = 0.3
"""Time that open requests get after a stop signal; then event streams are ended."""
_CLOSE_SECONDS: Final = 1
"""Time after which uvicorn drops the remaining connections."""


class WebApp:
    """The ASGI application with what serving it needs: `running` enters the runtime, once; `sessions` ends the sessions, and `streams` the
    open event streams."""

    def __init__(
        self,
        app: ASGIApp,
        runtime: ServedRuntime,
        sessions: Sessions,
        streams: Streams,
        running: Callable[[], AbstractAsyncContextManager[None]],
    ) -> None:
        self._app = app
        self.runtime = runtime
        self.sessions = sessions
        self.streams = streams
        self.running = running

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)


async def serve_http(app: WebApp, settings: Settings, *, on_started: Callable[[str], None] | None = None) -> None:
    """Serve until a signal arrives or the caller's scope is cancelled; then return. A second signal drops open connections.

    `on_started` is called with the base URL once the port answers. `SettingError` when the host or port cannot be used. The `WadmError`
    that the runtime failed with is raised after the shutdown.
    """
    settings.check_exposure()
    failures: list[WadmError] = []
    with ungrouped(), stop_signals() as next_signal, ExitStack() as bound:
        sockets = [bound.enter_context(closing(one)) for one in await _bind(settings.WADM_HOST, settings.WADM_PORT)]
        url = _url(settings.WADM_HOST, sockets[0])
        connections = Connections(connection_limit(), app.runtime.health)
        config = uvicorn.Config(
            connections.bounded(app),
            http="h11",
            lifespan="off",
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            root_path=settings.WADM_ROOT_PATH,
            timeout_graceful_shutdown=_CLOSE_SECONDS,
        )
        server = HttpServer(config, connections, lambda: on_started(url) if on_started is not None else None)
        async with app.running(), anyio.create_task_group() as tasks:
            stop = anyio.Event()

            async def stop_on_signal() -> None:
                while True:
                    await next_signal()
                    server.force_exit = stop.is_set()
                    stop.set()

            async def stop_on_failure() -> None:
                failures.append(await app.runtime.failed())
                stop.set()

            async def end() -> None:
                try:
                    await stop.wait()
                    server.should_exit = True
                    await anyio.sleep(_ANSWER_SECONDS)
                finally:
                    # Runs on cancellation too. uvicorn itself is shielded: a cancelled one would leave its sockets open.
                    server.should_exit = True
                    app.sessions.end()
                    app.streams.end()

            for task in (stop_on_signal, stop_on_failure, end):
                tasks.start_soon(task)
            with anyio.CancelScope(shield=True):
                await server.serve(sockets)
            tasks.cancel_scope.cancel()
    if failures:
        raise failures[0]


async def _bind(host: str, port: int) -> list[socket.socket]:
    """Sockets bound to the host's addresses. They are bound before anything starts, so that a port in use is found first."""
    try:
        found = await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise _bind_error(host, port, error) from error
    with ExitStack() as bound:
        sockets: list[socket.socket] = []
        for family, kind, protocol, _, address in dict.fromkeys(found):
            try:
                sockets.append(bound.enter_context(closing(_bound_socket(family, kind, protocol, address))))
            except OSError as error:
                # A host name may resolve to an address family that is disabled on this machine.
                if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT) or (address == found[-1][4] and not sockets):
                    raise _bind_error(host, port, error) from error
        bound.pop_all()
        return sockets


def _bound_socket(family: int, kind: int, protocol: int, address: tuple[object, ...]) -> socket.socket:
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
            return SettingError(
                f"WADM_PORT={port}: the port is already in use on {host}; stop the process that uses it or set another WADM_PORT"
            )
        case errno.EACCES | errno.EPERM:
            return SettingError(f"WADM_PORT={port}: this user may not use the port; set a WADM_PORT of 1024 or more")
        case _:
            return SettingError(
                f"WADM_HOST={printable(host, 80)}: cannot listen there ({error.strerror or error}); "
                "use 127.0.0.1 for loopback, 0.0.0.0 for all interfaces"
            )


def _url(host: str, bound: socket.socket) -> str:
    port = bound.getsockname()[1]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
