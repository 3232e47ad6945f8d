"""The numbers every detector is set by, in one place, so that an answer can echo them."""

from __future__ import annotations

from typing import Final, NamedTuple


class Parameters(NamedTuple):
    """Lengths are in bars. Where no authority has a figure it is a choice of ours: each is told with the answer, for whoever would choose
    another."""

    baseline: int = 96
    """Bars before the judged one that it is compared with."""
    least: int = 48
    """Usable ones among them without which nothing is said."""
    usable: float = 0.95
    """Covered share of its time from which a bar is usable."""
    atr: int = 14
    swing: int = 5
    """Bars on either side that a pivot stands out of."""
    edge: float = 0.1
    """Distance from a range's edge, in widths, within which a pivot tests it."""
    pivots: int = 5
    """Newest pivots of each side whose median is the range's edge."""
    tests: int = 2
    """Tests of each side without which there is no range."""
    back_within: int = 3
    """Bars in which price must close inside the range again for a spring or an upthrust."""
    climax_volume: float = 3.0
    climax_range: float = 2.0
    effort: float = 1.5
    break_atr: float = 0.25
    break_volume: float = 1.0
    break_range: float = 1.0
    retest: float = 0.25
    """Distance of a retest from what it tests, in widths of the range."""
    absorbed_delta: int = 95
    """Percentile that the absolute delta of an absorbing bar reaches."""
    absorbed_move: int = 25
    """Percentile that its absolute move does not pass."""
    diagonal: int = 3
    """Ratio of a row's aggressive volume to its diagonal opposite."""
    stacked: int = 3
    """Adjacent rows of one side that make a zone."""
    large: float = 99.9
    """Percentile of order notional that a large trade reaches."""


DEFAULT: Final = Parameters()
