from __future__ import annotations

from decimal import Context, Decimal
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.analytics.oracles import footprint_of, tapes, trade
from wadm_mcp.analytics.market_structure.profile_shape import ProfileShape, deviation, profile_shape
from wadm_mcp.analytics.volume_profile import volume_profile


def _shape(volumes: list[int]) -> ProfileShape:
    """Of rows of ten ticks that hold so much each."""
    trades = [trade(100 + 10 * place, quantity, seq=place) for place, quantity in enumerate(volumes) if quantity]
    profile = volume_profile(footprint_of(trades), tick=1, row=10)
    assert profile is not None
    return profile_shape(profile)


@given(st.lists(st.integers(0, 60), min_size=3, max_size=50).filter(lambda volumes: volumes[0] > 0 < volumes[-1]))
@settings(max_examples=120, deadline=None)
def test_nodes_are_those_that_a_second_coding_finds(volumes: list[int]) -> None:
    rows = len(volumes)

    def at(place: int) -> int:
        return volumes[place] if 0 <= place < rows else 0

    smooth = [at(place - 1) + 2 * at(place) + at(place + 1) for place in range(rows)]
    mean, reach = Fraction(sum(smooth), rows), max(2, rows // 20)
    plateaus: list[list[int]] = []
    for place in range(rows):
        if plateaus and smooth[plateaus[-1][-1]] == smooth[place]:
            plateaus[-1].append(place)
        else:
            plateaus.append([place])

    def stands(plateau: list[int], sign: int) -> bool:
        near = {*range(plateau[0] - reach, plateau[0]), *range(plateau[-1] + 1, plateau[-1] + 1 + reach)} & set(range(rows))
        return bool(near) and all(sign * smooth[other] < sign * smooth[plateau[0]] for other in near)

    def middle(plateau: list[int]) -> int:
        return plateau[(len(plateau) - 1) // 2]

    high = {middle(one) for one in plateaus if stands(one, 1) and smooth[one[0]] >= Fraction(12, 10) * mean}
    low = {middle(one) for one in plateaus if stands(one, -1) and 2 * smooth[one[0]] <= mean}
    low = {place for place in low if min(high, default=rows) < place < max(high, default=-1)}
    told = _shape(volumes)
    assert {(one.price - 100) // 10 for one in told.high_nodes} <= high
    assert len(told.high_nodes) == min(5, len(high))
    assert {(one.price - 100) // 10 for one in told.low_nodes} <= low
    assert len(told.low_nodes) == min(5, len(low))
    for one in (*told.high_nodes, *told.low_nodes):
        assert one.share == pytest.approx(volumes[(one.price - 100) // 10] / sum(volumes))


@pytest.mark.parametrize(
    ("volumes", "shape"),
    [
        ([1, 2, 3, 9, 3, 2, 1], "D"),
        ([1, 1, 1, 1, 2, 9, 3], "P"),
        ([3, 9, 2, 1, 1, 1, 1], "b"),
        ([2, 9, 12, 9, 1, 0, 0, 1, 9, 12, 9, 2], "B"),
        ([5], "D"),
    ],
)
def test_a_shape_is_named_by_where_the_volume_lies(volumes: list[int], shape: str) -> None:
    assert _shape(volumes).shape == shape


def test_skew_is_the_distance_of_the_vwap_from_the_middle() -> None:
    assert _shape([5]).skew == pytest.approx(-0.5)
    told = _shape([3, 0, 1]).skew
    assert told == pytest.approx((Fraction(100 * 3 + 120, 4) - Fraction(100 + 129, 2)) / 29)


@given(tapes(least=1))
@settings(max_examples=60, deadline=None)
def test_the_deviation_is_the_root_of_the_weighted_variance(trades: list[object]) -> None:
    footprint = footprint_of(trades)  # pyright: ignore[reportArgumentType]
    prices = [(Fraction(price, 10**footprint.scale.price), cell[0] + cell[1]) for price, cell in footprint.cells.items()]
    total = sum(volume for _, volume in prices)
    mean = sum((price * volume for price, volume in prices), Fraction(0)) / total
    variance = sum(((price - mean) * (price - mean) * volume for price, volume in prices), Fraction(0)) / total
    root = Context(prec=60).sqrt(Context(prec=80).divide(Decimal(variance.numerator), Decimal(variance.denominator)))
    told = deviation(footprint)
    assert told is not None
    step = Decimal(1).scaleb(-(footprint.scale.price + 2))
    assert told - step <= root < told + 2 * step


def test_nothing_traded_has_no_deviation() -> None:
    assert deviation(footprint_of([])) is None
