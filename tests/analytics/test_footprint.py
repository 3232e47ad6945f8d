"""Bars and footprints: exact whatever the order of arrival, mergeable, and safe to read back."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Callable
from copy import deepcopy
from decimal import Decimal
from functools import reduce
from itertools import pairwise, permutations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wadm_mcp.analytics.footprint import VERSION, Bar, Footprint
from wadm_mcp.model import Scale, Trade

from .oracles import LARGE, SCALE, SCALES, bar_by_the_book, cells_by_the_book, cells_of, figures, footprint_of, tapes, trade


def parts_of(tape: list[Trade], cuts: list[int], scale: Scale = SCALE) -> list[Footprint]:
    """The tape cut into consecutive stretches, empty ones among them."""
    edges = [0, *sorted(cut % (len(tape) + 1) for cut in cuts), len(tape)]
    return [footprint_of(tape[start:end], scale) for start, end in pairwise(edges)]


def without_path(bar: Bar) -> Bar:
    return msgspec.structs.replace(bar, min_delta=None, max_delta=None)


@given(tapes(scales=SCALES))
def test_a_footprint_equals_a_naive_count_of_its_trades(tape: list[Trade]) -> None:
    footprint = footprint_of(tape)
    assert figures(footprint.bar) == bar_by_the_book(tape)
    assert cells_of(footprint) == cells_by_the_book(tape)


@given(tapes(largest=LARGE, scales=SCALES))
def test_sums_beyond_64_bits_stay_exact(tape: list[Trade]) -> None:
    assert figures(footprint_of(tape).bar) == bar_by_the_book(tape)


@given(tapes(scales=SCALES), st.lists(st.integers(0, 50), max_size=4))
def test_adding_trades_in_batches_equals_adding_them_singly(tape: list[Trade], cuts: list[int]) -> None:
    edges = [0, *sorted(cut % (len(tape) + 1) for cut in cuts), len(tape)]
    footprint, bar = Footprint(SCALE), Bar(SCALE)
    for start, end in pairwise(edges):
        footprint.add(*tape[start:end])
        bar.add(*tape[start:end])
    expected = footprint_of(tape)
    assert (footprint.scale, figures(footprint.bar), cells_of(footprint)) == (expected.scale, figures(expected.bar), cells_of(expected))
    assert bar == footprint.bar


@given(tapes(scales=SCALES))
def test_a_bar_alone_and_the_bar_of_a_footprint_are_the_same(tape: list[Trade]) -> None:
    bar = Bar(SCALE)
    for one in tape:
        bar.add(one)
    assert bar == footprint_of(tape).bar


@given(tapes(scales=SCALES), st.randoms(use_true_random=False))
def test_the_order_of_arrival_changes_nothing_but_the_delta_path(tape: list[Trade], chance: random.Random) -> None:
    shuffled = list(tape)
    chance.shuffle(shuffled)
    arrived, ordered = footprint_of(shuffled), footprint_of(tape)
    assert arrived.cells == ordered.cells
    assert without_path(arrived.bar) == without_path(ordered.bar)
    if shuffled != tape:
        assert (arrived.bar.min_delta, arrived.bar.max_delta) == (None, None)


def test_the_initial_delta_of_zero_is_not_an_extreme() -> None:
    bar = footprint_of([trade(10, 4, "SELL", seq=1), trade(10, 1, "BUY", seq=2), trade(10, 2, "SELL", seq=3)]).bar
    assert (bar.min_delta, bar.max_delta, bar.delta) == (-5, -3, -5)


def test_a_late_trade_makes_the_delta_path_unknown_for_good() -> None:
    footprint = footprint_of([trade(10, 1, at=5, seq=5), trade(11, 1, at=7, seq=7)])
    footprint.add(trade(12, 9, "SELL", at=6, seq=6))
    footprint.add(trade(13, 1, at=8, seq=8))
    bar = footprint.bar
    assert (bar.open, bar.high, bar.low, bar.close) == (10, 13, 10, 13)
    assert (bar.min_delta, bar.max_delta, bar.delta) == (None, None, -6)


def test_a_late_first_trade_becomes_the_open() -> None:
    bar = footprint_of([trade(10, 1, at=5, seq=5), trade(11, 1, at=5, seq=4)]).bar
    assert (bar.open, bar.close, bar.first_seq, bar.last_seq) == (11, 10, 4, 5)


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_the_trades_of_one_event_are_one_step_of_the_path_whatever_their_order(order: tuple[int, ...]) -> None:
    event = [trade(10, 1, at=5, seq=5), trade(11, 3, at=5, seq=5), trade(12, 1, at=5, seq=5)]
    after = [trade(9, 2, "SELL", at=5, seq=6), trade(9, 4, "SELL", at=5, seq=6)]
    bar = footprint_of([*(event[place] for place in order), *after]).bar
    assert (bar.min_delta, bar.max_delta) == (-1, 5)


def test_a_late_trade_of_the_first_ones_time_and_seq_leaves_the_open() -> None:
    bar = footprint_of([trade(10, 1, at=5, seq=5), trade(12, 1, at=6, seq=6), trade(11, 1, at=5, seq=5)]).bar
    assert (bar.open, bar.close, bar.min_delta) == (10, 12, None)


def test_a_smaller_seq_at_a_later_time_is_in_order() -> None:
    bar = footprint_of([trade(10, 1, at=5, seq=9), trade(11, 1, at=6, seq=2)]).bar
    assert (bar.open, bar.close, bar.max_delta) == (10, 11, 2)


def test_fills_are_what_a_trade_count_sums() -> None:
    footprint = footprint_of([trade(10, 1, fills=4), trade(10, 1, "SELL", fills=3)])
    assert footprint.bar.trade_count == 7
    assert footprint.cells == {10: [1, 1, 4, 3]}


def test_a_finer_trade_rescales_the_footprint_and_a_coarser_one_is_rescaled() -> None:
    footprint = footprint_of([trade(10, 2), trade(1005, 2, seq=1, scale=Scale(3, 3)), trade(10, 1, seq=2)])
    assert footprint.scale == Scale(3, 3)
    assert footprint.cells == {1000: [30, 0, 2, 0], 1005: [2, 0, 1, 0]}
    assert footprint.bar.notional == 1000 * 30 + 1005 * 2


@pytest.mark.parametrize("finer", [Scale(0, 2), Scale(1, 1), Scale(9, 1)])
def test_a_rescaling_that_would_round_is_refused(finer: Scale) -> None:
    footprint = footprint_of([trade(10, 2)])
    for rescaled in (footprint.rescaled, footprint.bar.rescaled):
        with pytest.raises(ValueError, match="without rounding"):
            rescaled(finer)


@given(tapes())
def test_rescaling_keeps_every_figure(tape: list[Trade]) -> None:
    footprint = footprint_of(tape)
    finer = footprint.rescaled(Scale(4, 5))
    assert finer.scale == Scale(4, 5)
    assert figures(finer.bar) == figures(footprint.bar)
    assert finer.bar == footprint.bar.rescaled(Scale(4, 5))
    assert cells_of(finer) == cells_of(footprint)


@given(tapes(scales=SCALES), st.lists(st.integers(0, 40), max_size=6))
def test_consecutive_stretches_merge_into_what_the_whole_tape_gives(tape: list[Trade], cuts: list[int]) -> None:
    parts, whole = parts_of(tape, cuts), footprint_of(tape)
    assert reduce(Footprint.merge_later, parts) == whole
    assert Footprint.merge_consecutive(parts, SCALE) == whole
    assert reduce(Bar.merge_later, [part.bar for part in parts]) == whole.bar


@given(tapes(scales=SCALES, least=1), st.lists(st.integers(0, 60), max_size=5), st.integers(1, 40), st.booleans())
def test_a_merge_in_rows_has_the_sums_of_each_row_and_reads_back(tape: list[Trade], cuts: list[int], size: int, packed: bool) -> None:
    parts = parts_of(tape, cuts)
    if packed:
        parts = [Footprint.unpack(part.pack()) for part in parts]
    whole = Footprint.merge_consecutive(parts, SCALE)
    row = Decimal(size).scaleb(-SCALE.price)
    units = size * 10 ** (whole.scale.price - SCALE.price)
    rows: dict[int, list[int]] = {}
    for price, cell in whole.cells.items():
        row_cell = rows.setdefault(price - price % units, [0, 0, 0, 0])
        rows[price - price % units] = [one + two for one, two in zip(row_cell, cell, strict=True)]
    merged = Footprint.merge_consecutive(parts, SCALE, row=row)
    assert merged.cells == rows
    assert merged.bar == whole.bar
    assert Footprint.unpack(merged.pack(), row) == merged


@given(tapes(scales=SCALES), tapes(scales=SCALES), tapes(scales=SCALES), st.booleans())
def test_then_is_associative_even_where_a_path_is_unknown(first: list[Trade], second: list[Trade], third: list[Trade], late: bool) -> None:
    a, b, c = footprint_of(first), footprint_of(second[::-1] if late else second), footprint_of(third)
    assert a.merge_later(b).merge_later(c) == a.merge_later(b.merge_later(c))


@given(tapes())
def test_an_empty_stretch_changes_nothing(tape: list[Trade]) -> None:
    footprint, empty = footprint_of(tape), Footprint(SCALE)
    for merged in (
        footprint.merge_later(empty),
        empty.merge_later(footprint),
        footprint.merge_parallel(empty),
        empty.merge_parallel(footprint),
    ):
        assert merged == footprint
    assert Footprint.merge_consecutive([], SCALE) == empty


@given(tapes(least=1), tapes(least=1))
def test_an_unknown_path_stays_unknown_in_a_merge(first: list[Trade], second: list[Trade]) -> None:
    unknown, known = footprint_of(first), footprint_of(second)
    unknown.bar.min_delta = unknown.bar.max_delta = None
    for merged in (unknown.merge_later(known), known.merge_later(unknown)):
        assert (merged.bar.min_delta, merged.bar.max_delta) == (None, None)


@given(tapes(scales=SCALES), tapes(scales=SCALES))
def test_exchanges_beside_each_other_commute_where_their_times_differ(first: list[Trade], second: list[Trade]) -> None:
    one = footprint_of([msgspec.structs.replace(item, timestamp=item.timestamp * 2) for item in first])
    two = footprint_of([msgspec.structs.replace(item, timestamp=item.timestamp * 2 + 1) for item in second])
    merged = one.merge_parallel(two)
    assert merged == two.merge_parallel(one)
    assert cells_of(merged) == cells_by_the_book([*first, *second])
    assert merged.bar.delta == one.rescaled(merged.scale).bar.delta + two.rescaled(merged.scale).bar.delta
    if first and second:
        assert (merged.bar.min_delta, merged.bar.max_delta) == (None, None)


def test_beside_opens_with_the_exchange_that_traded_first_and_closes_with_the_last() -> None:
    one = footprint_of([trade(10, 1, at=3, seq=900), trade(11, 1, at=4, seq=901)])
    two = footprint_of([trade(20, 1, at=2, seq=1), trade(21, 1, at=9, seq=2)])
    bar = one.merge_parallel(two).bar
    assert (bar.open, bar.high, bar.low, bar.close, bar.first_at, bar.last_at, bar.last_seq) == (20, 21, 10, 21, 2, 9, 2)


def test_merge_parallel_prefers_its_own_bar_at_equal_times() -> None:
    one, two = footprint_of([trade(10, 1, at=3)]).bar, footprint_of([trade(20, 1, at=3)]).bar
    assert (one.merge_parallel(two).open, one.merge_parallel(two).close) == (10, 10)
    assert (two.merge_parallel(one).open, two.merge_parallel(one).close) == (20, 20)


@given(tapes(least=1), tapes(scales=SCALES))
def test_a_merge_shares_nothing_with_its_parts(first: list[Trade], second: list[Trade]) -> None:
    parts = [footprint_of(first), footprint_of(second)]
    before = deepcopy(parts)
    for merged in (
        parts[0].merge_later(parts[1]),
        parts[0].merge_parallel(parts[1]),
        Footprint.merge_consecutive(parts, SCALE),
        parts[0].rescaled(SCALE),
    ):
        for cell in merged.cells.values():
            cell[0] += 1
        merged.add(trade(7, 7, at=LARGE))
        assert parts == before


def test_footprints_are_equal_by_value() -> None:
    one, two = footprint_of([trade(10, 1)]), footprint_of([trade(10, 1)])
    assert one == two
    two.cells[10][3] = 1
    assert one != two
    assert one != "a footprint"
    assert "1 prices" in repr(one)


@given(tapes(largest=LARGE, scales=SCALES), st.booleans())
def test_what_is_packed_reads_back_equal(tape: list[Trade], late: bool) -> None:
    footprint = footprint_of(tape[::-1] if late else tape)
    assert Footprint.unpack(footprint.pack()) == footprint
    assert Bar.unpack(footprint.bar.pack()) == footprint.bar
    assert Footprint.unpack(footprint.pack()).pack() == footprint.pack()


@given(tapes(scales=SCALES), tapes(scales=SCALES), tapes(least=1))
def test_one_that_was_unpacked_merges_and_grows_as_the_one_that_was_packed(one: list[Trade], two: list[Trade], more: list[Trade]) -> None:
    first, second = footprint_of(one), footprint_of(two)
    again, other = (Footprint.unpack(footprint.pack()) for footprint in (first, second))
    assert (again.levels, other.levels) == (len(first.cells), len(second.cells))
    assert again.merge_later(other) == first.merge_later(second)
    assert again.merge_parallel(other) == first.merge_parallel(second)
    assert Footprint.merge_consecutive([again, other], SCALE) == Footprint.merge_consecutive([first, second], SCALE)
    given_up = [deepcopy(again), deepcopy(other)]
    assert Footprint.merge_consecutive(given_up, SCALE, give_up=True) == Footprint.merge_consecutive([first, second], SCALE)
    again.merge_parallel_in_place(other)
    assert again == first.merge_parallel(second)
    for each in more:
        other.add(each)
        second.add(each)
    assert other == second


def test_one_that_was_unpacked_takes_forty_bytes_a_price_until_its_cells_are_read() -> None:
    packed = footprint_of([trade(6_000_000 + price, 5_000 + price, seq=price) for price in range(2_000)]).pack()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        footprint = Footprint.unpack(packed)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 48 * footprint.levels


def test_a_packed_form_does_not_depend_on_the_order_of_arrival() -> None:
    tape = [trade(price, 1, seq=price) for price in (12, 10, 11)]
    one, two = footprint_of(tape), footprint_of(tape)
    two.cells = dict(sorted(two.cells.items()))
    assert one.pack() == two.pack()


def test_a_quiet_minute_packs_small() -> None:
    assert len(Footprint(SCALE).pack()) < 32
    assert len(footprint_of([trade(6_000_000 + price, 100, seq=price) for price in range(100)]).pack()) < 100 * 6


UNPACKERS: list[Callable[[bytes], object]] = [Footprint.unpack, Bar.unpack]


@pytest.mark.parametrize("unpack", UNPACKERS)
@given(data=st.binary(max_size=200))
def test_random_bytes_are_refused_in_one_line(unpack: Callable[[bytes], object], data: bytes) -> None:
    with pytest.raises(ValueError, match=r"\Aa packed [^\n]+\Z"):
        unpack(data)


@given(tapes(largest=2**70, least=1), st.data())
def test_damaged_bytes_are_never_more_than_a_value_error(tape: list[Trade], data: st.DataObject) -> None:
    footprint = footprint_of(tape)
    for whole, unpack in ((footprint.pack(), Footprint.unpack), (footprint.bar.pack(), Bar.unpack)):
        with pytest.raises(ValueError, match="a packed"):
            unpack(whole[: data.draw(st.integers(0, len(whole) - 1))])
        with pytest.raises(ValueError, match="a packed"):
            unpack(whole + b"\x00")
        damaged = bytearray(whole)
        damaged[data.draw(st.integers(0, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
        try:
            unpack(bytes(damaged))
        except ValueError as error:
            assert "\n" not in str(error)  # noqa: PT017


def test_a_footprint_of_another_version_is_refused_by_name() -> None:
    version, *rest = msgspec.msgpack.decode(footprint_of([trade(10, 1)]).pack())
    assert version == VERSION
    with pytest.raises(ValueError, match=f"has version 9; this release reads version {VERSION}"):
        Footprint.unpack(msgspec.msgpack.encode([9, *rest]))


PRICES, BUYS, COUNTS = 1, 2, 4


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        (PRICES, [10, 0], "ascend"),
        (PRICES, [10, -1], "ascend"),
        (PRICES, [10, 2], "add up"),
        (PRICES, [9, 2], "add up"),
        (PRICES, [10], "1 prices"),
        (BUYS, [5, -1], "negative"),
        (BUYS, [2, 3], "add up"),
        (COUNTS, [1, 0], "add up"),
        (BUYS, [1, b"\x01" * 129], "129 bytes"),
        (BUYS, [1, "3"], "Expected `int"),
        (BUYS, [1, 3.0], "Expected `int"),
        (0, [0, 0], "2 figures, expected 16"),
        (0, [300, 2, *[None] * 4, *[0] * 4, None, None, *[0] * 4], "decimals"),
        (0, [1, 2, *[None] * 4, 4, *[0] * 3, None, None, *[0] * 4], "without prices"),
        (0, [None, 2, *[None] * 4, *[0] * 4, None, None, *[0] * 4], "Expected `int`"),
    ],
)
def test_a_footprint_that_contradicts_itself_is_refused(column: int, value: list[object], reason: str) -> None:
    version, content = msgspec.msgpack.decode(footprint_of([trade(10, 1), trade(11, 3, seq=1)]).pack())
    content[column] = value
    with pytest.raises(ValueError, match=reason):
        Footprint.unpack(msgspec.msgpack.encode([version, content]))


def test_deep_nesting_is_refused() -> None:
    for unpack in UNPACKERS:
        with pytest.raises(ValueError, match="a packed"):
            unpack(b"\x92\x01" + b"\x91" * 100_000 + b"\x00")
