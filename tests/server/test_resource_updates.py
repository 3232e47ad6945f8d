# pyright: reportDeprecated=false
from __future__ import annotations

from collections.abc import Callable
from contextlib import AsyncExitStack
from itertools import product
from typing import Any

import anyio
import pytest
from mcp.client import Client
from mcp.client.subscriptions import SubscriptionLost
from mcp.server.connection import Connection
from mcp.shared.exceptions import MCPError
from mcp.shared.subscriptions import ResourceUpdated, ToolsListChanged
from mcp_types import ResourceUpdatedNotification

from tests.market import listing, trade
from tests.server.fake import FakeRuntime, over, serving
from tests.web.http_session import call, session
from wadm_mcp.model import Instrument
from wadm_mcp.queries.callers import Caller
from wadm_mcp.server.resource_updates import _Bus, _listened_now
from wadm_mcp.server.server import build_server

pytestmark = [
    pytest.mark.anyio,
    # The client warns about the older protocol, which is tested here.
    pytest.mark.filterwarnings("ignore:resources/(un)?subscribe is removed"),
    pytest.mark.filterwarnings("ignore:ping is removed"),
]

_TRADES = "wadm://binance/spot/BTCUSDT/trades"
_MERGED = "wadm://all/spot/BTCUSDT/order-flow/1m"
_OTHER = "wadm://bybit/spot/BTCUSDT/trades"


class _Inbox:
    """Collects the URIs of which a client before 2026-07-28 is notified."""

    def __init__(self) -> None:
        self.uris: list[str] = []
        self.arrived = anyio.Event()

    async def __call__(self, message: Any) -> None:
        if isinstance(message, ResourceUpdatedNotification):
            self.uris.append(str(message.params.uri))
            self.arrived.set()


async def test_a_listener_is_notified_of_the_instruments_that_it_subscribed_to() -> None:
    runtime = FakeRuntime()
    server = build_server(runtime)
    await server.publisher.publish()
    with anyio.fail_after(5):
        async with Client(server) as client, client.listen(resource_subscriptions=[_TRADES, _MERGED, _OTHER, "wadm://markets"]) as events:
            runtime.trade()
            await server.publisher.publish()
            heard: set[str] = set()
            async for event in events:
                assert isinstance(event, ResourceUpdated)
                heard.add(event.uri)
                if len(heard) == 3:
                    break
    assert heard == {_TRADES, _MERGED, "wadm://markets"}


async def test_a_resource_is_updated_under_every_name_under_which_it_is_read() -> None:
    runtime = FakeRuntime()
    runtime.tape.follow(listing(Instrument("binance", "linear", "BTCUSDT")))
    server = build_server(runtime)
    await server.publisher.publish()
    spellings = ["wadm://BINANCE/spot/btc-usdt/trades", "wadm://binance/Spot/BTC%2FUSDT/trades", "wadm://all/spot/all:spot:BTCUSDT/trades"]
    others = ["wadm://binance/perp/BTCUSDT/trades", "wadm://bybit/spot/BTCUSDT/trades"]
    with anyio.fail_after(5):
        async with Client(server) as client, client.listen(resource_subscriptions=[*others, *spellings]) as events:
            for uri in spellings:
                assert (await client.read_resource(uri)).contents
            runtime.trade()
            await server.publisher.publish()
            heard: list[str] = []
            async for event in events:
                assert isinstance(event, ResourceUpdated)
                heard.append(event.uri)
                if len(heard) == len(spellings):
                    break
    assert sorted(heard) == sorted(spellings)


@pytest.mark.parametrize("symbol", ["BTCPERP", "ETHPERP", "SOLPERP"])
async def test_a_symbol_that_ends_like_a_market_is_updated_and_the_one_without_the_ending_is_not(symbol: str) -> None:
    runtime, inbox = FakeRuntime(), _Inbox()
    perpetual = Instrument("bybit", "linear", symbol)
    runtime.tape.follow(listing(perpetual))
    runtime.tape.follow(listing(Instrument("bybit", "linear", symbol.removesuffix("PERP"))))
    server = build_server(runtime)
    await server.publisher.publish()
    base = symbol.removesuffix("PERP")
    uris = [f"wadm://bybit/linear/{symbol}/trades", f"wadm://all/perp/{base.lower()}-perp/trades"]
    async with Client(server, mode="legacy", message_handler=inbox) as client:
        for uri in (*uris, f"wadm://bybit/linear/{base}/trades"):
            await client.subscribe_resource(uri)
        runtime.tape[perpetual].add([trade(1, runtime.clock.now() - 1, instrument=perpetual)])
        await server.publisher.publish()
        await client.send_ping()
    assert sorted(inbox.uris) == sorted(uris)


async def test_a_subscriber_of_the_older_protocol_is_notified_until_it_unsubscribes() -> None:
    runtime, inbox = FakeRuntime(), _Inbox()
    server = build_server(runtime)
    await server.publisher.publish()
    with anyio.fail_after(5):
        async with Client(server, mode="legacy", message_handler=inbox) as client:
            assert client.server_capabilities.resources is not None
            assert client.server_capabilities.resources.subscribe
            for uri in (_TRADES, _OTHER, "wadm://guide"):
                await client.subscribe_resource(uri)
            runtime.trade()
            await server.publisher.publish()
            await inbox.arrived.wait()
            assert inbox.uris == [_TRADES]
            await client.unsubscribe_resource(_TRADES)
            runtime.trade()
            await server.publisher.publish()
            await client.send_ping()
    assert inbox.uris == [_TRADES]


async def test_without_a_new_trade_no_update_is_sent() -> None:
    runtime, inbox = FakeRuntime(), _Inbox()
    server = build_server(runtime)
    async with Client(server, mode="legacy", message_handler=inbox) as client:
        await client.subscribe_resource(_TRADES)
        for _ in range(3):
            await server.publisher.publish()
        await client.send_ping()
    assert len(inbox.uris) == 1


async def test_a_client_that_left_is_forgotten() -> None:
    runtime = FakeRuntime()
    server = build_server(runtime)
    async with Client(server, mode="legacy") as client:
        await client.subscribe_resource(_TRADES)
        assert server.publisher.watched == {_TRADES}
    async with Client(server) as client, client.listen(resource_subscriptions=[_OTHER]):
        assert server.publisher.watched == {_OTHER}
    with anyio.fail_after(5):
        while server.publisher.watched:
            await anyio.lowlevel.checkpoint()


_NONE_OF_OURS = [
    "wadm://binance/spot/ETHUSDT/trades",
    "wadm://binance/linear/BTCUSDT/trades",
    "wadm://kraken/spot/BTCUSDT/trades",
    "wadm://binance/spot/BTCUSDT/order-flow/7m",
    "wadm://binance/spot/BTCUSDT/order-flow",
    "wadm://binance/spot/BTCUSDT",
    "wadm://secrets",
    "file:///etc/passwd",
    "https://binance/spot/BTCUSDT/trades",
]


@pytest.mark.parametrize("uri", _NONE_OF_OURS)
async def test_a_resource_that_does_not_exist_cannot_be_subscribed_to(uri: str) -> None:
    server = build_server(FakeRuntime())
    said = "does not exist, so it has no updates. Followed: BTCUSDT. See resources/list and resources/templates/list"
    async with Client(server, mode="legacy") as client:
        with pytest.raises(MCPError, match=said):
            await client.subscribe_resource(uri)
    async with Client(server) as client:
        with pytest.raises(MCPError, match=said):
            async with client.listen(resource_subscriptions=[_TRADES, uri]):
                pass
    assert not server.publisher.watched


async def test_a_configured_symbol_can_be_subscribed_to_before_its_exchange_has_listed_it() -> None:
    runtime = FakeRuntime()
    runtime.tape.add_awaited([Instrument("binance", "linear", "ETHUSDT")])
    async with Client(build_server(runtime), mode="legacy") as client:
        await client.subscribe_resource("wadm://binance/linear/ETHUSDT/trades")


def _spellings() -> list[str]:
    """Ways to write one URI."""
    letters = [(letter.lower(), letter) for letter in "BTCUSDT"]
    return [f"wadm://{venue}/spot/{''.join(word)}/trades" for venue in ("binance", "bybit", "all") for word in product(*letters)]


async def test_the_subscriptions_of_one_client_are_bounded() -> None:
    server, uris = build_server(FakeRuntime()), _spellings()
    async with Client(server, mode="legacy") as client:
        for uri in (*uris[:256], uris[0]):
            await client.subscribe_resource(uri)
        with pytest.raises(MCPError, match="one client may have 256 URIs"):
            await client.subscribe_resource("wadm://markets")
        await client.unsubscribe_resource(uris[0])
        await client.subscribe_resource("wadm://markets")
    async with Client(server, mode="legacy") as client:
        with pytest.raises(MCPError, match="at most 256 characters"):
            await client.subscribe_resource("wadm://" + "x" * 300)
    async with Client(server) as client:
        with pytest.raises(MCPError, match="one client may have 256 URIs"):
            async with client.listen(resource_subscriptions=uris[:257]):
                pass


async def test_every_resource_of_the_server_can_be_subscribed_to() -> None:
    server = build_server(FakeRuntime())

    @server.resource("test://another")
    async def another() -> str:
        return "another"

    async with Client(server, mode="legacy") as client:
        for resource in (await client.list_resources()).resources:
            await client.subscribe_resource(str(resource.uri))
        with pytest.raises(MCPError, match="does not exist"):
            await client.subscribe_resource("test://none")


async def test_a_client_may_subscribe_to_a_few_resources_although_others_have_all_subscriptions() -> None:
    server, uris = build_server(FakeRuntime()), _spellings()
    server.publisher._max_subscriptions = 20
    with anyio.fail_after(10):
        async with Client(server, mode="legacy") as greedy, Client(server, mode="legacy") as modest:
            for uri in uris[:20]:
                await greedy.subscribe_resource(uri)
            for uri in uris[:8]:
                await modest.subscribe_resource(uri)
            for client in (greedy, modest):
                with pytest.raises(MCPError, match="busy: 28 subscriptions exist, as many as are served at once; ask again in 30 s"):
                    await client.subscribe_resource(uris[30])


async def test_a_further_listener_ends_the_oldest_one_of_the_caller_with_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wadm_mcp.server.resource_updates._MAX_LISTENERS", 2)
    callers = [Caller("a"), Caller("a"), Caller("b")]
    monkeypatch.setattr("wadm_mcp.server.resource_updates.current_caller", lambda: callers.pop(0))
    async with AsyncExitStack() as stack:
        stack.enter_context(anyio.fail_after(10))
        client = await stack.enter_async_context(Client(build_server(FakeRuntime())))
        first = await stack.enter_async_context(client.listen(resource_subscriptions=[_TRADES]))
        for _ in range(2):
            await stack.enter_async_context(client.listen(resource_subscriptions=[_TRADES]))
        with pytest.raises(SubscriptionLost):
            await anext(aiter(first))


async def test_the_subscriptions_of_all_clients_are_bounded_and_freed_with_their_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wadm_mcp.server.resource_updates._OWN_SUBSCRIPTIONS", 0)
    server, uris = build_server(FakeRuntime()), _spellings()
    server.publisher._max_subscriptions = 3
    said = "busy: 3 subscriptions exist, as many as are served at once; ask again in 30 s"
    with anyio.fail_after(10):
        async with Client(server, mode="legacy") as older, Client(server) as newer:
            async with newer.listen(resource_subscriptions=uris[:2]):
                await older.subscribe_resource(uris[0])
                with pytest.raises(MCPError, match=said):
                    await older.subscribe_resource(uris[1])
                with pytest.raises(MCPError, match=said):
                    async with newer.listen(resource_subscriptions=[_TRADES]):
                        pass
            while len(server.publisher.watched) > 1:
                await anyio.lowlevel.checkpoint()
            await older.subscribe_resource(uris[1])
            await older.unsubscribe_resource(uris[0])
            await older.unsubscribe_resource(uris[0])
        while server.publisher.watched:
            await anyio.lowlevel.checkpoint()
    assert server.publisher._count == 0


async def test_an_update_is_delivered_only_to_those_who_listen_to_its_resource() -> None:
    bus, heard = _Bus(), list[tuple[str, object]]()
    leave: list[Callable[[], None]] = []
    for name, uri in (("one", _TRADES), ("other", _OTHER)):
        token = _listened_now.set(frozenset([uri]))
        leave.append(bus.subscribe(lambda event, name=name: heard.append((name, event))))
        _listened_now.reset(token)
    await bus.publish(ResourceUpdated(uri=_TRADES))
    await bus.publish(ToolsListChanged())
    assert heard == [("one", ResourceUpdated(uri=_TRADES)), ("one", ToolsListChanged()), ("other", ToolsListChanged())]
    for _ in range(2):
        for each in leave:
            each()
    assert not bus.by_uri


async def test_nothing_is_sent_to_a_session_without_a_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime, sent = FakeRuntime(), list[str]()

    async def send(connection: Connection, uri: str) -> None:
        sent.append(uri)

    monkeypatch.setattr(Connection, "send_resource_updated", send)
    with anyio.fail_after(20):
        async with serving(runtime) as (url, server), session(url) as client:
            answer = await client.post("/mcp", json=call("resources/subscribe", {"uri": _TRADES}))
            assert '"result":{}' in answer.text
            runtime.trade()
            await server.publisher.publish()
            assert sent == []
            async with client.stream("GET", "/mcp"):
                while not sent:
                    runtime.trade()
                    await server.publisher.publish()
    assert set(sent) == {_TRADES}


async def test_a_closed_bar_is_announced_once_its_trades_have_arrived_and_structure_only_then() -> None:
    runtime, inbox = FakeRuntime(), _Inbox()
    server = build_server(runtime)
    structure, minutes = "wadm://binance/spot/BTCUSDT/market-structure/5m", "wadm://binance/spot/BTCUSDT/order-flow/1m"
    await server.publisher.publish()
    async with Client(server, mode="legacy", message_handler=inbox) as client:
        for uri in (structure, minutes):
            await client.subscribe_resource(uri)
        heard: list[list[str]] = []
        for seconds in (61, 1.4, 60, 2.5):
            inbox.uris.clear()
            runtime.clock.pass_seconds(seconds)
            await server.publisher.publish()
            await client.send_ping()
            heard.append(sorted(inbox.uris))
        inbox.uris.clear()
        runtime.trade()
        await server.publisher.publish()
        await client.send_ping()
    assert heard == [[minutes], [], [minutes], [structure, minutes]]
    assert inbox.uris == [minutes]


@pytest.mark.parametrize("transport", ["http", "sse"])
async def test_clients_of_both_eras_are_notified_over_a_real_connection(transport: str) -> None:
    runtime, inbox = FakeRuntime(), _Inbox()
    with anyio.fail_after(10):
        async with (
            serving(runtime) as (url, server),
            over(transport, url, "legacy", message_handler=inbox) as older,
            over(transport, url, "2026-07-28") as newer,
            newer.listen(resource_subscriptions=[_TRADES]) as events,
        ):
            await older.subscribe_resource(_TRADES)
            while not inbox.arrived.is_set():
                runtime.trade()
                await server.publisher.publish()
                with anyio.move_on_after(0.2):
                    await inbox.arrived.wait()
            async for event in events:
                assert event == ResourceUpdated(uri=_TRADES)
                break
    assert set(inbox.uris) == {_TRADES}
