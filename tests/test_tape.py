"""The trades and minutes of an instrument that the tape keeps in memory."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.market import BYBIT, SPOT, listing, trade
from wadm_mcp import tape as tape_module
from wadm_mcp.model import MINUTE, Trade, TradeType, Window
from wadm_mcp.tape import InstrumentTape, Losses, Tape

TRADES = st.lists(
    st.builds(
        lambda number, at, price, side: Trade(SPOT, at, 7, str(number), price, 1, side, 1, listing().scale),
        st.integers(0, 1_000),
        st.integers(0, 9),
        st.integers(1, 3),
        st.sampled_from(TradeType),
    ),
    unique_by=lambda trade: trade.trade_id,
    max_size=40,
)


@given(TRADES, st.integers(0, 9), st.integers(0, 10), st.booleans(), st.one_of(st.none(), st.integers(1, 45)), st.data())
def test_pending_trades_are_returned_in_the_order_of_a_plain_sort(
    trades: list[Trade], start: int, length: int, newest: bool, limit: int | None, data: st.DataObject
) -> None:
    tape = InstrumentTape(listing())
    tape.pending = {trade.trade_id: trade for trade in trades}
    after = data.draw(st.sampled_from(trades)).order if trades and data.draw(st.booleans()) else None
    plain = sorted(
        (one for one in trades if one.timestamp in Window(start, start + length) and (after is None or one.order > after)),
        key=lambda one: one.order,
    )
    if limit is not None:
        plain = plain[-limit:] if newest else plain[:limit]
    assert tape.pending_in(Window(start, start + length), after=after, limit=limit, newest=newest) == plain


def test_pending_trades_are_evicted_once_all_instruments_together_have_too_many() -> None:
    tape = Tape()
    tape.pending_limit = 100
    busy, quiet = tape.follow(listing()), tape.follow(listing(BYBIT))

    def take(one: InstrumentTape, first: int, count: int) -> None:
        one.take([trade(number, number, instrument=one.instrument) for number in range(first, first + count)])
        tape.limit_pending(count)

    take(quiet, 1, 10)
    take(busy, 1, 90)
    assert (len(busy.pending), len(quiet.pending)) == (90, 10)
    take(busy, 91, 20)
    assert (len(busy.pending), len(quiet.pending)) == (110 - 110 * 26 // 120, 10 - 10 * 26 // 120)
    assert next(iter(busy.pending.values())).seq == 1 + 110 * 26 // 120
    assert (busy.evicted.total(), quiet.evicted.total()) == (110 * 26 // 120, 2)


def test_a_loss_matters_to_windows_that_touch_its_minute_and_to_questions_begun_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tape_module, "_MAX_LOSSES", 3)
    losses = Losses()
    losses.add([0, 5 * MINUTE])
    assert losses.since(0, Window(6 * MINUTE - 1, 7 * MINUTE))
    assert not losses.since(0, Window(MINUTE, 5 * MINUTE))
    assert not losses.since(0, Window(0, MINUTE), known={0})
    assert not losses.since(1, Window(0, MINUTE))
    losses.add([0, 6 * MINUTE, 7 * MINUTE])
    assert losses.since(1, Window(0, MINUTE))
    # Of the first loss is not known any more which minutes it was.
    assert losses.since(0, Window(MINUTE, 5 * MINUTE))
    assert not losses.since(1, Window(MINUTE, 5 * MINUTE))
