"""The parameters of all detectors, in one place so that an answer can state them."""

from __future__ import annotations

from typing import Final, NamedTuple


class Parameters(NamedTuple):
    """Lengths are in bars. Where no authority gives a figure, we chose one; answers state the parameters so that a reader can choose
    differently."""

    baseline: int = 96
    """Bars before a bar that it is compared with."""
    least: int = 48
    """Usable bars that a baseline needs; with fewer there is no score."""
    usable: float = 0.95
    """Covered share of a bar's time from which the bar is usable."""
    atr: int = 14
    swing: int = 5
    """Bars on either side that a pivot must exceed."""
    edge: float = 0.1
    """Distance from a range's edge, in widths, within which a pivot tests the edge."""
    pivots: int = 5
    """Newest pivots of each side whose median is the range's edge."""
    tests: int = 2
    """Tests that each edge needs; with fewer there is no range."""
    back_within: int = 3
    """Bars within which price must close inside the range again for a spring or an upthrust."""
    climax_volume: float = 3.0
    climax_range: float = 2.0
    effort: float = 1.5
    break_atr: float = 0.25
    break_volume: float = 1.0
    break_range: float = 1.0
    retest: float = 0.25
    """Largest distance of a retest from the tested price, in widths of the range."""
    absorbed_delta: int = 95
    """Percentile that the absolute delta of an absorbing bar reaches."""
    absorbed_move: int = 25
    """Percentile that the absolute move of an absorbing bar does not exceed."""
    diagonal: int = 3
    """Smallest ratio of a row's aggressive volume to its diagonal opposite for an imbalance."""
    stacked: int = 3
    """Adjacent rows with an imbalance on one side that make a zone."""
    large: float = 99.9
    """Percentile of order notional that a large order reaches."""


DEFAULT: Final = Parameters()
