"""Minute candles of the simulator: the same whether they are computed again or made as trades are published."""

from __future__ import annotations

import random

import pytest

from wadm_mcp.model import MINUTE, Instrument
from wadm_mcp.simulator.candles import PublishedCandles, candles
from wadm_mcp.simulator.halts import HaltingTape
from wadm_mcp.simulator.market import EPOCH
from wadm_mcp.simulator.simulator import _market_tape
from wadm_mcp.simulator.tape import Tape

START = EPOCH + 20_000 * MINUTE
MARKETS = [Instrument("binance", "spot", "BTCUSDT"), Instrument("binance", "linear", "BTCUSDT"), Instrument("bybit", "linear", "ETHUSDT")]


def _published(tape: Tape, since: int, until: int) -> PublishedCandles:
    found, chance, reached = PublishedCandles(), random.Random(4), since
    while reached < until:
        end = min(until, reached + chance.randrange(1, 9_000))
        found.add(tape.prints(reached, end), reached, end)
        reached = end
    return found


@pytest.mark.parametrize("instrument", MARKETS, ids=str)
def test_candles_of_published_trades_equal_those_that_are_computed_again(instrument: Instrument) -> None:
    tape = HaltingTape(_market_tape(instrument, 7, 0.2))
    tape.halt(True, START + 2 * MINUTE + 10_000)
    tape.halt(False, START + 4 * MINUTE + 5_000)
    published = _published(tape, START + 20_000, START + 6 * MINUTE + 100)
    whole = [minute for minute in range(START, START + 8 * MINUTE, MINUTE) if published.has(minute)]
    assert whole == [START + minute * MINUTE for minute in range(1, 6)]
    starts = range(START, START + 8 * MINUTE, MINUTE)
    assert list(candles(tape, starts, START + 8 * MINUTE, published)) == list(candles(tape, starts, START + 8 * MINUTE))
    # The minute within the halt has the price before it.
    assert published.candle(START + 3 * MINUTE) is None


def test_a_minute_is_not_whole_where_publishing_was_interrupted() -> None:
    tape = _market_tape(MARKETS[0], 7, 0.2)
    published = _published(tape, START, START + 3 * MINUTE)
    assert published.has(START + MINUTE)
    published.add(tape.prints(START + 3 * MINUTE + 1, START + 5 * MINUTE), START + 3 * MINUTE + 1, START + 5 * MINUTE)
    assert [minute for minute in range(5) if published.has(START + minute * MINUTE)] == [4]
