"""The resources: the answers of the tools at URIs that a client can read again and subscribe to. No market logic."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any, Final
from urllib.parse import quote

from mcp.server.mcpserver import MCPServer
from mcp_types import Resource

from wadm_mcp.errors import QueryError
from wadm_mcp.exchanges.registry import exchange_names
from wadm_mcp.model import Instrument, Timeframe
from wadm_mcp.queries.arguments import ALL, shown
from wadm_mcp.queries.numbers import iso
from wadm_mcp.queries.trades import newest_trades
from wadm_mcp.server.context import ServedRuntime
from wadm_mcp.server.guide import GUIDE
from wadm_mcp.server.questions import MARKETS, ORDER_FLOW, STRUCTURE, VOLUME_PROFILE
from wadm_mcp.server.reply import Reply

_JSON: Final = "application/json"
_WINDOW: Final = "15m"
_TRADES: Final = 100
"""Trades of that window in a trades resource: the newest."""
_BARS: Final = 60
"""Bars in an order-flow resource."""


def declare(server: MCPServer[Any], runtime: ServedRuntime) -> None:
    """Register the resources and templates. They raise `WadmError`s, which the server turns into errors of the protocol."""

    @server.resource("wadm://markets", title="Markets followed", mime_type=_JSON)
    async def markets() -> str:
        """What list_markets answers: instruments followed, freshness, coverage."""
        return (await MARKETS.ask(runtime, {})).text

    @server.resource("wadm://guide", title="How to read the answers", mime_type="text/markdown")
    async def guide() -> str:
        """Coverage, units, row naming, merged answers: one page to read before quoting figures."""
        return GUIDE

    newest = f"The last {_TRADES} trades of the last 15 minutes, oldest first. exchange: {', '.join(exchange_names())} or {ALL}."

    @server.resource("wadm://{exchange}/{market}/{symbol}/trades", title="Newest trades", description=newest, mime_type=_JSON)
    async def trades(exchange: str, market: str, symbol: str) -> str:
        await runtime.view.until_ready()
        asked = {"symbol": symbol, "exchange": exchange, "market": market, "window": _WINDOW}
        async with runtime.admission.place(costly=False):
            return Reply(await runtime.view.consistent(partial(newest_trades, limit=_TRADES, **asked))).text

    @server.resource(
        "wadm://{exchange}/{market}/{symbol}/volume-profile/{timeframe}", title="Volume profile of the open bar", mime_type=_JSON
    )
    async def volume_profile(exchange: str, market: str, symbol: str, timeframe: str) -> str:
        """The volume profile of the bar that is open now (1m 5m 15m 30m 1h 4h 1d), from its start to now."""
        start = _timeframe(runtime, "volume-profile", timeframe).floor(runtime.view.clock())
        asked = {"symbol": symbol, "exchange": exchange, "market": market, "start": iso(start)}
        return (await VOLUME_PROFILE.ask(runtime, asked, fresh=True)).text

    @server.resource("wadm://{exchange}/{market}/{symbol}/order-flow/{timeframe}", title="Order flow", mime_type=_JSON)
    async def order_flow(exchange: str, market: str, symbol: str, timeframe: str) -> str:
        """The last 60 bars of order flow, the open one included."""
        bar = _timeframe(runtime, "order-flow", timeframe)
        start = bar.floor(runtime.view.clock()) - (_BARS - 1) * bar.ms
        asked = {"symbol": symbol, "exchange": exchange, "market": market, "timeframe": str(bar), "start": iso(start)}
        return (await ORDER_FLOW.ask(runtime, asked, fresh=True)).text

    @server.resource("wadm://{exchange}/{market}/{symbol}/market-structure/{timeframe}", title="Market structure", mime_type=_JSON)
    async def market_structure(exchange: str, market: str, symbol: str, timeframe: str) -> str:
        """Session, value, flow, range, swings and event candidates, judged on closed bars of the timeframe; updated when one closes."""
        bar = _timeframe(runtime, "market-structure", timeframe)
        asked = {"symbol": symbol, "exchange": exchange, "market": market, "timeframe": str(bar)}
        return (await STRUCTURE.ask(runtime, asked, fresh=True)).text


def resources_of(followed: Iterable[Instrument]) -> list[Resource]:
    """The resources that are listed for each followed instrument; the templates reach the others."""
    return [
        Resource(uri=f"wadm://{exchange}/{market}/{quote(symbol)}/{kind}", name=f"{exchange}:{market}:{symbol} {kind}", mime_type=_JSON)
        for exchange, market, symbol in followed
        for kind in ("trades", f"volume-profile/{Timeframe.H1}", f"order-flow/{Timeframe.M1}", f"market-structure/{Timeframe.M15}")
    ]


def _timeframe(runtime: ServedRuntime, kind: str, given: str) -> Timeframe:
    try:
        return Timeframe(given)
    except ValueError:
        path = next((f"{one.exchange}/{one.market}/{quote(one.symbol)}" for one in runtime.followed), "all/spot/BTCUSDT")
        allowed = ", ".join(Timeframe)
        raise QueryError(f"timeframe={shown(given)}: allowed are {allowed}. Try wadm://{path}/{kind}/{Timeframe.H1}") from None
