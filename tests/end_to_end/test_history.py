"""History of the demo, tracking of symbols, and the import command, as a user runs them."""

from __future__ import annotations

import shutil
import signal
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest
from anyio import to_thread
from mcp import Client, StdioServerParameters
from mcp.types import TextContent

from tests.end_to_end.process import COMMAND, environment, serving, started, until
from wadm_mcp.exchanges.binance_archive import BinanceSpotTrades
from wadm_mcp.simulator.simulator import Simulator

pytestmark = pytest.mark.anyio


async def test_the_demo_imports_its_history_within_half_a_minute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # How long it takes is the subject, so its process runs without the tracer of `make coverage`.
    monkeypatch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)
    async with serving(tmp_path / "data", "serve", "--demo", settings={"WADM_HISTORY_HOURS": "24"}) as served:
        # The limits allow for a machine that runs other tests at the same time; alone it takes a third of that.
        async def coverage_of(exchange: str) -> dict[str, Any]:
            answer = await served.get("/api/volume-profile", symbol="BTCUSDT", window="24h", exchange=exchange, detail="brief")
            return dict(answer["coverage"])

        async def whole() -> bool:
            return (await coverage_of("binance"))["ratio"] == 1

        await until(whole, within=90)
        coverage = await coverage_of("binance")
        assert coverage["gaps"] == []
        assert "importing" not in coverage

        async def all_but_today() -> bool:
            gaps = (await coverage_of("bybit"))["gaps"]
            return len(gaps) == 1 and gaps[0][0].endswith("T00:00:00Z")

        await until(all_but_today, within=60)
        assert await served.stop() == 0


async def test_a_symbol_that_is_not_followed_becomes_live_with_its_history_once_it_is_tracked(tmp_path: Path) -> None:
    settings = environment(tmp_path, WADM_HISTORY_HOURS="1", WADM_EXCHANGES="binance")
    server = StdioServerParameters(command=sys.executable, args=["-m", "wadm_mcp", "--demo"], env=settings, cwd=tmp_path)
    heard: list[str] = []

    async def heard_of(progress: float, total: float | None, message: str | None) -> None:
        assert total is not None
        assert 0 <= progress <= total
        heard.append(message or "")

    with anyio.fail_after(120):
        async with Client(server) as client:
            refused = await client.call_tool("get_volume_profile", {"symbol": "ETHUSDT"})
            assert isinstance(refused.content[0], TextContent)
            assert "is not followed" in refused.content[0].text
            assert "track_market adds one" in refused.content[0].text
            tracked = await client.call_tool("track_market", {"symbol": "eth/usdt", "wait": 60}, progress_callback=heard_of)
            answer = tracked.structured_content
            assert answer is not None
            assert answer["tracked"] == ["binance:spot:ETHUSDT"]
            assert [row[3] for row in answer["markets"]["rows"]] == ["live"]
            assert heard
            unknown = await client.call_tool("track_market", {"symbol": "ETHUSDX"})
            assert isinstance(unknown.content[0], TextContent)
            assert "is not listed at binance spot. Nearest: ETHUSDT" in unknown.content[0].text
            kept = await client.call_tool("untrack_market", {"symbol": "BTCUSDT"})
            assert isinstance(kept.content[0], TextContent)
            assert "is not tracked by track_market. Tracked: binance:spot:ETHUSDT" in kept.content[0].text
        async with Client(server) as client:

            async def followed() -> list[str]:
                markets = (await client.call_tool("list_markets", {})).structured_content
                assert markets is not None
                return [row[2] for row in markets["markets"]["rows"]]

            async def again() -> bool:
                return await followed() == ["BTCUSDT", "ETHUSDT"]

            await until(again)
            taken = await client.call_tool("untrack_market", {"symbol": "ETHUSDT"})
            assert taken.structured_content is not None
            assert taken.structured_content["untracked"] == ["binance:spot:ETHUSDT"]

            async def gone() -> bool:
                return await followed() == ["BTCUSDT"]

            await until(gone)


async def test_over_http_tracking_needs_the_operators_permission(tmp_path: Path) -> None:
    async with serving(tmp_path / "data", "serve", "--demo") as served, Client(f"{served.url}/mcp") as client:
        assert "track_market" not in {tool.name for tool in (await client.list_tools()).tools}
        refused = await client.call_tool("get_volume_profile", {"symbol": "ETHUSDT"})
        assert isinstance(refused.content[0], TextContent)
        assert "The operator adds one in WADM_SYMBOLS" in refused.content[0].text
        assert await served.stop() == 0


async def run(folder: Path, settings: dict[str, str], *arguments: str, within: float = 180) -> tuple[int, str, str]:
    with anyio.fail_after(within):
        ended = await anyio.run_process([*COMMAND, *arguments], env=environment(folder, **settings), check=False)
    return ended.returncode, ended.stdout.decode(), ended.stderr.decode()


async def test_an_import_command_prints_its_plan_survives_kills_and_takes_files_while_another_process_records(tmp_path: Path) -> None:
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    since, day = (today - timedelta(days=2)).isoformat(), today - timedelta(days=3)
    async with Simulator(seed=5, activity=0.05) as simulator:
        settings = {f"WADM_{name.upper()}": url for name, url in simulator.urls.items()} | {"WADM_EXCHANGES": "binance"}
        command = ("import", "--from", since, "--to", (today - timedelta(days=1)).isoformat())
        status, plan, _ = await run(tmp_path, settings, *command, "--plan")
        assert status == 0
        assert "binance:spot:BTCUSDT: 1 days from the archive" in plan
        assert not (tmp_path / "wadm.sqlite").exists()
        archive = tmp_path / "archive"

        async def downloads() -> bool:
            return await to_thread.run_sync(lambda: any(file.is_file() for file in archive.rglob("*")))

        for _ in range(2):
            async with started(tmp_path, *command, **settings) as importing:
                # The second one finds the file that the first one left.
                await until(downloads, every=0.01)
                importing.kill()
        status, output, _ = await run(tmp_path, settings, *command)
        assert (status, output.splitlines()[-1]) == (0, "binance:spot:BTCUSDT: 24.0 of 24.0 hours are covered")
        status, plan, _ = await run(tmp_path, settings, *command, "--plan")
        assert (status, plan.splitlines()[-1]) == (0, "  binance:spot:BTCUSDT: all of it is stored already")
        path = BinanceSpotTrades().path("BTCUSDT", day.date())
        name = path.rpartition("/")[2]
        async with httpx2.AsyncClient(trust_env=False, timeout=60) as client:
            body = (await client.get(simulator.urls["binance_archive"] + path)).content
        (tmp_path / name).write_bytes(body)
        broken = tmp_path / name.replace(f"{day:%Y-%m-%d}", f"{today - timedelta(days=4):%Y-%m-%d}")
        shutil.copy(tmp_path / name, broken)
        async with serving(tmp_path, "serve", settings=settings) as served:

            async def live() -> bool:
                return [row[3] for row in (await served.get("/api/markets"))["markets"]["rows"]] == ["live"]

            await until(live, within=90)
            status, output, _ = await run(tmp_path, settings, "import", str(broken), str(tmp_path / name))
            assert status == 1
            bad, good = output.splitlines()[1:]
            assert good.startswith(f"{name}: ")
            assert good.endswith(" trades were new")
            assert "nothing is imported of it" in bad
            assert "is not on the day in the file's name" in bad
            whole = {"start": day.isoformat(), "end": (day + timedelta(days=1)).isoformat()}

            async def imported() -> bool:
                profile = await served.get("/api/volume-profile", symbol="BTCUSDT", detail="brief", **whole)
                return bool(profile["trade_count"] > 1_000)

            await until(imported, within=60)
            assert await served.stop(signal.SIGTERM) == 0


async def test_files_are_imported_by_a_command_that_records_itself_where_no_other_process_does(tmp_path: Path) -> None:
    day = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(days=1)
    async with Simulator(seed=5, activity=0.05) as simulator:
        settings = {f"WADM_{name.upper()}": url for name, url in simulator.urls.items()} | {"WADM_EXCHANGES": "binance"}
        path = BinanceSpotTrades().path("BTCUSDT", day.date())
        async with httpx2.AsyncClient(trust_env=False, timeout=60) as client:
            body = (await client.get(simulator.urls["binance_archive"] + path)).content
        file = tmp_path / path.rpartition("/")[2]
        file.write_bytes(body)
        other = tmp_path / file.name.replace("BTCUSDT", "ETHUSDT")
        shutil.copy(file, other)
        status, output, _ = await run(tmp_path / "data", settings, "import", str(file))
        assert status == 0
        assert output.splitlines()[-1] == f"{file.name}: 64,800 trades were new"
        status, output, _ = await run(tmp_path / "data", settings, "import", str(other))
        assert status == 1
        assert "binance:spot:ETHUSDT is not followed here; add its symbol to WADM_SYMBOLS" in output
    (tmp_path / "no-folder").touch()
    status, _, said = await run(tmp_path / "no-folder", settings, "import", str(file))
    assert (status, said.count("\n")) == (2, 1)
    assert "the folder cannot be used" in said


async def test_a_file_with_an_unrecognised_name_is_refused_before_the_import_starts(tmp_path: Path) -> None:
    status, _, said = await run(tmp_path, {}, "import", "trades.zip")
    assert status == 2
    assert "trades.zip: unrecognised file name; expected the exchange's own" in said
    status, _, said = await run(tmp_path, {}, "import", "BTCUSDT-aggTrades-2026-07-25.zip")
    assert status == 2
    assert "daily files of binance spot and binance linear have this name; say which with --exchange and --market" in said
