"""Two connections of which one is always live, and several processes of which one always records."""

from __future__ import annotations

import signal
from pathlib import Path

import anyio
import pytest

from tests.servers import own_mongod
from tests.soak.deployment import INSTRUMENTS, SEED, SOAK, Deployment, Wadm, deployment
from wadm_mcp.simulator.chaos import Chaos
from wadm_mcp.simulator.fault_plan import Kind, plan

pytestmark = pytest.mark.anyio

SECONDS = 300.0 if SOAK else 12.0
KILLS = 30 if SOAK else 3
BYBIT = tuple(instrument for instrument in INSTRUMENTS if instrument.exchange == "bybit")


async def test_no_trade_is_missed_while_two_bybit_connections_are_cut_at_random_but_never_both(tmp_path: Path) -> None:
    cuts = (Kind.DROP, Kind.DAY, Kind.SHUTDOWN, Kind.MUTE, Kind.GARBAGE, Kind.OVERSIZED, Kind.REPLAY)
    chaos = Chaos(plan(SEED, SECONDS, every=0.5, kinds=cuts), seed=SEED)
    async with deployment(tmp_path, instruments=BYBIT, faults=chaos, activity=19 if SOAK else 8) as one:
        wadm = one.wadm()
        await wadm.start()
        await one.live(wadm)
        await anyio.sleep(3)
        chaos.begin()
        await anyio.sleep(SECONDS)
        chaos.end()
        await one.live(wadm)
        await one.settled(wadm)
        print(f"{len(chaos.happened)} faults")
        found = await one.check(wadm)
        assert all(each.lost == 0 for each in found.values())
        health = (await wadm.served.client.get("/health")).json()
        assert len(chaos.happened) >= (30 if SOAK else 2)
        assert health["counts"].get("trades.repeated", 0) > 0
        if not SOAK:
            # In a long run some gaps are longer than the newest trades of REST span.
            await _no_gap_after_the_first(one, wadm)
        assert await wadm.stop() == 0


async def _no_gap_after_the_first(one: Deployment, wadm: Wadm) -> None:
    """Assert that the only gaps are the time before the first trade and the time after the market stopped."""
    assert one.clock.stopped is not None
    for instrument in BYBIT:
        question = {"exchange": instrument.exchange, "market": instrument.market, "symbol": instrument.symbol}
        coverage = (await wadm.served.get("/api/order-flow", **question, start=one.clock.began - 600_000, end=one.clock.stopped))[
            "coverage"
        ]
        between = [gap for gap in coverage["gaps"] if gap[3] not in ("not_recorded", "not_yet_seen")]
        assert not between, (instrument, coverage)


async def check_takeovers(one: Deployment, wadms: list[Wadm]) -> None:
    """One process records and the others follow. The recording one is killed repeatedly, and the others answer all the time."""
    for wadm in wadms:
        await wadm.start()
    await one.live(wadms[-1])
    answered = 0

    async def ask(wadm: Wadm) -> None:
        nonlocal answered
        question = {"symbol": "BTCUSDT", "exchange": "binance", "market": "spot", "window": "15m", "detail": "brief"}
        response = await wadm.served.client.get("/api/volume-profile", params=question)
        # A process that has just started may answer that it is not ready yet.
        if response.status_code == 503 and anyio.current_time() - wadm.started_at < 10:
            return
        assert response.status_code == 200, response.text
        assert response.json()["trade_count"] > 0
        answered += 1

    for _ in range(KILLS):
        with anyio.fail_after(11):
            while "recording" not in (roles := [await _role(wadm) for wadm in wadms]):
                await anyio.sleep(0.1)
        holder = wadms[roles.index("recording")]
        others = [wadm for wadm in wadms if wadm is not holder]
        await holder.kill()
        with anyio.fail_after(11):
            while "recording" not in [await _role(wadm) for wadm in others]:
                for wadm in others:
                    await ask(wadm)
                await anyio.sleep(0.1)
        await holder.start()
        await anyio.sleep(one.random.uniform(0, 2))
    await one.live(wadms[0])
    await one.settled(wadms[0], within=600)
    print(f"{answered} answers meanwhile")
    for wadm in wadms:
        found = await one.check(wadm)
        for instrument, each in found.items():
            if instrument.exchange == "binance":
                assert each.lost == 0, instrument
        assert "Traceback" not in wadm.log


async def _role(wadm: Wadm) -> str:
    return (await wadm.served.client.get("/health")).json()["role"]


async def test_the_recording_one_of_two_processes_on_a_data_directory_may_be_killed_at_any_time(tmp_path: Path) -> None:
    async with deployment(tmp_path) as one:
        first = one.wadm()
        await check_takeovers(one, [first, one.wadm()])


async def test_the_recording_one_of_three_processes_on_a_mongodb_may_be_killed_at_any_time(tmp_path: Path) -> None:
    with own_mongod() as mongod:
        async with deployment(tmp_path, MONGODB_URL=f"{mongod.url}/wadm") as one:
            await check_takeovers(one, [one.wadm(name) for name in ("first", "second", "third")])


async def test_a_recording_process_that_was_suspended_overwrites_nothing_newer_when_it_continues(tmp_path: Path) -> None:
    with own_mongod() as mongod:
        async with deployment(tmp_path, MONGODB_URL=f"{mongod.url}/wadm") as one:
            first, second = one.wadm("first"), one.wadm("second")
            await first.start()
            await one.live(first)
            await second.start()
            holder, other = first, second
            for _ in range(5 if SOAK else 1):
                holder, other = (first, second) if await _role(first) == "recording" else (second, first)
                holder.served.process.send_signal(signal.SIGSTOP)
                with anyio.fail_after(11):
                    while await _role(other) != "recording":
                        await anyio.sleep(0.1)
                await anyio.sleep(one.random.uniform(1, 4))
                holder.served.process.send_signal(signal.SIGCONT)
                with anyio.fail_after(20):
                    while await _role(holder) != "standby":
                        await anyio.sleep(0.1)
                assert "lease.lost" in holder.log
            await one.live(other)
            for wadm in (other, holder):
                await one.settled(wadm)
                found = await one.check(wadm)
                assert all(each.lost == 0 for instrument, each in found.items() if instrument.exchange == "binance")
                assert "Traceback" not in wadm.log
