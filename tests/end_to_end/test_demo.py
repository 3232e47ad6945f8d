"""What the documentation shows a new user: the demo, an answer of it, and the official client over each transport."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from resource import RLIMIT_NOFILE, prlimit
from typing import Any

import anyio
import pytest
from mcp import Client, StdioServerParameters
from mcp.client.sse import sse_client
from mcp.types import TextContent, TextResourceContents

from tests.end_to_end.process import COMMAND, environment, resident, serving, until
from wadm_mcp.server.questions import QUESTIONS

pytestmark = pytest.mark.anyio

README = Path(__file__).parents[2] / "README.md"
TOOLS = {question.name for question in QUESTIONS}
TRACKING = {"track_market", "untrack_market"}


async def ask(client: Client) -> None:
    """List the tools, ask for profile and order flow of the last 15 minutes, read a resource."""
    assert {tool.name for tool in (await client.list_tools()).tools} - TRACKING == TOOLS

    async def recorded() -> bool:
        markets = await client.call_tool("list_markets", {})
        assert markets.structured_content is not None
        profile = await client.call_tool("get_volume_profile", {"symbol": "BTCUSDT", "window": "15m"})
        assert profile.structured_content is not None
        live = [row[3] for row in markets.structured_content["markets"]["rows"]] == ["live", "live"]
        return live and profile.structured_content["coverage"]["ratio"] > 0

    await until(recorded)
    for tool, figure in (("get_volume_profile", "poc"), ("get_order_flow", "bars")):
        result = await client.call_tool(tool, {"symbol": "BTCUSDT", "window": "15m"})
        assert not result.is_error
        answer = result.structured_content
        assert answer is not None
        assert next(iter(answer)) == "coverage"
        assert answer[figure]
        assert 0 < answer["coverage"]["ratio"] < 1
        assert isinstance(result.content[0], TextContent)
        assert json.loads(result.content[0].text) == answer
    resource = await client.read_resource("wadm://binance/spot/BTCUSDT/trades", cache_mode="bypass")
    assert isinstance(resource.contents[0], TextResourceContents)
    assert json.loads(resource.contents[0].text)["trades"]["rows"]


async def test_the_demo_answers_over_streamable_http_and_sse_in_both_eras_from_one_runtime(tmp_path: Path) -> None:
    few_descriptors = ["/bin/sh", "-c", 'ulimit -Sn 256 && exec "$@"', "sh", *COMMAND]
    async with serving(tmp_path / "data", "serve", "--demo", command=few_descriptors) as served:
        openers: list[Callable[[], Any]] = [
            lambda: f"{served.url}/mcp",
            lambda: sse_client(f"{served.url}/sse"),
        ]
        for opener in openers:
            for mode in ("legacy", "auto"):
                with anyio.fail_after(30):
                    async with Client(opener(), mode=mode) as client:
                        await ask(client)
        health = await served.get("/health")
        assert health["status"] == "ok"
        assert served.stderr.count("recorder.begins") == 1
        soft, _ = prlimit(served.process.pid, RLIMIT_NOFILE)
        assert soft > 256
        assert await served.stop() == 0


@pytest.mark.parametrize("mode", ["legacy", "auto"])
async def test_the_demo_answers_over_stdio(tmp_path: Path, mode: str) -> None:
    server = StdioServerParameters(command=sys.executable, args=["-m", "wadm_mcp", "--demo"], env=environment(tmp_path), cwd=tmp_path)
    with anyio.fail_after(60):
        async with Client(server, mode=mode) as client:  # type: ignore[arg-type]
            await ask(client)


async def test_the_answer_that_the_readme_shows_has_the_keys_of_a_real_one(tmp_path: Path) -> None:
    (command, shown) = re.findall(r"<!-- answer -->\n```\n(.*?)\n(.*?)```", README.read_text(), re.DOTALL)[0]
    path, _, query = re.findall(r'127\.0\.0\.1:8920(/[\w/-]+)(\?)([^"]+)"', command)[0]
    answer: Any = None

    async def recorded() -> bool:
        nonlocal answer
        answer = await served.get(path, **dict(pair.split("=") for pair in query.split("&")))
        # Until both exchanges have said what they list, the one that has not comes last.
        return answer["poc"] is not None and list(answer["coverage"]["parts"]) == ["binance", "bybit"]

    async with serving(tmp_path / "data", "serve", "--demo") as served:
        await until(recorded)

    def check(shown: Any, real: Any) -> None:
        if isinstance(shown, dict):
            names = list[str](shown)
            assert [name for name in real if name in names] == names
            for name in names:
                check(shown[name], real[name])

    check(json.loads(shown.replace(", …", "")), answer)


async def test_the_client_example_of_the_documentation_works_as_it_is_shown(tmp_path: Path) -> None:
    async with serving(tmp_path / "data", "serve", "--demo") as served:
        example = Path(__file__).parents[2] / "docs" / "client.py"
        # A client passes on little of its environment but HOME: the demo it launches must not find this user's own data.
        home = {**environment(tmp_path / "data"), "HOME": str(tmp_path)}
        with anyio.fail_after(60):
            ended = await anyio.run_process([sys.executable, str(example), served.url], env=home, check=False)
        printed = ended.stdout.decode()
        assert ended.returncode == 0, ended.stderr.decode()
        assert printed.count("get_volume_profile coverage") == printed.count('{"coverage"') == 3


async def test_a_hundred_client_visits_leave_collectors_and_memory_unchanged(tmp_path: Path) -> None:
    async with serving(tmp_path / "data", "serve", "--demo") as served:

        async def visit(number: int) -> None:
            with anyio.fail_after(20):
                target: Any = f"{served.url}/mcp" if number % 2 else sse_client(f"{served.url}/sse")
                async with Client(target, mode="legacy" if number % 4 < 2 else "auto") as client:
                    await client.call_tool("get_volume_profile", {"symbol": "BTCUSDT", "window": "15m"})

        async def live() -> bool:
            return served.stderr.count("instrument.live") == 3

        await until(live)
        for number in range(20):
            await visit(number)
        before = resident(served)
        for number in range(100):
            await visit(number)
        assert resident(served) - before < 12 * 1024 * 1024
        log = served.stderr
        assert (log.count("instrument.live"), log.count("connection.ended")) == (3, 0)
        assert await served.stop() == 0
