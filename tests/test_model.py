from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wadm_mcp.model import at_decimals, to_decimal


def test_a_decimal_is_never_cut_to_fit_a_scale() -> None:
    assert at_decimals(Decimal("1E+3"), 2) == 100_000
    assert at_decimals(Decimal("-0.10"), 1) == -1
    with pytest.raises(ValueError, match="cannot be written with 1 decimals"):
        at_decimals(Decimal("0.12"), 1)


@given(st.integers(-(10**40), 10**40), st.integers(0, 18))
def test_an_integer_at_a_scale_comes_back_from_its_decimal(value: int, decimals: int) -> None:
    assert at_decimals(to_decimal(value, decimals), decimals) == value
