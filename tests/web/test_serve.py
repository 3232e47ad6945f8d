from __future__ import annotations

import logging
import os
import signal
import socket
from collections.abc import Callable
from contextlib import AsyncExitStack

import anyio
import anyio.lowlevel
import httpx2
import pytest

from tests.server.fake import FakeRuntime, over
from tests.web.http_session import call, session
from wadm_mcp.errors import SettingError, WadmError
from wadm_mcp.server.server import build_server
from wadm_mcp.web.app import build_app
from wadm_mcp.web.serve import serve_http

pytestmark = pytest.mark.anyio

_STREAM = {"Accept": "text/event-stream"}


async def _serve(runtime: FakeRuntime, started: Callable[[str], None] | None = None) -> None:
    await serve_http(build_app(build_server(runtime), runtime), runtime.settings, on_started=started)


class _Served:
    """Serves a runtime in a task of the test, and records when it has returned."""

    def __init__(self, runtime: FakeRuntime) -> None:
        self.runtime = runtime
        self.url = ""
        self.error: BaseException | None = None
        self.started = anyio.Event()
        self.ended = anyio.Event()

    def _on_started(self, url: str) -> None:
        self.url = url
        self.started.set()

    async def __call__(self) -> None:
        try:
            await _serve(self.runtime, self._on_started)
        except WadmError as error:
            self.error = error
        self.ended.set()


@pytest.mark.parametrize("asked", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_stops_in_time_however_many_streams_are_open(asked: signal.Signals, caplog: pytest.LogCaptureFixture) -> None:
    runtime = FakeRuntime()
    served, begun = _Served(runtime), 0.0
    async with anyio.create_task_group() as tasks, httpx2.AsyncClient() as client:
        tasks.start_soon(served)
        await served.started.wait()
        async with client.stream("GET", f"{served.url}/sse", headers=_STREAM) as one, client.stream("GET", f"{served.url}/sse") as two:
            assert (one.status_code, two.status_code) == (200, 200)
            begun = anyio.current_time()
            os.kill(os.getpid(), asked)
            with anyio.fail_after(3):
                await served.ended.wait()
            async for _ in one.aiter_raw():
                pass
    assert anyio.current_time() - begun < 2
    assert served.error is None
    assert (runtime.entries, runtime.exits) == (1, 1)
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []


@pytest.mark.filterwarnings("ignore:resources/subscribe is removed")
async def test_a_signal_ends_the_streams_of_mcp_clients(caplog: pytest.LogCaptureFixture) -> None:
    runtime = FakeRuntime()
    served = _Served(runtime)
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(served)
            await served.started.wait()
            async with over("http", served.url, "2026-07-28") as newer, over("http", served.url, "legacy") as older:
                await older.list_tools()
                async with newer.listen(resource_subscriptions=["wadm://markets"]):
                    os.kill(os.getpid(), signal.SIGTERM)
                    with anyio.fail_after(3):
                        await served.ended.wait()
    assert runtime.exits == 1
    assert [record.getMessage() for record in caplog.records if record.name == "uvicorn.error" and record.levelno >= logging.ERROR] == []


async def test_a_stop_does_not_wait_for_the_answers_of_calls_in_progress(caplog: pytest.LogCaptureFixture) -> None:
    runtime = FakeRuntime()
    served = _Served(runtime)
    asked = {"symbol": "BTCUSDT", "exchange": "binance", "condition": "price_crosses", "value": 1, "timeout": 300}
    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(served)
            await served.started.wait()
            async with AsyncExitStack() as stack:
                for _ in range(5):
                    client = await stack.enter_async_context(session(served.url))
                    await stack.enter_async_context(client.stream("GET", "/mcp"))
                    call_wait = call("tools/call", {"name": "wait_for", "arguments": asked})
                    await stack.enter_async_context(client.stream("POST", "/mcp", json=call_wait))
                while runtime.watches.waits < 5:
                    await anyio.lowlevel.checkpoint()
                os.kill(os.getpid(), signal.SIGTERM)
                await served.ended.wait()
    assert (runtime.exits, runtime.watches.waits) == (1, 0)
    # The SDK tries for a second, and warns, to answer a call whose stream is gone.
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_the_error_of_a_failed_runtime_is_raised_after_the_shutdown() -> None:
    runtime = FakeRuntime()
    served = _Served(runtime)
    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(served)
            await served.started.wait()
            runtime.broken.set()
            await served.ended.wait()
    assert served.error is runtime.error
    assert runtime.exits == 1


async def test_a_runtime_that_failed_at_once_never_claims_to_have_started() -> None:
    runtime = FakeRuntime()
    runtime.broken.set()
    served = _Served(runtime)
    with anyio.fail_after(5):
        await served()
    assert served.error is runtime.error
    assert not served.started.is_set()


async def test_a_taken_port_stops_the_start_before_anything_is_entered() -> None:
    runtime = FakeRuntime()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        runtime.settings = runtime.settings.model_copy(update={"WADM_PORT": port})
        with pytest.raises(SettingError, match=rf"^WADM_PORT={port}: the port is already in use on 127\.0\.0\.1"):
            await _serve(runtime)
    assert runtime.entries == 0


@pytest.mark.parametrize("host", ["203.0.113.7", "no.such.host.invalid", "::ffff:fff"])
async def test_a_host_that_is_not_this_machine_is_refused(host: str) -> None:
    runtime = FakeRuntime(WADM_HOST=host, API_KEY="a key of enough characters")
    with pytest.raises(SettingError, match=rf"^WADM_HOST={host}: cannot listen there"):
        await _serve(runtime)


async def test_beyond_loopback_a_key_is_needed() -> None:
    with pytest.raises(SettingError, match=r"^WADM_HOST=0\.0\.0\.0: API_KEY must be set when the host is not loopback"):
        await _serve(FakeRuntime(WADM_HOST="0.0.0.0"))


async def test_beyond_loopback_a_key_must_not_be_short() -> None:
    with pytest.raises(
        SettingError, match=r"^API_KEY=\(hidden\): has 15 characters; with WADM_HOST=0\.0\.0\.0 at least 16 are needed"
    ) as short:
        await _serve(FakeRuntime(WADM_HOST="0.0.0.0", API_KEY="k" * 15))
    assert "kkk" not in str(short.value)
    FakeRuntime(WADM_HOST="0.0.0.0", API_KEY="k" * 16).settings.check_exposure()
    FakeRuntime(API_KEY="k").settings.check_exposure()


async def test_localhost_is_served_on_its_addresses() -> None:
    served = _Served(FakeRuntime(WADM_HOST="localhost"))
    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks, httpx2.AsyncClient() as client:
            tasks.start_soon(served)
            await served.started.wait()
            assert (await client.get(f"{served.url}/health/live")).status_code == 200
            tasks.cancel_scope.cancel()
    assert served.runtime.exits == 1
