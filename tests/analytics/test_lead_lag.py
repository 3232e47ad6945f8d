from __future__ import annotations

import random
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wadm_mcp.analytics.lead_lag import MIN_PAIRS, correlation, lead_lag

_SERIES = st.lists(st.tuples(st.integers(-50, 50), st.integers(-50, 50), st.booleans()), min_size=30, max_size=60)


@given(_SERIES)
@settings(max_examples=60, deadline=None)
def test_a_correlation_is_that_of_the_pairs_both_of_which_are_known(rows: list[tuple[int, int, bool]]) -> None:
    first: list[float | None] = [float(one) if known else None for one, _, known in rows]
    second: list[float | None] = [float(two) for _, two, _ in rows]
    pairs = [(Fraction(one), Fraction(two)) for one, two, known in rows if known]
    value, count = correlation(first, second), len(pairs)
    if count < MIN_PAIRS:
        assert value is None
        return
    top = count * sum(one * two for one, two in pairs) - sum(one for one, _ in pairs) * sum(two for _, two in pairs)
    spreads = [count * sum(pair[side] ** 2 for pair in pairs) - sum(pair[side] for pair in pairs) ** 2 for side in (0, 1)]
    if not spreads[0] * spreads[1]:
        assert value is None
    else:
        assert value == pytest.approx(float(top) / float(spreads[0] * spreads[1]) ** 0.5)


@pytest.mark.parametrize("shift", [-4, -1, 0, 2, 5])
def test_the_one_that_moves_first_leads(shift: int) -> None:
    chance = random.Random(shift)
    flow = [chance.gauss(0, 1) for _ in range(220)]
    first, second = flow[10:210], flow[10 - shift : 210 - shift]
    found = lead_lag(first, second, 5)
    assert found is not None
    assert (found.shift, found.pairs) == (shift, 200)
    assert found.shifted == pytest.approx(1)
    assert abs(found.shifted) > found.noise == pytest.approx(2 / 200**0.5)
    mirrored = lead_lag(second, first, 5)
    assert mirrored is not None
    assert mirrored.shift == -shift


def test_too_few_bars_have_no_statistics() -> None:
    assert lead_lag([1.0, 2.0] * 17, [2.0, 1.0] * 17, 5) is None
    assert lead_lag([1.0, 2.0] * 18, [2.0, 1.0] * 18, 5) is not None
