from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from tests.simulator.wire import NOW, fast_clock, get, heard_many, opened
from wadm_mcp.model import HOUR, MINUTE
from wadm_mcp.simulator.simulator import Simulator

pytestmark = pytest.mark.anyio

SPOT, LINEAR = "binance_spot_rest", "binance_linear_rest"


def still() -> int:
    return NOW


async def rows(simulator: Simulator, setting: str, path: str, **headers: str) -> list[dict[str, Any]]:
    reply = await get(simulator, setting, path, **headers)
    assert reply.status_code == 200, reply.text
    return reply.json()


async def test_history_is_read_by_id_inclusive_and_without_gaps() -> None:
    async with Simulator(clock=still) as simulator:
        (newest,) = await rows(simulator, SPOT, "/api/v3/trades?symbol=BTCUSDT&limit=1")
        first = newest["id"] - 2_500
        history: list[dict[str, Any]] = []
        while not history or history[-1]["id"] < newest["id"]:
            after = history[-1]["id"] + 1 if history else first
            history += await rows(simulator, SPOT, f"/api/v3/historicalTrades?symbol=BTCUSDT&fromId={after}&limit=1000")
        assert [row["id"] for row in history] == list(range(first, newest["id"] + 1))
        assert history[-1] == newest
        assert list(newest) == ["id", "price", "qty", "quoteQty", "time", "isBuyerMaker", "isBestMatch"]
        assert all(before["time"] <= after["time"] < NOW for before, after in pairwise(history))


async def test_spot_aggregates_cover_the_same_fills() -> None:
    async with Simulator(clock=still) as simulator:
        (newest,) = await rows(simulator, SPOT, "/api/v3/aggTrades?symbol=ETHUSDT&limit=1")
        history = await rows(simulator, SPOT, f"/api/v3/aggTrades?symbol=ETHUSDT&fromId={newest['a'] - 299}&limit=1000")
        assert list(newest) == ["a", "p", "q", "f", "l", "T", "m", "M"]
        assert len(history) == 300
        assert all((after["a"], after["f"]) == (before["a"] + 1, before["l"] + 1) for before, after in pairwise(history))
        fills = await rows(simulator, SPOT, f"/api/v3/historicalTrades?symbol=ETHUSDT&fromId={history[0]['f']}&limit=1000")
        whole = next(row for row in history if row["l"] > row["f"])
        parts = [row for row in fills if whole["f"] <= row["id"] <= whole["l"]]
        assert sum(units(row["qty"]) for row in parts) == units(whole["q"])
        assert {(row["price"], row["time"], row["isBuyerMaker"]) for row in parts} == {(whole["p"], whole["T"], whole["m"])}


async def test_aggregates_are_read_by_time() -> None:
    start = NOW - 10 * MINUTE
    async with Simulator(clock=still) as simulator:
        both = await rows(simulator, LINEAR, f"/fapi/v1/aggTrades?symbol=BTCUSDT&startTime={start}&endTime={start + 5_000}")
        assert both
        assert all(start <= row["T"] <= start + 5_000 for row in both)
        only = await rows(simulator, LINEAR, f"/fapi/v1/aggTrades?symbol=BTCUSDT&startTime={start}&limit=3")
        assert only == both[:3]
        until = await rows(simulator, LINEAR, f"/fapi/v1/aggTrades?symbol=BTCUSDT&endTime={start + 5_000}&limit=2")
        assert len(until) == 2
        assert until[-1]["T"] <= start + 5_000
        assert list(only[0]) == ["a", "p", "q", "nq", "f", "l", "T", "m"]
        wide = await get(simulator, LINEAR, f"/fapi/v1/aggTrades?symbol=BTCUSDT&startTime={start - HOUR}&endTime={NOW}")
        assert (wide.status_code, wide.json()["code"]) == (400, -1127)


async def test_usd_m_serves_aggregates_of_48_hours_only() -> None:
    async with Simulator(clock=still) as simulator:
        oldest = await rows(simulator, LINEAR, "/fapi/v1/aggTrades?symbol=BTCUSDT&fromId=1&limit=1")
        assert 0 <= oldest[0]["T"] - (NOW - 48 * HOUR) < MINUTE


async def test_usd_m_raw_history_needs_a_key_and_omits_odd_prints() -> None:
    async with Simulator(clock=still, activity=0.05) as simulator:
        path = "/fapi/v1/historicalTrades?symbol=BTCUSDT"
        refused = await get(simulator, LINEAR, path)
        assert (refused.status_code, refused.json()) == (401, {"code": -2014, "msg": "API-key format invalid."})
        newest = await rows(simulator, LINEAR, path, **{"X-MBX-APIKEY": "k"})
        assert len(newest) == 100
        history = await rows(simulator, LINEAR, f"{path}&limit=1000&fromId={newest[-1]['id'] - 1_000}", **{"X-MBX-APIKEY": "k"})
        assert len(history) == 500
        assert {after["id"] - before["id"] for before, after in pairwise(history)} == {1, 2}
        assert list(history[0]) == ["id", "price", "qty", "quoteQty", "time", "isBuyerMaker", "isRPITrade"]


async def test_rest_serves_what_the_stream_sent() -> None:
    async with Simulator(clock=fast_clock()) as simulator:
        async with opened(simulator, "binance_spot_ws", "/ws/btcusdt@trade") as socket:
            events = await heard_many(socket, 100)
        served = await rows(simulator, SPOT, f"/api/v3/historicalTrades?symbol=BTCUSDT&fromId={events[0]['t']}&limit=100")
        assert [(row["id"], row["price"], row["qty"], row["time"], row["isBuyerMaker"]) for row in served] == [
            (event["t"], event["p"], event["q"], event["T"], event["m"]) for event in events
        ]


async def test_rest_serves_pushed_trades_that_the_stream_skipped() -> None:
    async with Simulator(manual=True) as simulator:
        simulator.skip_trades("binance", "linear", "BTCUSDT", 2)
        ids = await simulator.push("binance", "linear", "BTCUSDT", [(5, "60000.10", "0.001", "BUY")] * 3)
        served = await rows(simulator, LINEAR, f"/fapi/v1/aggTrades?symbol=BTCUSDT&fromId={ids[1]}")
        assert [str(row["a"]) for row in served] == ids[1:]
        assert all(row["f"] == row["l"] for row in served)


@pytest.mark.parametrize(
    ("setting", "path", "code"),
    [
        (SPOT, "/api/v3/trades?symbol=NOUSDT", -1121),
        (SPOT, "/api/v3/trades", -1102),
        (SPOT, "/api/v3/historicalTrades?symbol=BTCUSDT&fromId=x", -1100),
        (SPOT, "/api/v3/aggTrades?symbol=BTCUSDT&limit=-1", -1100),
        (SPOT, "/api/v3/exchangeInfo?symbol=NOUSDT", -1121),
        (LINEAR, "/fapi/v1/aggTrades?symbol=btcusdt", -1121),
    ],
)
async def test_wrong_parameters_get_the_documented_error(setting: str, path: str, code: int) -> None:
    async with Simulator(clock=still) as simulator:
        reply = await get(simulator, setting, path)
        assert (reply.status_code, reply.json()["code"]) == (400, code)
        assert list(reply.json()) == ["code", "msg"]
        assert (await get(simulator, setting, "/nowhere")).status_code == 404


async def test_listings_have_tick_and_lot_in_filters() -> None:
    async with Simulator(clock=still) as simulator:
        spot = (await get(simulator, SPOT, "/api/v3/exchangeInfo?symbol=BTCUSDT")).json()["symbols"]
        linear = (await get(simulator, LINEAR, "/fapi/v1/exchangeInfo")).json()["symbols"]
        assert [one["symbol"] for one in spot] == ["BTCUSDT"]
        assert len(linear) == 8
        assert steps(spot[0]) == ("0.01000000", "0.00001000")
        assert steps(linear[0]) == ("0.10", "0.001")
        assert (linear[0]["contractType"], linear[0]["status"], linear[0]["quoteAsset"]) == ("PERPETUAL", "TRADING", "USDT")
        assert (await get(simulator, SPOT, "/api/v3/time")).json() == {"serverTime": NOW}


async def test_too_much_request_weight_is_refused_then_banned() -> None:
    minutes = 0

    def clock() -> int:
        return NOW + minutes * MINUTE

    async with Simulator(clock=clock) as simulator:
        path = "/fapi/v1/historicalTrades?symbol=BTCUSDT"
        replies = [await get(simulator, LINEAR, path, **{"X-MBX-APIKEY": "k"}) for _ in range(13)]
        assert [int(reply.headers["X-MBX-USED-WEIGHT-1M"]) for reply in replies] == [200 * n for n in range(1, 14)]
        assert [reply.status_code for reply in replies] == [200] * 12 + [429]
        assert replies[-1].json()["code"] == -1003
        assert 0 < int(replies[-1].headers["Retry-After"]) <= 60
        replies = [await get(simulator, LINEAR, path) for _ in range(11)]
        assert replies[-1].status_code == 418
        assert int(replies[-1].headers["Retry-After"]) == 120
        minutes = 3
        assert (await get(simulator, LINEAR, "/fapi/v1/time")).status_code == 200


def units(text: str) -> int:
    return int(text.replace(".", ""))


def steps(listing: dict[str, Any]) -> tuple[str, str]:
    filters = {one["filterType"]: one for one in listing["filters"]}
    return filters["PRICE_FILTER"]["tickSize"], filters["LOT_SIZE"]["stepSize"]
