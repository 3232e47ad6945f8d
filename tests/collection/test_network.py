from __future__ import annotations

import socket
from http import HTTPStatus
from typing import Any

import anyio
import pytest
from websockets.asyncio.server import ServerConnection, serve
from websockets.datastructures import Headers
from websockets.exceptions import InvalidProxy, InvalidProxyStatus, InvalidStatus
from websockets.http11 import Request, Response
from websockets.proxy import parse_proxy

from tests.venues import venue
from wadm_mcp.clock import SYSTEM_CLOCK
from wadm_mcp.collection.network import ClosedSocketHosts, SocketFailure, SocketHosts, connect, socket_options
from wadm_mcp.exchanges.binance import Binance
from wadm_mcp.exchanges.bybit import Bybit
from wadm_mcp.model import SECOND

HOST = "wss://stream.exchange.example"
PROXIES = ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "SOCKS_PROXY", "WSS_PROXY", "NO_PROXY")


def options(monkeypatch: pytest.MonkeyPatch, **variables: str) -> dict[str, Any]:
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return socket_options(HOST, None)


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("http://127.0.0.1:3128", "http://127.0.0.1:3128"),
        ("127.0.0.1:3128", "http://127.0.0.1:3128"),
        ("user:secret@proxy:3128", "http://user:secret@proxy:3128"),
        ("http://token@proxy", "http://token:@proxy"),
        ("http://user:secret@proxy:3128/path", "http://user:secret@proxy:3128"),
    ],
)
@pytest.mark.parametrize("variable", ["HTTPS_PROXY", "ALL_PROXY"])
def test_sockets_use_the_proxy_that_rest_uses_in_every_form_that_rest_takes(
    monkeypatch: pytest.MonkeyPatch, variable: str, given: str, used: str
) -> None:
    assert options(monkeypatch, **{variable: given})["proxy"] == used
    parse_proxy(used)


def test_variables_that_rest_does_not_obey_are_not_obeyed_by_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    assert options(monkeypatch, SOCKS_PROXY="socks5://127.0.0.1:9", WSS_PROXY="http://127.0.0.1:9")["proxy"] is None
    assert options(monkeypatch, HTTPS_PROXY="http://proxy:1", NO_PROXY="exchange.example")["proxy"] is None


@pytest.mark.parametrize(
    "error", [InvalidProxy("http://user:secret@proxy", "why"), OSError("cannot reach http://user:secret@proxy:1"), ValueError("bad")]
)
def test_a_failure_to_open_a_socket_is_one_line_without_a_password(error: OSError | ValueError | InvalidProxy) -> None:
    failure = SocketFailure.of(error, HOST, venue(Binance(), "spot"), 0)
    assert failure.reason.startswith(f"cannot connect to {HOST}/ws: ")
    assert "secret" not in failure.reason


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ConnectionRefusedError(111, "Connect call failed ('127.0.0.1', 9)"), "refused the connection"),
        (socket.gaierror(-2, "Name or service not known"), "does not resolve to an address"),
        (InvalidProxyStatus(Response(407, "Proxy Authentication Required", Headers())), "answered HTTP 407"),
    ],
)
def test_a_proxy_that_fails_is_named_instead_of_the_exchange(monkeypatch: pytest.MonkeyPatch, error: OSError, said: str) -> None:
    options(monkeypatch, HTTPS_PROXY="http://user:secret@proxy:9")
    failure = SocketFailure.of(error, HOST, venue(Binance(), "spot"), 0)
    assert failure.reason == (
        f"cannot connect to {HOST}/ws: the proxy http://proxy:9 (HTTPS_PROXY) {said}. Check that it runs, or change or unset HTTPS_PROXY"
    )


def test_what_goes_wrong_behind_a_proxy_is_said_with_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    options(monkeypatch, ALL_PROXY="http://user:secret@proxy:9")
    for error in (TimeoutError(), ConnectionResetError(104, "Connection reset by peer")):
        failure = SocketFailure.of(error, HOST, venue(Binance(), "spot"), 0)
        assert "through the proxy http://proxy:9 (ALL_PROXY)" in failure.reason


def test_what_one_connection_knows_of_a_host_that_refused_all_connections_of_the_process_know() -> None:
    here, clock = venue(Bybit(), "spot", socket_url=HOST), SYSTEM_CLOCK
    closed: ClosedSocketHosts = {}
    one, other = SocketHosts(here, clock, closed), SocketHosts(here, clock, closed)
    one.failed(HOST, SocketFailure("it answered HTTP 403", refused=True, wait=600.0))
    assert 590 < other.wait <= 600


@pytest.mark.anyio
async def test_a_redirect_is_an_error_and_is_not_followed() -> None:
    asked: list[str] = []

    def redirect(connection: ServerConnection, request: Request) -> Response:
        asked.append(request.path)
        reply = connection.respond(HTTPStatus.FOUND, "")
        reply.headers["Location"] = f"ws://127.0.0.1:{port}/elsewhere"
        return reply

    async def never(connection: ServerConnection) -> None:
        await connection.close()

    async with serve(never, "127.0.0.1", 0, process_request=redirect) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        with anyio.fail_after(10), pytest.raises(InvalidStatus) as refused:
            await connect(f"ws://127.0.0.1:{port}/ws", proxy=None)
    assert asked == ["/ws"]
    failure = SocketFailure.of(refused.value, HOST, venue(Binance(), "spot"), 60 * SECOND)
    assert failure.reason == f"cannot connect to {HOST}/ws: it answered HTTP 302"
