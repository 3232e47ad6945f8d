from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import pytest
from msgspec import structs

from tests.redis_server import RedisServer, redis_binary
from tests.servers import mongodb_url
from wadm_mcp.collection.rest.client import RestClient
from wadm_mcp.commands.doctor import examine
from wadm_mcp.exchanges.exchange import Listed, Venue
from wadm_mcp.model import Listing
from wadm_mcp.runtime import Runtime
from wadm_mcp.settings import Settings, read_settings
from wadm_mcp.simulator.simulator import Simulator

pytestmark = pytest.mark.anyio


def settings_for(folder: Path, simulator: Simulator, **changes: Any) -> Settings:
    urls = {f"WADM_{name.upper()}": url for name, url in simulator.urls.items()}
    return read_settings({}, overrides={"WADM_DATA_DIR": folder, **urls, **changes})


def table(capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """The printed table by part: `ok`, `FAIL` or `skip`, and the detail."""
    lines = [line for line in capsys.readouterr().out.splitlines() if any(f"  {mark}  " in line for mark in ("ok", "FAIL", "skip"))]
    return {line.split("  ", 1)[0].strip(): line.split("  ", 1)[1].strip() for line in lines}


async def test_doctor_ends_with_status_0_where_everything_is_reachable(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with Simulator(activity=20) as simulator:
        with anyio.fail_after(60):
            assert await examine(settings_for(tmp_path, simulator)) == 0
    found = table(capsys)
    assert found["binance spot REST"].startswith("ok")
    assert "BTCUSDT tick 0.01 lot 0.00001" in found["binance spot REST"]
    assert found["bybit spot stream"].startswith("ok    first trade after")
    assert found["SQLite"] == "ok    nothing recorded yet"


async def test_doctor_names_what_is_unreachable_and_ends_with_status_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with Simulator(activity=20) as simulator:
        settings = settings_for(tmp_path, simulator, WADM_EXCHANGES=("binance",), WADM_BINANCE_SPOT_REST="http://127.0.0.1:1")
        assert await examine(settings) == 1
        found = table(capsys)
        assert found["binance spot REST"].startswith("FAIL")
        # The collectors record without REST too, so the stream is tried all the same.
        assert found["binance spot stream"].startswith("ok    first trade after")
        assert await examine(settings_for(tmp_path, simulator, WADM_EXCHANGES=("binance",), WADM_SYMBOLS=("BTCUSDX",))) == 1
    printed = capsys.readouterr().out
    assert "binance spot stream  skip  not tried: nothing to subscribe to" in printed
    assert printed.splitlines()[-1].startswith("1 of ")


async def test_doctor_does_not_call_a_symbol_unlisted_whose_record_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def listings(_: RestClient, venue: Venue) -> Listed:
        return Listed([Listing.unconfirmed(venue.instrument("ETHUSDT"))], malformed={"BTCUSDT": "it has no tick"})

    monkeypatch.setattr(RestClient, "listings", listings)
    async with Simulator(manual=True) as simulator:
        assert await examine(settings_for(tmp_path, simulator, WADM_EXCHANGES=("binance",))) == 1
    assert "(it has no tick), so BTCUSDT may be listed or not" in table(capsys)["binance spot REST"]


async def test_doctor_says_which_env_file_was_read_and_which_one_serve_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    here, data = tmp_path / "here", tmp_path / "data"
    here.mkdir()
    data.mkdir()
    monkeypatch.chdir(here)
    (data / ".env").write_text("WADM_EXCHANGES=binance\n")
    async with Simulator(activity=20) as simulator:
        urls = {f"WADM_{name.upper()}": url for name, url in simulator.urls.items()}
        settings = read_settings({}, dotenv=data / ".env", overrides={"WADM_DATA_DIR": data, **urls})
        assert await examine(settings) == 0
    printed = capsys.readouterr().out
    assert f"read {data / '.env'}" in printed
    assert f"wadm-mcp serve, started here, reads {here / '.env'}, which does not exist" in printed


async def test_a_halted_symbol_is_called_halted_and_no_trade_of_it_is_expected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    listings = RestClient.listings

    async def halted(rest: RestClient, venue: Venue) -> list[Listing]:
        return [structs.replace(one, trading=False) for one in await listings(rest, venue)]

    monkeypatch.setattr(RestClient, "listings", halted)
    async with Simulator(manual=True) as simulator:
        assert await examine(settings_for(tmp_path, simulator, WADM_EXCHANGES=("binance",))) == 0
    found = table(capsys)
    assert "BTCUSDT halted, tick 0.01" in found["binance spot REST"]
    assert found["binance spot stream"] == "skip  not tried: BTCUSDT is halted, so no trade is expected"


async def test_doctor_opens_its_sockets_through_the_proxy_that_the_collectors_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")
    urls = {"WADM_BINANCE_SPOT_WS": "ws://stream.exchange.invalid", "WADM_BINANCE_SPOT_REST": "http://api.exchange.invalid"}
    async with Simulator(manual=True) as simulator:
        assert await examine(settings_for(tmp_path, simulator, WADM_EXCHANGES=("binance",), **urls)) == 1
    # The proxy refuses the connection; without it the name would not resolve.
    found = table(capsys)
    for part in ("REST", "stream"):
        assert "the proxy http://127.0.0.1:1 (ALL_PROXY) refused the connection" in found[f"binance spot {part}"]


async def test_doctor_does_not_disturb_a_running_recorder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with Simulator(manual=True) as simulator:
        settings = settings_for(tmp_path, simulator, WADM_EXCHANGES=("binance",))
        async with Runtime(settings) as runtime:
            with anyio.fail_after(20):
                await simulator.subscribed("binance", "spot", "BTCUSDT")
            with anyio.move_on_after(1):
                await examine(settings)
            assert runtime.role == "recording"
    capsys.readouterr()


async def test_mongodb_and_redis_are_described_without_their_secrets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with mongodb_url() as url, RedisServer(redis_binary(), requirepass="hidden-word") as redis:
        given = redis.url.replace("redis://", "redis://:hidden-word@")
        async with Simulator() as simulator:
            settings = settings_for(tmp_path, simulator, WADM_EXCHANGES=("binance",), MONGODB_URL=f"{url}/doctor", REDIS_URL=given)
            async with Runtime(settings) as runtime:
                with anyio.fail_after(20):
                    await runtime.view.until_ready()
                assert await examine(settings) == 0
    printed = capsys.readouterr().out
    assert "hidden-word" not in printed
    assert "order_flow:" in printed
    assert "retention life " in printed
    assert "Redis" in printed
