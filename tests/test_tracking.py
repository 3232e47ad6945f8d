"""Adding and removing instruments by every name that they are called by, with exchanges on loopback."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp.client import Client
from mcp_types import TextContent

from tests.server.calls import suggested
from wadm_mcp.collection.rest.client import RestClient
from wadm_mcp.exchanges.exchange import Listed, Venue
from wadm_mcp.model import Instrument
from wadm_mcp.runtime import Runtime
from wadm_mcp.server.server import build_server
from wadm_mcp.settings import Settings, read_settings
from wadm_mcp.simulator.chaos import Chaos
from wadm_mcp.simulator.fault_plan import Fault, Kind
from wadm_mcp.simulator.listings import known_instruments
from wadm_mcp.simulator.simulator import Simulator

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def following(folder: Path, *, faults: Chaos | None = None, **changes: object) -> AsyncGenerator[Client]:
    """A client of a process that follows BTCUSDT on both spot markets and lets agents track."""
    unusual = [Instrument("binance", "spot", "币安人生USDT"), Instrument("bybit", "linear", "BTCPERP")]
    async with Simulator(manual=True, instruments=[*known_instruments(), *unusual], faults=faults) as simulator:
        urls = {f"WADM_{name.upper()}": url for name, url in simulator.urls.items()}
        chosen = {"WADM_DATA_DIR": folder, "WADM_HISTORY_HOURS": 0, "WADM_ALLOW_TRACKING": True, **urls, **changes}
        async with Runtime(read_settings({}, overrides=chosen)) as runtime, Client(build_server(runtime)) as client:
            with anyio.fail_after(15):
                while len(runtime.followed) < 2:
                    await anyio.sleep(0.02)
            yield client


async def call(client: Client, tool: str, **arguments: Any) -> dict[str, Any] | str:
    """The answer of a tool, or the text of its error. Tracking does not wait for trades."""
    result = await client.call_tool(tool, {"wait": 0, **arguments} if tool == "track_market" else arguments)
    (block, *_) = result.content
    assert isinstance(block, TextContent)
    return block.text if result.is_error else dict(result.structured_content or {})


@pytest.mark.parametrize(
    ("name", "tracked"),
    [
        ("eth/usdt", ["binance:spot:ETHUSDT", "bybit:spot:ETHUSDT"]),
        ("binance:spot:SOLUSDT", ["binance:spot:SOLUSDT"]),
        ("all:linear:BTCUSDT", ["binance:linear:BTCUSDT", "bybit:linear:BTCUSDT"]),
        ("BTC/USDT:USDT", ["binance:linear:BTCUSDT", "bybit:linear:BTCUSDT"]),
        ("BYBIT:BTCUSDT.P", ["bybit:linear:BTCUSDT"]),
        ("BTC-USDT-SWAP", ["binance:linear:BTCUSDT", "bybit:linear:BTCUSDT"]),
        ("币安人生/USDT", ["binance:spot:币安人生USDT"]),
        ("bybit:linear:BTCPERP", ["bybit:linear:BTCPERP"]),
        ("btc-perp", ["bybit:linear:BTCPERP"]),
    ],
)
async def test_a_symbol_is_tracked_and_untracked_by_any_name(tmp_path: Path, name: str, tracked: list[str]) -> None:
    async with following(tmp_path) as client:
        answer = await call(client, "track_market", symbol=name)
        assert isinstance(answer, dict)
        assert answer["tracked"] == tracked
        assert await call(client, "untrack_market", symbol=name) == {
            "untracked": tracked,
            "kept": "stored data is kept; call track_market again to query it",
        }


async def test_what_was_untracked_can_be_tracked_again_where_another_process_records(tmp_path: Path) -> None:
    async with Simulator(activity=20) as simulator:
        urls = {f"WADM_{name.upper()}": url for name, url in simulator.urls.items()}
        chosen = {"WADM_DATA_DIR": tmp_path, "WADM_HISTORY_HOURS": 0, "WADM_ALLOW_TRACKING": True, **urls}
        settings = read_settings({}, overrides=chosen)
        async with (
            Runtime(settings) as recording,
            Runtime(settings) as standby,
            Client(build_server(recording)) as one,
            Client(build_server(standby)) as other,
        ):
            tracked = await call(one, "track_market", symbol="ETHUSDT", exchange="binance", wait=20)
            assert isinstance(tracked, dict)
            with anyio.fail_after(15):
                while Instrument("binance", "spot", "ETHUSDT") not in standby.followed:
                    await anyio.sleep(0.05)
            assert isinstance(await call(one, "untrack_market", symbol="ETHUSDT"), dict)
            assert isinstance(await call(other, "track_market", symbol="ETHUSDT", exchange="binance"), dict)
            assert await recording.store.tracked() == [Instrument("binance", "spot", "ETHUSDT")]


async def test_a_ban_that_one_call_meets_holds_for_the_next(tmp_path: Path) -> None:
    chaos = Chaos([Fault(Kind.BANNED, 0.0, 60.0, "binance", "spot")])
    async with following(tmp_path, faults=chaos) as client:
        chaos.begin()
        asked = [len(chaos.requests)]
        for _ in range(2):
            error = await call(client, "track_market", symbol="SOLUSDT", exchange="binance")
            assert isinstance(error, str)
            assert "418" in error
            asked.append(len(chaos.requests))
        assert asked[2] == asked[1] > asked[0]


async def test_a_fallback_host_that_tracking_meets_is_shown_in_health(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with Simulator(manual=True, instruments=known_instruments()) as simulator:
        urls = {f"WADM_{name.upper()}": url for name, url in simulator.urls.items()}
        chosen = {"WADM_DATA_DIR": tmp_path, "WADM_HISTORY_HOURS": 0, "WADM_ALLOW_TRACKING": True, **urls}
        async with Runtime(read_settings({}, overrides=chosen)) as runtime, Client(build_server(runtime)) as client:
            with anyio.fail_after(15):
                while len(runtime.followed) < 2:
                    await anyio.sleep(0.02)
            assert "binance spot REST" not in runtime.health.parts
            venue_of = Settings.venue

            def refused(settings: Settings, exchange: str, market: str) -> Venue:
                venue = venue_of(settings, exchange, market)
                return replace(venue, rest_url="http://127.0.0.1:1", rest_fallback=venue.rest_url)

            monkeypatch.setattr(Settings, "venue", refused)
            assert isinstance(await call(client, "track_market", symbol="SOLUSDT", exchange="binance"), dict)
            detail = runtime.health.parts["binance spot REST"].detail
            assert detail.startswith(f"uses {simulator.urls['binance_spot_rest']}, because binance spot: http://127.0.0.1:1 refused")


async def test_a_symbol_that_an_unreadable_record_may_list_is_not_called_unlisted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with following(tmp_path) as client:

        async def listings(_: RestClient, venue: Venue) -> Listed:
            return Listed([], malformed={"SOLUSDT": "it has no tick"})

        monkeypatch.setattr(RestClient, "listings", listings)
        error = await call(client, "track_market", symbol="SOLUSDT", exchange="binance")
        assert isinstance(error, str)
        assert "could not be read whole (it has no tick)" in error
        assert "not listed" not in error


async def test_a_name_that_an_answer_wrote_is_taken_back(tmp_path: Path) -> None:
    async with following(tmp_path) as client:
        answer = await call(client, "track_market", symbol="SOLUSDT")
        assert isinstance(answer, dict)
        assert answer["tracked"] == ["binance:spot:SOLUSDT", "bybit:spot:SOLUSDT"]
        removed = await call(client, "untrack_market", symbol="binance:spot:SOLUSDT")
        assert isinstance(removed, dict)
        assert removed["untracked"] == ["binance:spot:SOLUSDT"]
        assert await call(client, "untrack_market", symbol="binance:spot:SOLUSDT") == (
            'symbol "binance:spot:SOLUSDT" is not tracked by track_market. Tracked: bybit:spot:SOLUSDT. To stop recording a symbol of '
            'WADM_SYMBOLS, the operator must remove it from that setting. Try untrack_market(symbol="bybit:spot:SOLUSDT")'
        )


_REFUSED = [
    ({"symbol": "BTCUSDT_270326"}, "BTCUSDT", "delivery date"),
    ({"symbol": "BTC/USDT:USDT-270326"}, "BTCUSDT", "delivery date"),
    ({"symbol": "ETHUSDX"}, "ETHUSDT", "is not listed at binance spot and bybit spot. Nearest: ETHUSDT"),
    ({"symbol": "binance:spot:QQQQQ"}, None, "is not listed at binance spot. Nearest: none"),
    ({"symbol": "BTC/USD:BTC"}, "BTC", "settled in its base asset"),
    ({"symbol": "kraken:ETHUSDT"}, "ETHUSDT", "a part of it is neither an exchange"),
    ({"symbol": "ETHUSDX.P", "exchange": "bybit"}, "ETHUSDT", "is not listed at bybit linear. Nearest: ETHUSDT"),
    (
        {"symbol": "binance:linear:ETHUSDT", "exchange": "bybit"},
        "binance:linear:ETHUSDT",
        'with exchange="bybit": the symbol names binance',
    ),
    ({"symbol": "ETHUSDT-PERP", "market": "spot"}, "linear:ETHUSDT", 'with market="spot": the symbol names linear'),
    ({"symbol": "bnbusdt", "exchange": "bybit"}, None, "is not listed at bybit spot"),
    ({"symbol": "ETHUSDT", "wait": 999}, "binance:spot:ETHUSDT", "wait=999: a whole number from 0 to 300 is needed"),
    ({"symbol": "ETHUSDT", "exchange": "kraken"}, "ETHUSDT", 'exchange="kraken": allowed are binance, bybit, all'),
    ({"symbol": "ETHUSDT", "market": "options"}, "ETHUSDT", 'market="options": allowed are spot, linear'),
    ({"symbol": "..."}, "", "the name of a symbol is needed"),
    ({"symbol": "X" * 200}, "", "the name of a symbol is needed"),
    ({"symbol": 7}, "", "the name of a symbol is needed"),
    ({"symbol": "ETHUSDT", "for_ever": True}, "ETHUSDT", 'has no argument "for_ever"'),
]


async def test_a_refused_request_suggests_another_one_that_is_accepted(tmp_path: Path) -> None:
    async with following(tmp_path) as client:
        for arguments, named, said in _REFUSED:
            refusal = await call(client, "track_market", **arguments)
            assert isinstance(refusal, str), arguments
            assert said in refusal
            tool, instead = suggested(refusal)
            if named is None:
                assert (tool, instead) == ("list_markets", {}), refusal
                continue
            assert named in str(instead["symbol"]), refusal
            assert (tool, instead) != ("track_market", arguments), refusal
            assert 0 <= instead.pop("wait", 0) <= 300
            assert isinstance(await call(client, tool, **instead), dict), refusal


async def test_a_refused_removal_suggests_another_one_that_is_accepted(tmp_path: Path) -> None:
    async with following(tmp_path) as client:
        wrong: list[dict[str, Any]] = [
            {"symbol": "binance:spot:SOLUSDT", "exchange": "bybit"},
            {"symbol": "SOLUSDT.P", "market": "spot"},
            {"symbol": "SOLUSDT_270326"},
            {"symbol": None},
            {"symbol": "SOLUSDT", "exchange": "kraken"},
            {"symbol": "SOLUSDT", "market": "options"},
            {"symbol": "SOLUSDT", "wait": 3},
        ]
        for arguments in wrong:
            await call(client, "untrack_market", symbol="SOLUSDT")
            refusal = await call(client, "untrack_market", **arguments)
            assert isinstance(refusal, str), arguments
            assert suggested(refusal) == ("list_markets", {}), refusal
            await call(client, "track_market", symbol="SOLUSDT")
            refusal = await call(client, "untrack_market", **arguments)
            assert isinstance(refusal, str), arguments
            tool, instead = suggested(refusal)
            assert "SOLUSDT" in instead.get("symbol", "") if arguments["symbol"] else tool == "list_markets", refusal
            assert (tool, instead) != ("untrack_market", arguments)
            assert isinstance(await call(client, tool, **instead), dict), refusal


async def test_a_refused_removal_suggests_no_removal_of_another_symbol(tmp_path: Path) -> None:
    async with following(tmp_path) as client:
        await call(client, "track_market", symbol="SOLUSDT")
        await call(client, "track_market", symbol="ETHUSDT")
        assert isinstance(await call(client, "untrack_market", symbol="ETHUSDT"), dict)
        for arguments in ({"symbol": "ETHUSDT"}, {"symbol": "BTCUSDT"}, {"symbol": "BTCUSDT", "exchange": "kraken"}, {"symbol": 7}):
            refusal = await call(client, "untrack_market", **arguments)
            assert isinstance(refusal, str)
            assert suggested(refusal) == ("list_markets", {}), refusal
        refusal = await call(client, "untrack_market", symbol="SOLUSD")
        assert isinstance(refusal, str)
        assert suggested(refusal) == ("untrack_market", {"symbol": "binance:spot:SOLUSDT"})


async def test_no_hint_names_a_symbol_that_was_just_removed(tmp_path: Path) -> None:
    async with following(tmp_path, WADM_SYMBOLS="ETHUSDT") as client:
        await call(client, "track_market", symbol="BTCUSDT")
        assert isinstance(await call(client, "untrack_market", symbol="BTCUSDT"), dict)
        for tool, arguments in [
            ("track_market", {"symbol": 7}),
            ("get_order_flow", {}),
            ("get_order_flow", {"symbol": "TRXUSDT"}),
            ("get_order_flow", {"symbol": "DOGEUSDT", "limt": 3}),
        ]:
            refusal = await call(client, tool, **arguments)
            assert isinstance(refusal, str)
            assert "BTCUSDT" not in refusal.rpartition("Try ")[2], refusal


async def test_at_the_limit_the_error_names_a_call_that_makes_room(tmp_path: Path) -> None:
    async with following(tmp_path, WADM_MAX_INSTRUMENTS=3) as client:
        refusal = await call(client, "track_market", symbol="SOLUSDT")
        assert isinstance(refusal, str)
        assert "WADM_MAX_INSTRUMENTS=3 is the limit. The operator can raise that setting" in refusal
        assert suggested(refusal) == ("list_markets", {})
        await call(client, "track_market", symbol="binance:spot:SOLUSDT")
        refusal = await call(client, "track_market", symbol="binance:spot:ETHUSDT")
        assert isinstance(refusal, str)
        assert suggested(refusal) == ("untrack_market", {"symbol": "binance:spot:SOLUSDT"})
