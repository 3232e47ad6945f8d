from __future__ import annotations

from collections.abc import Mapping, Sequence

import anyio
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.simulator.wire import NOW, TIMEOUT_SECONDS, ask, fast_clock, get, heard, opened, said
from wadm_mcp.simulator.faults import Faults, Reply
from wadm_mcp.simulator.simulator import Simulator

pytestmark = pytest.mark.anyio

SPOT = ("binance", "spot", "BTCUSDT")
TRADE = (NOW, "64511.89000000", "0.00288000", "BUY")
STREAM = "/ws/btcusdt@trade"


async def test_urls_are_base_urls_named_like_the_settings() -> None:
    async with Simulator(manual=True) as simulator:
        urls = simulator.urls
    binance = ["binance_archive", "binance_linear_rest", "binance_linear_ws", "binance_spot_rest", "binance_spot_ws"]
    assert sorted(urls) == [*binance, "bybit_archive", "bybit_rest", "bybit_ws"]
    for name, url in urls.items():
        scheme, _, port = url.rpartition(":")
        assert scheme == ("ws://127.0.0.1" if name.endswith("_ws") else "http://127.0.0.1")
        assert int(port) > 0


async def test_two_simulators_trade_the_same_tape() -> None:
    path = "/api/v3/historicalTrades?symbol=ETHUSDT&fromId=1500000000"
    served: list[object] = []
    for _ in range(2):
        async with Simulator(seed=5, clock=lambda: NOW) as simulator:
            served.append((await get(simulator, "binance_spot_rest", path)).json())
    assert served[0] == served[1]
    assert served[0]


async def test_a_reconnecting_client_gets_no_replay_of_what_it_missed() -> None:
    async with Simulator(manual=True) as simulator:
        async with opened(simulator, "binance_spot_ws", STREAM):
            await simulator.subscribed(*SPOT)
            simulator.drop_connections("binance", "spot")
        lost = await simulator.push(*SPOT, [TRADE])
        async with opened(simulator, "binance_spot_ws", STREAM) as socket:
            await simulator.subscribed(*SPOT)
            fresh = await simulator.push(*SPOT, [TRADE])
            assert (await heard(socket))["t"] == int(fresh[0]) == int(lost[0]) + 1
        assert simulator.sent[SPOT] == 1


async def test_dropped_connections_end_without_a_closing_handshake() -> None:
    async with Simulator(manual=True) as simulator, opened(simulator, "bybit_ws", "/v5/public/spot") as socket:
        await ask(socket, {"op": "ping"})
        simulator.drop_connections("bybit", "linear")
        assert simulator.connections("bybit", "spot") == 1
        simulator.drop_connections("bybit", "spot")
        assert simulator.connections("bybit", "spot") == 0
        with anyio.fail_after(TIMEOUT_SECONDS), pytest.raises(ConnectionClosed):
            await socket.recv()
        assert socket.close_code == 1006


async def test_a_muted_market_is_silent_and_answers_its_clients() -> None:
    async with Simulator(manual=True) as simulator, opened(simulator, "bybit_ws", "/v5/public/linear") as socket:
        await ask(socket, {"op": "subscribe", "args": ["publicTrade.BTCUSDT"]})
        simulator.mute("bybit", "linear")
        await simulator.push("bybit", "linear", "BTCUSDT", [TRADE])
        assert (await ask(socket, {"op": "ping"}))["ret_msg"] == "pong"
        simulator.unmute("bybit", "linear")
        (expected,) = await simulator.push("bybit", "linear", "BTCUSDT", [TRADE])
        assert (await heard(socket))["data"][0]["i"] == expected
        assert simulator.sent["bybit", "linear", "BTCUSDT"] == 1


async def test_the_ids_of_skipped_trades_are_missing_in_the_stream() -> None:
    async with Simulator(manual=True) as simulator, opened(simulator, "binance_spot_ws", STREAM) as socket:
        await simulator.subscribed(*SPOT)
        simulator.skip_trades(*SPOT, 2)
        ids = await simulator.push(*SPOT, [TRADE])
        ids += await simulator.push(*SPOT, [TRADE, TRADE, TRADE])
        assert [(await heard(socket))["t"] for _ in range(2)] == [int(one) for one in ids[2:]]
        assert simulator.sent[SPOT] == 2


async def test_injected_frames_reach_every_client_unchanged() -> None:
    async with (
        Simulator(manual=True) as simulator,
        opened(simulator, "binance_spot_ws", "/ws") as one,
        opened(simulator, "binance_spot_ws", "/stream") as two,
    ):
        for socket in (one, two):
            await ask(socket, {"method": "LIST_SUBSCRIPTIONS", "id": 1})
        simulator.send_raw("binance", "spot", "{garbage")
        simulator.send_raw("binance", "spot", b"\xff\x00")
        for socket in (one, two):
            assert await said(socket) == "{garbage"
            with anyio.fail_after(TIMEOUT_SECONDS):
                assert await socket.recv() == b"\xff\x00"


async def test_a_client_that_does_not_read_is_dropped_and_blocks_no_other() -> None:
    async with (
        Simulator(manual=True, queue=4) as simulator,
        opened(simulator, "binance_spot_ws", "/ws") as stuck,
        opened(simulator, "binance_spot_ws", "/ws") as healthy,
    ):
        for socket in (stuck, healthy):
            await ask(socket, {"method": "LIST_SUBSCRIPTIONS", "id": 1})
        stuck.transport.pause_reading()
        frame = "x" * 500_000
        with anyio.fail_after(TIMEOUT_SECONDS):
            while simulator.connections("binance", "spot") == 2:
                simulator.send_raw("binance", "spot", frame)
                assert await said(healthy) == frame
        stuck.transport.resume_reading()


async def test_subscribed_waits_for_a_route_that_delivers() -> None:
    async with Simulator(manual=True) as simulator, anyio.create_task_group() as tasks:
        seen: list[str] = []

        async def wait() -> None:
            await simulator.subscribed("binance", "linear", "BTCUSDT")
            seen.append("subscribed")

        tasks.start_soon(wait)
        async with opened(simulator, "binance_linear_ws", "/public/ws/btcusdt@aggTrade") as socket:
            await ask(socket, {"method": "LIST_SUBSCRIPTIONS", "id": 1})
            assert seen == []
        async with opened(simulator, "binance_linear_ws", "/market/ws/btcusdt@aggTrade") as socket:
            await ask(socket, {"method": "LIST_SUBSCRIPTIONS", "id": 1})
            assert seen == ["subscribed"]


async def test_only_listed_instruments_and_manual_simulators_can_be_pushed() -> None:
    async with Simulator(manual=True, instruments=["binance:spot:BTCUSDT"]) as simulator:
        with pytest.raises(ValueError, match="bybit:spot:BTCUSDT is not listed"):
            await simulator.push("bybit", "spot", "BTCUSDT", [TRADE])
    async with Simulator() as simulator:
        with pytest.raises(ValueError, match="manual=True"):
            await simulator.push(*SPOT, [TRADE])


async def test_a_busy_simulator_stops_within_a_second_when_cancelled() -> None:
    began = anyio.current_time()
    async with anyio.create_task_group() as tasks:
        ready = anyio.Event()

        async def live() -> None:
            async with Simulator(clock=fast_clock()) as simulator, opened(simulator, "binance_spot_ws", STREAM) as socket:
                await heard(socket)
                ready.set()
                await anyio.sleep_forever()

        tasks.start_soon(live)
        with anyio.fail_after(TIMEOUT_SECONDS):
            await ready.wait()
        began = anyio.current_time()
        tasks.cancel_scope.cancel()
    assert anyio.current_time() - began < 1


async def test_a_silent_tcp_connection_does_not_delay_the_stop() -> None:
    began = anyio.current_time()
    async with Simulator(manual=True) as simulator:
        port = int(simulator.urls["bybit_rest"].rpartition(":")[2])
        stream = await anyio.connect_tcp("127.0.0.1", port)
        await get(simulator, "bybit_rest", "/v5/market/time")
        began = anyio.current_time()
    stopped = anyio.current_time()
    await stream.aclose()
    assert stopped - began < 1


class Rude(Faults):
    """Refuses one path, answers REST with 503, and doubles every frame."""

    async def connecting(self, exchange: str, path: str) -> Reply | None:
        return Reply(502, {}) if path == "/ws" else None

    async def sending(self, exchange: str, market: str, connection: int, frame: str | bytes) -> Sequence[str | bytes]:
        return (frame, frame)

    async def requested(self, exchange: str, path: str, params: Mapping[str, str]) -> Reply | None:
        return Reply(503, {"path": path, **params})


async def test_faults_are_injected_at_every_hook() -> None:
    async with Simulator(manual=True, faults=Rude()) as simulator:
        with pytest.raises(InvalidStatus):
            async with opened(simulator, "binance_spot_ws", "/ws"):
                pass
        async with opened(simulator, "binance_spot_ws", STREAM) as socket:
            await simulator.subscribed(*SPOT)
            await simulator.push(*SPOT, [TRADE])
            assert await said(socket) == await said(socket)
        reply = await get(simulator, "binance_spot_rest", "/api/v3/time?a=b")
        assert (reply.status_code, reply.json()) == (503, {"path": "/api/v3/time", "a": "b"})
