# pyright: reportDeprecated=false
"""Every transport in both protocol eras: the same definitions, the same answers, the same refusals, progress, cancellation, updates."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import anyio
import pytest
from mcp.client import Client
from mcp.client.stdio import StdioServerParameters
from mcp.shared.exceptions import MCPError
from mcp_types import PromptReference, ResourceUpdatedNotification, TextContent

from tests.server.fake import ERAS, FakeRuntime, over, serving
from wadm_mcp.server.server import INSTRUCTIONS, build_server

pytestmark = [
    pytest.mark.anyio,
    # The client's own word on the older protocol, which is tested here too.
    pytest.mark.filterwarnings("ignore:resources/(un)?subscribe is removed"),
]

TRANSPORTS: Final = ("stdio", "sse", "http")
_ROOT: Final = Path(__file__).parents[2]
_PROCESS: Final = StdioServerParameters(
    command=sys.executable, args=["-W", "error", "-m", "tests.server.stdio_process", "trading"], cwd=_ROOT
)
_TRADES: Final = "wadm://binance/spot/BTCUSDT/trades"
_ONE: Final = {"symbol": "BTCUSDT", "exchange": "binance"}
_MINUTES: Final = {**_ONE, "start": "2026-06-01T12:00:00Z", "end": "2026-06-01T12:03:00Z"}
_NEVER: Final = {**_ONE, "condition": "price_crosses", "value": 70_000}
_CALLS: Final[tuple[tuple[str, dict[str, Any]], ...]] = (
    ("list_markets", {"detail": "brief"}),
    ("get_market_structure", {**_ONE, "as_of": "2026-06-01T12:03:00Z"}),
    ("get_volume_profile", _MINUTES),
    ("get_order_flow", {**_MINUTES, "timeframe": "1m"}),
    ("get_footprint", {**_MINUTES, "timeframe": "1m"}),
    ("get_trades", {**_MINUTES, "limit": 3}),
    ("compare_exchanges", {"symbol": "BTCUSDT", "start": "2026-06-01T12:00:00Z", "end": "2026-06-01T12:03:00Z"}),
    ("wait_for", {**_NEVER, "timeout": 1}),
    ("get_trades", {"symbol": "BTCUSDT", "limt": 3}),
    ("get_candles", {}),
)

both = pytest.mark.parametrize("era", ERAS)
each = pytest.mark.parametrize("transport", TRANSPORTS)


class _Session:
    """A connected client, and how its server comes by a trade."""

    def __init__(self, client: Client, runtime: FakeRuntime | None) -> None:
        self.client = client
        self._runtime = runtime

    def trade(self) -> None:
        """One more trade; the process behind stdio makes its own."""
        if self._runtime is not None:
            self._runtime.trade()


@asynccontextmanager
async def _connected(transport: str, era: str, **options: Any) -> AsyncGenerator[_Session]:
    with anyio.fail_after(30):
        if transport == "stdio":
            async with Client(_PROCESS, mode=era, **options) as client:  # pyright: ignore[reportArgumentType]
                yield _Session(client, None)
        else:
            runtime = FakeRuntime()
            async with serving(runtime) as (url, _), over(transport, url, era, **options) as client:
                yield _Session(client, runtime)


def _plain(model: Any) -> dict[str, Any]:
    """What was sent, without what names this one message or process."""
    sent = model.model_dump(mode="json", by_alias=True, exclude_none=True)
    sent.pop("_meta", None)
    return sent


async def _told(client: Client) -> dict[str, Any]:
    """Everything a client may ask for, asked."""
    told: dict[str, Any] = {
        "tools": _plain(await client.list_tools()),
        "resources": _plain(await client.list_resources()),
        "templates": _plain(await client.list_resource_templates()),
        "prompts": _plain(await client.list_prompts()),
        "prompt": _plain(await client.get_prompt("waickoff_report", {"symbol": "BTCUSDT", "language": "es"})),
        "completion": _plain(await client.complete(PromptReference(name="waickoff_report"), {"name": "window", "value": "s"})),
    }
    for place, (name, arguments) in enumerate(_CALLS):
        result = await client.call_tool(name, arguments)
        if result.structured_content is not None:
            (block,) = result.content
            assert isinstance(block, TextContent)
            assert json.loads(block.text) == result.structured_content
            result.structured_content.pop("waited_s", None)
            result.content = []
        told[f"{place}: {name}"] = _plain(result)
    for uri in ("wadm://guide", "wadm://markets", "wadm://binance/spot/BTCUSDT/market-structure/15m"):
        told[uri] = _plain(await client.read_resource(uri, cache_mode="bypass"))
    with pytest.raises(MCPError) as refused:
        await client.read_resource("wadm://binance/spot/ETHUSDT/trades", cache_mode="bypass")
    told["refused"] = str(refused.value)
    return told


@both
@each
async def test_a_client_is_told_the_same_whatever_it_comes_over(transport: str, era: str) -> None:
    async with Client(build_server(FakeRuntime()), mode=era) as client:  # pyright: ignore[reportArgumentType]
        expected = await _told(client)
    async with _connected(transport, era) as session:
        told = await _told(session.client)
        assert session.client.instructions == (INSTRUCTIONS if era == "legacy" else None)
    assert "icons" not in str(told)
    assert told["tools"].get("ttlMs", 0) == (0 if era == "legacy" else 3_600_000)
    # The process behind stdio goes on trading: what shows the newest trades differs.
    moving = {"0: list_markets", "7: wait_for", "wadm://markets", "wadm://binance/spot/BTCUSDT/market-structure/15m"}
    skipped = moving if transport == "stdio" else set[str]()
    assert {name: one for name, one in told.items() if name not in skipped} == {
        name: one for name, one in expected.items() if name not in skipped
    }


@both
@each
async def test_a_long_wait_tells_how_far_it_is_and_can_be_given_up(transport: str, era: str) -> None:
    async with _connected(transport, era) as session:
        heard: list[str | None] = []
        with anyio.CancelScope() as given_up:

            async def progress(progress: float, total: float | None, message: str | None) -> None:
                heard.append(message)
                given_up.cancel()

            await session.client.call_tool("wait_for", {**_NEVER, "timeout": 300}, progress_callback=progress)
        assert given_up.cancelled_caught
        assert heard
        assert not (await session.client.call_tool("list_markets", {})).is_error


@both
@each
async def test_a_subscriber_hears_of_a_trade(transport: str, era: str) -> None:
    heard = anyio.Event()

    async def inbox(message: Any) -> None:
        if isinstance(message, ResourceUpdatedNotification) and str(message.params.uri) == _TRADES:
            heard.set()

    async with _connected(transport, era, message_handler=inbox) as session:
        if era == "legacy":
            await session.client.subscribe_resource(_TRADES)
            session.trade()
            await heard.wait()
        else:
            async with session.client.listen(resource_subscriptions=[_TRADES]) as events:
                session.trade()
                async for event in events:
                    assert event.uri == _TRADES  # pyright: ignore[reportAttributeAccessIssue]
                    break
