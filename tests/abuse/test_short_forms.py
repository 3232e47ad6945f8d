"""The attacks in a size that every test run can afford, against a server inside this process."""

from __future__ import annotations

import io
import logging
import random
import socket
from collections import Counter
from collections.abc import Generator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

import anyio
import httpx2
import pytest
from anyio import to_thread
from websockets.asyncio.client import connect

from tests.abuse import fuzz, mcp_wire
from tests.abuse.hostile_exchange import serve
from tests.abuse.inside import ask_questions, check_text, decode_frames, parse_command_lines, read_archives, read_environments
from tests.abuse.sockets import Crowd, exchange_bytes, statuses
from tests.abuse.test_costly_questions import BUSY
from tests.abuse.test_fuzz import KEY, SECRET
from tests.abuse.test_keys import answers, is_open, requests
from tests.abuse.test_logs import FORGED, forging_request
from tests.abuse.verdict import SEED
from tests.market import NOON, SPOT, listing, trade
from tests.queries.world import Held
from tests.server.fake import EmptyStore, FakeRuntime, serving
from wadm_mcp.analytics.footprint import Footprint
from wadm_mcp.clock import Clock, now_ms
from wadm_mcp.collection.live.frame_socket import FrameSocket
from wadm_mcp.coverage.spans import Basis, Span
from wadm_mcp.logs import PlainFormatter
from wadm_mcp.model import DAY, HOUR, MINUTE, Instrument, Retention, Timeframe, Window
from wadm_mcp.queries.view import View
from wadm_mcp.runtime import Runtime
from wadm_mcp.server.questions import VOLUME_PROFILE
from wadm_mcp.settings import read_settings
from wadm_mcp.simulator.simulator import Simulator
from wadm_mcp.storage.sqlite import SqliteStore
from wadm_mcp.storage.store import Derived, OrderFlow, StoredFootprint
from wadm_mcp.tape import Tape

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


async def test_a_probe_gets_in_beside_more_connections_than_are_served() -> None:
    with anyio.fail_after(20):
        async with serving(FakeRuntime()) as (url, _), httpx2.AsyncClient(trust_env=False, timeout=2) as client:
            crowd = Crowd(url, 1_100)
            try:
                await crowd.filled()
                assert (await client.get(f"{url}/health/live")).status_code == 200
            finally:
                crowd.close()


class _CountingStore(EmptyStore):
    """Counts how many reads of footprints are under way at once."""

    def __init__(self) -> None:
        super().__init__()
        self._reading = 0
        self.most = 0

    async def footprints(
        self, instrument: Instrument, timeframe: Timeframe, window: Window, *, max_bytes: int | None = None
    ) -> list[StoredFootprint]:
        self._reading += 1
        self.most = max(self.most, self._reading)
        await anyio.sleep(0.001)
        self._reading -= 1
        return []


async def test_few_costly_questions_read_the_store_at_once() -> None:
    runtime, store = FakeRuntime(), _CountingStore()
    runtime.store = store
    runtime.view = View(store, runtime.tape, runtime.clock.now, ("spot", "linear"), ("binance", "bybit"))
    runtime.tape[SPOT].start_recording(Held([Span(NOON - 10 * DAY, NOON, 1, 150, Basis.EXACT)], NOON))
    async with serving(runtime) as (url, _), httpx2.AsyncClient(base_url=url, trust_env=False, timeout=20) as client:

        async def ask(number: int) -> None:
            window = {"start": NOON - 7 * DAY - number * MINUTE, "end": NOON - number * MINUTE}
            await client.get("/api/footprint", params={"symbol": "BTCUSDT", "timeframe": "1d", **window})

        with anyio.fail_after(20):
            async with anyio.create_task_group() as tasks:
                for number in range(30):
                    tasks.start_soon(ask, number)
    assert 0 < store.most <= 6


async def test_a_new_client_gets_in_after_hundreds_of_abandoned_sessions() -> None:
    with anyio.fail_after(30):
        async with serving(FakeRuntime()) as (url, _), httpx2.AsyncClient(base_url=url, trust_env=False) as client:
            for _ in range(520):
                await client.post("/mcp", json=mcp_wire.initialize(), headers=mcp_wire.HEADERS)
            session = await mcp_wire.opened(client)
            assert "result" in await mcp_wire.asked(client, session, "list_markets", {})


async def test_a_subscription_to_what_does_not_exist_is_refused() -> None:
    async with serving(FakeRuntime()) as (url, _), httpx2.AsyncClient(base_url=url, trust_env=False) as client:
        session = await mcp_wire.opened(client)
        answers: list[bool] = []
        for number, symbol in enumerate(("BTCUSDT", "NONEUSDT")):
            body = mcp_wire.message("resources/subscribe", {"uri": f"wadm://binance/spot/{symbol}/trades"}, number + 2)
            response = await client.post("/mcp", json=body, headers=mcp_wire.in_session(session))
            answers.append("result" in mcp_wire.answer_of(response.text))
    assert answers == [True, False]


async def test_a_prompt_answers_a_huge_argument_in_one_short_error() -> None:
    async with serving(FakeRuntime()) as (url, _), httpx2.AsyncClient(base_url=url, trust_env=False) as client:
        session = await mcp_wire.opened(client)
        sizes: list[int] = []
        for number, name in enumerate(("symbol", "window", "exchange", "market", "language")):
            arguments = {"symbol": "BTCUSDT", name: "x" * 100_000}
            body = mcp_wire.message("prompts/get", {"name": "waickoff_report", "arguments": arguments}, number + 2)
            sizes.append(len((await client.post("/mcp", json=body, headers=mcp_wire.in_session(session))).content))
    assert max(sizes) < 20_000


_MANY_PONGS = 1 << 20


async def test_pongs_to_an_exchange_that_never_reads_are_bounded() -> None:
    exchange = await serve("pings-never-read")
    port = exchange.sockets[0].getsockname()[1]
    # Small buffers in the system, so that unread pongs soon gather here.
    with closing(socket.socket()) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
        client.connect(("127.0.0.1", port))
        client.setblocking(False)
        async with connect(f"ws://127.0.0.1:{port}", sock=client, create_connection=FrameSocket, compression=None) as pinged:
            largest, until = 0, anyio.current_time() + 1.5
            while largest < _MANY_PONGS and anyio.current_time() < until:
                await anyio.sleep(0.01)
                largest = max(largest, pinged.transport.get_write_buffer_size())
            pinged.transport.abort()
    exchange.close()
    await anyio.sleep(0.05)
    assert largest < _MANY_PONGS


async def test_a_clock_that_is_ahead_deletes_nothing_and_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wadm_mcp.collection.recording.maintenance._EXPIRY_SECONDS", 0.1)
    at = now_ms() - HOUR
    async with SqliteStore(tmp_path / "wadm.sqlite") as store:
        await store.write([trade(seq, at + seq) for seq in range(1, 21)], [(SPOT, Span(at, at + MINUTE, 1, 20, Basis.EXACT))])
        # What is not derived yet is deleted by no clock.
        await store.derive(Derived(settles=await store.dirty_minutes()))
    async with Simulator(seed=SEED, instruments=[SPOT]) as simulator:
        hosts = {f"WADM_{name.upper()}": url for name, url in simulator.urls.items()}
        wanted = {"WADM_DATA_DIR": tmp_path, "WADM_HISTORY_HOURS": 0, "WADM_EXCHANGES": ("binance",), **hosts}
        async with Runtime(read_settings({}, overrides=wanted), clock=Clock(lambda: now_ms() + 400 * DAY)) as runtime:
            with anyio.fail_after(10):
                while not any("clock" in f"{name} {part.detail}" for name, part in runtime.health.parts.items()):
                    await anyio.sleep(0.1)
            await anyio.sleep(0.5)
            left = await runtime.store.count(SPOT, Window(at, at + MINUTE))
    assert left == 20


async def test_a_window_that_expired_is_not_claimed_when_retention_is_raised_again(tmp_path: Path) -> None:
    runtime = FakeRuntime()
    at = NOON - 10 * DAY
    month, day = Retention(30 * DAY, 30 * DAY, 30 * DAY), Retention(HOUR, DAY, DAY)
    async with SqliteStore(tmp_path / "wadm.sqlite") as store:
        trades = [trade(number, at + number * MINUTE) for number in range(10)]
        await store.save_listings([listing(SPOT)])
        await store.write(trades, [(SPOT, Span(at, NOON, 0, 9, Basis.EXACT))])
        bars = {one.timestamp: Footprint(one.scale) for one in trades}
        for one in trades:
            bars[one.timestamp].add(one)
        footprints = [StoredFootprint(SPOT, Timeframe.M1, start, footprint) for start, footprint in bars.items()]
        flows = [OrderFlow(SPOT, Timeframe.M1, start, footprint.bar, 0) for start, footprint in bars.items()]
        await store.derive(Derived(footprints=footprints, order_flow=flows, settles=await store.dirty_minutes()))
        runtime.tape = Tape()
        runtime.tape.mark_listings_attempted()
        runtime.tape.follow(listing(SPOT))
        runtime.view = View(store, runtime.tape, runtime.clock.now, ("spot",), ("binance",), month)
        window = {"symbol": "BTCUSDT", "exchange": "binance", "start": at, "end": at + 10 * MINUTE}
        before = (await VOLUME_PROFILE.ask(runtime, window, fresh=True)).answer
        while await store.expire(NOON, day):
            pass
        after = (await VOLUME_PROFILE.ask(runtime, window, fresh=True)).answer
    assert before["coverage"]["ratio"] == 1
    assert after["coverage"]["ratio"] == 0
    assert {gap[3] for gap in after["coverage"]["gaps"]} == {"expired"}


async def test_a_page_of_another_site_gets_nothing() -> None:
    async with serving(FakeRuntime()) as (url, _), httpx2.AsyncClient(base_url=url, trust_env=False) as client:
        crossed = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"}
        assert (await client.get("/api/markets", headers=crossed)).status_code == 403
        assert (await client.get("/api/markets", headers={"Sec-Fetch-Site": "same-origin"})).status_code == 200


async def test_no_header_forges_a_line_of_the_log() -> None:
    with _development_log() as written:
        async with serving(FakeRuntime()) as (url, _):
            for number in range(32):
                await to_thread.run_sync(exchange_bytes, url, forging_request(number))
    lines = written.getvalue()
    assert [line for line in lines.splitlines() if line.startswith(FORGED[:20])] == []
    assert {letter for letter in lines if not letter.isprintable()} <= {"\n"}
    assert len(lines) < 10_000


def test_no_setting_shows_the_password_in_it() -> None:
    assert read_environments(300, SEED, SECRET) == []
