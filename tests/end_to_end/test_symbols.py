"""A symbol beyond ASCII, everywhere a symbol goes: settings, streams, REST, files, the store, tools and resources."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import quote

import anyio
import httpx2
import pytest
from mcp import Client
from mcp.types import TextResourceContents

from tests.end_to_end.process import COMMAND, environment, serving, until
from wadm_mcp.exchanges.binance_archive import BinanceAggregates
from wadm_mcp.model import DAY, Instrument
from wadm_mcp.simulator.simulator import Simulator

pytestmark = pytest.mark.anyio

SYMBOL = "币安人生USDT"
INSTRUMENT = Instrument("binance", "linear", SYMBOL)


async def test_a_symbol_beyond_ascii_is_recorded_imported_and_answered_as_any_other(tmp_path: Path) -> None:
    midnight = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    day = midnight - timedelta(days=1)
    async with Simulator(seed=5, instruments=[INSTRUMENT], activity=0.3) as simulator:
        settings = {f"WADM_{name.upper()}": url for name, url in simulator.urls.items()}
        settings |= {"WADM_EXCHANGES": "binance", "WADM_MARKETS": "linear", "WADM_SYMBOLS": SYMBOL}
        async with serving(tmp_path / "data", "serve", settings=settings) as served:

            async def live() -> bool:
                rows = (await served.get("/api/markets"))["markets"]["rows"]
                return [row[2:4] for row in rows if row[3] == "live"] == [[SYMBOL, "live"]]

            await until(live)

            profile = await served.get("/api/volume-profile", symbol=SYMBOL, detail="brief")
            assert profile["instrument"] == f"all:linear:{SYMBOL}"
            uri = f"wadm://binance/linear/{quote(SYMBOL)}/trades"
            async with Client(f"{served.url}/mcp") as client:
                assert uri in {str(one.uri) for one in (await client.list_resources()).resources}
                (content,) = (await client.read_resource(uri)).contents
                assert isinstance(content, TextResourceContents)
                assert json.loads(content.text)["instrument"] == str(INSTRUMENT)
                answer = await client.call_tool("get_volume_profile", {"symbol": f"binance:linear:{SYMBOL.lower()}"})
                assert answer.structured_content is not None
                assert answer.structured_content["instrument"] == str(INSTRUMENT)
            path = BinanceAggregates("linear").path(SYMBOL, day.date())
            file = tmp_path / path.rpartition("/")[2]
            async with httpx2.AsyncClient(trust_env=False) as client:
                file.write_bytes((await client.get(simulator.urls["binance_archive"] + path)).content)
            ended = await _import(tmp_path / "data", settings, "--market", "linear", str(file))
            start = round(day.timestamp() * 1_000)
            rows = [row for row in simulator.tape(INSTRUMENT).aggregates(start, start + DAY + 1_000) if start <= row.time < start + DAY]
            assert ended.splitlines()[-1] == f"{file.name}: {sum(row.last - row.first + 1 for row in rows):,} trades were new"
            assert "Traceback" not in served.stderr
            assert await served.stop() == 0


async def _import(folder: Path, settings: dict[str, str], *arguments: str) -> str:
    env = environment(folder, **settings) | {"PYTHONIOENCODING": "utf-8"}
    with anyio.fail_after(60):
        return (await anyio.run_process([*COMMAND, "import", *arguments], env=env)).stdout.decode()
