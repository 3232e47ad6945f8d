from __future__ import annotations

import tracemalloc
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from tests.market import NOON, SPOT, trade
from wadm_mcp.analytics.footprint import Footprint
from wadm_mcp.collection.recording.minute import build_minute, partial_footprints, without_repeats
from wadm_mcp.exchanges.exchange import Aggregate
from wadm_mcp.model import MINUTE, Trade


def footprint_of(trades: Sequence[Trade]) -> Footprint:
    footprint = Footprint(trade(1).scale)
    for each in trades:
        footprint.add(each)
    return footprint


@st.composite
def tapes(draw: st.DrawFn, *, least: int = 1) -> list[Trade]:
    """A minute of trades with consecutive ids, several in one millisecond."""
    rows = draw(
        st.lists(
            st.tuples(st.integers(0, 9), st.integers(1, 50), st.sampled_from(("BUY", "SELL")), st.integers(0, 3)),
            min_size=least,
            max_size=25,
        )
    )
    at, trades = NOON, list[Trade]()
    for number, (price, quantity, side, wait) in enumerate(rows, 1):
        at += wait
        trades.append(trade(number, at, 6_000_000 + price, quantity, side))
    return trades


def aggregates(trades: Sequence[Trade]) -> list[Aggregate]:
    """The aggregates that Binance makes of trades: neighbours with the same millisecond, price and side are one."""
    folded: list[list[Trade]] = []
    for each in trades:
        last = folded[-1][-1] if folded else None
        if last is not None and (last.timestamp, last.price, last.trade_type) == (each.timestamp, each.price, each.trade_type):
            folded[-1].append(each)
        else:
            folded.append([each])
    return [
        Aggregate(
            number,
            run[-1].seq,
            trade(run[0].seq, run[0].timestamp, run[0].price, sum(one.quantity for one in run), run[0].trade_type, fills=len(run)),
        )
        for number, run in enumerate(folded)
    ]


def assert_agree(found: Footprint, expected: Footprint) -> None:
    """Every figure is equal, except that extremes of the delta path may be unknown."""
    assert found.cells == expected.cells
    one, two = found.bar, expected.bar
    for name in ("open", "high", "low", "close", "buy_volume", "sell_volume", "trade_count", "notional", "first_at", "last_at"):
        assert getattr(one, name) == getattr(two, name), name
    assert one.min_delta in (two.min_delta, None)
    assert one.max_delta in (two.max_delta, None)


@given(tapes(), st.data())
def test_rows_and_partials_in_any_mixture_give_the_minute_of_all_rows(trades: list[Trade], data: st.DataObject) -> None:
    folded_trades = aggregates(trades)
    kept = data.draw(st.lists(st.booleans(), min_size=len(folded_trades), max_size=len(folded_trades)))
    partials = partial_footprints(SPOT, [each for each, folded in zip(folded_trades, kept, strict=True) if folded])
    within = {number for partial in partials for number in range(partial.first_seq, partial.last_seq + 1)}
    rows = [each for each in trades if each.seq not in within]
    assert_agree(build_minute(rows, partials), footprint_of(trades))


@given(tapes(), st.data())
def test_trades_that_two_processes_stored_in_different_forms_are_counted_once(trades: list[Trade], data: st.DataObject) -> None:
    folded_trades = aggregates(trades)
    kept = data.draw(st.lists(st.booleans(), min_size=len(folded_trades), max_size=len(folded_trades)))
    partials = partial_footprints(SPOT, [each for each, folded in zip(folded_trades, kept, strict=True) if folded])
    within = {number for partial in partials for number in range(partial.first_seq, partial.last_seq + 1)}
    rows = [each for each in trades if each.seq not in within or data.draw(st.booleans())]
    stored_as_rows = {each.seq for each in rows}
    again = [
        partial
        for each in folded_trades
        for partial in partial_footprints(SPOT, [each])
        if within.issuperset(range(each.trade.seq, each.last + 1)) or stored_as_rows.issuperset(range(each.trade.seq, each.last + 1))
    ]
    assert_agree(build_minute(rows, data.draw(st.permutations([*partials, *again]))), footprint_of(trades))


def test_of_two_partials_that_overlap_in_part_the_longer_one_counts() -> None:
    rows = [Aggregate(number, number, trade(number, NOON + number)) for number in range(1, 10)]
    (shorter,), (longer,) = partial_footprints(SPOT, rows[:4]), partial_footprints(SPOT, rows[2:])
    for partials in ([shorter, longer], [longer, shorter]):
        assert without_repeats([trade(9, NOON + 9), trade(10, NOON + 10)], partials) == ([trade(10, NOON + 10)], [longer])


def test_a_partial_whose_ids_another_one_and_trades_have_together_does_not_count() -> None:
    rows = [Aggregate(number, number, trade(number, NOON + number)) for number in range(1, 10)]
    (earlier,), (longer,) = partial_footprints(SPOT, rows[:4]), partial_footprints(SPOT, rows[1:])
    singles = [trade(number, NOON + number) for number in range(5, 10)]
    assert without_repeats(singles, [earlier, longer]) == (singles, [earlier])


def test_ids_of_a_long_range_are_not_written_out_to_find_repeats() -> None:
    rows = [Aggregate(1, 1, trade(1, NOON + 1)), Aggregate(2, 5_000_000, trade(2, NOON + 2))]
    (long,), (short,) = partial_footprints(SPOT, rows), partial_footprints(SPOT, rows[:1])
    tracemalloc.start()
    assert without_repeats([trade(1, NOON + 1)], [short, long]) == ([], [long])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


@given(tapes())
def test_aggregates_of_single_trades_keep_their_path(trades: list[Trade]) -> None:
    singles = [Aggregate(each.seq, each.seq, each) for each in trades]
    assert build_minute([], partial_footprints(SPOT, singles)) == footprint_of(trades)


@given(tapes(least=3), st.data())
def test_late_rows_are_added_to_a_minute_whose_own_rows_have_expired(trades: list[Trade], data: st.DataObject) -> None:
    first = data.draw(st.integers(1, len(trades)))
    last = data.draw(st.integers(first, len(trades)))
    derived = footprint_of(trades[first - 1 : last])
    # Only rows that arrived after the minute was derived are still stored.
    late = [each for each in trades if not first <= each.seq <= last]
    assert_agree(build_minute(late, [], derived), footprint_of(trades))
    assert build_minute([], [], derived) == derived


def test_a_leading_aggregate_makes_only_the_possibly_hidden_extreme_unknown() -> None:
    buys = Aggregate(1, 3, trade(1, quantity=9, fills=3))
    (partial,) = partial_footprints(SPOT, [buys, Aggregate(2, 4, trade(4, NOON + 1, quantity=1, side="SELL"))])
    assert (partial.footprint.bar.min_delta, partial.footprint.bar.max_delta) == (None, None)
    lower = Aggregate(2, 4, trade(4, NOON + 1, quantity=10, side="SELL"))
    (partial,) = partial_footprints(SPOT, [buys, lower])
    assert (partial.footprint.bar.min_delta, partial.footprint.bar.max_delta) == (-1, 9)


def test_a_partial_ends_with_its_minute_and_before_a_missing_id() -> None:
    rows = [Aggregate(number, number, trade(number, at)) for number, at in ((1, NOON), (2, NOON + 5), (4, NOON + 6), (5, NOON + MINUTE))]
    assert [(partial.minute, partial.first_seq, partial.last_seq) for partial in partial_footprints(SPOT, rows)] == [
        (NOON, 1, 2),
        (NOON, 4, 4),
        (NOON + MINUTE, 5, 5),
    ]


def test_a_minute_without_rows_and_partials_is_empty() -> None:
    assert not build_minute([], []).cells
