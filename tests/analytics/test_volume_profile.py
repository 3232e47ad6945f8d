"""Profiles: golden vectors, an oracle of POC and value area, and what no other way of asking may change."""

from __future__ import annotations

from decimal import Decimal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wadm_mcp.analytics import volume_profile as analytics
from wadm_mcp.analytics.footprint import Bar, Footprint
from wadm_mcp.analytics.volume_profile import (
    MAX_ROWS,
    Method,
    VolumeProfile,
    default_row,
    point_of_control,
    row_count,
    smallest_row,
    value_area,
    volume_profile,
    vwap,
)
from wadm_mcp.model import Scale, Trade

from . import oracles
from .oracles import SCALE, SCALES, footprint_of, tapes, trade

METHODS: tuple[Method, Method] = ("two_row", "one_row")
volumes_of_rows = st.lists(st.integers(0, 30), min_size=1, max_size=40) | st.lists(st.integers(0, 10**30), min_size=1, max_size=12)
percents = st.integers(1, 100)


def profile_of(tape: list[Trade], row: int = 1, percent: int = 70, method: Method = "two_row") -> VolumeProfile:
    profile = volume_profile(footprint_of(tape), tick=1, row=row, percent=percent, method=method)
    assert profile is not None
    return profile


@pytest.mark.parametrize(
    ("volumes", "poc", "two_row", "one_row"),
    [
        ([7], 0, (0, 0), (0, 0)),
        ([5, 10, 20, 40, 15, 5, 5], 3, (1, 3), (2, 4)),
        ([45, 20, 20, 60, 40, 45, 45], 3, (1, 6), (2, 6)),
        ([10, 30, 10, 35, 15, 5, 25], 3, (1, 5), (0, 4)),
        ([30, 50, 10, 12, 20], 1, (0, 3), (0, 2)),
        ([10, 0, 40, 0, 0, 30], 2, (0, 5), (2, 5)),
        ([4, 6, 40, 7, 3, 15], 2, (2, 5), (1, 3)),
        ([4, 4], 0, (0, 1), (0, 1)),
        ([10**20, 3 * 10**20, 10**20], 1, (1, 2), (1, 2)),
        ([1] * 10, 4, (2, 8), (3, 9)),
    ],
)
def test_profiles_match_the_golden_vectors(volumes: list[int], poc: int, two_row: tuple[int, int], one_row: tuple[int, int]) -> None:
    assert point_of_control(volumes) == poc
    assert value_area(volumes, poc) == two_row
    assert value_area(volumes, poc, method="one_row") == one_row


@pytest.mark.parametrize(
    ("volumes", "poc"),
    [([5, 0, 5, 0, 0], 2), ([5, 0, 0, 5, 0], 3), ([5, 1, 1, 5], 0), ([0, 5, 5, 0], 1), ([5, 0, 0, 0, 5, 5, 0], 4)],
)
def test_equal_rows_give_the_poc_nearest_to_the_middle_then_the_lower(volumes: list[int], poc: int) -> None:
    assert point_of_control(volumes) == poc


@given(volumes_of_rows)
def test_the_poc_agrees_with_a_second_coding(volumes: list[int]) -> None:
    assert point_of_control(volumes) == oracles.point_of_control(volumes)


@given(volumes_of_rows, st.data(), percents)
def test_the_value_area_agrees_with_a_second_coding(volumes: list[int], data: st.DataObject, percent: int) -> None:
    poc = data.draw(st.integers(0, len(volumes) - 1))
    for method, together in zip(METHODS, (2, 1), strict=True):
        low, high = value_area(volumes, poc, percent, method)
        assert set(range(low, high + 1)) == oracles.value_area(volumes, poc, percent, together)


@given(volumes_of_rows, percents, st.integers(1, 10**20), st.sampled_from(METHODS))
def test_scaling_every_volume_moves_no_level(volumes: list[int], percent: int, factor: int, method: Method) -> None:
    scaled = [volume * factor for volume in volumes]
    poc = point_of_control(volumes)
    assert point_of_control(scaled) == poc
    assert value_area(scaled, poc, percent, method) == value_area(volumes, poc, percent, method)


@given(volumes_of_rows, percents, st.integers(1, 10**6), st.sampled_from(METHODS))
def test_more_volume_at_the_poc_never_widens_the_value_area(volumes: list[int], percent: int, more: int, method: Method) -> None:
    poc = point_of_control(volumes)
    low, high = value_area(volumes, poc, percent, method)
    volumes[poc] += more
    assert point_of_control(volumes) == poc
    narrower_low, narrower_high = value_area(volumes, poc, percent, method)
    assert low <= narrower_low <= narrower_high <= high


@given(tapes(least=1), st.sampled_from((1, 2, 5, 7)), percents, st.sampled_from(METHODS))
def test_a_profile_agrees_with_its_tape_read_by_the_book(tape: list[Trade], row: int, percent: int, method: Method) -> None:
    profile = profile_of(tape, row, percent, method)
    lows = [one.price // row * row for one in tape]
    rows = list(range(min(lows), max(lows) + 1, row))
    volumes = [sum(one.quantity for one, low in zip(tape, lows, strict=True) if low == price) for price in rows]
    poc = oracles.point_of_control(volumes)
    area = oracles.value_area(volumes, poc, percent, 2 if method == "two_row" else 1)
    assert (profile.poc, profile.val, profile.vah) == (rows[poc], rows[min(area)], rows[max(area)] + row - 1)
    assert {node.price: node.volume for node in profile.nodes} == {
        price: volume for price, volume in zip(rows, volumes, strict=True) if volume
    }
    assert [node.price for node in profile.nodes] == sorted(set(lows))


@given(tapes(least=1, scales=SCALES), st.integers(1, 2000))
def test_at_every_row_size_nothing_is_lost(tape: list[Trade], row: int) -> None:
    footprint = footprint_of(tape)
    profile = volume_profile(footprint, tick=1, row=row)
    assert profile is not None
    quantities = sum(oracles.quantity_of(one) for one in tape) * 10**profile.scale.quantity
    assert sum(node.volume for node in profile.nodes) == profile.volume == footprint.bar.volume == quantities
    assert sum(node.buy_volume - node.sell_volume for node in profile.nodes) == profile.delta == footprint.bar.delta
    assert sum(node.trade_count for node in profile.nodes) == profile.trade_count == sum(one.fills for one in tape)


@given(tapes(least=1), st.integers(1, 9), st.integers(1, 9))
def test_rows_of_rows_are_the_larger_rows(tape: list[Trade], k: int, m: int) -> None:
    again = Footprint(SCALE)
    again.bar = footprint_of(tape).bar
    for node in profile_of(tape, k).nodes:
        again.cells[node.price] = [node.buy_volume, node.sell_volume, node.trade_count, 0]
    assert volume_profile(again, tick=1, row=k * m) == profile_of(tape, k * m)


@given(tapes(least=1), st.sampled_from((1, 3, 10)), st.integers(1, 1000), st.sampled_from(METHODS))
def test_a_shift_by_whole_rows_shifts_every_level_alike(tape: list[Trade], row: int, rows: int, method: Method) -> None:
    shift = row * rows
    before = profile_of(tape, row, method=method)
    after = profile_of([msgspec.structs.replace(one, price=one.price + shift) for one in tape], row, method=method)
    assert (after.poc, after.vah, after.val) == (before.poc + shift, before.vah + shift, before.val + shift)
    assert after.nodes == tuple(node._replace(price=node.price + shift) for node in before.nodes)


def test_a_row_is_named_by_its_low_price_and_vah_is_its_top_tick() -> None:
    profile = volume_profile(footprint_of([trade(103, 9), trade(111, 1)]), tick=2, row=10)
    assert profile is not None
    assert (profile.poc, profile.val, profile.vah) == (100, 100, 108)
    assert [node.price for node in profile.nodes] == [100, 110]


def test_nothing_traded_is_no_profile() -> None:
    assert volume_profile(Footprint(SCALE), tick=1) is None
    assert volume_profile(Footprint(SCALE), tick=1, row=5) is None


@pytest.mark.parametrize(
    ("tick", "row", "percent", "reason"),
    [
        (5, 12, 70, r"a row of 1\.2 is not a positive multiple of the tick 0\.5"),
        (5, 0, 70, "not a positive multiple"),
        (5, -5, 70, "not a positive multiple"),
        (0, None, 70, "above 0"),
        (1, None, 0, "0 percent is outside 1 to 100"),
        (1, None, 101, "101 percent"),
    ],
)
def test_arguments_that_make_no_profile_are_named(tick: int, row: int | None, percent: int, reason: str) -> None:
    for footprint in (footprint_of([trade(10, 1)]), Footprint(SCALE)):
        with pytest.raises(ValueError, match=reason):
            volume_profile(footprint, tick=tick, row=row, percent=percent)


def test_too_many_rows_are_refused_with_a_row_that_would_do() -> None:
    footprint = footprint_of([trade(1, 1), trade(10_000_000, 1)])
    with pytest.raises(
        ValueError, match=r"a row of 0\.1 divides this window into 10000000 rows, at most 200000 are allowed; use 5\.1 or more"
    ):
        volume_profile(footprint, tick=1, row=1)
    assert volume_profile(footprint, tick=1, row=51) is not None


@given(st.integers(0, 10**18), st.integers(0, 10**18), st.integers(1, 10**6), st.integers(0, 10**6))
def test_every_row_size_from_the_smallest_up_is_accepted(low: int, spread: int, tick: int, wider: int) -> None:
    row = smallest_row(low, low + spread, tick) + wider * tick
    assert row % tick == 0
    assert row_count(low, low + spread, row) <= MAX_ROWS


def test_a_hostile_far_price_costs_resolution_and_not_memory() -> None:
    profile = volume_profile(footprint_of([trade(100, 5), trade(2**63 - 1, 1)]), tick=1)
    assert profile is not None
    assert profile.poc == 0
    assert row_count(100, 2**63 - 1, profile.row) <= 101


@pytest.mark.parametrize(
    ("low", "high", "tick", "row"),
    [
        (500, 500, 1, 1),
        (0, 100, 1, 1),
        (0, 101, 1, 2),
        (0, 201, 1, 5),
        (0, 500, 1, 5),
        (0, 501, 1, 10),
        (0, 100_001, 50, 2500),
        (7, 8, 25, 25),
    ],
)
def test_the_default_row_is_the_smallest_round_one_with_a_hundred_rows(low: int, high: int, tick: int, row: int) -> None:
    assert default_row(low, high, tick) == row


@given(st.integers(0, 10**18), st.integers(0, 10**18), st.integers(1, 10**6), st.integers(1, 300))
def test_a_default_row_cuts_into_no_more_rows_than_asked_for(low: int, spread: int, tick: int, rows: int) -> None:
    row = default_row(low, low + spread, tick, rows)
    assert row % tick == 0
    assert spread <= rows * row
    assert row_count(low, low + spread, row) <= rows + 2
    assert str(row // tick).rstrip("0") in {"1", "2", "5"}
    # The next smaller round row is never less than two fifths of this one, and would be too small.
    assert row == tick or spread * 5 > rows * row * 2


def test_vwap_is_rounded_once_half_to_even() -> None:
    exact = footprint_of([trade(10, 1), trade(11, 1)]).bar
    assert vwap(exact) == Decimal("1.050")
    assert vwap(Bar(SCALE)) is None
    # 0.0625 and 0.1875 lie half way at three decimals.
    assert str(vwap(Bar(Scale(1, 0), notional=10, buy_volume=16))) == "0.062"
    assert str(vwap(Bar(Scale(1, 0), notional=30, buy_volume=16))) == "0.188"


@given(tapes(least=1, largest=2**80, scales=SCALES))
def test_vwap_agrees_with_long_division(tape: list[Trade]) -> None:
    footprint = footprint_of(tape)
    bar = footprint.bar
    wanted = oracles.ratio(bar.notional, bar.volume * 10**bar.scale.price, bar.scale.price + 2)
    assert vwap(bar) == wanted
    profile = volume_profile(footprint, tick=1)
    assert profile is not None
    assert vwap(profile) == wanted


@given(tapes(least=1, largest=2**80, scales=SCALES), st.sampled_from(METHODS))
def test_a_packed_profile_reads_back_equal(tape: list[Trade], method: Method) -> None:
    profile = volume_profile(footprint_of(tape), tick=1, method=method)
    assert profile is not None
    assert VolumeProfile.unpack(profile.pack()) == profile


@given(tapes(least=1), st.data())
def test_damaged_bytes_are_never_more_than_a_value_error(tape: list[Trade], data: st.DataObject) -> None:
    whole = profile_of(tape).pack()
    with pytest.raises(ValueError, match="a packed"):
        VolumeProfile.unpack(whole[: data.draw(st.integers(0, len(whole) - 1))])
    damaged = bytearray(whole)
    damaged[data.draw(st.integers(0, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        VolumeProfile.unpack(bytes(damaged))
    except ValueError as error:
        assert "\n" not in str(error)  # noqa: PT017


@given(st.binary(max_size=200))
def test_random_bytes_are_no_profile(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"\Aa packed [^\n]+\Z"):
        VolumeProfile.unpack(data)


@pytest.mark.parametrize(
    ("part", "value", "reason"),
    [
        (1, [2, 5, "two_row", 70, 0, 0, 0, 4, 1, 3, 2, 0], "not a positive multiple"),
        (1, [1, 1, "three_row", 70, 0, 0, 0, 4, 1, 3, 2, 0], "three_row"),
        (1, [1, 1, "two_row", 70, 0, 0, 0, 5, 1, 3, 2, 0], "add up"),
        (1, [1, 1, "two_row", 70, 0, 0, 0, 5, 2, 3, 2, 0], "add up"),
        (2, [10, 0], "ascend"),
        (2, [10], "1 rows"),
        (3, [2, -1], "negative"),
    ],
)
def test_a_profile_that_contradicts_itself_is_refused(part: int, value: list[object], reason: str) -> None:
    version, content = msgspec.msgpack.decode(profile_of([trade(10, 1), trade(11, 3, "SELL", seq=1)]).pack())
    content[part] = value
    with pytest.raises(ValueError, match=reason):
        VolumeProfile.unpack(msgspec.msgpack.encode([version, content]))


def test_a_profile_states_the_rule_that_made_it_and_one_that_states_none_is_of_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    tape = [trade(10, 1), trade(11, 3, "SELL", seq=1)]
    first = profile_of(tape)
    assert first.rule_version == 1
    monkeypatch.setattr(analytics, "RULE_VERSION", 2)
    second = profile_of(tape)
    assert second.rule_version == 2
    assert VolumeProfile.unpack(second.pack()) == second != first
    assert VolumeProfile.unpack(first.pack()) == first


def test_a_profile_of_the_first_rule_is_packed_as_before_rule_versions() -> None:
    packed = bytes.fromhex("9201969201029c0101a774776f5f726f77460b0b0b040103022b920a01920100920003920101")
    first = profile_of([trade(10, 1), trade(11, 3, "SELL", seq=1)])
    assert first.pack() == packed
    assert VolumeProfile.unpack(packed) == first
