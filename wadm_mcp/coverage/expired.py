"""What expiry has deleted of an instrument, by kind of data: nothing of it may be claimed, whatever the retention is today. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from wadm_mcp.model import HOUR, MINUTE, Retention, Timeframe, Window


class Expired(NamedTuple):
    """Stretches of which data was deleted, or may be at any moment, of each kind of `Retention`, in no order. They may overlap."""

    trades: tuple[Window, ...] = ()
    minutes: tuple[Window, ...] = ()
    hours: tuple[Window, ...] = ()

    def older_than(self, retention: Retention, now: int) -> Expired:
        """These stretches, and what is older than its retention."""
        cutoffs = (now - length for length in retention)
        return Expired(*((*found, Window(min(0, cutoff), cutoff)) for found, cutoff in zip(self, cutoffs, strict=True)))

    def of_trades(self, window: Window) -> list[Window]:
        """The stretches of a window whose single trades are gone."""
        return _inside(self.trades, window, MINUTE)

    def of_bars(self, window: Window, unit: Timeframe) -> list[Window]:
        """The stretches of a window whose figures are gone, if figures are read in bars of `unit`.

        Bars below one hour are kept as long as minutes, longer ones as long as hours. Where the window begins or ends inside an hour, that
        part is read in minutes.
        """
        if unit.ms < Timeframe.H1.ms:
            return _inside(self.minutes, window, MINUTE)
        # What a window cuts of a longer bar is read in hours, and in minutes what it cuts of an hour.
        first, last = Timeframe.H1.floor(window.start + HOUR - 1), Timeframe.H1.floor(window.end)
        if first > last:
            return _inside(self.minutes, window, MINUTE)
        edges = (Window(window.start, min(first, window.end)), Window(max(last, window.start), window.end))
        return [*_inside(self.hours, window, HOUR), *(part for edge in edges for part in _inside(self.minutes, edge, MINUTE))]

    def has_trades(self, minute: int) -> bool:
        """True if no single trade of a minute (by start) was deleted."""
        return not self.of_trades(Window(minute, minute + MINUTE))


def _inside(stretches: Iterable[Window], window: Window, bar: int) -> list[Window]:
    """The parts of a window that lie in these stretches. A bar of `bar` ms is gone as a whole."""
    parts = ((max(window.start, each.start - each.start % bar), min(window.end, -(-each.end // bar) * bar)) for each in stretches)
    return [Window(start, end) for start, end in parts if start < end]
