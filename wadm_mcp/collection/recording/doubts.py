"""Instruments whose listing does not fit what they deliver: silent ones, ones that trade although they should not, and finer prices.

The collectors and the recorder notice it; `ListingRefresher` reads the lists of their exchanges again.
"""

from __future__ import annotations

from collections.abc import Callable

import anyio

from wadm_mcp.model import Instrument


class DoubtedListings:
    """A set that can be waited for. Adding is cheap, because every frame of an instrument may add it."""

    def __init__(self) -> None:
        self._instruments: set[Instrument] = set()
        self._added = anyio.Event()

    def add(self, instrument: Instrument) -> None:
        """The listing of this instrument should be read again."""
        if instrument not in self._instruments:
            self._instruments.add(instrument)
            ended, self._added = self._added, anyio.Event()
            ended.set()

    async def wait(self, concerns: Callable[[Instrument], bool]) -> None:
        """Return once there is an instrument that `concerns` the caller."""
        while not any(map(concerns, self._instruments)):
            await self._added.wait()

    def remove(self, concerns: Callable[[Instrument], bool]) -> None:
        """The listings of these instruments are being read: what is added from now on is doubted anew."""
        self._instruments = {one for one in self._instruments if not concerns(one)}
