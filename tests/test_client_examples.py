"""The example client configurations, each started as written."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from string import Template
from typing import Any

import anyio
import httpx2
import pytest
from mcp import Client, StdioServerParameters
from mcp.client.streamable_http import streamable_http_client

from tests.end_to_end.process import environment
from tests.server.fake import FakeRuntime, serving
from wadm_mcp.settings import Settings
from wadm_mcp.simulator.simulator import Simulator

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parents[1]
KEY = "the-key-of-your-wadm"


def example(name: str, **variables: str) -> dict[str, Any]:
    """The one server of a configuration, `${...}` filled in as a client does from its environment."""
    (server,) = json.loads(Template((ROOT / name).read_text()).substitute(variables))["mcpServers"].values()
    return server


async def test_a_client_that_launches_wadm_follows_what_its_configuration_says(tmp_path: Path) -> None:
    server = example("claude_desktop_config.example.json")
    assert server["command"].endswith("/bin/wadm-mcp")
    assert server["env"].keys() <= Settings.model_fields.keys()
    async with Simulator() as simulator:
        exchanges = {f"WADM_{name.upper()}": url for name, url in simulator.urls.items()}
        env = {**environment(tmp_path), **exchanges, **server["env"]}
        command = str(Path(sys.executable).with_name("wadm-mcp"))
        with anyio.fail_after(60):
            async with Client(StdioServerParameters(command=command, args=server.get("args", []), env=env, cwd=tmp_path)) as client:
                followed = set[str]()
                while len(followed) < 4:
                    # An exchange is known once it has sent its listings.
                    answer = (await client.call_tool("list_markets", {})).structured_content
                    assert answer is not None
                    followed = {":".join(row[:3]) for row in answer["markets"]["rows"]}
    assert followed == {f"{exchange}:spot:{symbol}" for exchange in ("binance", "bybit") for symbol in ("BTCUSDT", "ETHUSDT")}


async def test_a_client_over_http_is_authorised_by_the_headers_of_its_configuration() -> None:
    server = example("mcp.http.example.json", API_KEY=KEY)
    assert server["type"] == "http"
    with anyio.fail_after(20):
        async with serving(FakeRuntime(API_KEY=KEY)) as (url, _):
            there = server["url"].replace("http://127.0.0.1:8920", url)
            async with (
                httpx2.AsyncClient(headers=server["headers"], trust_env=False) as http,
                Client(streamable_http_client(there, http_client=http)) as client,
            ):
                assert not (await client.call_tool("list_markets", {})).is_error
                assert (await http.get(there, headers={"Authorization": ""})).status_code == 401
