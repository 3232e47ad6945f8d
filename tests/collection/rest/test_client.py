from __future__ import annotations

import gzip
import json
import socket
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import anyio
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from tests.collection.rest.serving import serving
from tests.market import NOON, ManualClock, listing
from tests.venues import NOWHERE, simulated_venue, venue
from wadm_mcp.collection.rest.client import RestClient
from wadm_mcp.errors import EndpointMissing, ExchangeError, HostRefused, SettingError
from wadm_mcp.exchanges.binance import Binance
from wadm_mcp.exchanges.bybit import Bybit
from wadm_mcp.exchanges.exchange import Venue
from wadm_mcp.health import Health
from wadm_mcp.model import Listing
from wadm_mcp.simulator.faults import Faults
from wadm_mcp.simulator.simulator import Simulator

pytestmark = pytest.mark.anyio

SPOT = "/api/v3/exchangeInfo"
FILTERS = [{"filterType": "PRICE_FILTER", "tickSize": "0.01"}, {"filterType": "LOT_SIZE", "stepSize": "0.00001"}]
LISTED = json.dumps({"symbols": [{"symbol": "BTCUSDT", "status": "TRADING", "filters": FILTERS}]}).encode()


def answering(status: int, body: bytes, headers: dict[str, str] | None = None) -> Starlette:
    async def answer(request: Request) -> Response:
        return Response(body, status, headers)

    return Starlette(routes=[Route(SPOT, answer)])


async def spot_listings(base_url: str, rest: RestClient | None = None) -> list[Listing]:
    with anyio.fail_after(10):
        async with rest or RestClient() as entered:
            return await entered.listings(venue(Binance(), "spot", rest_url=base_url))


async def refusal(base_url: str, rest: RestClient | None = None) -> str:
    with pytest.raises(ExchangeError) as caught:
        await spot_listings(base_url, rest)
    assert str(caught.value).isprintable()
    assert str(caught.value).startswith("binance spot")
    return str(caught.value)


async def test_one_reply_lists_a_market_and_the_client_names_itself() -> None:
    asked: list[Request] = []

    async def answer(request: Request) -> Response:
        asked.append(request)
        return Response(LISTED)

    with serving(Starlette(routes=[Route(SPOT, answer)])) as base_url:
        (listing,) = await spot_listings(base_url + "/")
    assert str(listing.instrument) == "binance:spot:BTCUSDT"
    assert [request.url.query for request in asked] == [""]
    assert asked[0].headers["User-Agent"].startswith("wadm-mcp/")


def pages(cursors: dict[str, str], asked: list[dict[str, str]], queries: list[str] | None = None) -> Starlette:
    """Bybit's paginated list: by the cursor asked for, the cursor that follows. `queries` gets the texts of the queries."""

    async def answer(request: Request) -> Response:
        if "status" in request.query_params:
            return JSONResponse({"retCode": 0, "retMsg": "OK", "result": {"list": [], "nextPageCursor": ""}})
        asked.append(dict(request.query_params))
        if queries is not None:
            queries.append(request.url.query)
        following = cursors[request.query_params.get("cursor", "")]
        symbol = {
            "symbol": f"S{len(asked)}USDT",
            "status": "Trading",
            "priceFilter": {"tickSize": "0.10"},
            "lotSizeFilter": {"qtyStep": "0.001"},
        }
        return JSONResponse({"retCode": 0, "retMsg": "OK", "result": {"list": [symbol], "nextPageCursor": following}})

    return Starlette(routes=[Route("/v5/market/instruments-info", answer)])


async def test_every_page_is_read_and_a_cursor_goes_back_as_it_came() -> None:
    asked: list[dict[str, str]] = []
    queries: list[str] = []
    # The server decodes what it gets once: encoded twice it would still have its percent signs.
    with serving(pages({"": "first%3DS1%26last%3DS1", "first=S1&last=S1": "two", "two": ""}, asked, queries)) as base_url:
        async with RestClient() as rest:
            with anyio.fail_after(10):
                listings = await rest.listings(venue(Bybit(), "linear", rest_url=base_url))
    assert [each.instrument.symbol for each in listings] == ["S1USDT", "S2USDT", "S3USDT"]
    assert queries[1].endswith("&cursor=first%3DS1%26last%3DS1")
    assert [query.get("cursor") for query in asked] == [None, "first=S1&last=S1", "two"]
    assert all((query["category"], query["limit"]) == ("linear", "1000") for query in asked)


@pytest.mark.parametrize("refused", [None, "PreLaunch", "Delivering"])
async def test_contracts_that_do_not_trade_are_listed_too_and_the_others_without_them(refused: str | None) -> None:
    async def answer(request: Request) -> Response:
        status = request.query_params.get("status", "Trading")
        if status == refused:
            return JSONResponse({"retCode": 10001, "retMsg": "params error: status invalid", "result": {}})
        contract = {"status": status, "priceFilter": {"tickSize": "0.10"}, "lotSizeFilter": {"qtyStep": "0.001"}}
        # One that is launched between two requests is in both lists.
        symbols = [f"{status.upper()}USDT", *(["NEWUSDT"] if status != "Delivering" else [])]
        return JSONResponse({"retCode": 0, "result": {"list": [{"symbol": symbol, **contract} for symbol in symbols]}})

    with serving(Starlette(routes=[Route("/v5/market/instruments-info", answer)])) as base_url:
        async with RestClient() as rest:
            with anyio.fail_after(10):
                listings = await rest.listings(venue(Bybit(), "linear", rest_url=base_url))
    found = {each.instrument.symbol: each.status for each in listings}
    every = {"PRELAUNCHUSDT": "PreLaunch", "NEWUSDT": "Trading", "TRADINGUSDT": "Trading", "DELIVERINGUSDT": "Delivering"}
    assert found == {symbol: status for symbol, status in every.items() if status != refused}
    assert len(listings) == len(found)
    assert bool(listings.missing) == (refused is not None)


@pytest.mark.parametrize(("cursors", "read"), [({"": "a", "a": "a"}, 2), ({"": "a", "a": "b", "b": "a"}, 3)])
async def test_a_page_that_repeats_ends_the_list_with_a_warning_and_what_was_read(
    cursors: dict[str, str], read: int, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[dict[str, str]] = []
    with serving(pages(cursors, asked)) as base_url:
        async with RestClient(pages=5) as rest:
            with anyio.fail_after(10):
                listings = await rest.listings(venue(Bybit(), "linear", rest_url=base_url))
    assert [each.instrument.symbol for each in listings] == [f"S{place}USDT" for place in range(1, read + 1)]
    assert len(asked) == read
    assert listings.missing == "a page of it came again"
    (line,) = [record for record in caplog.records if record.getMessage() == "listings.repeated"]
    assert vars(line)["wadm_fields"] == {"exchange": "bybit", "market": "linear", "cursor": "a", "symbols": read}


def numbered(pages: Sequence[Sequence[str]], asked: list[str], contract: str = "LinearPerpetual") -> Starlette:
    """Bybit's list with these symbols on each page; its last page comes again under another cursor each time. Only the first page has
    perpetuals if `contract` is another type."""

    async def answer(request: Request) -> Response:
        if "status" in request.query_params:
            return JSONResponse({"retCode": 0, "retMsg": "OK", "result": {"list": [], "nextPageCursor": ""}})
        place = int(request.query_params.get("cursor", "0"))
        asked.append(str(place))
        listed = [
            {
                "symbol": symbol,
                "status": "Trading",
                "contractType": contract if place else "LinearPerpetual",
                "priceFilter": {"tickSize": "0.10"},
                "lotSizeFilter": {"qtyStep": "0.001"},
            }
            for symbol in pages[min(place, len(pages) - 1)]
        ]
        return JSONResponse({"retCode": 0, "retMsg": "OK", "result": {"list": listed, "nextPageCursor": str(place + 1)}})

    return Starlette(routes=[Route("/v5/market/instruments-info", answer)])


@pytest.mark.parametrize(
    ("pages", "contract", "read", "requests"),
    [
        ([["A", "B"]], "LinearPerpetual", ["A", "B"], 2),
        ([["A", "B"], ["B", "C"], ["D"]], "LinearPerpetual", ["A", "B", "C", "D"], 4),
        # A page of nothing that is recorded does not end the list alone.
        ([["A", "B"], []], "LinearPerpetual", ["A", "B"], 3),
        ([["A", "B"], ["C-26MAR27"]], "LinearFutures", ["A", "B"], 3),
    ],
)
async def test_a_page_without_a_new_symbol_ends_the_list_though_its_cursor_is_new(
    pages: list[list[str]], contract: str, read: list[str], requests: int, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[str] = []
    with serving(numbered(pages, asked, contract)) as base_url:
        async with RestClient() as rest:
            with anyio.fail_after(10):
                listings = await rest.listings(venue(Bybit(), "linear", rest_url=base_url))
    assert [each.instrument.symbol for each in listings] == read
    assert len(asked) == requests
    assert "listings.repeated" in [record.getMessage() for record in caplog.records]


async def test_a_malformed_record_is_logged_once_for_a_list_and_makes_it_incomplete(caplog: pytest.LogCaptureFixture) -> None:
    contract = {"status": "Trading", "priceFilter": {"tickSize": "0.10"}, "lotSizeFilter": {"qtyStep": "0.001"}}

    async def answer(request: Request) -> Response:
        records = [{"symbol": "AUSDT", **contract}, {"symbol": "B USDT", **contract}]
        return JSONResponse({"retCode": 0, "result": {"list": records if "status" not in request.query_params else []}})

    with serving(Starlette(routes=[Route("/v5/market/instruments-info", answer)])) as base_url:
        async with RestClient() as rest:
            with anyio.fail_after(10):
                listings = await rest.listings(venue(Bybit(), "linear", rest_url=base_url))
    assert [each.instrument.symbol for each in listings] == ["AUSDT"]
    assert listings.missing == "1 of 2 records are malformed, the last one: 'B USDT' cannot be a symbol"
    (line,) = [record for record in caplog.records if record.getMessage() == "listings.incomplete"]
    assert vars(line)["wadm_fields"]["error"] == listings.missing


async def test_a_malformed_record_that_names_its_symbol_leaves_the_list_of_the_others_complete(caplog: pytest.LogCaptureFixture) -> None:
    contract = {"status": "Trading", "priceFilter": {"tickSize": "0.10"}, "lotSizeFilter": {"qtyStep": "0.001"}}

    async def answer(request: Request) -> Response:
        records = [{"symbol": "AUSDT", **contract}, {"symbol": "CUSDT", **contract, "priceFilter": {}}]
        return JSONResponse({"retCode": 0, "result": {"list": records if "status" not in request.query_params else []}})

    with serving(Starlette(routes=[Route("/v5/market/instruments-info", answer)])) as base_url:
        async with RestClient() as rest:
            with anyio.fail_after(10):
                listings = await rest.listings(venue(Bybit(), "linear", rest_url=base_url))
    assert [each.instrument.symbol for each in listings] == ["AUSDT"]
    assert (listings.missing, list(listings.malformed)) == ("", ["CUSDT"])
    (line,) = [record for record in caplog.records if record.getMessage() == "listing.malformed"]
    assert vars(line)["wadm_fields"]["symbol"] == "CUSDT"


async def test_an_empty_list_of_what_trades_is_no_answer_whatever_the_other_lists_have() -> None:
    contract = {"status": "PreLaunch", "priceFilter": {"tickSize": "0.10"}, "lotSizeFilter": {"qtyStep": "0.001"}}

    async def answer(request: Request) -> Response:
        records = [{"symbol": "AUSDT", **contract}] if request.query_params.get("status") == "PreLaunch" else []
        return JSONResponse({"retCode": 0, "result": {"list": records}})

    with serving(Starlette(routes=[Route("/v5/market/instruments-info", answer)])) as base_url:
        async with RestClient() as rest:
            with anyio.fail_after(10), pytest.raises(ExchangeError, match="empty list of symbols"):
                await rest.listings(venue(Bybit(), "linear", rest_url=base_url))


async def test_a_list_without_end_is_given_up() -> None:
    asked: list[dict[str, str]] = []
    with serving(pages({"": "0", **{str(place): str(place + 1) for place in range(9)}}, asked)) as base_url:
        async with RestClient(pages=5) as rest:
            with anyio.fail_after(10), pytest.raises(ExchangeError, match="5 pages"):
                await rest.listings(venue(Bybit(), "linear", rest_url=base_url))
    assert len(asked) == 5


@pytest.mark.parametrize(
    ("status", "headers", "parts"),
    [
        (400, {}, ["HTTP 400", "Invalid symbol."]),
        (403, {}, ["HTTP 403", "region", "WADM_BINANCE_SPOT_REST=https://data-api.binance.vision, or HTTPS_PROXY"]),
        (404, {}, ["HTTP 404", "Check WADM_BINANCE_SPOT_REST=http://127.0.0.1:"]),
        (418, {"Retry-After": "7200"}, ["HTTP 418", "banned", "Retry-After: 7200 s"]),
        (429, {"Retry-After": "12"}, ["HTTP 429", "wait", "Retry-After: 12 s"]),
        (451, {}, ["HTTP 451", "does not serve this region", "WADM_BINANCE_SPOT_REST=https://data-api.binance.vision, or HTTPS_PROXY"]),
        (503, {"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}, ["HTTP 503", "Retry-After: Wed, 21 Oct 2026 07:28:00 GMT"]),
        (302, {"Location": "https://elsewhere.example/"}, ["HTTP 302"]),
        (599, {}, ["HTTP 599"]),
    ],
)
async def test_an_error_status_is_reported_with_the_exchanges_own_text(status: int, headers: dict[str, str], parts: list[str]) -> None:
    body = b'{"code":-1121,"msg":"Invalid symbol.\n"}' + b" and so on" * 100_000
    with serving(answering(status, body, headers)) as base_url:
        said = await refusal(base_url)
    assert all(part in said for part in [*parts, SPOT, "-1121"])
    assert len(said) < 480


async def test_a_page_of_html_is_reported_as_its_text() -> None:
    head = '<!DOCTYPE HTML PUBLIC "-//W3C//DTD HTML 4.01 Transitional//EN">\n<HTML><HEAD><TITLE>ERROR</TITLE></HEAD>'
    page = f"{head}<script>{'x' * 2_000}</script><BODY>\n<H1>403 ERROR</H1><p>Access from your&nbsp;country is blocked.</p></BODY></HTML>"
    with serving(answering(403, page.encode())) as base_url:
        said = "says: '403 ERROR Access from your country is blocked'"
        assert f"answered HTTP 403 to {SPOT} and {said}. The exchange blocks" in await refusal(base_url)


def spot(url: str, fallback: str = "") -> Venue:
    return replace(venue(Binance(), "spot", rest_url=url), rest_fallback=fallback)


@pytest.mark.parametrize("status", [403, 451, None])
async def test_the_fallback_host_is_asked_where_the_first_refuses_or_is_unreachable(status: int | None) -> None:
    clock, health = ManualClock(), Health(lambda: NOON)
    asked: list[Request] = []

    async def refuse(request: Request) -> Response:
        asked.append(request)
        return Response(b"", status or 200)

    with serving(Starlette(routes=[Route(SPOT, refuse)])) as url, serving(answering(200, LISTED)) as fallback:
        here = spot(url if status is not None else NOWHERE, fallback)
        async with RestClient(clock=clock, health=health) as rest:
            for _ in range(2):
                assert len(await rest.listings(here)) == 1
            assert len(asked) == (status is not None)
            (note,) = rest.notes(here)
            assert note.startswith(f"uses {fallback}, because binance spot")
            assert health.parts["binance spot REST"].detail == note
            # The first host is tried again after an hour.
            clock.pass_minutes(61)
            assert len(await rest.listings(here)) == 1
            assert len(asked) == 2 * (status is not None)
            clock.pass_minutes(61)
            rest.limiter(here)
            assert "binance spot REST" not in health.parts


@pytest.mark.parametrize("status", [418, 429, 500, 400])
async def test_the_fallback_host_is_no_way_round_a_ban_or_an_error(status: int) -> None:
    with serving(answering(status, b"")) as url, serving(answering(200, LISTED)) as fallback:
        async with RestClient() as rest:
            with pytest.raises(ExchangeError, match=f"HTTP {status}"):
                await rest.listings(spot(url, fallback))


async def test_the_refusal_of_the_first_host_is_reported_where_the_fallback_serves_neither() -> None:
    with serving(answering(451, b"not here")) as url, serving(answering(451, b"nor there")) as fallback:
        async with RestClient() as rest:
            with pytest.raises(HostRefused, match="not here"):
                await rest.listings(spot(url, fallback))
            assert not rest.notes(spot(url, fallback))
            assert 290 < rest.closed_for(spot(url, fallback)) <= 300


@pytest.mark.parametrize("status", [404, 400, 401, 403, 405, 410, 451, 302, 200])
async def test_a_host_without_trades_by_id_is_asked_for_them_once_an_hour(status: int) -> None:
    clock, health, asked, served = ManualClock(), Health(lambda: NOON), list[str](), ["trades", "aggTrades"]

    async def answer(request: Request) -> Response:
        asked.append(request.url.path)
        return Response(b"[]") if request.path_params["name"] in served else Response(b'{"code":-1,"msg":"not here"}', status)

    with serving(Starlette(routes=[Route("/api/v3/{name}", answer)])) as url:
        async with RestClient(clock=clock, health=health) as rest:
            here = spot(url)
            for _ in range(3):
                with pytest.raises(EndpointMissing):
                    await rest.trades(here, listing(), first=7)
            assert await rest.trades(here, listing()) == []
            assert asked == ["/api/v3/historicalTrades", "/api/v3/aggTrades", "/api/v3/trades"]
            assert "has no trades by id" in health.parts["binance spot REST"].detail
            clock.pass_minutes(61)
            assert not rest.lacks_trades(here)
            served.append("historicalTrades")
            assert await rest.trades(here, listing(), first=7) == []
            assert "binance spot REST" not in health.parts


async def test_a_host_that_refuses_everything_does_not_just_lack_trades_by_id() -> None:
    async def answer(request: Request) -> Response:
        return Response(b"blocked", 403)

    with serving(Starlette(routes=[Route("/api/v3/{name}", answer)])) as url:
        async with RestClient() as rest:
            with pytest.raises(HostRefused, match="HTTP 403 to /api/v3/aggTrades"):
                await rest.trades(spot(url), listing(), first=7)
            assert not rest.lacks_trades(spot(url))


async def test_an_error_without_text_is_reported_too() -> None:
    with serving(answering(500, b"")) as base_url:
        assert await refusal(base_url) == f"binance spot answered HTTP 500 to {SPOT}"


async def test_an_error_body_under_status_200_is_the_exchanges_refusal() -> None:
    with serving(answering(200, b'{"code":-1003,"msg":"Too much request weight used"}')) as base_url:
        assert "and says: 'Too much request weight used' (code -1003)" in await refusal(base_url)


async def test_a_page_that_is_no_reply_of_an_exchange_is_unreadable() -> None:
    with serving(answering(200, b"<html>Welcome to our hotel's network</html>")) as base_url:
        assert "cannot be read" in await refusal(base_url)


@pytest.mark.parametrize("packed", [False, True])
async def test_a_body_beyond_the_bound_is_not_read_to_its_end(packed: bool) -> None:
    body = b" " * 2_000_000
    app = answering(200, gzip.compress(body), {"Content-Encoding": "gzip"}) if packed else answering(200, body)
    with serving(app) as base_url:
        assert "more than 100,000 bytes" in await refusal(base_url, RestClient(body_limit=100_000))


async def test_a_body_that_cannot_be_decompressed_is_reported() -> None:
    with serving(answering(200, b"not gzip at all", {"Content-Encoding": "gzip"})) as base_url:
        assert "cannot be decompressed" in await refusal(base_url)


async def silent(scope: Scope, receive: Receive, send: Send) -> None:
    """Takes the request and says nothing until the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def dripping(scope: Scope, receive: Receive, send: Send) -> None:
    """Sends a byte now and then, for ever: no single wait is long."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    with anyio.move_on_after(30):
        while True:
            await send({"type": "http.response.body", "body": b" ", "more_body": True})
            with anyio.move_on_after(0.02):
                if (await receive())["type"] == "http.disconnect":
                    return


async def test_a_server_that_hangs_is_given_up() -> None:
    with serving(silent) as base_url:
        assert "sent no data for 0.2 s" in await refusal(base_url, RestClient(read=0.2))


async def test_a_response_that_arrives_too_slowly_times_out() -> None:
    with serving(dripping) as base_url:
        assert "more than 0.3 s" in await refusal(base_url, RestClient(whole=0.3))


async def test_waiting_for_an_answer_can_be_cancelled() -> None:
    with serving(silent) as base_url:
        async with RestClient() as rest:
            with anyio.fail_after(5):
                with anyio.move_on_after(0.1) as scope:
                    await rest.listings(venue(Binance(), "spot", rest_url=base_url))
                assert scope.cancelled_caught


async def test_a_proxy_of_the_environment_is_not_used_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    with serving(answering(200, LISTED)) as base_url:
        assert len(await spot_listings(base_url)) == 1
        assert len(await spot_listings(base_url.replace("127.0.0.1", "localhost"))) == 1
    said = await refusal("http://api.exchange.invalid")
    assert "the proxy http://127.0.0.1:9 (HTTP_PROXY) refused the connection" in said


@pytest.mark.parametrize("content", [None, "no certificate"])
async def test_certificates_that_cannot_be_read_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "authorities.pem"
    if content is not None:
        file.write_text(content)
    monkeypatch.setenv("SSL_CERT_FILE", str(file))
    with pytest.raises(SettingError, match=f"^SSL_CERT_FILE={file}: its certificates cannot be read .*; set it to certificates"):
        async with RestClient():
            pass


async def test_a_dead_proxy_is_named_with_its_variable_and_without_a_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://user:secret@127.0.0.1:1")
    assert await refusal("https://exchange.example") == (
        "binance spot: https://exchange.example cannot be reached: the proxy http://127.0.0.1:1 (HTTPS_PROXY) refused the connection. "
        "Check that it runs, or change or unset HTTPS_PROXY"
    )
    monkeypatch.setenv("NO_PROXY", "exchange.example")
    assert "HTTPS_PROXY" not in await refusal("https://exchange.example")


async def test_a_proxy_that_refuses_to_connect_is_named_with_its_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(request: Request) -> Response:
        return Response(status_code=407)

    with serving(Starlette(routes=[Route("/{path:path}", refuse, methods=["CONNECT"])])) as proxy:
        monkeypatch.setenv("ALL_PROXY", proxy)
        said = await refusal("https://exchange.example")
    assert f"the proxy {proxy} (ALL_PROXY) answered" in said
    assert "4" in said.partition("answered")[2]


@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:9", "nonsense://127.0.0.1", "http://127.0.0.1:notaport"])
async def test_a_proxy_that_cannot_be_used_is_reported_with_its_variable_and_without_a_password(
    monkeypatch: pytest.MonkeyPatch, proxy: str
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", proxy.replace("://", "://user:secret@"))
    with pytest.raises(SettingError) as caught:
        await spot_listings("http://127.0.0.1:9")
    assert str(caught.value) == f"ALL_PROXY={proxy}: not a usable proxy URL; expected http://host:port"


async def test_a_refused_connection_is_reported_without_the_password_of_the_url() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    said = await refusal(f"http://user:secret@127.0.0.1:{port}")
    assert f"http://127.0.0.1:{port} refused the connection. Check" in said
    assert "secret" not in said


async def test_a_name_that_does_not_resolve_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    assert "http://api.exchange.invalid does not resolve" in await refusal("http://api.exchange.invalid")


async def test_a_server_that_hangs_up_is_reported() -> None:
    async with await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=0) as listener, anyio.create_task_group() as group:

        async def hang_up(stream: anyio.abc.SocketStream) -> None:
            async with stream:
                await stream.receive()

        group.start_soon(listener.serve, hang_up)
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        assert "closed the connection" in await refusal(f"http://127.0.0.1:{port}")
        group.cancel_scope.cancel()


@pytest.mark.parametrize("base_url", ["ftp://127.0.0.1:1", "127.0.0.1:1", "http://127.0.0.1:notaport", "http://\x00"])
async def test_an_invalid_base_url_is_reported(base_url: str) -> None:
    said = await refusal(base_url)
    assert "WADM_BINANCE_SPOT_REST" in said
    assert "https://host:port" in said


async def test_an_invalid_base_url_is_shown_without_its_password() -> None:
    said = await refusal("http://user:secret@127.0.0.1:notaport")
    assert said.startswith("binance spot: WADM_BINANCE_SPOT_REST=http://127.0.0.1:notaport is not a URL; set a base URL")
    assert "secret" not in said


async def test_the_simulated_list_is_read_page_by_page_and_as_far_as_it_goes_where_a_page_repeats() -> None:
    faults = Faults()
    faults.listings_page = 2
    async with Simulator(faults=faults) as simulator, RestClient(proxied=False) as rest:
        read = await rest.listings(simulated_venue(simulator, "bybit", "linear"))
        assert len(read) == 7
        faults.repeats_page = True
        for faults.fresh_cursors in (False, True):
            read = await rest.listings(simulated_venue(simulator, "bybit", "linear"))
            assert [one.instrument.symbol for one in read] == ["BTCUSDT", "ETHUSDT", "SOLUSDT", "XRPUSDT"]
