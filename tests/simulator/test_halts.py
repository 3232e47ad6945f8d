from __future__ import annotations

import pytest

from wadm_mcp.model import MINUTE, Instrument
from wadm_mcp.simulator.halts import HaltingTape
from wadm_mcp.simulator.market import Market
from wadm_mcp.simulator.simulator import _market_tape
from wadm_mcp.simulator.tape import Tape

NOON = 1_780_315_200_000


def tapes(exchange: str, market: str) -> tuple[Tape, HaltingTape]:
    """A computed tape, and the same with two halts of 20 and 10 seconds between noon and a minute later."""
    instrument = Instrument(exchange, market, "BTCUSDT")
    whole = _market_tape(instrument, 1, 2.0)
    halting = HaltingTape(whole.copy())
    for at, halted in ((5_000, True), (25_000, False), (40_000, True), (50_000, False)):
        halting.halt(halted, NOON + at - 30)
    assert isinstance(whole.market, Market)
    return whole, halting


@pytest.mark.parametrize(("exchange", "market"), [("binance", "spot"), ("binance", "linear")])
def test_ids_go_on_without_a_hole_after_a_halt(exchange: str, market: str) -> None:
    whole, halting = tapes(exchange, market)
    prints = list(halting.prints(NOON, NOON + 2 * MINUTE))
    numbers = [row.number for row in prints]
    # On USD-M some ids are burnt, during a halt or not.
    assert numbers == list(range(numbers[0], numbers[0] + len(prints))) if market == "spot" else numbers == sorted(set(numbers))
    assert all(row.trade_id == str(row.number) and row.seq == row.number for row in prints)
    folded = list(halting.aggregates(NOON, NOON + 2 * MINUTE))
    assert [row.number for row in folded] == list(range(folded[0].number, folded[0].number + len(folded)))
    assert 0 < len(prints) < len(list(whole.prints(NOON, NOON + 2 * MINUTE)))
    assert not any(NOON + 5_000 <= row.time < NOON + 25_000 for row in (*prints, *folded))
    by_number = {row.number: row for row in prints}
    assert all(by_number[row.first].time == row.time and by_number[row.first].price == row.price for row in folded if row.time >= NOON)


@pytest.mark.parametrize(("exchange", "market"), [("binance", "spot"), ("binance", "linear"), ("bybit", "spot"), ("bybit", "linear")])
def test_a_page_has_the_rows_of_the_time(exchange: str, market: str) -> None:
    _, halting = tapes(exchange, market)
    end = NOON + 2 * MINUTE
    prints, folded = list(halting.prints(NOON, end)), list(halting.aggregates(NOON, end))
    middle = prints[len(prints) // 2].number
    assert list(halting.prints_from(middle, end)) == [row for row in prints if row.number >= middle]
    assert list(halting.aggregates_from(folded[9].number, end)) == folded[9:]
    assert halting.newest_prints(7, end) == prints[-7:]
    assert halting.newest_aggregates(7, end) == folded[-7:]
    assert list(halting.copy().prints(NOON, end)) == prints


def test_a_clock_that_is_set_back_does_not_bring_back_what_was_left_out() -> None:
    _, halting = tapes("binance", "spot")
    for second, halted in ((60, True), (70, True), (68, False)):
        halting.halt(halted, NOON + second * 1_000)
    after = next(halting.prints(NOON + MINUTE + 1_000, NOON + 2 * MINUTE))
    assert after.time >= NOON + 70_000


def test_nothing_trades_while_a_halt_lasts() -> None:
    _, halting = tapes("binance", "spot")
    halting.halt(True, NOON + MINUTE)
    last = list(halting.prints(NOON, NOON + MINUTE + 100))[-1]
    assert halting.newest_prints(1, NOON + 5 * MINUTE) == [last]
    halting.halt(True, NOON + 2 * MINUTE)
    halting.halt(False, NOON + 5 * MINUTE)
    assert next(halting.prints(NOON + 5 * MINUTE, NOON + 6 * MINUTE)).number == last.number + 1
