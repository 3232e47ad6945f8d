# pyright: reportDeprecated=false
"""Every transport in both protocol eras: the same definitions, the same answers, the same refusals, progress, cancellation, updates."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, NamedTuple

import anyio
import pytest
from mcp.client import Client
from mcp.client.stdio import StdioServerParameters
from mcp.shared.exceptions import MCPError
from mcp_types import CacheableResult, PromptReference, ResourceUpdatedNotification, TextContent

from tests.server.calls import MINUTES, every_call
from tests.server.fake import ERAS, FakeRuntime, over, reporting_cancellations, serving
from wadm_mcp.server.server import INSTRUCTIONS, build_server

pytestmark = [
    pytest.mark.anyio,
    # The client warns about the older protocol, which is tested here too.
    pytest.mark.filterwarnings("ignore:resources/(un)?subscribe is removed"),
]

TRANSPORTS: Final = ("stdio", "sse", "http")
_ROOT: Final = Path(__file__).parents[2]
_TRADES: Final = "wadm://binance/spot/BTCUSDT/trades"
_STRUCTURE: Final = "wadm://binance/spot/BTCUSDT/market-structure/15m"
_NEVER_MET: Final = {"symbol": "BTCUSDT", "exchange": "binance", "condition": "price_crosses", "value": 70_000, "timeout": 300}
_CALLS: Final = every_call(as_of=MINUTES["end"], limit=3)
_REFUSED: Final[tuple[tuple[str, dict[str, Any]], ...]] = (
    ("get_trades", {"symbol": "BTCUSDT", "limt": 3}),
    ("get_trades", {"symbol": "ETHUSDX"}),
    ("get_candles", {}),
)
_HOUR: Final = (3_600_000, "public")
_CACHE_HINTS: Final = {"tools": _HOUR, "resources": (60_000, "private"), "templates": _HOUR, "prompts": _HOUR}

both = pytest.mark.parametrize("era", ERAS)
each = pytest.mark.parametrize("transport", TRANSPORTS)


class _Session(NamedTuple):
    """A connected client, and its server's side: `trade` makes a trade there, `cancelled` waits until a call was cancelled there."""

    client: Client
    trade: Callable[[], Awaitable[object]]
    cancelled: Callable[[], Awaitable[object]]


@asynccontextmanager
async def _connected(transport: str, era: str, **options: Any) -> AsyncGenerator[_Session]:
    with anyio.fail_after(30):
        async with _over_stdio(era, options) if transport == "stdio" else _over_a_port(transport, era, options) as session:
            yield session


@asynccontextmanager
async def _over_stdio(era: str, options: dict[str, Any]) -> AsyncGenerator[_Session]:
    with TemporaryDirectory() as folder:
        beside = f"{folder}/beside"
        arguments = ["-W", "error", "-m", "tests.server.stdio_process", "beside", beside]
        process = StdioServerParameters(command=sys.executable, args=arguments, cwd=_ROOT)
        async with (
            await anyio.create_unix_listener(beside) as listener,
            Client(process, mode=era, **options) as client,  # pyright: ignore[reportArgumentType]
            await listener.accept() as stream,
        ):
            yield _Session(client, lambda: stream.send(b"."), stream.receive)


@asynccontextmanager
async def _over_a_port(transport: str, era: str, options: dict[str, Any]) -> AsyncGenerator[_Session]:
    runtime, cancelled = FakeRuntime(), anyio.Event()

    async def trade() -> None:
        runtime.trade()

    async with serving(runtime) as (url, server), over(transport, url, era, **options) as client:
        server.middleware.append(reporting_cancellations(cancelled.set))
        yield _Session(client, trade, cancelled.wait)


async def _greeting(client: Client, era: str) -> tuple[str, str | None]:
    """The server's name and its instructions, as a client of that era asks for them."""
    if era == "legacy":
        assert client.server_info is not None
        return client.server_info.name, client.instructions
    said = await client.session.send_discover(era)
    return said["_meta"]["io.modelcontextprotocol/serverInfo"]["name"], said["instructions"]


def _plain(model: Any) -> dict[str, Any]:
    """What was sent, without the server's name and the cache hints of the newer era."""
    sent = model.model_dump(mode="json", by_alias=True, exclude_none=True)
    assert "icons" not in str(sent)
    return {name: value for name, value in sent.items() if name not in ("_meta", "resultType", "ttlMs", "cacheScope")}


async def _lists(client: Client) -> dict[str, CacheableResult]:
    return {
        "tools": await client.list_tools(),
        "resources": await client.list_resources(),
        "templates": await client.list_resource_templates(),
        "prompts": await client.list_prompts(),
    }


async def _everything(client: Client) -> dict[str, Any]:
    """The replies to everything that a client may request."""
    replies: dict[str, Any] = {
        **{name: _plain(one) for name, one in (await _lists(client)).items()},
        "prompt": _plain(await client.get_prompt("waickoff_report", {"symbol": "BTCUSDT", "language": "es"})),
        "completion": _plain(await client.complete(PromptReference(name="waickoff_report"), {"name": "window", "value": "s"})),
    }
    assert [tool["name"] for tool in replies["tools"]["tools"]] == [name for name, _ in _CALLS]
    for name, arguments in _CALLS:
        replies[name] = await _answer(client, name, arguments)
    for name, arguments in _REFUSED:
        result = await client.call_tool(name, arguments)
        assert result.is_error
        replies[f"{name} {arguments}"] = _plain(result)
    for uri in ("wadm://guide", "wadm://markets", _TRADES, _STRUCTURE):
        replies[uri] = _plain(await client.read_resource(uri))
    with pytest.raises(MCPError) as refused:
        await client.read_resource("wadm://binance/spot/ETHUSDT/trades")
    replies["refused"] = refused.value.error.model_dump()
    return replies


async def _answer(client: Client, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """A tool's answer, which is the same as text and as structure."""
    result = await client.call_tool(name, arguments)
    _plain(result)
    assert not result.is_error
    assert result.structured_content is not None
    (block,) = result.content
    assert isinstance(block, TextContent)
    assert json.loads(block.text) == result.structured_content
    # How long the wait took, which differs each time.
    varying = ("waited_s", "reading") if name == "wait_for" else ()
    return {field: value for field, value in result.structured_content.items() if field not in varying}


@pytest.fixture
async def expected() -> dict[str, Any]:
    """The replies that every client must receive: those of the server without a transport."""
    async with Client(build_server(FakeRuntime()), mode=ERAS[0]) as client:
        return await _everything(client)


@both
@each
async def test_a_client_receives_the_same_over_every_transport(transport: str, era: str, expected: dict[str, Any]) -> None:
    async with _connected(transport, era) as session:
        assert await _greeting(session.client, era) == ("wadm", INSTRUCTIONS)
        assert await _everything(session.client) == expected
        lasting = {name: (one.ttl_ms, one.cache_scope) for name, one in (await _lists(session.client)).items()}
    assert lasting == (dict.fromkeys(lasting, (0, "private")) if era == "legacy" else _CACHE_HINTS)


@both
@each
async def test_a_long_wait_reports_progress_and_ends_when_it_is_cancelled(transport: str, era: str) -> None:
    async with _connected(transport, era) as session:
        heard: list[tuple[float, float | None, str | None]] = []
        with anyio.CancelScope() as scope:

            async def progress(progress: float, total: float | None, message: str | None) -> None:
                heard.append((progress, total, message))
                scope.cancel()

            await session.client.call_tool("wait_for", _NEVER_MET, progress_callback=progress)
        assert scope.cancelled_caught
        assert [total for _, total, _ in heard] == [300]
        await session.cancelled()
        assert not (await session.client.call_tool("list_markets", {})).is_error


@both
@each
async def test_a_subscriber_is_notified_of_a_trade(transport: str, era: str) -> None:
    heard = anyio.Event()

    async def inbox(message: Any) -> None:
        if isinstance(message, ResourceUpdatedNotification) and str(message.params.uri) == _TRADES:
            heard.set()

    async with _connected(transport, era, message_handler=inbox) as session:
        if era == "legacy":
            await session.client.subscribe_resource(_TRADES)
            await session.trade()
            await heard.wait()
        else:
            async with session.client.listen(resource_subscriptions=[_TRADES]) as events:
                await session.trade()
                async for event in events:
                    assert event.uri == _TRADES  # pyright: ignore[reportAttributeAccessIssue]
                    break
