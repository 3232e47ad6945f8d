from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import pytest

from tests.redis_server import RedisServer, redis_binary
from tests.servers import mongodb_url
from wadm_mcp.commands.doctor import examine
from wadm_mcp.runtime import Runtime
from wadm_mcp.settings import Settings, read_settings
from wadm_mcp.simulator.simulator import Simulator

pytestmark = pytest.mark.anyio


def settings_for(folder: Path, simulator: Simulator, **changes: Any) -> Settings:
    urls = {f"WADM_{name.upper()}": url for name, url in simulator.urls.items()}
    return read_settings({}, overrides={"WADM_DATA_DIR": folder, **urls, **changes})


def table(capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """The printed table by part: `ok` or `FAIL`, and the detail."""
    lines = [line for line in capsys.readouterr().out.splitlines() if "  ok  " in line or "  FAIL  " in line]
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
    async with Simulator() as simulator:
        settings = settings_for(tmp_path, simulator, WADM_EXCHANGES=("binance",), WADM_BINANCE_SPOT_REST="http://127.0.0.1:1")
        assert await examine(settings) == 1
    found = table(capsys)
    assert found["binance spot REST"].startswith("FAIL")
    assert found["binance spot stream"] == "FAIL  not tried: nothing to subscribe to"


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
