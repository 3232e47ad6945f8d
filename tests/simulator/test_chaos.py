"""Every kind of fault as a client sees it, on real sockets."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import anyio
import pytest
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.simulator.wire import TIMEOUT_SECONDS, get, opened
from wadm_mcp.clock import now_ms
from wadm_mcp.model import Instrument
from wadm_mcp.simulator.chaos import Chaos
from wadm_mcp.simulator.fault_plan import ON_ORDER, ON_SOCKETS, Fault, Kind, plan
from wadm_mcp.simulator.faults import Faults
from wadm_mcp.simulator.halts import HaltingTape
from wadm_mcp.simulator.simulator import Simulator

pytestmark = pytest.mark.anyio

SPOT = ("binance", "spot", "BTCUSDT")
STREAM = "/ws/btcusdt@trade"


@asynccontextmanager
async def faulty(kind: Kind, lasts: float = 30.0, market: str = "spot") -> AsyncGenerator[tuple[Simulator, Chaos]]:
    chaos = Chaos([Fault(kind, 0.0, lasts, "binance", market)])
    async with Simulator(manual=True, faults=chaos) as simulator:
        chaos.begin()
        yield simulator, chaos


async def trade(simulator: Simulator, count: int = 1, at: int | None = None) -> None:
    moment = now_ms() if at is None else at
    await simulator.push(*SPOT, [(moment, f"{61_000 + number}.5", "0.1", "BUY") for number in range(count)])


async def ids(socket: ClientConnection, wanted: int) -> list[int]:
    """Ids of the next trades; other frames are skipped."""
    found: list[int] = []
    with anyio.fail_after(TIMEOUT_SECONDS):
        while len(found) < wanted:
            text = await socket.recv()
            if isinstance(text, str) and text.startswith('{"e":"trade"'):
                try:
                    found.append(int(json.loads(text)["t"]))
                except ValueError:
                    continue
    return found


async def ended(socket: ClientConnection) -> int:
    """The close code of the connection; 1006 if there was no closing handshake."""
    with anyio.fail_after(TIMEOUT_SECONDS):
        while True:
            try:
                await socket.recv()
            except ConnectionClosed as closed:
                return closed.rcvd.code if closed.rcvd is not None else 1006


@pytest.mark.parametrize(("kind", "code"), [(Kind.DROP, 1006), (Kind.DAY, 1008)])
async def test_a_connection_ends(kind: Kind, code: int) -> None:
    async with faulty(kind) as (simulator, chaos), opened(simulator, "binance_spot_ws", STREAM) as socket:
        await simulator.subscribed(*SPOT)
        await trade(simulator)
        assert await ended(socket) == code
        assert [happened.connection for happened in chaos.happened] == [1]


async def test_a_shutdown_is_announced_before_the_connection_ends() -> None:
    async with faulty(Kind.SHUTDOWN, 0.3) as (simulator, _), opened(simulator, "binance_spot_ws", STREAM) as socket:
        await simulator.subscribed(*SPOT)
        await trade(simulator)
        assert json.loads(await socket.recv())["e"] == "serverShutdown"
        await anyio.sleep(0.31)
        await trade(simulator)
        await trade(simulator)
        assert len(await ids(socket, 3)) == 3


async def test_one_row_of_some_frames_cannot_be_read() -> None:
    async with faulty(Kind.UNREADABLE) as (simulator, _), opened(simulator, "binance_spot_ws", STREAM) as socket:
        await simulator.subscribed(*SPOT)
        await trade(simulator, 60)
        with anyio.fail_after(TIMEOUT_SECONDS):
            prices = [json.loads(await socket.recv())["p"] for _ in range(60)]
        assert 0 < prices.count("-") < 40


async def test_one_row_of_each_page_of_trades_cannot_be_read() -> None:
    async with faulty(Kind.SPOILED) as (simulator, _):
        await trade(simulator, 60)
        page = (await get(simulator, "binance_spot_rest", "/api/v3/historicalTrades?symbol=BTCUSDT&fromId=1")).json()
        assert [row["price"] for row in page].count("-") == 1
        now = now_ms()
        query = f"symbol=BTCUSDT&interval=1m&startTime={now - 5 * 60_000}&endTime={now}"
        candles = (await get(simulator, "binance_spot_rest", f"/api/v3/klines?{query}")).json()
        assert [row[5] for row in candles].count("") == 1
        info = await get(simulator, "binance_spot_rest", "/api/v3/exchangeInfo")
        assert info.status_code == 200


async def test_a_mute_connection_answers_pings_without_trades_while_another_delivers() -> None:
    async with faulty(Kind.MUTE) as (simulator, _), opened(simulator, "binance_spot_ws", STREAM) as socket:
        await simulator.subscribed(*SPOT)
        await trade(simulator, 3)
        with anyio.fail_after(TIMEOUT_SECONDS):
            await (await socket.ping())
        async with opened(simulator, "binance_spot_ws", STREAM) as other:
            while simulator.connections("binance", "spot") < 2:
                await anyio.sleep(0.01)
            await trade(simulator)
            assert len(await ids(other, 1)) == 1
        with anyio.move_on_after(0.1) as silence:
            await socket.recv()
        assert silence.cancelled_caught


async def test_a_silence_mutes_every_connection_of_the_market_and_goes_on_without_what_was_traded() -> None:
    async with faulty(Kind.SILENCE, 0.3) as (simulator, chaos), opened(simulator, "binance_spot_ws", STREAM) as socket:
        await simulator.subscribed(*SPOT)
        async with opened(simulator, "binance_spot_ws", STREAM) as other:
            while simulator.connections("binance", "spot") < 2:
                await anyio.sleep(0.01)
            await trade(simulator, 3)
            await anyio.sleep(0.31)
            await trade(simulator)
            first, second = await ids(socket, 1), await ids(other, 1)
            assert first == second
            reply = await get(simulator, "binance_spot_rest", "/api/v3/historicalTrades?symbol=BTCUSDT&limit=10")
            assert [row["id"] for row in reply.json()] == list(range(first[0] - 3, first[0] + 1))
        assert [happened.connection for happened in chaos.happened] == [None]


async def test_some_frames_are_lost_and_rest_serves_their_trades() -> None:
    async with faulty(Kind.LOSE) as (simulator, _), opened(simulator, "binance_spot_ws", STREAM) as socket:
        await simulator.subscribed(*SPOT)
        await trade(simulator, 200)
        seen = await ids(socket, 100)
        assert len(seen) < seen[-1] - seen[0] + 1
        reply = await get(simulator, "binance_spot_rest", f"/api/v3/historicalTrades?symbol=BTCUSDT&fromId={seen[0]}&limit=200")
        assert {row["id"] for row in reply.json()} >= set(range(seen[0], seen[-1] + 1))


async def test_frames_are_sent_twice() -> None:
    async with faulty(Kind.REPEAT) as (simulator, _), opened(simulator, "binance_spot_ws", STREAM) as socket:
        await simulator.subscribed(*SPOT)
        await trade(simulator, 2)
        first, again, second, last = await ids(socket, 4)
        assert (first, second) == (again, last) == (first, first + 1)


async def test_consecutive_trades_of_one_millisecond_are_swapped_and_others_are_not() -> None:
    async with faulty(Kind.REORDER) as (simulator, _), opened(simulator, "binance_spot_ws", STREAM) as socket:
        await simulator.subscribed(*SPOT)
        now = now_ms()
        await trade(simulator, 2, now)
        await trade(simulator, 1, now)
        await trade(simulator, 1, now + 1)
        one, two, three, four = await ids(socket, 4)
        assert (one, two, three, four) == (two + 1, two, two + 2, two + 3)


async def test_an_old_frame_is_sent_again() -> None:
    async with faulty(Kind.REPLAY) as (simulator, _), opened(simulator, "binance_spot_ws", STREAM) as socket:
        await simulator.subscribed(*SPOT)
        await trade(simulator)
        (first,) = await ids(socket, 1)
        await anyio.sleep(0.55)
        await trade(simulator)
        assert await ids(socket, 2) == [first, first + 1]


@pytest.mark.parametrize("kind", [Kind.GARBAGE, Kind.OVERSIZED])
async def test_invalid_frames_are_sent_between_the_trades(kind: Kind) -> None:
    async with faulty(kind) as (simulator, _), opened(simulator, "binance_spot_ws", STREAM) as socket:
        await simulator.subscribed(*SPOT)
        await trade(simulator)
        rubbish = await socket.recv()
        assert len(rubbish) == 8_000_000 if kind is Kind.OVERSIZED else "1000001" not in str(rubbish)
        assert await ids(socket, 1) == [1_000_001]


async def test_new_connections_are_refused() -> None:
    async with faulty(Kind.REFUSE, market="") as (simulator, _):
        with pytest.raises(InvalidStatus) as refused:
            async with opened(simulator, "binance_spot_ws", STREAM):
                pass
        assert refused.value.response.status_code == 503


@pytest.mark.parametrize(
    ("exchange", "path", "status", "said"),
    [("binance", "/api/v3/time", 451, b"restricted location"), ("bybit", "/v5/market/time?category=spot", 403, b"<H1>403 ERROR</H1>")],
)
async def test_a_blocked_region_is_refused_with_the_replies_of_the_real_exchanges(
    exchange: str, path: str, status: int, said: bytes
) -> None:
    chaos = Chaos([Fault(Kind.BLOCKED, -1.0, 60, exchange, "spot"), Fault(Kind.BLOCKED_SOCKETS, -1.0, 60, exchange, "")])
    chaos.begin()
    host = {"binance": "binance_spot", "bybit": "bybit"}[exchange]
    async with Simulator(manual=True, faults=chaos) as simulator:
        reply = await get(simulator, f"{host}_rest", path)
        assert (reply.status_code, said in reply.content) == (status, True)
        # Archives stay open.
        assert (await get(simulator, f"{host}_rest", "/data/nothing")).status_code == 404
        with pytest.raises(InvalidStatus) as refused:
            async with opened(simulator, f"{host}_ws", STREAM if exchange == "binance" else "/v5/public/spot"):
                pass
        assert (refused.value.response.status_code, said in (refused.value.response.body or b"")) == (status, True)


async def test_a_host_without_history_lacks_the_trades_by_id_alone() -> None:
    async with faulty(Kind.NO_HISTORY) as (simulator, _):
        paths = [f"/api/v3/{name}?symbol=BTCUSDT" for name in ("historicalTrades", "trades", "aggTrades")]
        assert [(await get(simulator, "binance_spot_rest", path)).status_code for path in paths] == [404, 200, 200]


@pytest.mark.parametrize(("kind", "status"), [(Kind.TOO_MANY, 429), (Kind.BANNED, 418), (Kind.ERROR, 503)])
async def test_rest_refuses_and_every_request_is_recorded(kind: Kind, status: int) -> None:
    async with faulty(kind) as (simulator, chaos):
        reply = await get(simulator, "binance_spot_rest", "/api/v3/time")
        assert reply.status_code == status
        assert (await get(simulator, "binance_linear_rest", "/fapi/v1/time")).status_code == 200
        assert int(reply.headers.get("Retry-After", "1")) >= 1
        assert [(path, answered) for _, _, path, answered in chaos.requests] == [("/api/v3/time", status), ("/fapi/v1/time", 200)]


async def test_a_ban_ends() -> None:
    async with faulty(Kind.BANNED, 2.0) as (simulator, _):
        assert (await get(simulator, "binance_spot_rest", "/api/v3/time")).status_code == 418
        with anyio.fail_after(10):
            while (await get(simulator, "binance_spot_rest", "/api/v3/time")).status_code != 200:
                await anyio.sleep(0.05)


async def test_rest_is_late() -> None:
    async with faulty(Kind.SLOW, 0.5) as (simulator, _):
        began = anyio.current_time()
        await get(simulator, "binance_spot_rest", "/api/v3/time")
        assert anyio.current_time() - began >= 0.2


async def test_rest_lags_behind_the_stream() -> None:
    instrument = Instrument(*SPOT)
    chaos = Chaos([Fault(Kind.LAG, 0.0, 10.0, "binance", "spot")])
    async with Simulator(faults=chaos, activity=20) as simulator:
        (known,) = (await get(simulator, "binance_spot_rest", "/api/v3/trades?symbol=BTCUSDT&limit=1")).json()
        chaos.begin()
        (behind,) = (await get(simulator, "binance_spot_rest", "/api/v3/trades?symbol=BTCUSDT&limit=1")).json()
        assert behind["time"] < known["time"]
        assert now_ms() - behind["time"] >= 10_000
        assert simulator.tape(instrument).newest_prints(1, now_ms())[0].time > behind["time"]


async def test_the_exchanges_clock_is_wrong_and_right_again() -> None:
    chaos = Chaos([Fault(Kind.SKEW, 0.0, 0.3, "binance", "")])
    async with Simulator(manual=True, faults=chaos) as simulator:
        chaos.begin()
        await get(simulator, "binance_spot_rest", "/api/v3/time")
        server_time = (await get(simulator, "binance_spot_rest", "/api/v3/time")).json()["serverTime"]
        assert 500 < abs(server_time - now_ms()) < 1_500
        await anyio.sleep(0.31)
        await get(simulator, "binance_spot_rest", "/api/v3/time")
        server_time = (await get(simulator, "binance_spot_rest", "/api/v3/time")).json()["serverTime"]
        assert abs(server_time - now_ms()) < 500


async def test_one_symbol_of_a_connection_is_silent_and_the_others_are_not() -> None:
    chaos = Chaos([Fault(Kind.STALL, 0.0, 30.0, "binance", "spot", "BTCUSDT")])
    async with Simulator(manual=True, faults=chaos) as simulator:
        chaos.begin()
        async with opened(simulator, "binance_spot_ws", f"{STREAM}/ethusdt@trade") as socket:
            await simulator.subscribed("binance", "spot", "ETHUSDT")
            await trade(simulator)
            await simulator.push("binance", "spot", "ETHUSDT", [(now_ms(), "3000.5", "0.1", "BUY")])
            assert '"s":"ETHUSDT"' in str(await socket.recv())


@pytest.mark.parametrize(
    ("kind", "instrument", "status"),
    [
        (Kind.HALT, ("binance", "spot", "ETHUSDT"), "BREAK"),
        (Kind.HALT, ("binance", "linear", "ETHUSDT"), "SETTLING"),
        (Kind.UNLIST, ("binance", "linear", "ETHUSDT"), None),
    ],
)
async def test_a_symbol_is_halted_or_delisted_and_trades_again_without_a_missing_id(
    kind: Kind, instrument: tuple[str, str, str], status: str | None
) -> None:
    exchange, market, symbol = instrument
    chaos = Chaos([Fault(kind, 0.0, 60.0, exchange, market, symbol)])
    path = "/api/v3/exchangeInfo" if market == "spot" else "/fapi/v1/exchangeInfo"

    async def listed(simulator: Simulator) -> dict[str, str]:
        symbols = (await get(simulator, f"{exchange}_{market}_rest", path)).json()["symbols"]
        return {each["symbol"]: each["status"] for each in symbols}

    async with Simulator(faults=chaos, activity=30) as simulator:
        tape = simulator.tape(Instrument(*instrument))
        assert isinstance(tape, HaltingTape)
        chaos.begin()
        known = await listed(simulator)
        assert (known.get(symbol), known["BTCUSDT"]) == (status, "TRADING")
        with anyio.fail_after(TIMEOUT_SECONDS):
            while not tape.halts or now_ms() < tape.halts[0].start + 300:
                await anyio.sleep(0.02)
            chaos.end()
            while (end := tape.halts[0].end) is None or now_ms() < end + 300:
                await anyio.sleep(0.02)
        assert (await listed(simulator))[symbol] == "TRADING"
        start = tape.halts[0].start
        assert end - start >= 300
        rows = list(tape.prints(start - 2_000, end + 300))
        numbers = [row.number for row in (rows if market == "spot" else tape.aggregates(start - 2_000, end + 300))]
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
        assert not any(start <= row.time < end for row in rows)
        assert rows[0].time < start
        assert rows[-1].time >= end


async def test_a_contract_that_does_not_trade_is_only_in_the_list_of_its_status() -> None:
    async with Simulator(manual=True) as simulator:
        simulator.set_status("bybit", "linear", "ETHUSDT", "Delivering")
        simulator.set_status("bybit", "linear", "SOLUSDT", "")
        found: dict[str, set[str]] = {}
        for status in ("Trading", "Delivering"):
            page = (await get(simulator, "bybit_rest", f"/v5/market/instruments-info?category=linear&status={status}")).json()
            found[status] = {each["symbol"] for each in page["result"]["list"]}
        assert found["Delivering"] == {"ETHUSDT"}
        assert not {"ETHUSDT", "SOLUSDT"} & found["Trading"]
        simulator.set_status("bybit", "linear", "SOLUSDT", None)
        simulator.set_steps("bybit", "linear", "SOLUSDT", "0.0001", "0.5")
        page = (await get(simulator, "bybit_rest", "/v5/market/instruments-info?category=linear&symbol=SOLUSDT")).json()
        (listed,) = page["result"]["list"]
        assert (listed["priceFilter"]["tickSize"], listed["lotSizeFilter"]["qtyStep"]) == ("0.0001", "0.5")


async def test_a_symbol_is_listed_with_finer_steps_as_long_as_the_fault_lasts() -> None:
    chaos = Chaos([Fault(Kind.STEPS, 0.0, 60.0, "binance", "spot", "BTCUSDT")])

    async def tick(symbol: str) -> str:
        (listed,) = (await get(simulator, "binance_spot_rest", f"/api/v3/exchangeInfo?symbol={symbol}")).json()["symbols"]
        return next(each["tickSize"] for each in listed["filters"] if each["filterType"] == "PRICE_FILTER")

    async with Simulator(manual=True, faults=chaos) as simulator:
        assert await tick("BTCUSDT") == "0.01000000"
        chaos.begin()
        assert (await tick("BTCUSDT"), await tick("ETHUSDT")) == ("0.00010000", "0.01000000")
        chaos.end()
        assert await tick("BTCUSDT") == "0.01000000"


async def test_the_list_of_contracts_serves_its_second_page_again_and_again() -> None:
    chaos = Chaos([Fault(Kind.REPEATS, 0.0, 60.0, "bybit", "linear")])
    chaos.listings_page = 1

    async def page(cursor: str) -> tuple[str, str]:
        path = f"/v5/market/instruments-info?category=linear&cursor={cursor}"
        result = (await get(simulator, "bybit_rest", path)).json()["result"]
        return result["list"][0]["symbol"], result["nextPageCursor"]

    async with Simulator(manual=True, faults=chaos) as simulator:
        chaos.begin()
        first, cursor = await page("")
        pages = [await page(cursor)]
        pages += [await page(pages[-1][1]) for _ in range(3)]
        assert len(set(pages)) == 1
        assert pages[0][0] != first
        chaos.end()
        assert (await page(cursor))[0] != (await page((await page(cursor))[1]))[0]


async def test_ids_that_the_exchange_itself_lacks_are_served_nowhere() -> None:
    faults = Faults()
    faults.absent_every = 10
    async with Simulator(faults=faults) as simulator:
        rows = (await get(simulator, "binance_spot_rest", "/api/v3/trades?symbol=BTCUSDT&limit=100")).json()
        assert len(rows) == 100
        assert all(row["id"] % 10 for row in rows)
        first = rows[0]["id"]
        again = (await get(simulator, "binance_spot_rest", f"/api/v3/historicalTrades?symbol=BTCUSDT&fromId={first}&limit=50")).json()
        assert [row["id"] for row in again] == [number for number in range(first, first + 60) if number % 10][:50]


def test_a_plan_is_reproducible_by_its_seed_and_contains_every_kind_but_those_on_order() -> None:
    first = plan(7, 300)
    assert first == plan(7, 300) != plan(8, 300)
    assert Counter(fault.kind for fault in first).keys() == set(Kind) - set(ON_ORDER)
    assert all(0 <= fault.at <= 300 and fault.at + fault.lasts <= 300 for fault in first)


async def test_redundant_connections_never_fail_together() -> None:
    chaos = Chaos([Fault(Kind.MUTE, 0.0, 1.0, "bybit", "spot"), *(Fault(kind, 0.0, 0.5, "bybit", "spot") for kind in ON_SOCKETS[:3])])
    chaos.begin()
    assert await chaos.sending("bybit", "spot", 1, '{"T":1780315200000}') == ('{"T":1780315200000}',)
    muted: set[int] = set()
    for number in range(40):
        connection = number % 2 + 1
        if await chaos.sending("bybit", "spot", connection, f'{{"T":{1_780_315_200_000 + number}}}') == ():
            muted.add(connection)
    assert len(muted) == 1
    assert len(chaos.happened) == 1


async def test_frames_that_are_lost_unseen_are_sent_on_no_connection() -> None:
    chaos = Chaos([Fault(Kind.UNSEEN, 0.0, 30.0, "bybit", "spot")])
    chaos.begin()
    frames = [f'{{"topic":"publicTrade.BTCUSDT","data":[{{"T":{1_780_315_200_000 + number},"i":"{number}"}}]}}' for number in range(100)]
    sent = [[bool(await chaos.sending("bybit", "spot", connection, frame)) for frame in frames] for connection in (1, 2)]
    assert sent[0] == sent[1]
    assert chaos.unseen == {str(number) for number in range(100) if not sent[0][number]}
    assert 15 < len(chaos.unseen) < 45
    assert await chaos.sending("bybit", "linear", 3, frames[0]) == (frames[0],)
    assert [happened.fault.kind for happened in chaos.happened] == [Kind.UNSEEN]
