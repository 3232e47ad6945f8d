"""Bars made by hand, simple enough to check without a computer, and their mirror images."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import pairwise
from typing import Final, NamedTuple

from hypothesis import strategies as st

from tests.analytics.structure_oracles import Ohlc
from wadm_mcp.analytics.footprint import Bar
from wadm_mcp.analytics.market_structure.events import Event, events
from wadm_mcp.analytics.market_structure.series import CoveredBar, Series
from wadm_mcp.model import MINUTE, Scale

SCALE: Final = Scale(2, 3)
LENGTH: Final = 15 * MINUTE
DAY: Final = 1_780_272_000_000
"""2026-06-01 00:00 UTC."""
MIDDLE: Final = 10_000
"""Prices are mirrored at this one."""


class Row(NamedTuple):
    """A bar of a few trades."""

    open: int
    high: int
    low: int
    close: int
    buy: int
    sell: int

    @property
    def volume(self) -> int:
        return self.buy + self.sell

    @property
    def delta(self) -> int:
        return self.buy - self.sell


SOME_ROWS: Final = st.lists(
    st.builds(
        lambda open, up, down, close, buy, sell: Row(
            MIDDLE + open, MIDDLE + max(open, close) + up, MIDDLE + min(open, close) - down, MIDDLE + close, buy, sell
        ),
        *(st.integers(-30, 30), st.integers(0, 9), st.integers(0, 9), st.integers(-30, 30), st.integers(0, 500), st.integers(1, 500)),
    ),
    min_size=60,
    max_size=110,
)
"""Bars with varying prices."""
PLACES: Final = st.sets(st.integers(0, 109), max_size=6)


def series(rows: Sequence[Row | None], *, unusable: Collection[int] = (), torn: Collection[int] = (), start: int = DAY) -> Series:
    """Consecutive bars; None is a bar without trades. An `unusable` bar has too little coverage, a `torn` bar lacks one trade."""
    covered_bars = [
        CoveredBar(
            start + place * LENGTH,
            start + (place + 1) * LENGTH,
            None if row is None else bar(row),
            0.9 if place in unusable else 1.0,
            place not in unusable and place not in torn,
        )
        for place, row in enumerate(rows)
    ]
    return Series(covered_bars, SCALE)


def bar(row: Row) -> Bar:
    """The bar of a row."""
    return Bar(SCALE, row.open, row.high, row.low, row.close, row.buy, row.sell, 10)


def quiet(count: int = 60, price: int = MIDDLE) -> list[Row]:
    """Bars that hardly move, no two neighbours alike."""
    rows: list[Row] = []
    for place in range(count):
        close = price + (1 if place % 2 else -1) * (1 + place % 3)
        reach = 1 + place % 2
        rows.append(Row(price, max(price, close) + reach, min(price, close) - reach, close, 100 + 10 * (place % 5), 105 + 7 * (place % 4)))
    return rows


def wave(count: int, *, bottom: int = MIDDLE - 100, step: int = 20, half: int = 10) -> list[Row]:
    """A triangle that begins at its low and turns every `half` bars. Delta follows the price."""
    path = [bottom + step * (half - abs(place % (2 * half) - half)) for place in range(count + 1)]
    rows: list[Row] = []
    for place, (before, after) in enumerate(pairwise(path)):
        more = 20 if after > before else 0
        wobble = place % 4
        reach = 1 if place % half in (0, half - 1) else 1 + place % 3
        high, low = max(before, after) + reach, min(before, after) - reach
        rows.append(Row(before, high, low, after, 100 + more + wobble, 120 - more + 2 * wobble))
    return rows


def path(prices: Iterable[int], *, buy: int = 110, sell: int = 110) -> list[Row]:
    """Bars from price to price."""
    points = list(prices)
    return [
        Row(before, max(before, after) + 1, min(before, after) - 1, after, buy + place % 3, sell + place % 2)
        for place, (before, after) in enumerate(pairwise(points))
    ]


def walk(seed: int, count: int = 130) -> list[Row]:
    """Bars of a random walk; none closes where it opened."""
    chance, price, rows = random.Random(seed), MIDDLE, list[Row]()
    for _ in range(count):
        steps = [price]
        while len(steps) < 13 or steps[-1] == price:
            steps.append(steps[-1] + chance.randint(-6, 6))
        rows.append(Row(price, max(steps), min(steps), steps[-1], round(chance.lognormvariate(5, 1)), round(chance.lognormvariate(5, 1))))
        price = steps[-1]
    return rows


def prices(rows: Sequence[Row]) -> list[Ohlc]:
    """Bars in the form that the oracles take."""
    return [Ohlc(*row[:4]) for row in rows]


def mirrored(rows: Sequence[Row]) -> list[Row]:
    """Up for down, bought for sold."""
    return [
        Row(2 * MIDDLE - row.open, 2 * MIDDLE - row.low, 2 * MIDDLE - row.high, 2 * MIDDLE - row.close, row.sell, row.buy) for row in rows
    ]


_MIRROR: Final = (
    ("_up", "_down"),
    ("_high", "_low"),
    ("spring", "upthrust"),
    ("_buying", "_selling"),
)


def mirror_kind(kind: str) -> str:
    """The kind of the mirrored event."""
    for one, two in _MIRROR:
        for this, other in ((one, two), (two, one)):
            if kind.endswith(this) or kind == this:
                return kind.removesuffix(this) + other
    return kind


def of_kind(one: Series, kind: str) -> list[Event]:
    """The events of a kind."""
    return [event for event in events(one) if event.kind == kind]


def kinds(rows: Sequence[Row], kind: str, *, unusable: Collection[int] = (), torn: Collection[int] = ()) -> list[Event]:
    """The events of a kind among bars that follow each other."""
    return of_kind(series(rows, unusable=unusable, torn=torn), kind)


def first_that(fires: Callable[[int], bool], silent: int, firing: int) -> int:
    """The figure on the way from `silent` to `firing` from which on it fires."""
    assert not fires(silent)
    assert fires(firing)
    while abs(firing - silent) > 1:
        middle = (silent + firing) // 2
        silent, firing = (silent, middle) if fires(middle) else (middle, firing)
    return firing
