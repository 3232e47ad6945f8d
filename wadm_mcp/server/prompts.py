"""The prompts: one, for a waickoff report. It tells an agent which questions to ask and how honest the report has to be."""

from __future__ import annotations

from typing import Annotated, Any

from mcp.server.mcpserver import MCPServer
from pydantic import Field

_REPORT = """\
Write a waickoff (Wyckoff-style) report on {symbol} for the window {window}{where}, from WADM's recorded trades alone.

Gather the evidence first:
1. list_markets(): is {symbol} followed, where, how fresh is it, how complete were the last 24 hours?
2. get_volume_profile({call}): POC, value area, VWAP, high and low volume nodes. Ask again for a shorter
   window and compare at the same row_size.
3. get_order_flow({call}, timeframe=...): delta, cumulative delta and volume by bar. Choose a timeframe that gives 30 to 150 bars.
4. Where a bar stands out, get_footprint for that stretch (start/end), and get_trades with min_notional for large prints.
5. Where both exchanges are followed, ask each alone (exchange="binance", exchange="bybit") for the key figures and compare.

Then write, in this order:
1. Coverage. Ratio, basis and every gap of each window you used, and the age of the newest trade. If a ratio is below 1, name the
   figures in coverage.broken and do not build on them: volume is missing, so levels may move and cumulative delta may be off. If
   list_markets says that a repair is under way, say so. If a ratio is 0, say that there is nothing to report on and stop.
2. Facts. Levels, volumes, deltas and ratios, quoted verbatim from the answers with their window and row_size. Round nothing, add
   nothing up yourself, fill no gap with a guess. A null is "not known".
3. Judgement, marked as yours. Trading range or trend, phase, effort against result, absorption, springs, upthrusts: name the facts
   each reading rests on, what speaks against it, and how sure you are.
4. Scenarios. At least two that exclude each other. Each with its trigger (a level and what order flow should show there), its
   invalidation (the level or figure that proves it wrong) and what to watch next.

Patterns describe what happened. Do not claim that any of them predicts what comes, and give no advice to trade.
"""


def declare(server: MCPServer[Any]) -> None:
    """Register the prompts."""

    @server.prompt(title="waickoff report")
    async def waickoff_report(
        symbol: Annotated[str, Field(description="a followed symbol, e.g. BTCUSDT")],
        window: Annotated[str, Field(description="15m, 1h, 4h, 24h, 7d or session; default 24h")] = "24h",
        market: Annotated[str, Field(description="spot or linear; default: the first market followed")] = "",
    ) -> str:
        """Report on one symbol from its volume profile and order flow: coverage, facts, judgement, scenarios."""
        arguments = {"symbol": symbol, "window": window, **({"market": market} if market else {})}
        return _REPORT.format(
            symbol=symbol,
            window=window,
            where=f" in market {market}" if market else "",
            call=", ".join(f'{name}="{value}"' for name, value in arguments.items()),
        )
