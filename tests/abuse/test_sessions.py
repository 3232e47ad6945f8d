"""What clients of `/mcp` pile up: large answers, sessions without an end, waits and subscriptions. A new client always gets in."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import anyio
import httpx2
import pytest
from mcp.client import Client
from mcp.shared.exceptions import MCPError

from tests.abuse import mcp_wire
from tests.abuse.target import DEAD, SPOT, Target, attacked, live
from tests.abuse.verdict import ABUSE, Attack, attack
from tests.abuse.week import SYMBOL, stored_week
from wadm_mcp.model import DAY, HOUR

pytestmark = [pytest.mark.anyio, pytest.mark.skipif(not ABUSE, reason="full size; run with WADM_ABUSE=1")]

ANSWERS, SESSIONS, WAITS, SUBSCRIPTIONS = 1_000, 5_000, 15_000, 10_000
AT_ONCE = 20
WAITING_SESSIONS = 32
"""Sessions of the attack with waits: with the calls that each may have, more than all waits that are served."""
LONGEST = 60.0
"""Seconds after which an attack is ended as far as it has come."""
WAIT = {"symbol": "BTCUSDT", "exchange": "binance", "condition": "price_crosses", "value": 1, "timeout": 300}


@asynccontextmanager
async def _attacked(folder: Path) -> AsyncGenerator[Target]:
    async with attacked(folder) as (at, _):
        await live(at, SPOT)
        await _new_client(at, "2026-07-28")
        await at.settle()
        yield at


async def _judged(verdict: Attack, at: Target) -> None:
    """The measures of every attack here: memory, a new client of each protocol version, and the stop."""
    verdict.at_most("peak above rest", at.peak, 150, "MB")
    for version in ("legacy", "2026-07-28"):
        verdict.at_most(f"a new client gets in ({version})", await _new_client(at, version), 2, "s")
    began = anyio.current_time()
    status: int | str = "killed after 5 s"
    with suppress(TimeoutError):
        status = await at.served.stop()
    verdict.at_most("SIGTERM until the end", anyio.current_time() - began if status == 0 else None, 5, "s")
    verdict.holds("exit status", status, status == 0, "0")


async def _new_client(at: Target, version: str) -> float | None:
    """Seconds until a new client of the SDK has an answer; None if it does not get one within ten."""
    began, took = anyio.current_time(), None
    try:
        with anyio.fail_after(10):
            async with Client(f"{at.url}/mcp", mode=version) as client:
                await client.call_tool("list_markets", {})
                took = anyio.current_time() - began
    except* (MCPError, *DEAD):
        pass
    return took


@asynccontextmanager
async def _client(at: Target) -> AsyncGenerator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(base_url=at.url, timeout=20, trust_env=False, limits=httpx2.Limits(keepalive_expiry=2.0)) as client:
        yield client


async def test_a_thousand_large_answers_one_after_another(tmp_path: Path) -> None:
    end = await stored_week(tmp_path / "data")
    with attack(f"{ANSWERS:,} sequential full answers over /mcp") as verdict, anyio.fail_after(150):
        async with _attacked(tmp_path) as at, at.watched(), _client(at) as client:
            answered, size = 0, 0
            with anyio.move_on_after(LONGEST), suppress(*DEAD):
                session = await mcp_wire.opened(client)
                sizes = ["0.01", "0.1", "1", "10", None]
                for number in range(ANSWERS):
                    last = end - number % 24 * HOUR
                    window = {"symbol": SYMBOL, "exchange": "binance", "start": last - DAY, "end": last, "detail": "full"}
                    answer = await mcp_wire.asked(client, session, "get_volume_profile", {**window, "row_size": sizes[0]}, number + 2)
                    if answer.get("result", {}).get("isError") and len(sizes) > 1:
                        # The finest rows, which make the largest answer, until one is not refused for its length.
                        del sizes[0]
                    size += len(str(answer))
                    answered += "result" in answer
                await mcp_wire.ended(client, session)
            verdict.note("answers, bytes", f"{answered:,}, {size / 1e6:,.0f} MB")
            await _judged(verdict, at)


async def test_sessions_that_nobody_ends(tmp_path: Path) -> None:
    with attack(f"{SESSIONS:,} abandoned sessions") as verdict, anyio.fail_after(150):
        async with _attacked(tmp_path) as at, at.watched(), _client(at) as client:
            statuses: Counter[int] = Counter()
            with anyio.move_on_after(LONGEST), suppress(*DEAD):
                for _ in range(SESSIONS):
                    statuses[(await client.post("/mcp", json=mcp_wire.initialize(), headers=mcp_wire.HEADERS)).status_code] += 1
            verdict.note("statuses", dict(statuses))
            await _judged(verdict, at)


async def test_waits_that_nobody_reads(tmp_path: Path) -> None:
    with attack(f"{WAITS:,} waits of {WAITING_SESSIONS} sessions") as verdict, anyio.fail_after(150):
        async with _attacked(tmp_path) as at, at.watched(), _client(at) as client:
            statuses: Counter[int | str] = Counter()
            sessions = [await mcp_wire.opened(client) for _ in range(WAITING_SESSIONS)]

            async def ask(first: int) -> None:
                for number in range(first, WAITS, AT_ONCE):
                    # A client that leaves after the head; the call goes on, so that its answer can be resumed.
                    request = mcp_wire.call("wait_for", WAIT, number + 2)
                    session = mcp_wire.in_session(sessions[number % WAITING_SESSIONS])
                    try:
                        async with client.stream("POST", "/mcp", json=request, headers=session) as response:
                            statuses[response.status_code] += 1
                    except DEAD as error:
                        statuses[type(error).__name__] += 1

            with anyio.move_on_after(LONGEST):
                async with anyio.create_task_group() as tasks:
                    for first in range(AT_ONCE):
                        tasks.start_soon(ask, first)
            verdict.note("waits, by status of HTTP", dict(statuses))
            own = await mcp_wire.asked(client, await mcp_wire.opened(client), "wait_for", {**WAIT, "timeout": 1})
            waited = not own.get("result", {}).get("isError", True)
            verdict.holds("the wait of a new client", own if not waited else "answered", waited, "answered")
            await _judged(verdict, at)


async def test_subscriptions_to_what_is_there_and_what_is_not(tmp_path: Path) -> None:
    with attack(f"{SUBSCRIPTIONS:,} subscriptions") as verdict, anyio.fail_after(150):
        async with _attacked(tmp_path) as at, at.watched(), _client(at) as client:
            accepted: Counter[str] = Counter()
            with anyio.move_on_after(LONGEST), suppress(*DEAD):
                every = uris(100)
                for _ in range(SUBSCRIPTIONS // len(every)):
                    session = await mcp_wire.opened(client)
                    for number, uri in enumerate(every):
                        body = mcp_wire.message("resources/subscribe", {"uri": uri}, number + 2)
                        response = await client.post("/mcp", json=body, headers=mcp_wire.in_session(session))
                        refused = response.status_code != 200 or "error" in mcp_wire.answer_of(response.text)
                        accepted[f"{'refused' if refused else 'accepted'}, {'existing' if number % 2 else 'not existing'}"] += 1
            verdict.note("subscriptions", dict(accepted))
            invented = accepted["accepted, not existing"]
            verdict.holds("subscriptions to resources that do not exist", invented, invented == 0, "refused")
            # Subscribers without a stream: what is sent to them must not pile up.
            await anyio.sleep(5)
            await _judged(verdict, at)


def uris(count: int) -> Sequence[str]:
    """Resources that do not exist and such that do, in turn."""
    kinds = ["trades", *(f"{kind}/{length}" for kind in ("volume-profile", "order-flow") for length in ("1m", "5m", "15m", "1h"))]
    places = [f"{exchange}/spot/{symbol}" for exchange in ("binance", "bybit", "all") for symbol in ("BTCUSDT", "btcusdt", "BTC-USDT")]
    existing = [f"wadm://{place}/{kind}" for place in places for kind in kinds]
    return [existing[number // 2] if number % 2 else f"wadm://binance/spot/NONE{number}USDT/trades" for number in range(count)]


async def test_prompts_with_arguments_of_any_size(tmp_path: Path) -> None:
    with attack("40 prompts with 100 kB arguments") as verdict, anyio.fail_after(60):
        async with _attacked(tmp_path) as at, at.watched(), _client(at) as client:
            sizes: list[int] = []
            with suppress(*DEAD):
                session = await mcp_wire.opened(client)
                for number in range(40):
                    # One argument at a time: another may be refused first.
                    huge = ("symbol", "window", "exchange", "market", "language")[number % 5]
                    arguments = {"symbol": "BTCUSDT", huge: "x\x1b" * 50_000}
                    body = mcp_wire.message("prompts/get", {"name": "waickoff_report", "arguments": arguments}, number + 2)
                    sizes.append(len((await client.post("/mcp", json=body, headers=mcp_wire.in_session(session))).content))
            verdict.at_most("largest answer", max(sizes, default=0) / 1_000, 50, "kB")
            await _judged(verdict, at)
