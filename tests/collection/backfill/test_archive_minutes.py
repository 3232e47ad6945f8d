from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from types import MappingProxyType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wadm_mcp.analytics.footprint import Footprint
from wadm_mcp.collection.backfill import archive_minutes, archive_order
from wadm_mcp.collection.backfill.archive_minutes import PackedPartial, Pauses, bounded, by_id, by_minute, counted_minutes, whole_minutes
from wadm_mcp.collection.backfill.archive_order import OutOfOrder, SortedRows
from wadm_mcp.collection.disk_reserve import DiskReserve
from wadm_mcp.coverage.spans import Basis, Span
from wadm_mcp.errors import ArchiveError
from wadm_mcp.exchanges.binance_archive import BinanceAggregates, BinanceSpotTrades
from wadm_mcp.exchanges.bybit_archive import BybitLinearTrades, BybitSpotTrades
from wadm_mcp.model import DAY, MINUTE, SECOND, Instrument, Listing, Trade, TradeType, Window
from wadm_mcp.storage.store import WHOLE

START = 1_784_851_200_000
"""2026-07-24T00:00Z."""
TODAY = Window(START, START + DAY)
SPOT = Listing(Instrument("binance", "spot", "BTCUSDT"), Decimal("0.01"), Decimal("0.00001"))
LINEAR = Listing(Instrument("binance", "linear", "BTCUSDT"), Decimal("0.1"), Decimal("0.001"))
BYBIT = Listing(Instrument("bybit", "linear", "BTCUSDT"), Decimal("0.1"), Decimal("0.001"))
BYBIT_SPOT = Listing(Instrument("bybit", "spot", "BTCUSDT"), Decimal("0.1"), Decimal("0.000001"))


def spot_line(number: int, at: int, *, price: str = "61837.63000000", sold: bool = False) -> str:
    return f"{number},{price},0.00100000,61.83763000,{at * 1000},{sold},True\n"


def spot_partials(lines: Iterable[str], covered: Sequence[Span] = ()) -> list[PackedPartial]:
    return list(counted_minutes(SPOT, BinanceSpotTrades().rows(SPOT, lines), TODAY, covered))


def span(first: int, last: int, start: int, end: int) -> Span:
    return Span(start, end, first, last, Basis.EXACT)


def test_a_day_becomes_a_partial_footprint_for_each_minute() -> None:
    partials = spot_partials([spot_line(7, START), spot_line(8, START + 59_999, sold=True), spot_line(9, START + MINUTE)])
    assert [(one.minute, one.first_seq, one.last_seq, one.trades) for one in partials] == [(START, 7, 8, 2), (START + MINUTE, 9, 9, 1)]
    bar = partials[0].unpack(SPOT).footprint.bar
    assert (bar.first_seq, bar.last_seq, bar.min_delta, bar.max_delta, bar.delta) == (7, 8, 0, 100, 0)


def test_a_hole_in_a_file_stays_a_hole_and_a_repeated_row_counts_once() -> None:
    lines = [spot_line(7, START), spot_line(7, START), spot_line(9, START + 1), spot_line(10, START + 3)]
    assert [(one.first_seq, one.last_seq, one.trades) for one in spot_partials(lines)] == [(7, 7, 1), (9, 10, 2)]


@pytest.mark.parametrize("form", [BinanceSpotTrades(), BybitLinearTrades()])
def test_a_minute_of_more_prices_or_trades_than_any_has_is_refused(
    form: BinanceSpotTrades | BybitLinearTrades, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive_minutes, "_MAX_LEVELS", 50)
    monkeypatch.setattr(archive_minutes, "_MAX_OPEN_TRADES", 50)
    spot = isinstance(form, BinanceSpotTrades)

    def read(minutes: int) -> list[PackedPartial]:
        """51 rows, each of another price, in turn in each of some minutes."""
        places = sorted(range(51), key=lambda number: number % minutes) if spot else range(51)
        at = {number: START + number % minutes * MINUTE for number in range(51)}
        lines = [
            spot_line(7 + place, at[number], price=f"{61_000 + number}")
            if spot
            else f"{at[number] / 1000},BTCUSDT,Buy,1,{61_000 + number},PlusTick,id-{number}\n"
            for place, number in enumerate(places)
        ]
        if spot:
            return list(counted_minutes(SPOT, form.rows(SPOT, lines), TODAY, ()))
        return list(whole_minutes(BYBIT, form.rows(BYBIT, lines), TODAY, range(START, START + DAY, MINUTE), {}))

    with pytest.raises(ArchiveError, match=r"its minute has more than 50 (prices|trades), which no minute has"):
        read(1)
    if spot:
        assert len(read(2)) == 2
    else:
        with pytest.raises(ArchiveError, match="more than 50 trades"):
            read(2)


def test_minutes_that_are_interrupted_without_end_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive_minutes, "_MAX_PACKED_BYTES", 100_000)
    alternating = [spot_line(number, START + number % 2 * MINUTE) for number in range(1_000)]
    with pytest.raises(ArchiveError, match="more prices or more interruptions than any day has"):
        bounded(SPOT, counted_minutes(SPOT, BinanceSpotTrades().rows(SPOT, alternating), TODAY, ()))


def test_a_row_below_the_one_before_is_out_of_order_and_never_dropped() -> None:
    with pytest.raises(OutOfOrder, match="the ids 8 to 8 overlap the ids 9 to 9 of another row"):
        spot_partials([spot_line(7, START), spot_line(9, START + 1), spot_line(8, START + 2)])


def test_rows_without_volume_cover_their_ids_and_are_part_of_no_figure() -> None:
    empty = spot_line(8, START + 1, price="0").replace(",0.00100000,", ",0.00000000,")
    (partial,) = spot_partials([spot_line(7, START), empty, spot_line(9, START + 2, sold=True)])
    bar = partial.unpack(SPOT).footprint.bar
    assert (partial.first_seq, partial.last_seq, partial.trades, bar.volume, bar.low) == (7, 9, 2, 200, 6_183_763)
    (alone,) = spot_partials([empty])
    ids = alone.unpack(SPOT).ids
    assert (ids, alone.trades, alone.unpack(SPOT).footprint.levels) == ((8, 8, START + 1, START + 1), 0, 0)


@settings(max_examples=25)
@given(st.randoms(use_true_random=False), st.integers(1, 60), st.integers(0, 20))
def test_a_shuffled_file_gives_what_a_sorted_one_gives(chance: Random, count: int, repeats: int) -> None:
    rows = [spot_line(7 + number, START + number * 700) for number in range(count)]
    shuffled = [*rows, *chance.choices(rows, k=repeats)]
    chance.shuffle(shuffled)
    with (
        TemporaryDirectory() as folder,
        SortedRows(SPOT, BinanceSpotTrades().rows(SPOT, shuffled), by_id, Path(folder), DiskReserve(Path(folder), 0)) as ordered,
    ):
        assert list(counted_minutes(SPOT, ordered, TODAY, [])) == spot_partials(rows)


def test_rows_of_several_runs_come_out_in_order_each_time_they_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive_order, "RUN_ROWS", 7)
    monkeypatch.setattr(archive_order, "_BLOCK_ROWS", 3)
    rows = list(BinanceSpotTrades().rows(SPOT, [spot_line(number * 37 % 100, START + number) for number in range(100)]))
    with SortedRows(SPOT, rows, by_id, tmp_path, DiskReserve(tmp_path, 0)) as ordered:
        assert list(ordered) == list(ordered) == sorted(rows, key=by_id)
        assert list(zip(ordered, ordered, strict=True))[-1][0].trade.seq == 99
    assert list(tmp_path.iterdir()) == []


def test_rows_of_one_minute_stay_in_the_files_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive_order, "RUN_ROWS", 4)
    lines = [linear_line(START + minute * MINUTE, f"id-{place}") for place, minute in enumerate((0, 1, 2, 3, 0, 2, 0, 1, 0))]
    with SortedRows(BYBIT, BybitLinearTrades().rows(BYBIT, lines), by_minute, tmp_path, DiskReserve(tmp_path, 0)) as ordered:
        assert [row.trade.trade_id for row in ordered] == [f"id-{place}" for place in (0, 4, 6, 8, 1, 7, 2, 5, 3)]


def test_two_rows_that_contradict_each_other_refuse_a_sorted_file(tmp_path: Path) -> None:
    form = BinanceAggregates("spot")
    lines = [f"{n},61837.63,0.002,{first},{last},{START * 1000},False,True\n" for n, first, last in ((2, 9, 12), (1, 7, 9))]
    said = "binance:spot:BTCUSDT archive: the ids 9 to 12 overlap the ids 7 to 9 of another row"
    with (
        SortedRows(SPOT, form.rows(SPOT, lines), by_id, tmp_path, DiskReserve(tmp_path, 0)) as ordered,
        pytest.raises(ArchiveError, match=said),
    ):
        list(counted_minutes(SPOT, ordered, TODAY, []))


def test_ids_that_are_covered_already_are_left_out() -> None:
    covered = [span(3, 4, START - 9, START - 1), span(8, 9, START + 1, START + 2), span(12, 99, START + 5, START + 9)]
    lines = [spot_line(7 + number, START + number) for number in range(8)]
    assert [(one.first_seq, one.last_seq) for one in spot_partials(lines, covered)] == [(7, 7), (10, 11)]


@given(
    st.sets(st.integers(0, 300), min_size=1), st.lists(st.tuples(st.integers(0, 300), st.integers(0, 40)), max_size=5), st.integers(0, 9)
)
def test_every_id_of_the_file_that_is_not_covered_is_in_one_partial(ids: set[int], runs: list[tuple[int, int]], repeats: int) -> None:
    def at(number: int) -> int:
        return START + number * 700

    known = {number for first, length in runs for number in range(first, first + length)}
    edges = sorted(number for number in known if number - 1 not in known), sorted(number for number in known if number + 1 not in known)
    covered = [span(first, last, at(first), at(last)) for first, last in zip(*edges, strict=True)]
    rows = sorted(ids)
    lines = [spot_line(number, at(number)) for number in sorted([*rows, *rows[:repeats]])]
    partials = spot_partials(lines, covered)
    new = [number for one in partials for number in range(one.first_seq, one.last_seq + 1)]
    assert new == [number for number in rows if number not in known]
    assert sum(one.trades for one in partials) == len(new)
    assert all(one.minute <= at(number) < one.minute + MINUTE for one in partials for number in (one.first_seq, one.last_seq))


def test_aggregates_of_spot_are_joined_by_the_ids_of_their_fills() -> None:
    lines = [
        f"1,61837.63,0.002,7,8,{START * 1000},False,True\n",
        f"2,61837.64,0.001,9,9,{(START + 1) * 1000},True,True\n",
        f"3,61837.64,0.001,10,12,{(START + 2) * 1000},True,True\n",
    ]
    rows = BinanceAggregates("spot").rows(SPOT, lines)
    partials = list(counted_minutes(SPOT, rows, TODAY, [span(12, 20, START + 2, START + 9)]))
    assert [(one.first_seq, one.last_seq, one.trades) for one in partials] == [(7, 9, 3)]
    # The lowest delta may have been after the first fill of the first aggregate, which is unknown.
    assert partials[0].unpack(SPOT).footprint.bar.min_delta is None


def test_rows_of_binance_linear_are_those_of_its_socket_so_their_delta_path_is_known() -> None:
    lines = [
        "agg_trade_id,price,quantity,first_trade_id,last_trade_id,transact_time,is_buyer_maker\n",
        f"5,61837.6,0.002,70,78,{START},false\n",
        f"6,61837.5,0.001,90,90,{START + 1},true\n",
    ]
    (partial,) = counted_minutes(LINEAR, BinanceAggregates("linear").rows(LINEAR, lines), TODAY, [])
    bar = partial.unpack(LINEAR).footprint.bar
    assert (partial.first_seq, partial.last_seq, partial.trades, bar.min_delta, bar.max_delta) == (5, 6, 10, 1, 2)


@pytest.mark.parametrize("at", [START - 1, START + DAY])
def test_a_row_of_another_day_is_refused(at: int) -> None:
    with pytest.raises(ArchiveError, match=r"binance:spot:BTCUSDT archive, row 1: its time .* is not on the day in the file's name"):
        spot_partials([spot_line(7, at)])
    with pytest.raises(ArchiveError, match="is not on the day in the file's name"):
        bybit_partials([linear_line(at, "a")], {START})


@pytest.mark.parametrize("number", [5, 5_000])
def test_an_id_whose_time_does_not_fit_the_tape_is_of_another_symbol(number: int) -> None:
    covered = [span(1_000, 2_000, START + 6 * MINUTE, START + 9 * MINUTE)]
    at = START + 10 * MINUTE if number < 1_000 else START
    with pytest.raises(
        ArchiveError,
        match=rf"id {number} has the time \d+ ms, but must be (after|before) \d+ by the recorded ids around it; use a file of this symbol",
    ):
        spot_partials([spot_line(number, at)], covered)


def linear_line(at: int, trade_id: str, *, side: str = "Buy", price: str = "61837.6") -> str:
    return f"{at / 1000:.4f},BTCUSDT,{side},0.002,{price},PlusTick,{trade_id},1,0.002,123.6,0\n"


def bybit_partials(
    lines: Iterable[str], wanted: set[int], tape_trades: Mapping[int, Sequence[Trade]] = MappingProxyType({})
) -> list[PackedPartial]:
    return list(whole_minutes(BYBIT, BybitLinearTrades().rows(BYBIT, lines), TODAY, wanted, tape_trades))


def bybit_trade(at: int, trade_id: str, price: int = 618_380) -> Trade:
    return Trade(BYBIT.instrument, at, at, trade_id, price, 2, TradeType.SELL, 1, BYBIT.scale)


def test_rows_without_counting_ids_become_the_wanted_minutes_each_complete() -> None:
    lines = [linear_line(START + second * SECOND, f"id-{second}") for second in range(0, 300, 10)]
    partials = bybit_partials(lines, {START + MINUTE, START + 3 * MINUTE, START + 9 * MINUTE})
    assert [(one.minute, one.first_seq, one.last_seq, one.trades) for one in partials] == [
        (START + MINUTE, WHOLE, WHOLE, 6),
        (START + 3 * MINUTE, WHOLE, WHOLE, 6),
    ]


def test_a_file_in_newest_first_order_gives_the_same_minutes() -> None:
    lines = [
        linear_line(START + second * SECOND, f"id-{second}", side="Sell" if second % 3 else "Buy", price=f"{61_837 + second % 7}.0")
        for second in range(0, 300, 7)
    ]
    wanted = {START + minute * MINUTE for minute in range(5)}
    forward = bybit_partials(lines, wanted)
    assert sorted(bybit_partials(lines[::-1], wanted)) == forward
    assert len(forward) == 5


def test_a_linear_minute_is_joined_with_the_tape_by_trade_id() -> None:
    lines = [linear_line(START, "a"), linear_line(START + 500, "b")]
    tape_trades = {START: [bybit_trade(START + 500, "b"), bybit_trade(START + 100, "c")]}
    (partial,) = bybit_partials(lines, {START}, tape_trades)
    expected = Footprint(BYBIT.scale)
    rows = list(BybitLinearTrades().rows(BYBIT, lines))
    for trade in (rows[0].trade, bybit_trade(START + 100, "c"), rows[1].trade):
        expected.add(trade)
    assert partial.unpack(BYBIT).footprint == expected


def test_a_repeated_row_counts_once_where_ids_do_not_count() -> None:
    spot = ["id,timestamp,price,volume,side,rpi\n", *(f"{row},{START + 5},61837.6,0.000001,buy,0\n" for row in (1, 2, 2, 3))]
    (partial,) = whole_minutes(BYBIT_SPOT, BybitSpotTrades().rows(BYBIT_SPOT, spot), TODAY, {START}, {})
    assert partial.trades == 3


@pytest.mark.parametrize("field", ["price", "side", "at"])
def test_two_trades_of_one_id_refuse_the_file(field: str) -> None:
    first = linear_line(START, "a")
    other = {
        "price": linear_line(START, "a", price="61838.0"),
        "side": linear_line(START, "a", side="Sell"),
        "at": linear_line(START + 5, "a"),
    }
    with pytest.raises(ArchiveError, match="row 2: an earlier row has its id 'a' and is another trade"):
        bybit_partials([first, other[field]], {START})


def _suspect(times: Iterable[float], *, newest_first: bool) -> set[int]:
    """The suspect minutes of a file with trades at these seconds of the day, by number."""
    lines = [linear_line(START + round(second * SECOND), f"id-{place}") for place, second in enumerate(times)]
    pauses = Pauses(BYBIT, list(BybitLinearTrades().rows(BYBIT, lines[::-1] if newest_first else lines)))
    for _ in range(2):
        assert len(list(pauses)) == len(lines)
    return {(minute - START) // MINUTE for minute in pauses.suspect(TODAY)}


@pytest.mark.parametrize("newest_first", [False, True])
def test_a_day_without_the_pauses_of_its_pace_is_suspect_where_the_file_has_nothing(newest_first: bool) -> None:
    day = range(0, 86_400, 20)
    assert _suspect(day, newest_first=newest_first) == set()
    cut = range(0, 36_000, 20)
    assert _suspect(cut, newest_first=newest_first) == set(range(599, 1_440))
    late = range(36_000, 86_400, 20)
    assert _suspect(late, newest_first=newest_first) == set(range(600))
    holed = [*range(0, 30_000, 20), *range(60_000, 86_400, 20)]
    assert _suspect(holed, newest_first=newest_first) == set(range(499, 1_000))


def test_a_pause_of_minutes_and_the_quiet_of_a_quiet_instrument_are_not_suspect() -> None:
    paused = [*range(0, 30_000, 20), *range(30_540, 86_400, 20)]
    assert _suspect(paused, newest_first=False) == set()
    assert _suspect([3_000, 40_000, 80_000], newest_first=False) == set()
    dice = Random(6)
    assert _suspect(sorted(dice.uniform(0, 86_400) for _ in range(48)), newest_first=False) == set()


def test_a_file_without_rows_is_refused() -> None:
    with pytest.raises(ArchiveError, match="it has no trades; download it again"):
        _suspect([], newest_first=False)


def test_minutes_out_of_time_order_are_sorted_first(tmp_path: Path) -> None:
    lines = [linear_line(START + minute * MINUTE, f"id-{place}") for place, minute in enumerate((0, 1, 2, 3, 0))]
    with pytest.raises(OutOfOrder, match="row 5: out of time order by minutes"):
        bybit_partials(lines, {START})
    with SortedRows(BYBIT, BybitLinearTrades().rows(BYBIT, lines), by_minute, tmp_path, DiskReserve(tmp_path, 0)) as ordered:
        (partial,) = whole_minutes(BYBIT, ordered, TODAY, {START}, {})
    assert (partial.minute, partial.trades) == (START, 2)


def test_a_minute_of_rows_without_volume_alone_has_no_footprint() -> None:
    assert bybit_partials([linear_line(START, "a").replace(",0.002,", ",0,", 1)], {START}) == []


@pytest.mark.parametrize("newest_first", [False, True])
@pytest.mark.parametrize(
    ("bad", "expected"),
    [
        # Between two rows of one minute; between two minutes; after the last row.
        (3, {1}),
        (8, {1, 2, 3, 4}),
        (16, {6, *range(7, 1_440)}),
    ],
)
def test_the_minutes_to_which_an_unreadable_line_may_belong_are_left_out(bad: int, expected: set[int], newest_first: bool) -> None:
    # Four rows a minute, in the minutes 0, 1, 4 and 6 of the day.
    lines = [linear_line(START + minute * MINUTE + part * 15_000, f"id-{minute}-{part}") for minute in (0, 1, 4, 6) for part in range(4)]
    place = {3: 5, 8: 8, 16: 16}[bad]
    lines.insert(place, "a line that cannot be read\n")
    if newest_first:
        lines.reverse()
        # What follows the last row of such a file is earlier than it.
        lines = lines if bad != 16 else [*lines[1:], lines[0]]
        expected = expected if bad != 16 else {0}
    bad_lines: list[ArchiveError] = []
    spoiled: set[int] = set()
    rows = BybitLinearTrades().rows(BYBIT, lines, bad_lines.append)
    wanted = range(START, START + DAY, MINUTE)
    found = {one.minute for one in whole_minutes(BYBIT, rows, TODAY, wanted, {}, bad_lines, spoiled)}
    assert {(minute - START) // MINUTE for minute in spoiled} == expected
    assert found == {START + minute * MINUTE for minute in {0, 1, 4, 6} - expected}
