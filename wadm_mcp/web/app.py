"""The HTTP application: MCP over Streamable HTTP and SSE, the health routes and the JSON routes, on one port.

The `/api` routes ask the same questions as the tools. The guard checks every request before it reaches a route.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any, Final

import anyio
from mcp.server.sse import SseServerTransport
from mcp.server.transport_security import TransportSecuritySettings
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from wadm_mcp import __version__
from wadm_mcp.errors import Busy, NotReady, QueryError, StoreError, UnknownSymbol, ungrouped
from wadm_mcp.logs import log
from wadm_mcp.queries.arguments import shown, too_large
from wadm_mcp.queries.callers import asked_by, shared_address
from wadm_mcp.queries.numbers import iso_ms
from wadm_mcp.server.context import ServedRuntime, running
from wadm_mcp.server.questions import QUESTIONS, Question
from wadm_mcp.server.reply import Reply
from wadm_mcp.server.server import WadmServer
from wadm_mcp.web.guard import Guard, has_key
from wadm_mcp.web.responses import error_response, json_response, reply_response
from wadm_mcp.web.serve import WebApp
from wadm_mcp.web.sessions import Sessions
from wadm_mcp.web.sse import SseSessions
from wadm_mcp.web.streams import Endpoint, Streams

_ROUTES: Final = {question.path: question for question in QUESTIONS if question.path is not None}


def build_app(server: WadmServer, runtime: ServedRuntime) -> WebApp:
    """The application that `wadm-mcp serve` serves. It runs once: entering its lifespan enters the runtime."""
    # The guard checks Host and Origin for every route; a second check with its own list could disagree.
    unchecked = TransportSecuritySettings(enable_dns_rebinding_protection=False)
    streams, lowlevel = Streams(), server._lowlevel_server
    sessions = Sessions(lowlevel, unchecked, server.limits.busy)
    server.publisher.listens = sessions.listens
    sse = SseSessions(lowlevel, SseServerTransport("/messages/", security_settings=unchecked), streams)

    @asynccontextmanager
    async def run() -> AsyncGenerator[None]:
        async with running(runtime, server.publisher.run), sessions.run():
            yield

    app = Starlette(
        routes=[
            Route("/health", _health(runtime)),
            Route("/health/live", _live),
            *(Route(path, _api(path, question, runtime)) for path, question in _ROUTES.items()),
            Route("/mcp", streams.wrap(sessions.asgi_app)),
            Route("/sse", Endpoint(sse.listen), methods=["GET"]),
            Route("/messages", Endpoint(sse.post)),
        ],
        exception_handlers={HTTPException: _routing_error, Exception: _internal_error},
        lifespan=lambda _: run(),
    )
    # A redirect would name this server's own scheme and host. Behind a TLS proxy a client that follows it would send its key in clear.
    app.router.redirect_slashes = False
    guard = Guard(app, runtime.settings, runtime.health)
    return WebApp(_without_trailing_slash(guard), runtime, sessions, streams, run)


def _without_trailing_slash(app: ASGIApp) -> ASGIApp:
    """The application, for which `/mcp/` is the same path as `/mcp`."""

    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope["path"] = scope["path"].rstrip("/") or "/"
        await app(scope, receive, send)

    return call


def _health(runtime: ServedRuntime) -> Callable[[Request], Awaitable[Response]]:
    async def health(request: Request) -> Response:
        """Read from memory only, so that it answers whatever state the exchanges and the store are in. Without the key, states alone:
        details name hosts and paths."""
        state, ready = runtime.health, runtime.health.ready
        body: dict[str, Any] = {"status": "ok" if ready else "degraded", "role": runtime.role}
        if has_key(request):
            body |= {
                "version": __version__,
                "reasons": state.reasons,
                "parts": {
                    name: {"state": part.state, "detail": part.detail, "since": iso_ms(part.since)} for name, part in state.parts.items()
                },
                "counts": dict(sorted(state.counts.items())),
            }
        else:
            body["parts"] = {name: {"state": part.state} for name, part in state.parts.items()}
        return json_response(body, HTTPStatus.OK if ready else HTTPStatus.SERVICE_UNAVAILABLE)

    return health


async def _live(_: Request) -> Response:
    return json_response({"status": "ok"})


def _api(path: str, question: Question, runtime: ServedRuntime) -> Callable[[Request], Awaitable[Response]]:
    async def api(request: Request) -> Response:
        try:
            with asked_by(shared_address(_client(request))), ungrouped():
                reply = await _unless_gone(request, lambda: question.ask(runtime, _arguments(request)))
        except UnknownSymbol as error:
            return error_response(HTTPStatus.NOT_FOUND, str(error))
        except QueryError as error:
            return error_response(HTTPStatus.BAD_REQUEST, str(error))
        except Busy as error:
            return error_response(HTTPStatus.SERVICE_UNAVAILABLE, str(error), {"Retry-After": str(error.again_in)})
        except (StoreError, NotReady) as error:
            return error_response(HTTPStatus.SERVICE_UNAVAILABLE, str(error))
        except Exception as error:  # noqa: BLE001 - the log gets the traceback, the client one line
            log.error("api.failed", path=path, exc_info=error)
            return error_response(HTTPStatus.INTERNAL_SERVER_ERROR, f"{path} failed inside WADM; the log has the details")
        return reply_response(request, reply) if reply is not None else Response(status_code=HTTPStatus.REQUEST_TIMEOUT)

    return api


async def _unless_gone(request: Request, answer: Callable[[], Awaitable[Reply]]) -> Reply | None:
    """The reply, or None if the client left before it was ready: nobody would read the answer."""
    reply: Reply | None = None

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        tasks.cancel_scope.cancel()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watch)
        reply = await answer()
        tasks.cancel_scope.cancel()
    return reply


def _client(request: Request) -> str:
    return request.client.host if request.client is not None else ""


def _arguments(request: Request) -> dict[str, str]:
    given: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        if name in given:
            raise QueryError(f"{shown(name)} is given more than once: {shown(given[name])} and {shown(value)}. Give it once")
        given[name] = value
    if problem := too_large(given):
        raise QueryError(problem)
    return given


async def _routing_error(request: Request, error: Exception) -> Response:
    """An error of the router: an unknown path, or a method that the path does not allow."""
    status = error.status_code if isinstance(error, HTTPException) else HTTPStatus.INTERNAL_SERVER_ERROR
    if status == HTTPStatus.METHOD_NOT_ALLOWED:
        text = f"{request.method} is not allowed on {_path(request)}; use GET"
    else:
        paths = ", ".join(["/mcp", "/sse", "/health", "/health/live", *_ROUTES])
        text = f"there is nothing at {_path(request)}. Paths: {paths}"
    response = error_response(status, text)
    response.headers.update(getattr(error, "headers", None) or {})
    return response


async def _internal_error(request: Request, _: Exception) -> Response:
    return error_response(HTTPStatus.INTERNAL_SERVER_ERROR, f"{_path(request)} failed inside WADM; the log has the details")


def _path(request: Request) -> str:
    return shown(request.url.path)
