from __future__ import annotations

from itertools import count, pairwise
from typing import Any

import anyio
import pytest
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed
from websockets.frames import Opcode

from tests.simulator.wire import NOW, TIMEOUT_SECONDS, ask, fast_clock, heard, heard_many, opened, said
from wadm_mcp.simulator.simulator import Simulator
from wadm_mcp.simulator.state import Timing

pytestmark = pytest.mark.anyio

SPOT = ("binance", "spot", "BTCUSDT")
LINEAR = ("binance", "linear", "BTCUSDT")
BUY = (NOW, "64511.89000000", "0.00288000", "BUY")
SELL = (NOW, "64511.88000000", "0.00001000", "SELL")


async def test_a_spot_fill_is_one_raw_frame_with_the_fields_in_order() -> None:
    async with Simulator(manual=True) as simulator, opened(simulator, "binance_spot_ws", "/ws/btcusdt@trade") as socket:
        await simulator.subscribed(*SPOT)
        first, second = await simulator.push(*SPOT, [BUY, SELL])
        assert await said(socket) == (
            f'{{"e":"trade","E":{NOW + 1},"s":"BTCUSDT","t":{first},"p":"64511.89000000","q":"0.00288000","T":{NOW},"m":false,"M":true}}'
        )
        sold = await heard(socket)
        assert (sold["t"], sold["m"]) == (int(second), True)
        assert int(second) == int(first) + 1
        assert simulator.sent[SPOT] == 2


async def test_combined_streams_wrap_events_and_never_acks() -> None:
    async with (
        Simulator(manual=True) as simulator,
        opened(simulator, "binance_spot_ws", "/stream?streams=btcusdt@trade/btcusdt@aggTrade") as socket,
    ):
        await simulator.subscribed(*SPOT)
        assert await ask(socket, {"method": "LIST_SUBSCRIPTIONS", "id": 3}) == {"result": ["btcusdt@trade", "btcusdt@aggTrade"], "id": 3}
        await simulator.push(*SPOT, [BUY])
        wrapped = await heard(socket)
        assert list(wrapped) == ["stream", "data"]
        assert wrapped["stream"] == "btcusdt@trade"
        aggregate = (await heard(socket))["data"]
        assert list(aggregate) == ["e", "E", "s", "a", "p", "q", "f", "l", "T", "m", "M"]
        assert await ask(socket, {"method": "GET_PROPERTY", "params": ["combined"], "id": 4}) == {"result": True, "id": 4}
        assert await ask(socket, {"method": "SET_PROPERTY", "params": ["combined", False], "id": 5}) == {"result": None, "id": 5}
        await simulator.push(*SPOT, [BUY])
        assert (await heard(socket))["e"] == "trade"


async def test_any_name_is_acknowledged_and_only_a_known_stream_delivers() -> None:
    async with Simulator(manual=True) as simulator, opened(simulator, "binance_spot_ws", "/ws") as socket:
        names = ["BTCUSDT@trade", "xrpxrp@trade", "btcusdt@nonsense"]
        assert await said_to(socket, '{"method":"SUBSCRIBE","params":["BTCUSDT@trade","xrpxrp@trade","btcusdt@nonsense"],"id":1}') == (
            '{"result":null,"id":1}'
        )
        assert await ask(socket, {"method": "LIST_SUBSCRIPTIONS", "id": "a"}) == {"result": names, "id": "a"}
        await simulator.push(*SPOT, [BUY])
        simulator.send_raw("binance", "spot", "marker")
        assert await said(socket) == "marker"
        assert simulator.sent[SPOT] == 0


async def test_an_unsubscribed_stream_is_silent_from_then_on() -> None:
    async with Simulator(manual=True) as simulator, opened(simulator, "binance_spot_ws", "/ws/btcusdt@trade") as socket:
        assert await ask(socket, {"method": "UNSUBSCRIBE", "params": ["btcusdt@trade"], "id": 1}) == {"result": None, "id": 1}
        await simulator.push(*SPOT, [BUY])
        assert await ask(socket, {"method": "SUBSCRIBE", "params": ["btcusdt@trade"], "id": 2}) == {"result": None, "id": 2}
        (expected,) = await simulator.push(*SPOT, [BUY])
        assert (await heard(socket))["t"] == int(expected)


@pytest.mark.parametrize(
    ("request_text", "answer"),
    [
        ("{", {"code": 3, "msg": "Invalid JSON: expected value at line 1 column 1"}),
        ('{"id":1}', {"code": 2, "msg": "Invalid request: missing field `method` at line 1 column 1"}),
        ('{"method":"SUBSCRIBE","params":[1],"id":2}', {"error": {"code": 2, "msg": "Invalid request: invalid stream"}, "id": 2}),
        ('{"method":"SET_PROPERTY","params":["x",true],"id":3}', {"code": 0, "msg": "Unknown property", "id": 3}),
        ('{"method":"SET_PROPERTY","params":["combined",1],"id":4}', {"code": 1, "msg": "Invalid value type: expected Boolean", "id": 4}),
        ('{"method":"LIST_SUBSCRIPTIONS","id":1.5}', {"code": 2, "msg": "Invalid request: request ID must be an unsigned integer"}),
    ],
)
async def test_a_wrong_request_gets_the_documented_error(request_text: str, answer: dict[str, Any]) -> None:
    async with Simulator(manual=True) as simulator, opened(simulator, "binance_spot_ws", "/ws") as socket:
        await socket.send(request_text)
        assert await heard(socket) == answer


async def test_the_1025th_stream_is_refused() -> None:
    async with Simulator(manual=True) as simulator, opened(simulator, "binance_linear_ws", "/market/ws") as socket:
        names = [f"s{n}@aggTrade" for n in range(1_025)]
        for n in range(0, 1_000, 250):
            assert (await ask(socket, {"method": "SUBSCRIBE", "params": names[n : n + 250], "id": n}))["result"] is None
        refused = await ask(socket, {"method": "SUBSCRIBE", "params": names[1_000:], "id": 19})
        assert refused == {"error": {"code": 4, "msg": "Too many subscriptions"}, "id": 19}


async def test_a_client_frame_over_4_kb_is_ignored_without_an_error() -> None:
    async with Simulator(manual=True) as simulator, opened(simulator, "binance_spot_ws", "/ws") as socket:
        await socket.send('{"method":"LIST_SUBSCRIPTIONS","id":1}' + " " * 4_096)
        assert await ask(socket, {"method": "LIST_SUBSCRIPTIONS", "id": 2}) == {"result": [], "id": 2}


@pytest.mark.parametrize(("setting", "allowed"), [("binance_spot_ws", 5), ("binance_linear_ws", 10)])
async def test_too_many_messages_in_a_second_close_the_connection(setting: str, allowed: int) -> None:
    async with Simulator(manual=True) as simulator, opened(simulator, setting, "/ws") as socket:
        for n in range(allowed):
            assert (await ask(socket, {"method": "LIST_SUBSCRIPTIONS", "id": n}))["id"] == n
        await socket.pong(b"")
        assert await closed(socket) == 1008


async def test_the_server_pings_with_a_payload_and_keeps_a_client_that_echoes_it() -> None:
    timing = Timing(binance_spot_ping=0.05, binance_spot_pong=TIMEOUT_SECONDS, binance_linear_ping=60)
    async with Simulator(manual=True, timing=timing) as simulator, opened(simulator, "binance_spot_ws", "/ws") as socket:
        pings, enough = watch_pings(socket, 2)
        with anyio.fail_after(TIMEOUT_SECONDS):
            await enough.wait()
        assert all(payload.isdigit() for payload in pings)
        assert simulator.connections("binance", "spot") == 1


async def test_a_client_that_does_not_answer_pings_is_closed() -> None:
    timing = Timing(binance_linear_ping=0.05, binance_linear_pong=0.1)
    async with Simulator(manual=True, timing=timing) as simulator, opened(simulator, "binance_linear_ws", "/public/ws") as socket:
        send_frame = socket.protocol.send_frame
        socket.protocol.send_frame = lambda frame: None if frame.opcode is Opcode.PONG else send_frame(frame)
        assert await closed(socket) == 1008


async def test_a_connection_ends_with_its_lifetime() -> None:
    async with (
        Simulator(manual=True, timing=Timing(binance_lifetime=0.1)) as simulator,
        opened(simulator, "binance_spot_ws", "/ws") as socket,
    ):
        assert await closed(socket) == 1008
        assert socket.close_reason == "Connection reached its maximum age"


@pytest.mark.parametrize(
    ("path", "heard_event"),
    [
        ("/market/stream?streams=btcusdt@aggTrade/btcusdt@trade", "aggTrade"),
        ("/public/stream?streams=btcusdt@aggTrade/btcusdt@trade", "trade"),
        ("/stream?streams=btcusdt@aggTrade/btcusdt@trade", "trade"),
        ("/market/ws/btcusdt@aggTrade/btcusdt@trade", "aggTrade"),
        ("/ws/btcusdt@aggTrade/btcusdt@trade", "trade"),
    ],
)
async def test_a_usd_m_stream_on_the_wrong_route_is_silent(path: str, heard_event: str) -> None:
    async with Simulator(manual=True) as simulator, opened(simulator, "binance_linear_ws", path) as socket:
        await simulator.subscribed(*LINEAR)
        await simulator.push(*LINEAR, [BUY])
        simulator.send_raw("binance", "linear", "marker")
        event = await heard(socket)
        assert event.get("data", event)["e"] == heard_event
        assert await said(socket) == "marker"


async def test_usd_m_events_have_their_fields_in_order() -> None:
    async with (
        Simulator(manual=True) as simulator,
        opened(simulator, "binance_linear_ws", "/market/ws/btcusdt@aggTrade") as market,
        opened(simulator, "binance_linear_ws", "/public/ws/btcusdt@trade") as public,
    ):
        # An answer means that the streams of the URL are subscribed.
        for socket in (market, public):
            await ask(socket, {"method": "LIST_SUBSCRIPTIONS", "id": 1})
        ids = await simulator.push(*LINEAR, [(NOW, "83680.00", "0.120", "SELL")], event_time=NOW + 7)
        aggregate = await heard(market)
        assert list(aggregate) == ["e", "E", "s", "a", "p", "q", "nq", "f", "l", "T", "m", "st"]
        assert (str(aggregate["a"]), aggregate["E"], aggregate["q"], aggregate["nq"], aggregate["m"]) == (
            ids[0],
            NOW + 7,
            "0.120",
            "0.120",
            True,
        )
        assert list(await heard(public)) == ["e", "E", "T", "s", "t", "p", "q", "X", "m", "st"]
        assert simulator.sent[LINEAR] == 1


async def test_ids_of_the_live_spot_stream_have_no_gaps() -> None:
    async with Simulator(clock=fast_clock()) as simulator, opened(simulator, "binance_spot_ws", "/ws/btcusdt@trade") as socket:
        events = await heard_many(socket, 300)
        assert all(after["t"] == before["t"] + 1 for before, after in pairwise(events))
        assert all(NOW <= event["T"] <= event["E"] for event in events)


async def test_live_usd_m_aggregates_chain_and_wait_for_their_window() -> None:
    async with Simulator(clock=fast_clock()) as simulator, opened(simulator, "binance_linear_ws", "/market/ws/btcusdt@aggTrade") as socket:
        events = await heard_many(socket, 300)
        for before, after in pairwise(events):
            assert after["a"] == before["a"] + 1
            assert after["f"] - before["l"] in (1, 2)
        assert all(event["T"] // 100 < event["E"] // 100 for event in events)


async def test_live_usd_m_prints_count_over_all_kinds_and_burnt_ids() -> None:
    clock = fast_clock(600)
    async with (
        Simulator(clock=clock, activity=0.2) as simulator,
        opened(simulator, "binance_linear_ws", "/public/ws/btcusdt@trade") as socket,
    ):
        kinds: set[str] = set()
        steps: set[int] = set()
        last = None
        for _ in count():
            event = await heard(socket)
            if last is not None:
                steps.add(event["t"] - last)
            last = event["t"]
            kinds.add(event["X"])
            if event["X"] == "NA":
                assert (event["p"], event["q"]) == ("0", "0")
            if kinds == {"MARKET", "RPI", "INSURANCE_FUND", "NA"} and 2 in steps:
                break
        assert steps == {1, 2}


async def said_to(socket: ClientConnection, text: str) -> str:
    await socket.send(text)
    return await said(socket)


async def closed(socket: ClientConnection) -> int | None:
    """Reads to the end of the connection and returns its close code."""
    with anyio.fail_after(TIMEOUT_SECONDS):
        try:
            while True:
                await socket.recv()
        except ConnectionClosed:
            return socket.close_code


def watch_pings(socket: ClientConnection, wanted: int) -> tuple[list[bytes], anyio.Event]:
    """Payloads of the pings that arrive, and an event for when there are enough."""
    pings: list[bytes] = []
    enough = anyio.Event()
    process = socket.process_event

    def seen(event: Any) -> None:
        if getattr(event, "opcode", None) is Opcode.PING:
            pings.append(bytes(event.data))
            if len(pings) == wanted:
                enough.set()
        process(event)

    socket.process_event = seen
    return pings, enough
