"""The attacks in a size that every test run can afford, against a server inside this process."""

from __future__ import annotations

import io
import logging
import random
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import anyio
import httpx2
import pytest
from anyio import to_thread

from tests.abuse import fuzz, mcp_wire
from tests.abuse.inside import ask_questions, check_text, decode_frames, parse_command_lines, read_archives
from tests.abuse.sockets import exchange_bytes, statuses
from tests.abuse.test_costly_questions import BUSY
from tests.abuse.test_fuzz import KEY, SECRET
from tests.abuse.test_keys import answers, is_open, requests
from tests.abuse.verdict import SEED
from tests.market import NOON
from tests.server.fake import FakeRuntime, serving
from wadm_mcp.logs import PlainFormatter
from wadm_mcp.model import DAY, MINUTE

pytestmark = pytest.mark.anyio


def test_nothing_that_is_read_inside_crashes(tmp_path: Path) -> None:
    faults = [
        *decode_frames(2_600, SEED),
        *anyio.run(ask_questions, 600, SEED),
        *read_archives(150, SEED, tmp_path),
        *parse_command_lines(200, SEED),
    ]
    assert faults == []


async def test_hostile_requests_are_answered_without_a_traceback() -> None:
    draw, found = random.Random(SEED), Counter[int]()
    async with serving(FakeRuntime(API_KEY=KEY)) as (url, _):
        for _ in range(30):
            raw = b"".join(fuzz.http_request(draw, KEY) for _ in range(5))
            raw += b"GET /health/live HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
            answer = await to_thread.run_sync(partial(exchange_bytes, url, raw, within=0.2))
            check_text(answer)
            found += statuses(answer)
    assert found.total() > 30
    assert not found[500]


async def test_only_the_health_routes_answer_without_the_key() -> None:
    every = list(requests())
    async with serving(FakeRuntime(API_KEY=SECRET)) as (url, _):
        for path, raw, answer in await answers(url, random.Random(SEED).sample(every, 200)):
            assert is_open(path) or not set(answer) - {400, 401, 429}, (raw, answer)


async def test_every_caller_of_many_costly_questions_is_answered_or_told_when_to_come_again() -> None:
    runtime = FakeRuntime()
    outcomes = Counter[bool]()
    async with serving(runtime) as (url, _), httpx2.AsyncClient(base_url=url, trust_env=False, timeout=20) as client:

        async def ask(number: int) -> None:
            window = {"start": NOON - 7 * DAY - number * MINUTE, "end": NOON - number * MINUTE}
            response = await client.get("/api/footprint", params={"symbol": "BTCUSDT", "timeframe": "4h", **window})
            busy = response.status_code in (429, 503) and ("retry-after" in response.headers or bool(BUSY.search(response.text)))
            outcomes[response.status_code == 200 or busy] += 1

        with anyio.fail_after(20):
            async with anyio.create_task_group() as tasks:
                for number in range(30):
                    tasks.start_soon(ask, number)
                assert (await client.get("/api/markets")).status_code == 200
    assert outcomes == {True: 30}


async def test_a_stop_does_not_wait_for_waits_that_nobody_reads() -> None:
    wait = {"symbol": "BTCUSDT", "exchange": "binance", "condition": "price_crosses", "value": 1, "timeout": 300}
    with anyio.fail_after(20):
        async with serving(FakeRuntime()) as (url, _), httpx2.AsyncClient(base_url=url, trust_env=False) as client:
            session = await mcp_wire.opened(client)
            for number in range(100):
                request = mcp_wire.call("wait_for", wait, number + 2)
                async with client.stream("POST", "/mcp", json=request, headers=mcp_wire.in_session(session)):
                    pass
            other = await mcp_wire.opened(client)
            assert "result" in await mcp_wire.asked(client, other, "list_markets", {})
            began = anyio.current_time()
    assert anyio.current_time() - began < 5


@contextmanager
def _development_log() -> Generator[io.StringIO]:
    """What the log of a process in development would have."""
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(PlainFormatter())
    logging.getLogger().addHandler(handler)
    try:
        yield written
    finally:
        logging.getLogger().removeHandler(handler)
