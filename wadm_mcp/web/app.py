"""The HTTP face on one port: MCP over Streamable HTTP and SSE, the health routes, and the JSON routes.

`/api` asks the very questions the tools ask, so that both faces say the same. All routes are flat, and the guard stands before each.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any, Final

import msgpack
import msgspec
from mcp.server.sse import SseServerTransport
from mcp.server.transport_security import TransportSecuritySettings
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route
from starlette.types import Receive, Scope, Send

from wadm_mcp import __version__
from wadm_mcp.errors import NotReady, QueryError, StoreError, UnknownSymbol
from wadm_mcp.logs import log
from wadm_mcp.queries.arguments import shown
from wadm_mcp.queries.numbers import iso_ms
from wadm_mcp.server.context import Runtime, running
from wadm_mcp.server.questions import QUESTIONS, Question
from wadm_mcp.server.server import WadmServer
from wadm_mcp.web.guard import Guard
from wadm_mcp.web.resumption import Sessions
from wadm_mcp.web.serve import WebApp
from wadm_mcp.web.streams import Endpoint, Streams

_MSGPACK: Final = "application/msgpack"
_JSON: Final = "application/json"
_ROUTES: Final = {question.path: question for question in QUESTIONS if question.path is not None}


def build_app(server: WadmServer, runtime: Runtime) -> WebApp:
    """Everything `wadm-mcp serve` answers. To be run once: entering it enters the runtime."""
    # The guard checks Host and Origin for every route; two checks with two lists would disagree.
    unchecked = TransportSecuritySettings(enable_dns_rebinding_protection=False)
    streams, lowlevel = Streams(), server._lowlevel_server
    sessions = Sessions(lowlevel, unchecked)
    sse = SseServerTransport("/messages/", security_settings=unchecked)

    async def events(scope: Scope, receive: Receive, send: Send) -> None:
        # A bare application: nothing may be sent after the stream. Only the session in it is ended, so that the transport closes its own.
        async with sse.connect_sse(scope, receive, send) as (read, write):
            with streams.endable():
                await lowlevel.run(read, write, lowlevel.create_initialization_options())

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
            Route("/sse", Endpoint(events), methods=["GET"]),
            Mount("/messages/", Endpoint(sse.handle_post_message)),
        ],
        exception_handlers={HTTPException: _refuse, Exception: _fail},
        lifespan=lambda _: run(),
    )
    return WebApp(Guard(app, runtime.settings), runtime, streams, run)


def _health(runtime: Runtime) -> Callable[[Request], Awaitable[Response]]:
    async def health(_: Request) -> Response:
        """In memory only: it answers whatever the exchanges and the store do."""
        state, ready = runtime.health, runtime.health.ready
        body = {
            "status": "ok" if ready else "degraded",
            "role": runtime.role,
            "version": __version__,
            "reasons": state.reasons,
            "parts": {
                name: {"state": part.state, "detail": part.detail, "since": iso_ms(part.since)} for name, part in state.parts.items()
            },
            "counts": dict(sorted(state.counts.items())),
        }
        return _json(body, HTTPStatus.OK if ready else HTTPStatus.SERVICE_UNAVAILABLE)

    return health


async def _live(_: Request) -> Response:
    return _json({"status": "ok", "version": __version__})


def _api(path: str, question: Question, runtime: Runtime) -> Callable[[Request], Awaitable[Response]]:
    async def api(request: Request) -> Response:
        try:
            answer = await question.ask(runtime, _arguments(request))
        except UnknownSymbol as error:
            return _error(HTTPStatus.NOT_FOUND, str(error))
        except QueryError as error:
            return _error(HTTPStatus.BAD_REQUEST, str(error))
        except (StoreError, NotReady) as error:
            return _error(HTTPStatus.SERVICE_UNAVAILABLE, str(error))
        except Exception as error:  # noqa: BLE001 - whatever went wrong, the log gets it all and the client one line
            log.error("api.failed", path=path, exc_info=error)
            return _error(HTTPStatus.INTERNAL_SERVER_ERROR, f"{path} failed inside WADM; the log has the details")
        packed = _wants_msgpack(request)
        response = Response(msgpack.packb(answer), media_type=_MSGPACK) if packed else _json(answer)
        response.headers["Vary"] = "Accept"
        return response

    return api


def _arguments(request: Request) -> dict[str, str]:
    given: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        if name in given:
            raise QueryError(f"{shown(name)} is given more than once: {shown(given[name])} and {shown(value)}. Give it once")
        given[name] = value
    return given


def _wants_msgpack(request: Request) -> bool:
    """Is MessagePack among what the client accepts, by name and not with a weight of 0?"""
    for entry in ",".join(request.headers.getlist("accept")).split(","):
        kind, *parameters = (part.strip().lower().replace(" ", "") for part in entry.split(";"))
        if kind == _MSGPACK:
            return not any(parameter.startswith("q=0") and not parameter.strip("q=0.") for parameter in parameters)
    return False


def _json(body: Any, status: int = HTTPStatus.OK) -> Response:
    return Response(msgspec.json.encode(body), status, media_type=_JSON)


def _error(status: int, text: str) -> Response:
    return _json({"error": text}, status)


async def _refuse(request: Request, error: Exception) -> Response:
    """What the router itself says no to: an unknown path, a method a path does not take."""
    status = error.status_code if isinstance(error, HTTPException) else HTTPStatus.INTERNAL_SERVER_ERROR
    if status == HTTPStatus.METHOD_NOT_ALLOWED:
        text = f"{request.method} is not allowed on {_path(request)}; use GET"
    else:
        paths = ", ".join(["/mcp", "/sse", "/health", "/health/live", *_ROUTES])
        text = f"there is nothing at {_path(request)}. Paths: {paths}"
    response = _error(status, text)
    response.headers.update(getattr(error, "headers", None) or {})
    return response


async def _fail(request: Request, _: Exception) -> Response:
    return _error(HTTPStatus.INTERNAL_SERVER_ERROR, f"{_path(request)} failed inside WADM; the log has the details")


def _path(request: Request) -> str:
    return shown(request.url.path)
