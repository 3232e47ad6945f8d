"""The contract of a store, for every kind of store. `store` is an open, empty one."""

from __future__ import annotations

from decimal import Decimal
from functools import partial

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wadm_mcp.coverage.spans import DIFFERING_SEQ, Basis, GapReason, Span, SpanReason
from wadm_mcp.errors import StoreError
from wadm_mcp.model import DAY, MINUTE, Instrument, Listing, Scale, Timeframe, Trade, TradeType, Window
from wadm_mcp.storage.store import Derived, DirtyMinute, Retention, Store, StoredFootprint, all_trades, footprint_lots

from . import BTC, ETH, EVER, T0, every_trade, order_flow, piece, profile, span, stored_footprint, trade
from .conftest import NewStore

pytestmark = pytest.mark.anyio

few_examples = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

ids = st.sampled_from(["", *(first + second for first in "109fé~" for second in ("", *"09é~"))])
"""Ids that equal their seq ('' here), ids that sort between such ids, and ids with characters beyond ASCII."""


@st.composite
def tapes(draw: st.DrawFn) -> list[Trade]:
    """Trades with many ties, each id once; the ids of some equal their seq, those of others do not."""
    keys = draw(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 11), ids), max_size=40))
    identities = {trade_id or str(seq): (T0 + at, seq, trade_id or str(seq)) for at, seq, trade_id in keys}.values()
    return [
        trade(
            seq,
            at,
            trade_id=trade_id,
            price=draw(st.integers(1, 3)),
            trade_type=draw(st.sampled_from(TradeType)),
            quantity=draw(st.integers(0, 2**63 - 1)),
            fills=draw(st.integers(1, 2**31 - 1)),
            scale=Scale(draw(st.integers(0, 18)), draw(st.integers(0, 18))),
        )
        for at, seq, trade_id in sorted(identities)
    ]


def in_order(trades: list[Trade]) -> list[Trade]:
    return sorted(trades, key=lambda one: one.order)


async def test_an_empty_store_returns_nothing(store: Store) -> None:
    await store.write([], [])
    await store.derive(Derived())
    await store.save_listings([])
    assert await every_trade(store) == []
    assert await store.spans(BTC, EVER) == []
    assert await store.footprints(BTC, Timeframe.M1, EVER) == []
    assert await store.order_flow(BTC, Timeframe.M1, EVER) == []
    assert await store.dirty_minutes() == []
    assert await store.listings() == []
    assert await store.expire(T0, Retention(0, 0, 0)) == 0


async def test_trades_are_read_back_unchanged(store: Store) -> None:
    numbered = trade(6_534_153_222, T0 + 1, fills=7)
    named = trade(
        9_007_199_254_740_993,
        T0,
        instrument=ETH,
        trade_id="5f2b0d3e-5c3a-5f0e-9d0e-1c1d6a0f8b11",
        price=2**63 - 1,
        quantity=2**63 - 1,
        trade_type=TradeType.SELL,
        scale=Scale(18, 0),
    )
    await store.write([numbered, named], [])
    assert await every_trade(store) == [numbered]
    assert await every_trade(store, ETH) == [named]


async def test_writing_the_same_trades_again_changes_none_of_them(store: Store) -> None:
    trades = [trade(seq, T0 + seq) for seq in range(10)]
    await store.write(trades[:7], [])
    await store.write(trades[3:], [])
    await store.write([trades[0], trades[0], trades[9]], [])
    assert await every_trade(store) == trades


async def test_a_trade_delivered_again_at_a_finer_scale_is_the_same_trade(store: Store) -> None:
    once = trade(1, price=100_10, quantity=5, scale=Scale(2, 0))
    again = trade(1, price=100_100, quantity=500, scale=Scale(3, 2))
    await store.write([once], [])
    await store.write([again], [])
    assert await every_trade(store) == [once]


async def test_the_same_id_on_two_instruments_is_two_trades(store: Store) -> None:
    here, there = trade(1), trade(1, instrument=ETH)
    await store.write([here, there], [])
    assert (await every_trade(store), await every_trade(store, ETH)) == ([here], [there])


async def test_an_id_that_equals_the_seq_sorts_among_other_ids_by_its_text(store: Store) -> None:
    trades = [trade(9, trade_id=trade_id) for trade_id in ("1", "10", "9", "90", "a")]
    await store.write(trades[::-1], [])
    assert await every_trade(store) == trades
    for position, one in enumerate(trades):
        assert await store.trades(BTC, EVER, after=one.order, limit=9) == trades[position + 1 :]
    assert await store.trades(BTC, EVER, limit=3, newest=True) == trades[2:]


@few_examples
@given(tape=tapes(), data=st.data())
async def test_trades_come_in_their_order_whatever_order_they_were_written_in(
    new_store: NewStore, tape: list[Trade], data: st.DataObject
) -> None:
    shuffled = data.draw(st.permutations(tape))
    cut = data.draw(st.integers(0, len(tape)))
    async with new_store() as store:
        await store.write(shuffled[:cut], [])
        await store.write(shuffled[cut:] + shuffled[:1], [])
        assert await every_trade(store) == in_order(tape)


@few_examples
@given(tape=tapes(), limit=st.integers(1, 7), start=st.integers(-1, 3), length=st.integers(0, 5))
async def test_pages_of_trades_are_complete_and_repeat_nothing(
    new_store: NewStore, tape: list[Trade], limit: int, start: int, length: int
) -> None:
    window = Window(T0 + start, T0 + start + length)
    expected = [one for one in in_order(tape) if one.timestamp in window]
    async with new_store() as store:
        await store.write(tape, [])
        seen = page = await store.trades(BTC, window, limit=limit)
        while page:
            page = await store.trades(BTC, window, after=page[-1].order, limit=limit)
            assert len(page) <= limit
            seen = seen + page
        assert seen == expected


@few_examples
@given(tape=tapes(), page=st.integers(1, 50), start=st.integers(-1, 3), length=st.integers(0, 5))
async def test_all_trades_of_a_window_are_read_whatever_the_size_of_a_page(
    new_store: NewStore, tape: list[Trade], page: int, start: int, length: int
) -> None:
    window = Window(T0 + start, T0 + start + length)
    async with new_store() as store:
        await store.write(tape, [])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("wadm_mcp.storage.store._PAGE_TRADES", page)
            assert await all_trades(store, BTC, window) == [one for one in in_order(tape) if one.timestamp in window]


@few_examples
@given(tape=tapes(), limit=st.integers(1, 50), data=st.data())
async def test_the_newest_trades_are_the_last_of_the_window_in_ascending_order(
    new_store: NewStore, tape: list[Trade], limit: int, data: st.DataObject
) -> None:
    async with new_store() as store:
        await store.write(tape, [])
        assert await store.trades(BTC, EVER, limit=limit, newest=True) == in_order(tape)[-limit:]
        if tape:
            after = data.draw(st.sampled_from(tape)).order
            later = [one for one in in_order(tape) if one.order > after]
            assert await store.trades(BTC, EVER, after=after, limit=limit, newest=True) == later[-limit:]
            assert await store.trades(BTC, EVER, after=after, limit=limit) == later[:limit]


async def test_a_position_before_the_window_has_no_effect_and_one_after_it_leaves_nothing(store: Store) -> None:
    trades = [trade(seq, T0 + seq) for seq in range(10)]
    await store.write(trades, [])
    window = Window(T0 + 4, T0 + 6)
    assert await store.trades(BTC, window, after=(T0 + 1, 1, 0, ""), limit=9) == trades[4:6]
    assert await store.trades(BTC, window, after=(T0 + 8, 8, 0, ""), limit=9) == []


async def test_a_limit_of_zero_returns_nothing(store: Store) -> None:
    await store.write([trade(1)], [])
    assert await store.trades(BTC, EVER, limit=0) == []


async def test_windows_are_half_open(store: Store) -> None:
    starts = [T0, T0 + MINUTE, T0 + 2 * MINUTE]
    await store.write([trade(start, start) for start in starts], [])
    await store.derive(Derived([stored_footprint(start) for start in starts], order_flow=[order_flow(start) for start in starts]))
    window = Window(starts[0], starts[2])
    assert [one.timestamp for one in await every_trade(store, window=window)] == starts[:2]
    for found in (
        await store.footprints(BTC, Timeframe.M1, window),
        await store.order_flow(BTC, Timeframe.M1, window),
    ):
        assert [one.start for one in found] == starts[:2]
    nothing = Window(starts[1], starts[1])
    assert await every_trade(store, window=nothing) == []
    assert await store.footprints(BTC, Timeframe.M1, nothing) == []


async def test_every_minute_written_to_is_marked_oldest_first(store: Store) -> None:
    await store.write([trade(3, T0 + MINUTE), trade(1, T0 + MINUTE - 1), trade(2, T0), trade(1, T0, instrument=ETH)], [])
    marks = await store.dirty_minutes()
    assert {(mark.instrument, mark.minute) for mark in marks} == {(BTC, T0), (BTC, T0 + MINUTE), (ETH, T0)}
    assert [mark.minute for mark in marks] == [T0, T0, T0 + MINUTE]


async def test_a_cleared_mark_is_gone_and_others_stay(store: Store) -> None:
    await store.write([trade(1, T0), trade(2, T0 + MINUTE)], [])
    first, second = await store.dirty_minutes()
    await store.derive(Derived([stored_footprint(T0)], settles=[first]))
    assert await store.dirty_minutes() == [second]
    await store.derive(Derived(settles=[second]))
    assert await store.dirty_minutes() == []


async def test_a_late_write_keeps_its_mark(store: Store) -> None:
    await store.write([trade(1)], [])
    (seen,) = await store.dirty_minutes()
    await store.write([trade(2)], [])
    await store.derive(Derived([stored_footprint(T0, [trade(1)])], settles=[seen]))
    (grown,) = await store.dirty_minutes()
    assert grown.writes > seen.writes
    await store.derive(Derived([stored_footprint(T0, [trade(1), trade(2)], revision=1)], settles=[grown]))
    assert await store.dirty_minutes() == []


async def test_a_new_mark_is_not_cleared_by_a_pass_that_read_the_old_one(store: Store) -> None:
    await store.write([trade(1)], [])
    (seen,) = await store.dirty_minutes()
    await store.derive(Derived(settles=[seen]))
    await store.write([trade(2)], [])
    await store.derive(Derived(settles=[seen]))
    assert [mark.minute for mark in await store.dirty_minutes()] == [T0]


async def test_clearing_a_mark_that_does_not_exist_changes_nothing(store: Store) -> None:
    await store.derive(Derived(settles=[DirtyMinute(ETH, T0, 1)]))
    assert await store.dirty_minutes() == []


async def test_a_batch_stores_no_coverage_before_its_barrier(store: Store) -> None:
    async def barrier() -> None:
        assert await store.spans(BTC, EVER) == []

    await store.write([trade(1)], [(BTC, span(T0, T0 + 1))], barrier=barrier)
    assert (await every_trade(store), await store.spans(BTC, EVER)) == ([trade(1)], [span(T0, T0 + 1)])


async def test_a_batch_whose_barrier_fails_stores_no_coverage(store: Store) -> None:
    async def barrier() -> None:
        raise StoreError("what came before failed")

    with pytest.raises(StoreError, match="what came before failed"):
        await store.write([trade(1)], [(BTC, span(T0, T0 + 1))], barrier=barrier)
    assert await store.spans(BTC, EVER) == []
    await store.write([trade(1)], [(BTC, span(T0, T0 + 1))])
    assert (await every_trade(store), await store.spans(BTC, EVER)) == ([trade(1)], [span(T0, T0 + 1)])


async def test_the_mark_of_a_batch_is_above_those_read_during_its_barrier(store: Store) -> None:
    seen: list[DirtyMinute] = []

    async def barrier() -> None:
        await store.write([trade(2)], [])
        seen.extend(await store.dirty_minutes())

    await store.write([trade(1)], [], barrier=barrier)
    (mark,) = await store.dirty_minutes()
    assert mark.writes > seen[0].writes


async def test_coverage_alone_marks_no_minute(store: Store) -> None:
    await store.write([], [(BTC, span(T0, T0 + MINUTE))])
    assert await store.dirty_minutes() == []


async def test_derived_figures_are_read_back_unchanged_oldest_first(store: Store) -> None:
    trades = [trade(1, price=100), trade(2, price=102, trade_type=TradeType.SELL, quantity=7), trade(3, price=99, scale=Scale(4, 6))]
    footprints = [stored_footprint(T0, trades, revision=3), stored_footprint(T0 + MINUTE, trades[:1])]
    flows = [order_flow(T0, trades, cumulative_delta=-5), order_flow(T0 + MINUTE, trades[1:], cumulative_delta=12, revision=2)]
    profiles = [profile(T0, trades), profile(T0 + MINUTE, trades[:2], revision=1)]
    await store.derive(Derived(footprints[::-1], profiles[::-1], flows[::-1]))
    assert await store.footprints(BTC, Timeframe.M1, EVER) == footprints
    assert await store.order_flow(BTC, Timeframe.M1, EVER) == flows


async def test_bars_without_trades_are_stored_too(store: Store) -> None:
    empty = profile(T0)
    assert empty.profile is None
    await store.derive(Derived([stored_footprint(T0)], [empty], [order_flow(T0)]))
    assert await store.footprints(BTC, Timeframe.M1, EVER) == [stored_footprint(T0)]
    assert await store.order_flow(BTC, Timeframe.M1, EVER) == [order_flow(T0)]


async def test_sums_beyond_64_bits_stay_exact(store: Store) -> None:
    trades = [trade(seq, price=2**62, quantity=2**63 - 1) for seq in range(5)]
    footprint, volume, flow = stored_footprint(T0, trades), profile(T0, trades), order_flow(T0, trades, cumulative_delta=-(2**200) - 1)
    assert flow.bar.buy_volume == 5 * (2**63 - 1)
    await store.derive(Derived([footprint], [volume], [flow]))
    assert await store.footprints(BTC, Timeframe.M1, EVER) == [footprint]
    assert await store.order_flow(BTC, Timeframe.M1, EVER) == [flow]


@pytest.mark.parametrize("timeframe", Timeframe)
async def test_timeframes_and_instruments_are_kept_apart(store: Store, timeframe: Timeframe) -> None:
    for one in Timeframe:
        for instrument in (BTC, ETH):
            flow = order_flow(T0, instrument=instrument, timeframe=one, cumulative_delta=one.ms + len(instrument.market))
            footprint = stored_footprint(T0, [trade(1, quantity=one.ms + len(instrument.market))], instrument=instrument, timeframe=one)
            await store.derive(Derived([footprint], order_flow=[flow]))
    for instrument in (BTC, ETH):
        (flow,) = await store.order_flow(instrument, timeframe, EVER)
        assert flow.cumulative_delta == timeframe.ms + len(instrument.market)
        (footprint,) = await store.footprints(instrument, timeframe, EVER)
        assert footprint.footprint.bar.volume == flow.cumulative_delta


async def test_a_newer_revision_replaces_and_no_other_does(store: Store) -> None:
    for revision, quantity, kept in ((1, 10, 10), (1, 11, 10), (3, 13, 13), (2, 12, 13), (0, 9, 13)):
        trades = [trade(1, quantity=quantity)]
        await store.derive(
            Derived(
                [stored_footprint(T0, trades, revision=revision)],
                [profile(T0, trades, revision=revision)],
                [order_flow(T0, trades, cumulative_delta=quantity, revision=revision)],
            )
        )
        (footprint,) = await store.footprints(BTC, Timeframe.M1, EVER)
        (flow,) = await store.order_flow(BTC, Timeframe.M1, EVER)
        assert [footprint.footprint.bar.volume, flow.bar.volume, flow.cumulative_delta] == [kept] * 3


async def test_if_a_bar_is_rejected_nothing_of_that_bar_is_stored(store: Store) -> None:
    kept, late = [trade(1, quantity=10)], [trade(1, quantity=99)]
    await store.derive(Derived([stored_footprint(T0, kept)], [profile(T0, kept)], [order_flow(T0, kept, revision=2)]))
    await store.derive(
        Derived(
            [stored_footprint(T0, late, revision=1), stored_footprint(T0 + MINUTE, late)],
            [profile(T0, late, revision=1)],
            [order_flow(T0, late, revision=1), order_flow(T0 + MINUTE, late)],
        )
    )
    assert [row.footprint.bar.volume for row in await store.footprints(BTC, Timeframe.M1, EVER)] == [10, 99]
    assert [row.bar.volume for row in await store.order_flow(BTC, Timeframe.M1, EVER)] == [10, 99]


async def test_a_stale_pass_clears_no_mark(store: Store) -> None:
    await store.derive(Derived([stored_footprint(T0, revision=5)]))
    await store.write([trade(1)], [])
    (mark,) = await store.dirty_minutes()
    await store.derive(Derived([stored_footprint(T0, [trade(1)], revision=4)], settles=[mark]))
    assert await store.dirty_minutes() == [mark]
    await store.derive(Derived([stored_footprint(T0, [trade(1)], revision=6)], settles=[mark]))
    assert await store.dirty_minutes() == []


async def test_spans_are_read_back_unchanged(store: Store) -> None:
    stored = [
        Span(T0, T0 + 10, 2**62, 2**63 - 1, Basis.EXACT, SpanReason.REPAIRED, GapReason.MISSING_IDS),
        Span(T0 + 20, T0 + 20, 5, 5, Basis.OBSERVED, SpanReason.IMPORTED, GapReason.MUTE),
    ]
    await store.write([], [(BTC, one) for one in reversed(stored)])
    assert await store.spans(BTC, EVER) == stored
    assert await store.spans(ETH, EVER) == []


async def test_spans_with_one_start_and_first_id_are_merged_in_any_order(store: Store) -> None:
    await store.write([], [(BTC, span(T0, T0 + 10)), (ETH, span(T0, T0 + 5))])
    grown = Span(T0, T0 + 30, 1, 9, Basis.OBSERVED, SpanReason.REPAIRED, GapReason.DISCONNECT)
    await store.write([], [(BTC, grown)])
    await store.write([], [(BTC, span(T0, T0 + 15)), (BTC, msgspec.structs.replace(grown, end=T0 + 20, last_seq=4))])
    assert await store.spans(BTC, EVER) == [grown]
    assert await store.spans(ETH, EVER) == [span(T0, T0 + 5)]


async def test_spans_that_begin_in_one_millisecond_are_distinguished_by_their_first_id(store: Store) -> None:
    stored = [span(T0, T0, 1, 1), span(T0, T0, 4, 4), span(T0, T0 + 9, 7, 30)]
    await store.write([], [(BTC, one) for one in stored[::-1]])
    await store.write([], [(BTC, span(T0, T0 + 3, 4, 6))])
    assert await store.spans(BTC, EVER) == [stored[0], span(T0, T0 + 3, 4, 6), stored[2]]


async def test_spans_without_rows_and_absent_spans_are_read_back_unchanged(store: Store) -> None:
    stored = [
        Span(T0, T0 + 9, 1, 9, Basis.EXACT, SpanReason.REPAIRED, GapReason.MISSING_IDS, raw=False),
        Span(T0 + 9, T0 + 9, 10, 12, Basis.EXACT, SpanReason.ABSENT),
    ]
    await store.write([], [(BTC, one) for one in stored])
    assert await store.spans(BTC, EVER) == stored


async def test_a_minute_whose_candle_differs_is_replaced_by_the_source_that_covers_it(store: Store) -> None:
    recorded = Span(T0, T0 + 2 * MINUTE, 1, 9, Basis.OBSERVED)
    differing = Span(T0, T0 + MINUTE, DIFFERING_SEQ, DIFFERING_SEQ, Basis.OBSERVED, SpanReason.DIFFERS, GapReason.CANDLE_DIFFERS)
    await store.write([], [(BTC, recorded), (BTC, differing)])
    assert await store.spans(BTC, EVER) == [differing, recorded]
    covered = msgspec.structs.replace(differing, reason=SpanReason.IMPORTED, opened_by=GapReason.START, raw=False)
    await store.write([], [(BTC, covered)])
    assert await store.spans(BTC, EVER) == [covered, recorded]


async def test_pieces_are_stored_once_and_mark_their_minute(store: Store) -> None:
    first, second, other = piece(T0, 1), piece(T0, 9), piece(T0 + MINUTE, 12)
    await store.write([], [], [second, other])
    await store.write([], [], [first, second, piece(T0, 1, instrument=ETH)])
    assert await store.pieces(BTC, Window(T0, T0 + MINUTE)) == [first, second]
    assert await store.pieces(BTC, EVER) == [first, second, other]
    assert {(mark.instrument, mark.minute) for mark in await store.dirty_minutes()} == {(BTC, T0), (BTC, T0 + MINUTE), (ETH, T0)}


async def test_of_two_pieces_that_begin_with_the_same_id_the_longer_one_is_kept(store: Store) -> None:
    shorter, longer = piece(T0, 1), piece(T0, 1, 5)
    for pieces in ([longer], [shorter], [longer, shorter]):
        await store.write([], [], pieces)
        assert await store.pieces(BTC, EVER) == [longer]
    await store.write([], [], [piece(T0, 1, 7)])
    assert await store.pieces(BTC, EVER) == [piece(T0, 1, 7)]


async def test_rows_and_partial_footprints_a_window_are_counted(store: Store) -> None:
    window = Window(T0, T0 + MINUTE)
    assert await store.count(BTC, window) == 0
    await store.write(
        [trade(1), trade(2, T0 + MINUTE - 1), trade(3, T0 + MINUTE), trade(4, instrument=ETH)], [], [piece(T0, 10), piece(T0, 20)]
    )
    await store.write([trade(1)], [], [piece(T0, 10)])
    assert await store.count(BTC, window) == 4


async def test_an_owner_acquires_the_leases_that_no_other_has(store: Store) -> None:
    assert await store.acquire_leases("one", [BTC, ETH], 60) == {BTC, ETH}
    assert await store.acquire_leases("one", [BTC], 60) == {BTC}
    await store.release_leases("one")
    assert await store.acquire_leases("two", [BTC, ETH], 60) == {BTC, ETH}
    assert await store.acquire_leases("two", [], 60) == set()


@few_examples
@given(data=st.data())
async def test_batches_that_overlap_and_repeat_are_stored_once(new_store: NewStore, data: st.DataObject) -> None:
    ids = st.integers(1, 12)
    batches = data.draw(st.lists(st.tuples(st.lists(ids, max_size=6), st.lists(ids, max_size=2), ids, ids), max_size=6))
    stored: dict[int, Span] = {}
    async with new_store() as store:
        for trades, firsts, first, count in batches:
            one = span(T0 + first, T0 + first + count, first, first + count)
            stored[first] = max(one, stored.get(first, one), key=lambda span: span.end)
            await store.write([trade(seq, T0 + seq) for seq in trades], [(BTC, one)], [piece(T0, 100 * first) for first in firsts])
        assert [one.seq for one in await every_trade(store)] == sorted({seq for batch in batches for seq in batch[0]})
        assert [one.first_seq for one in await store.pieces(BTC, EVER)] == sorted({100 * first for batch in batches for first in batch[1]})
        assert await store.spans(BTC, EVER) == [stored[first] for first in sorted(stored)]


async def test_spans_of_a_window_come_with_their_nearest_neighbours(store: Store) -> None:
    stored = [span(T0 + start, T0 + start + 10) for start in range(0, 200, 20)]
    await store.write([], [(BTC, one) for one in stored])
    assert await store.spans(BTC, Window(T0 + 65, T0 + 105)) == stored[2:7]
    assert await store.spans(BTC, Window(T0 + 72, T0 + 77)) == stored[3:5], "a window in a gap"
    assert await store.spans(BTC, Window(T0 + 65, T0 + 65)) == stored[2:5], "an empty window"
    assert await store.spans(BTC, Window(T0 - 50, T0 - 20)) == stored[:1], "before everything"
    assert await store.spans(BTC, Window(T0 + 500, T0 + 600)) == stored[-1:], "after everything"
    assert await store.spans(BTC, Window(T0 + 70, T0 + 80)) == stored[2:6], "ends that only touch"


async def test_a_long_span_is_found_beneath_shorter_ones(store: Store) -> None:
    long, short, after = span(T0, T0 + 1_000), span(T0 + 10, T0 + 20), span(T0 + 2_000, T0 + 2_100)
    await store.write([], [(BTC, long), (BTC, short), (BTC, after)])
    assert await store.spans(BTC, Window(T0 + 500, T0 + 600)) == [long, short, after]
    assert await store.spans(BTC, Window(T0 + 1_500, T0 + 1_600)) == [long, after], "the nearest is the one that ends last"


async def test_trades_and_coverage_of_one_batch_are_kept_together(store: Store) -> None:
    trades = [trade(1, T0), trade(2, T0 + 5, instrument=ETH)]
    await store.write(trades, [(BTC, span(T0, T0)), (ETH, span(T0 + 5, T0 + 5))])
    assert [await every_trade(store, one) for one in (BTC, ETH)] == [trades[:1], trades[1:]]
    assert [await store.spans(one, EVER) for one in (BTC, ETH)] == [[span(T0, T0)], [span(T0 + 5, T0 + 5)]]


async def test_an_instrument_is_tracked_until_it_is_untracked(store: Store) -> None:
    assert await store.tracked() == []
    await store.track([BTC, ETH])
    await store.track([ETH])
    assert set(await store.tracked()) == {BTC, ETH}
    await store.untrack([BTC, BTC])
    await store.untrack([])
    assert await store.tracked() == [ETH]


async def test_listings_come_back_in_their_newest_form(store: Store) -> None:
    first = [Listing(BTC, Decimal("0.01"), Decimal("0.00001")), Listing(ETH, Decimal("1E-18"), Decimal("1000"))]
    await store.save_listings(first)
    assert await store.listings() == first
    changed = Listing(BTC, Decimal("0.10"), Decimal("0.00001"), trading=False, status="BREAK")
    await store.save_listings([changed])
    assert {one.instrument: one for one in await store.listings()} == {BTC: changed, ETH: first[1]}


async def test_a_provisional_listing_comes_back_without_tick_and_lot_and_is_not_taken_for_an_unlisted_symbol(store: Store) -> None:
    listings = [Listing.unconfirmed(BTC), Listing.none(ETH)]
    await store.save_listings(listings)
    assert await store.listings() == listings
    assert [(one.provisional, one.listed, one.scale) for one in listings] == [(True, True, (0, 0)), (False, False, (0, 0))]
    await store.save_listings([Listing(BTC, Decimal("0.01"), Decimal("0.00001"))])
    assert not (await store.listings())[0].provisional


async def test_an_instrument_that_was_never_listed_has_no_listing(store: Store) -> None:
    await store.write([trade(1, instrument=ETH)], [])
    await store.save_listings([Listing(BTC, Decimal(1), Decimal(1))])
    assert [one.instrument for one in await store.listings()] == [BTC]
    assert len(await every_trade(store, ETH)) == 1


async def test_the_state_says_kind_place_and_size(store: Store) -> None:
    before = await store.state()
    await store.write([trade(seq, T0 + seq) for seq in range(5_000)], [])
    after = await store.state()
    assert (after.kind, after.place) == (before.kind, before.place)
    assert after.bytes >= before.bytes > 0


STEPS = st.decimals("1e-20", "1e20", allow_nan=False)
"""Ticks and lots of listed instruments; 0 is that of a placeholder."""


@few_examples
@given(
    st.lists(
        st.builds(
            Listing,
            st.builds(Instrument, st.sampled_from(["binance", "bybit"]), st.just("spot"), st.text("ABC1é", min_size=1, max_size=4)),
            STEPS,
            STEPS,
            st.booleans(),
            st.sampled_from(["", "TRADING", "PreLaunch"]),
        ),
        unique_by=lambda listing: listing.instrument,
        max_size=5,
    )
)
async def test_ticks_and_lots_are_kept_exactly(new_store: NewStore, listings: list[Listing]) -> None:
    async with new_store() as store:
        await store.save_listings(listings)
        assert {one.instrument: one for one in await store.listings()} == {one.instrument: one for one in listings}


async def test_footprints_can_be_read_a_few_at_a_time(store: Store) -> None:
    footprints = [stored_footprint(T0 + minute * MINUTE, [trade(minute, price=100 + minute % 20)]) for minute in range(50)]
    await store.derive(Derived(footprints))
    (first,) = await store.footprints(BTC, Timeframe.M1, EVER, max_bytes=1)
    assert first == footprints[0]
    assert await store.footprints(BTC, Timeframe.M1, EVER, max_bytes=1 << 20) == footprints
    two = len(footprints[0].footprint.pack()) + 1
    lots: list[list[StoredFootprint]] = []
    async for lot in footprint_lots(partial(store.footprints, BTC, max_bytes=two), Timeframe.M1, EVER):
        lots.append(lot)
    assert [one for lot in lots for one in lot] == footprints
    assert {len(lot) for lot in lots} == {2}


async def test_an_empty_store_has_deleted_nothing_that_is_young(store: Store) -> None:
    assert not (await store.expired(BTC)).of_bars(Window(T0, T0 + DAY), Timeframe.M1)
    assert not (await store.expired(BTC)).of_trades(Window(T0, T0 + DAY))
