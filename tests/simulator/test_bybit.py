from __future__ import annotations

from itertools import pairwise
from typing import Any
from urllib.parse import quote
from uuid import UUID

import anyio
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.simulator.wire import NOW, TIMEOUT_SECONDS, ask, fast_clock, get, heard, opened, said
from wadm_mcp.simulator.simulator import Simulator
from wadm_mcp.simulator.state import Timing

pytestmark = pytest.mark.anyio

SPOT, LINEAR = "/v5/public/spot", "/v5/public/linear"
BOTH = [("spot", SPOT), ("linear", LINEAR)]


def still() -> int:
    return NOW


def subscribe(*symbols: str, request_id: str = "x1") -> dict[str, Any]:
    return {"req_id": request_id, "op": "subscribe", "args": [f"publicTrade.{symbol}" for symbol in symbols]}


@pytest.mark.parametrize(("path", "message"), [(SPOT, "subscribe"), (LINEAR, "")])
async def test_a_subscription_is_acknowledged_in_the_form_of_its_category(path: str, message: str) -> None:
    async with Simulator(manual=True) as simulator, opened(simulator, "bybit_ws", path) as socket:
        ack = await ask(socket, subscribe("BTCUSDT", "ETHUSDT"))
        assert list(ack) == ["success", "ret_msg", "conn_id", "req_id", "op"]
        assert (ack["success"], ack["ret_msg"], ack["req_id"], ack["op"]) == (True, message, "x1", "subscribe")
        assert UUID(ack["conn_id"])
        silent = await ask(socket, {"op": "unsubscribe", "args": ["publicTrade.BTCUSDT"]})
        assert (silent["success"], silent["req_id"], silent["op"]) == (True, "", "unsubscribe")


async def test_pongs_have_the_form_of_their_category() -> None:
    async with Simulator(manual=True) as simulator:
        async with opened(simulator, "bybit_ws", SPOT) as socket:
            pong = await ask(socket, {"req_id": "100001", "op": "ping"})
            assert list(pong) == ["success", "ret_msg", "conn_id", "op"]
            assert (pong["ret_msg"], pong["op"]) == ("pong", "ping")
        async with opened(simulator, "bybit_ws", LINEAR) as socket:
            assert (await ask(socket, {"op": "ping"}))["req_id"] == ""
            pong = await ask(socket, {"req_id": "7", "op": "ping"})
            assert list(pong) == ["success", "ret_msg", "conn_id", "req_id", "op"]
            assert (pong["ret_msg"], pong["req_id"], pong["op"]) == ("pong", "7", "ping")


@pytest.mark.parametrize(("market", "path"), BOTH)
async def test_one_unknown_topic_fails_the_whole_request(market: str, path: str) -> None:
    async with Simulator(manual=True) as simulator, opened(simulator, "bybit_ws", path) as socket:
        refused = await ask(socket, subscribe("ETHUSDT", "BNBUSDT"))
        assert (refused["success"], refused["op"]) == (False, "subscribe")
        assert refused["ret_msg"] == "error:handler not found,topic:publicTrade.BNBUSDT"
        assert (await ask(socket, subscribe("BTCUSDT")))["success"]
        refused = await ask(socket, subscribe("ETHUSDT", "BTCUSDT"))
        assert refused["ret_msg"] == "error:already subscribed,topic:publicTrade.BTCUSDT"
        await simulator.push("bybit", market, "ETHUSDT", [(NOW, "3000.00", "0.1", "BUY")])
        await simulator.push("bybit", market, "BTCUSDT", [(NOW, "60000.0", "0.1", "BUY")])
        assert (await heard(socket))["topic"] == "publicTrade.BTCUSDT"


async def test_a_topic_twice_in_one_request_is_refused() -> None:
    async with Simulator(manual=True) as simulator, opened(simulator, "bybit_ws", LINEAR) as socket:
        refused = await ask(socket, subscribe("ETHUSDT", "ETHUSDT"))
        assert refused["ret_msg"] == "error:already subscribed,topic:publicTrade.ETHUSDT"


async def test_spot_takes_ten_args_and_no_more() -> None:
    async with Simulator(manual=True) as simulator:
        async with opened(simulator, "bybit_ws", SPOT) as socket:
            await socket.send('{"op":"subscribe","args":["a","b","c","d","e","f","g","h","i","j","k"]}')
            assert '"ret_msg":"args size \\u003e10"' in await said(socket)
        async with opened(simulator, "bybit_ws", LINEAR) as socket:
            refused = await ask(socket, {"op": "subscribe", "args": list("abcdefghijk")})
            assert refused["ret_msg"] == "error:handler not found,topic:a"


@pytest.mark.parametrize("request_text", ["{", "[]", '{"op":"dance"}', '{"args":["publicTrade.BTCUSDT"]}', "1"])
async def test_an_invalid_request_is_an_invalid_op(request_text: str) -> None:
    async with Simulator(manual=True) as simulator, opened(simulator, "bybit_ws", SPOT) as socket:
        await socket.send(request_text)
        refused = await heard(socket)
        assert (refused["success"], refused["ret_msg"]) == (False, "error:invalid op")


async def test_another_path_is_not_found() -> None:
    async with Simulator(manual=True) as simulator:
        with pytest.raises(InvalidStatus):
            async with opened(simulator, "bybit_ws", "/v5/public/inverse"):
                pass


async def test_trades_have_the_fields_of_their_category_in_order() -> None:
    async with Simulator(manual=True) as simulator:
        async with opened(simulator, "bybit_ws", LINEAR) as socket:
            await ask(socket, subscribe("BTCUSDT"))
            ids = await simulator.push("bybit", "linear", "BTCUSDT", [(NOW, "64474.20", "0.001", "BUY")])
            message = await heard(socket)
            assert list(message) == ["topic", "type", "ts", "data"]
            assert (message["type"], message["ts"]) == ("snapshot", NOW)
            (row,) = message["data"]
            assert list(row) == ["T", "s", "S", "v", "p", "L", "i", "BT", "RPI", "seq"]
            assert (row["T"], row["S"], row["v"], row["p"], row["i"]) == (NOW, "Buy", "0.001", "64474.20", ids[0])
            assert UUID(row["i"]).version == 5
        async with opened(simulator, "bybit_ws", SPOT) as socket:
            await ask(socket, subscribe("BTCUSDT"))
            ids = await simulator.push("bybit", "spot", "BTCUSDT", [(NOW, "64474.2", "0.001378", "SELL")])
            (row,) = (await heard(socket))["data"]
            assert list(row) == ["i", "T", "p", "v", "S", "s", "BT", "RPI", "seq"]
            assert (row["S"], row["i"], len(row["i"])) == ("Sell", ids[0], 19)


async def test_a_burst_is_split_at_1024_trades() -> None:
    async with Simulator(manual=True) as simulator, opened(simulator, "bybit_ws", LINEAR) as socket:
        await ask(socket, subscribe("BTCUSDT"))
        ids = await simulator.push("bybit", "linear", "BTCUSDT", [(NOW, "64474.20", "0.001", "BUY")] * 2_050)
        messages = [await heard(socket) for _ in range(3)]
        assert [len(message["data"]) for message in messages] == [1_024, 1_024, 2]
        assert [row["i"] for message in messages for row in message["data"]] == ids
        assert simulator.sent["bybit", "linear", "BTCUSDT"] == 2_050


async def test_pushed_spot_ids_are_one_counter_for_all_symbols() -> None:
    async with Simulator(manual=True) as simulator:
        ids = [
            (await simulator.push("bybit", "spot", symbol, [(NOW, "1.0", "1.0", "BUY")]))[0] for symbol in ("BTCUSDT", "ETHUSDT", "BTCUSDT")
        ]
        assert [int(one) - int(ids[0]) for one in ids] == [0, 1, 2]


@pytest.mark.parametrize(("market", "path"), BOTH)
async def test_the_live_stream_agrees_with_recent_trade(market: str, path: str) -> None:
    async with Simulator(clock=fast_clock()) as simulator, opened(simulator, "bybit_ws", path) as socket:
        assert (await ask(socket, subscribe("BTCUSDT")))["success"]
        messages = [await heard(socket) for _ in range(15)]
        rows = [row for message in messages for row in message["data"]]
        assert all(message["ts"] >= message["data"][-1]["T"] >= NOW for message in messages)
        assert len({row["i"] for row in rows}) == len(rows)
        assert all((before["T"], before["seq"]) <= (after["T"], after["seq"]) for before, after in pairwise(rows))
        steps = {after["seq"] - before["seq"] for before, after in pairwise(rows)}
        assert 0 in steps
        assert max(steps) > 100
        reply = (await get(simulator, "bybit_rest", f"/v5/market/recent-trade?category={market}&symbol=BTCUSDT")).json()
        listed = reply["result"]["list"]
        known = {row["i"]: row for row in rows}
        shared = [row for row in listed if row["execId"] in known]
        assert shared
        for row in shared:
            live = known[row["execId"]]
            assert (row["price"], row["size"], row["side"]) == (live["p"], live["v"], live["S"])
            assert (row["time"], row["seq"]) == (str(live["T"]), str(live["seq"]))


@pytest.mark.parametrize(("market", "most", "default"), [("spot", 60, 60), ("linear", 1_000, 500)])
async def test_recent_trade_is_newest_first_and_capped(market: str, most: int, default: int) -> None:
    async with Simulator(clock=still) as simulator:
        path = f"/v5/market/recent-trade?category={market}&symbol=BTCUSDT"
        reply = (await get(simulator, "bybit_rest", f"{path}&limit=1000")).json()
        assert list(reply) == ["retCode", "retMsg", "result", "retExtInfo", "time"]
        rows = reply["result"]["list"]
        assert len(rows) == most
        assert list(rows[0]) == ["execId", "symbol", "price", "size", "side", "time", "isBlockTrade", "isRPITrade", "seq"]
        assert all(int(before["time"]) >= int(after["time"]) for before, after in pairwise(rows))
        assert all(isinstance(rows[0][name], str) for name in ("price", "size", "time", "seq"))
        assert (await get(simulator, "bybit_rest", path)).json()["result"]["list"] == rows[:default]


async def test_listings_come_in_pages_on_linear_only() -> None:
    async with Simulator(clock=still) as simulator:
        listed: list[dict[str, Any]] = []
        cursor = ""
        cursors: list[str] = []
        while not listed or cursor:
            reply = await get(simulator, "bybit_rest", f"/v5/market/instruments-info?category=linear&limit=3&cursor={cursor}")
            result = reply.json()["result"]
            listed += result["list"]
            cursor = result["nextPageCursor"]
            cursors.append(cursor)
        assert len({one["symbol"] for one in listed}) == len(listed) == 7
        assert cursors == ["first%3DBTCUSDT%26last%3DSOLUSDT", "first%3DXRPUSDT%26last%3DDOGEUSDT", ""]
        twice = await get(simulator, "bybit_rest", f"/v5/market/instruments-info?category=linear&cursor={quote(cursors[0])}")
        assert twice.json()["retMsg"] == "params error: cursor invalid"
        assert (listed[0]["priceFilter"]["tickSize"], listed[0]["lotSizeFilter"]["qtyStep"]) == ("0.10", "0.001")
        spot = (await get(simulator, "bybit_rest", "/v5/market/instruments-info?category=spot&limit=3")).json()["result"]
        assert "nextPageCursor" not in spot
        assert len(spot["list"]) == 7
        bitcoin = spot["list"][0]
        assert (bitcoin["priceFilter"]["tickSize"], bitcoin["lotSizeFilter"]["basePrecision"]) == ("0.1", "0.000001")


@pytest.mark.parametrize(
    "path",
    [
        "/v5/market/recent-trade?symbol=BTCUSDT",
        "/v5/market/recent-trade?category=spot&symbol=BNBUSDT",
        "/v5/market/recent-trade?category=spot&symbol=BTCUSDT&limit=0",
        "/v5/market/instruments-info?category=cash",
    ],
)
async def test_wrong_parameters_are_10001_with_http_200(path: str) -> None:
    async with Simulator(clock=still) as simulator:
        reply = await get(simulator, "bybit_rest", path)
        assert (reply.status_code, reply.json()["retCode"], reply.json()["result"]) == (200, 10001, {})


async def test_more_than_600_requests_in_5_seconds_are_refused() -> None:
    now = NOW

    def clock() -> int:
        return now

    async with Simulator(clock=clock) as simulator:
        venue = next(one for one in simulator._venues if one.exchange == "bybit")
        headers = type("", (), {})
        for _ in range(600):
            assert venue.rest("/v5/market/time", {}, headers).status == 200  # pyright: ignore[reportArgumentType]
        assert (await get(simulator, "bybit_rest", "/v5/market/time")).status_code == 403
        now += 5_000
        assert (await get(simulator, "bybit_rest", "/v5/market/time")).json()["result"]["timeSecond"] == str(now // 1_000)


async def test_an_idle_connection_is_closed_and_a_pinging_one_is_not() -> None:
    async with (
        Simulator(manual=True, timing=Timing(bybit_idle=0.5)) as simulator,
        opened(simulator, "bybit_ws", SPOT) as idle,
        opened(simulator, "bybit_ws", LINEAR) as alive,
        anyio.create_task_group() as tasks,
    ):

        async def keep_pinging() -> None:
            while True:
                assert (await ask(alive, {"op": "ping"}))["success"]

        tasks.start_soon(keep_pinging)
        with anyio.fail_after(TIMEOUT_SECONDS), pytest.raises(ConnectionClosed):
            await idle.recv()
        assert (simulator.connections("bybit", "spot"), simulator.connections("bybit", "linear")) == (0, 1)
        tasks.cancel_scope.cancel()
