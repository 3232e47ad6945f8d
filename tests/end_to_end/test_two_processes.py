"""Two MCP clients that each launch `wadm-mcp` on one data directory: one process records, both answer."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp import Client, StdioServerParameters

from tests.end_to_end.process import environment, serving, until

pytestmark = pytest.mark.anyio


async def statuses(client: Client) -> list[str]:
    answer = (await client.call_tool("list_markets", {})).structured_content
    assert answer is not None
    return [row[3] for row in answer["markets"]["rows"]]


async def count(client: Client, **arguments: Any) -> int:
    asked = {"symbol": "BTCUSDT", "window": "24h", "detail": "brief", **arguments}
    answer = (await client.call_tool("get_volume_profile", asked)).structured_content
    assert answer is not None
    return answer["trade_count"]


async def test_two_stdio_servers_on_one_folder_both_answer_and_one_records(tmp_path: Path) -> None:
    server = StdioServerParameters(command=sys.executable, args=["-m", "wadm_mcp", "--demo"], env=environment(tmp_path), cwd=tmp_path)
    with anyio.fail_after(60):
        async with Client(server) as first:

            async def live() -> bool:
                return await statuses(first) == ["live", "live"]

            await until(live)
            async with Client(server) as second:

                async def standing_by() -> bool:
                    return await statuses(second) == ["standby", "standby"]

                await until(standing_by)
                before = await count(first)

                async def caught_up() -> bool:
                    try:
                        return await count(second) >= before
                    except AssertionError:
                        return False

                await until(caught_up)


async def test_the_standby_process_records_once_the_recording_one_is_killed(tmp_path: Path) -> None:
    async with serving(tmp_path / "data", "serve", "--demo", name="first") as first:

        async def records() -> bool:
            return (await first.client.get("/health")).status_code == 200

        await until(records)
        async with serving(tmp_path / "data", "serve", "--demo", name="second") as second:
            health = await second.get("/health")
            assert health["role"] == "standby"
            assert health["status"] == "ok"
            first.process.kill()

            async def took_over() -> bool:
                return (await second.client.get("/health")).json()["role"] == "recording"

            await until(took_over, within=10)

            async def live() -> bool:
                return (await second.client.get("/health")).status_code == 200

            await until(live)
            flow = await second.get("/api/order-flow", symbol="BTCUSDT", window="15m", timeframe="1m", exchange="binance")
            reasons = {gap[3] for gap in flow["coverage"]["gaps"]}
            assert "start" in reasons or flow["coverage"]["gaps"][1:] == []
            assert await second.stop() == 0
