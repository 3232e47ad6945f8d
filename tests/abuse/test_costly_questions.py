"""Fifty questions about seven days at once: each caller gets an answer or is told when to come again, in bounded memory."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest

from tests.abuse import mcp_wire
from tests.abuse.target import DEAD, Target, attacked, probing
from tests.abuse.verdict import ABUSE, attack
from tests.abuse.week import SYMBOL, stored_week
from wadm_mcp.model import DAY, MINUTE

pytestmark = [pytest.mark.anyio, pytest.mark.skipif(not ABUSE, reason="full size; run with WADM_ABUSE=1")]

AT_ONCE = 50
SECONDS = 60.0
"""Longest time for all answers."""
PATHS = {
    "get_footprint": "/api/footprint",
    "get_volume_profile": "/api/volume-profile",
    "get_market_structure": "/api/market-structure",
    "get_order_flow": "/api/order-flow",
}
BUSY = re.compile(r"\bbusy\b.*\b(again|retry)\b.*\d", re.IGNORECASE | re.DOTALL)
"""A refusal that says when to come again."""


def questions(end: int, symbol: str = SYMBOL) -> list[tuple[str, dict[str, Any]]]:
    """Different questions, so that none is answered from the answer of another."""
    found: list[tuple[str, dict[str, Any]]] = []
    for number in range(AT_ONCE):
        window = {"symbol": symbol, "start": end - 7 * DAY - number * MINUTE, "end": end - number * MINUTE}
        match number % 5:
            case 0 | 1 | 2:
                found.append(("get_footprint", {**window, "timeframe": "4h"}))
            case 3:
                found.append(("get_volume_profile", {**window, "detail": "full"}))
            case _:
                found.append(("get_market_structure", {"symbol": symbol, "timeframe": "15m", "as_of": window["end"]}))
    return found


@pytest.mark.parametrize("way", ["/api", "/mcp", "both"])
async def test_every_caller_is_answered_or_told_when_to_come_again(tmp_path: Path, way: str) -> None:
    with attack(f"{AT_ONCE} questions of seven days at once, {way}") as verdict, anyio.fail_after(200):
        end = await stored_week(tmp_path / "data")
        async with attacked(tmp_path) as (at, _):
            await _ready(at, end)
            await at.settle()
            light = f"{at.url}/api/trades?symbol=BTCUSDT&exchange=binance&window=15m&limit=10"
            async with at.watched(), probing(light) as answers:
                outcomes = await _ask_all(at, way, questions(end))
            answered = sum(outcomes[one] for one in ("answered", "busy"))
            shown = ", ".join(f"{count} {name}" for name, count in sorted(outcomes.items()))
            verdict.holds("callers answered, or told when to come again", shown, answered == AT_ONCE, "all")
            verdict.at_most("a light question beside them, p99", answers.percentile(0.99), 500, "ms")
            later = await at.back_at_rest(60, 20)
            verdict.at_most("peak above rest", at.peak, 250, "MB")
            verdict.at_most("above rest a minute later", later if at.alive else None, 20, "MB")
            verdict.holds("alive", "yes" if at.alive else "no", at.alive, "yes")


async def _ready(at: Target, end: int) -> None:
    """Wait until the week can be asked about, and ask once, so that what is loaded late belongs to rest."""
    with anyio.fail_after(30):
        while True:
            asked = {"symbol": SYMBOL, "exchange": "binance", "start": end - 60 * MINUTE, "end": end}
            if (
                await at.served.client.get("/api/footprint", params={name: str(value) for name, value in asked.items()})
            ).status_code == 200:
                return
            await anyio.sleep(0.3)


async def _ask_all(at: Target, way: str, every: Sequence[tuple[str, dict[str, Any]]]) -> Counter[str]:
    outcomes: Counter[str] = Counter()
    limits = httpx2.Limits(max_connections=None)
    async with httpx2.AsyncClient(base_url=at.url, timeout=SECONDS, trust_env=False, limits=limits) as client:
        session = await mcp_wire.opened(client) if way != "/api" else ""

        async def ask(number: int, tool: str, arguments: dict[str, Any]) -> None:
            by_api = way == "/api" or (way == "both" and number % 2 == 0)
            try:
                outcomes[await (over_api(client, tool, arguments) if by_api else over_mcp(client, session, number, tool, arguments))] += 1
            except DEAD as error:
                outcomes[f"ended by {type(error).__name__}"] += 1

        with anyio.move_on_after(SECONDS) as scope:
            async with anyio.create_task_group() as tasks:
                for number, (tool, arguments) in enumerate(every):
                    tasks.start_soon(ask, number, tool, arguments)
        if scope.cancelled_caught:
            outcomes["without an answer"] = len(every) - outcomes.total()
    return outcomes


async def over_api(client: httpx2.AsyncClient, tool: str, arguments: dict[str, Any]) -> str:
    """Ask once; "answered", "busy" if told when to come again, or how it was refused."""
    response = await client.get(PATHS[tool], params={name: str(value) for name, value in arguments.items()})
    if response.status_code == 200:
        return "answered"
    told = response.status_code in (429, 503) and ("retry-after" in response.headers or BUSY.search(response.text))
    return "busy" if told else f"refused with {response.status_code}"


async def over_mcp(client: httpx2.AsyncClient, session: str, number: int, tool: str, arguments: dict[str, Any]) -> str:
    """As `over_api`, in a session of MCP."""
    answer = await mcp_wire.asked(client, session, tool, arguments, number + 10)
    if "result" in answer and not answer["result"].get("isError"):
        return "answered"
    text = str(answer)
    return "busy" if answer.get("retry_after") or BUSY.search(text) else f"refused: {text[:60]}"
