"""Which of two flows moves first: the correlation of one series with a shifted copy of the other."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from typing import Final, NamedTuple

MIN_PAIRS: Final = 30
"""With fewer pairs there is no correlation."""


class LeadLag(NamedTuple):
    """The correlation of two series without a shift and at the shift where it is strongest.

    `same` is the correlation without a shift, `shifted` the one furthest from 0, and `shift` the number of steps at which it was found:
    above 0 the first series leads, below 0 the second. `noise` is `2 / sqrt(pairs)`, which unrelated series exceed one time in twenty.
    """

    pairs: int
    same: float
    shift: int
    shifted: float
    noise: float


def lead_lag(first: Sequence[float | None], second: Sequence[float | None], max_shift: int) -> LeadLag | None:
    """Correlates two series of equal length at every shift of up to `max_shift` steps in both directions.

    Of equally strong shifts the smallest wins. Pairs in which either value is None are ignored. Returns None if any shift has fewer than
    `MIN_PAIRS` pairs, or if one of the series is constant.
    """
    correlations: dict[int, float] = {}
    for shift in sorted(range(-max_shift, max_shift + 1), key=lambda shift: (abs(shift), -shift)):
        value = correlation(first[: len(first) - shift], second[shift:]) if shift >= 0 else correlation(first[-shift:], second[:shift])
        if value is None:
            return None
        correlations[shift] = value
    best = max(correlations, key=lambda shift: abs(correlations[shift]))
    pairs = sum(one is not None and two is not None for one, two in zip(first, second, strict=True))
    return LeadLag(pairs, correlations[0], best, correlations[best], 2 / sqrt(pairs))


def correlation(first: Sequence[float | None], second: Sequence[float | None]) -> float | None:
    """Pearson's correlation of the pairs in which both values are known. None with fewer than `MIN_PAIRS`, or for a constant series."""
    pairs = [(one, two) for one, two in zip(first, second, strict=True) if one is not None and two is not None]
    if len(pairs) < MIN_PAIRS:
        return None
    count = len(pairs)
    mean_one, mean_two = sum(one for one, _ in pairs) / count, sum(two for _, two in pairs) / count
    covariance = sum((one - mean_one) * (two - mean_two) for one, two in pairs)
    variances = sum((one - mean_one) ** 2 for one, _ in pairs) * sum((two - mean_two) ** 2 for _, two in pairs)
    return covariance / sqrt(variances) if variances > 0 else None
