"""What a client may ask for at once, over real connections where a session is one."""

from __future__ import annotations

from typing import Any

import anyio
import anyio.lowlevel
import httpx2
import pytest
from mcp.client import Client
from mcp.shared.exceptions import MCPError
from mcp_types import PromptReference, ResourceTemplateReference

from tests.server.fake import ERAS, FakeRuntime, over, serving
from tests.web.http_session import HEADERS, INITIALIZE, call
from wadm_mcp.server.limits import MAX_REQUESTS
from wadm_mcp.server.server import build_server

pytestmark = pytest.mark.anyio

_LONG = "x" * 100_000
_SAID = 'x..." has 100,000 characters; at most 1,000 are allowed'
_TEMPLATE = "wadm://{exchange}/{market}/{symbol}/trades"


@pytest.mark.parametrize(("transport", "era"), [("http", "legacy"), ("sse", "legacy"), ("sse", "2026-07-28")])
async def test_a_session_has_a_bounded_number_of_requests_in_progress(transport: str, era: str) -> None:
    begun, answer = anyio.Semaphore(0), anyio.Event()
    said = f"^busy: {MAX_REQUESTS} requests of this session are in progress, as many as it may have; ask again when one of them is answered"
    with anyio.fail_after(30):
        async with serving(FakeRuntime()) as (url, server), over(transport, url, era) as client, over(transport, url, era) as other:

            @server.tool(structured_output=False)
            async def work() -> str:
                """Work."""
                begun.release()
                await answer.wait()
                return "done"

            async with anyio.create_task_group() as tasks:
                for _ in range(MAX_REQUESTS):
                    tasks.start_soon(client.call_tool, "work", {})
                for _ in range(MAX_REQUESTS):
                    await begun.acquire()
                with pytest.raises(MCPError, match=said):
                    await client.call_tool("list_markets", {})
                assert not (await other.call_tool("list_markets", {})).is_error
                answer.set()
            assert not (await client.call_tool("list_markets", {})).is_error


async def test_the_end_of_a_client_ends_what_it_asked_for_and_frees_its_place() -> None:
    runtime = FakeRuntime()
    asked = {"symbol": "BTCUSDT", "exchange": "binance", "condition": "price_crosses", "value": 70_000, "timeout": 300}
    with anyio.fail_after(30):
        async with serving(runtime) as (url, server):
            async with over("http", url, "legacy") as client, anyio.create_task_group() as tasks:
                for _ in range(5):
                    tasks.start_soon(client.call_tool, "wait_for", asked)
                while runtime.watches.waits < 5:
                    await anyio.lowlevel.checkpoint()
                tasks.cancel_scope.cancel()
            while runtime.watches.waits or server.limits._in_progress:
                await anyio.lowlevel.checkpoint()


@pytest.mark.parametrize("era", ERAS)
async def test_a_text_is_bounded_wherever_a_client_may_write_one(era: str) -> None:
    async with Client(build_server(FakeRuntime()), mode=era) as client:  # pyright: ignore[reportArgumentType]
        prompt, template = PromptReference(name="waickoff_report"), ResourceTemplateReference(uri=_TEMPLATE)
        for refused in (
            client.get_prompt("waickoff_report", {"symbol": _LONG}),
            client.get_prompt(_LONG, {}),
            client.read_resource(f"wadm://{_LONG}"),
            client.complete(prompt, {"name": "symbol", "value": _LONG}),
            client.complete(prompt, {"name": _LONG, "value": ""}),
            client.complete(template, {"name": "symbol", "value": "B"}, {"market": _LONG}),
        ):
            with pytest.raises(MCPError) as caught:
                await refused
            assert caught.value.error.message.endswith("characters; at most 1,000 are allowed")
            assert len(caught.value.error.message) < 200
        for arguments in ({"symbol": _LONG}, {"symbol": [_LONG]}, {"symbol": {"a": {"b": _LONG}}}, {_LONG: 1}):
            result = await client.call_tool("get_trades", arguments)
            assert result.is_error
            assert "100,000 characters" in str(result.content)
            assert len(str(result.content)) < 400
        result = await client.call_tool(_LONG, {})
        assert result.is_error
        assert _SAID in str(result.content)


@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize("given", [["x" * 900] * 200, [0] * 20_000, {str(number): 0 for number in range(20_000)}])
async def test_all_arguments_together_are_bounded(era: str, given: Any) -> None:
    async with Client(build_server(FakeRuntime()), mode=era) as client:  # pyright: ignore[reportArgumentType]
        with pytest.raises(MCPError, match="the arguments are too large: together they have at most 131,072 characters"):
            await client.call_tool("get_trades", {"symbol": given})


async def test_a_client_that_describes_itself_at_length_is_refused() -> None:
    async with serving(FakeRuntime()) as (url, _), httpx2.AsyncClient(base_url=url, headers=HEADERS, trust_env=False) as client:
        described = {**INITIALIZE, "clientInfo": {"name": "x" * 10_000, "version": "1"}}
        assert "serverInfo" in (await client.post("/mcp", json=call("initialize", described))).text
        described["clientInfo"] = {"name": "x" * 200_000, "version": "1"}
        assert "the arguments are too large" in (await client.post("/mcp", json=call("initialize", described))).text
