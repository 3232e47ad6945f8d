# pyright: reportDeprecated=false
from __future__ import annotations

from typing import Any

import anyio
import pytest
from mcp.client import Client
from mcp.shared.exceptions import MCPError
from mcp.shared.subscriptions import ResourceUpdated
from mcp_types import ResourceUpdatedNotification

from tests.market import listing, trade
from tests.server.fake import FakeRuntime, over, serving
from wadm_mcp.model import Instrument
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
    server = build_server(runtime)
    await server.publisher.publish()
    spellings = ["wadm://BINANCE/spot/btc-usdt/trades", "wadm://binance/Spot/BTC%2FUSDT/trades", "wadm://all/spot/all:spot:BTCUSDT/trades"]
    others = ["wadm://binance/perp/BTCUSDT/trades", "wadm://binance/spot/ETHUSDT/trades"]
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


async def test_subscriptions_are_bounded() -> None:
    server = build_server(FakeRuntime())
    async with Client(server, mode="legacy") as client:
        for number in range(256):
            await client.subscribe_resource(f"wadm://binance/spot/S{number}/trades")
        with pytest.raises(MCPError, match="one client may have 256 URIs"):
            await client.subscribe_resource("wadm://markets")
    async with Client(server, mode="legacy") as client:
        with pytest.raises(MCPError, match="at most 256 characters"):
            await client.subscribe_resource("wadm://" + "x" * 300)
    async with Client(server) as client:
        with pytest.raises(MCPError, match="one client may have 256 URIs"):
            async with client.listen(resource_subscriptions=[f"wadm://{number}" for number in range(257)]):
                pass


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
