"""The view of tape and store: how much of the store one question has in memory, and what it claims of a tape that changes meanwhile."""

from __future__ import annotations

import tracemalloc
from collections.abc import AsyncGenerator, Awaitable, Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from tests.market import NOON, SPOT, listing, trade
from tests.queries.world import Held, MemoryStore
from wadm_mcp.analytics.footprint import Footprint
from wadm_mcp.coverage.expired import Expired
from wadm_mcp.coverage.spans import Basis, Span
from wadm_mcp.errors import Busy
from wadm_mcp.model import DAY, HOUR, MINUTE, Instrument, Timeframe
from wadm_mcp.queries.footprint import footprint
from wadm_mcp.queries.market_structure import market_structure
from wadm_mcp.queries.order_flow import order_flow
from wadm_mcp.queries.trades import trades
from wadm_mcp.queries.view import View
from wadm_mcp.queries.volume_profile import volume_profile
from wadm_mcp.storage.sqlite import SqliteStore
from wadm_mcp.storage.store import Derived, OrderFlow, StoredFootprint
from wadm_mcp.tape import InstrumentTape, Tape

pytestmark = pytest.mark.anyio

PRICES = 1_000
MAX_BYTES = 4 << 20
"""All hours of the week together take 22 MB, their bars at every price 40 MB."""


def _hour(start: int) -> Footprint:
    """An hour in which every price of a wide range traded."""
    hour = Footprint(listing().scale)
    hour.cells = {6_000_000 + price: [1_000 + price, 500, 1, 1] for price in range(PRICES)}
    bar = hour.bar
    bar.open = bar.low = 6_000_000
    bar.close = bar.high = 6_000_000 + PRICES - 1
    bar.buy_volume, bar.sell_volume = (sum(cell[side] for cell in hour.cells.values()) for side in (0, 1))
    bar.trade_count = 2 * PRICES
    bar.notional = sum(price * (cell[0] + cell[1]) for price, cell in hour.cells.items())
    bar.first_at, bar.last_at = start, start + HOUR - 1
    return hour


@pytest.fixture
async def view(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[View]:
    """Seven days of hours in a store, without days. They are small, and so are the limits."""
    monkeypatch.setattr("wadm_mcp.queries.view._MAX_BYTES_READ", 20_000)
    monkeypatch.setattr("wadm_mcp.queries.view._MAX_LEVELS_MERGED", 4_000)
    async with SqliteStore(tmp_path / "wadm.sqlite") as store:
        await store.save_listings([listing()])
        hour = _hour(NOON)
        starts = range(NOON - 7 * DAY, NOON, HOUR)
        footprints = [StoredFootprint(SPOT, Timeframe.H1, start, hour) for start in starts]
        await store.derive(Derived(footprints, order_flow=[OrderFlow(SPOT, Timeframe.H1, start, hour.bar, 0) for start in starts]))
        tape = Tape()
        tape.mark_listings_attempted()
        tape.follow(listing()).start_recording(Held([Span(NOON - 7 * DAY, NOON, 0, 0, Basis.OBSERVED)], NOON))
        yield View(store, tape, lambda: NOON, ("spot",), ("binance",))


@pytest.mark.parametrize(
    ("ask", "arguments"),
    [
        (footprint, {"timeframe": "4h", "start": str(NOON - 7 * DAY)}),
        (footprint, {"timeframe": "1d", "start": str(NOON - 7 * DAY)}),
        (volume_profile, {"start": str(NOON - 7 * DAY)}),
        (market_structure, {"timeframe": "4h"}),
    ],
)
async def test_a_question_about_a_week_has_few_footprints_in_memory_at_once(
    view: View, ask: Callable[..., Awaitable[dict[str, Any]]], arguments: dict[str, object]
) -> None:
    tracemalloc.start()
    try:
        answer = await ask(view.reading(), symbol="BTCUSDT", exchange="binance", **arguments)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert answer["coverage"]["ratio"] == 1
    assert peak < MAX_BYTES


class _StoreThatIsOvertaken(MemoryStore):
    """Calls `meanwhile` while a question waits for the store, after it has read coverage and before it reads data."""

    def __init__(self, meanwhile: Callable[[], None]) -> None:
        super().__init__()
        self._meanwhile = meanwhile

    async def expired(self, instrument: Instrument) -> Expired:
        self._meanwhile()
        return await super().expired(instrument)


def _recording() -> tuple[Tape, InstrumentTape]:
    """A tape with a trade each second of a minute, which is covered whole and not in the store."""
    tape = Tape()
    tape.mark_listings_attempted()
    one = tape.follow(listing())
    one.start_recording(Held([Span(NOON, NOON + MINUTE, 1, 60, Basis.EXACT)], NOON + MINUTE))
    one.take([trade(number + 1, NOON + number * 1_000) for number in range(60)])
    one.resume(None)
    return tape, one


def _view(store: MemoryStore, tape: Tape) -> View:
    return View(store, tape, lambda: NOON + MINUTE, ("spot",), ("binance",))


MINUTE_OF_NOON = {"symbol": "BTCUSDT", "exchange": "binance", "start": str(NOON), "end": str(NOON + MINUTE)}


async def test_an_answer_does_not_claim_minutes_that_another_process_took_over_meanwhile() -> None:
    tape, one = _recording()
    view = _view(_StoreThatIsOvertaken(one.stop), tape)
    answer = await view.consistent(lambda reading: order_flow(reading, timeframe="1m", **MINUTE_OF_NOON))
    assert answer["bars"]["rows"][0][1] is None
    assert answer["coverage"]["ratio"] == 0


async def test_an_answer_does_not_claim_trades_that_left_memory_for_the_journal_meanwhile() -> None:
    tape, one = _recording()
    left = iter([20])
    view = _view(_StoreThatIsOvertaken(lambda: one.evict_oldest(next(left, 0))), tape)
    answer = await view.consistent(lambda reading: trades(reading, **MINUTE_OF_NOON))
    assert len(answer["trades"]["rows"]) == 40
    assert [gap[3] for gap in answer["coverage"]["gaps"]] == ["being_revised"]


def _flood(one: InstrumentTape, step: int) -> Callable[[], None]:
    """Each time, one more trade comes in, so much later (ms) than the one before, and leaves memory at once."""
    numbers = count(1)

    def flood() -> None:
        number = next(numbers)
        one.take([trade(60 + number, NOON + number * step)])
        one.evict_oldest(len(one.pending))

    return flood


async def test_a_question_is_refused_while_trades_leave_memory_faster_than_they_can_be_read() -> None:
    tape, one = _recording()
    view = _view(_StoreThatIsOvertaken(_flood(one, -MINUTE)), tape)
    with pytest.raises(Busy, match="trades come in faster than they are stored; ask again in 5 s"):
        await view.consistent(lambda reading: trades(reading, **MINUTE_OF_NOON | {"start": str(NOON - HOUR)}))


async def test_a_question_about_another_time_is_answered_while_trades_leave_memory() -> None:
    tape, one = _recording()
    view = _view(_StoreThatIsOvertaken(_flood(one, MINUTE)), tape)
    before = MINUTE_OF_NOON | {"start": str(NOON - HOUR), "end": str(NOON)}
    answer = await view.consistent(lambda reading: trades(reading, **before))
    assert answer["trades"]["rows"] == []


async def test_a_question_is_answered_while_further_trades_of_a_minute_leave_memory_that_it_does_not_claim() -> None:
    tape, one = _recording()
    view = _view(_StoreThatIsOvertaken(_flood(one, 1)), tape)
    answer = await view.consistent(lambda reading: trades(reading, **MINUTE_OF_NOON))
    assert [gap[3] for gap in answer["coverage"]["gaps"]] == ["being_revised"]
