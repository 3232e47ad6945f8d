"""Which of two flows moves first: correlation of one series with the other, shifted."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from typing import Final, NamedTuple

FEWEST: Final = 30
"""Pairs without which no correlation is told."""


class LeadLag(NamedTuple):
    """`same` is the correlation at no shift. `shift` is the one at which it is furthest from 0, in steps: above 0 the first series leads,
    below 0 the second; `shifted` is the correlation there. `noise` is `2 / sqrt(pairs)`: unrelated series pass it one time in twenty."""

    pairs: int
    same: float
    shift: int
    shifted: float
    noise: float


def lead_lag(first: Sequence[float | None], second: Sequence[float | None], most: int) -> LeadLag | None:
    """How two series of equal length go together, over shifts of up to `most` steps either way; on equal strength the smallest shift.

    Pairs in which either is None are left out. None with fewer than `FEWEST` pairs at any shift, and where one of the series stands still.
    """
    found: dict[int, float] = {}
    for shift in sorted(range(-most, most + 1), key=lambda shift: (abs(shift), -shift)):
        told = correlation(first[: len(first) - shift], second[shift:]) if shift >= 0 else correlation(first[-shift:], second[:shift])
        if told is None:
            return None
        found[shift] = told
    best = max(found, key=lambda shift: abs(found[shift]))
    pairs = sum(one is not None and two is not None for one, two in zip(first, second, strict=True))
    return LeadLag(pairs, found[0], best, found[best], 2 / sqrt(pairs))


def correlation(first: Sequence[float | None], second: Sequence[float | None]) -> float | None:
    """Pearson's correlation of the pairs in which both are known."""
    pairs = [(one, two) for one, two in zip(first, second, strict=True) if one is not None and two is not None]
    if len(pairs) < FEWEST:
        return None
    count = len(pairs)
    middle_one, middle_two = sum(one for one, _ in pairs) / count, sum(two for _, two in pairs) / count
    together = sum((one - middle_one) * (two - middle_two) for one, two in pairs)
    spread = sum((one - middle_one) ** 2 for one, _ in pairs) * sum((two - middle_two) ** 2 for _, two in pairs)
    return together / sqrt(spread) if spread > 0 else None
