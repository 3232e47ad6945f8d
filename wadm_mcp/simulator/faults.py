"""Hooks for injecting faults into a simulated exchange. By default there are no faults: subclass `Faults` and pass it to the simulator.

`chaos.py` has a subclass that executes a plan.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from wadm_mcp.model import Instrument


class Reply(NamedTuple):
    """An HTTP reply. `body` is bytes, or a value that is encoded as JSON. A `Content-Length` in `headers` replaces the real one."""

    status: int
    body: object
    headers: Mapping[str, str] = {}


class Cut(Exception):
    """Ends the connection: without a closing handshake, or, with a `code`, by a close frame."""

    def __init__(self, code: int | None = None, reason: str = "") -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


class ArchiveFaults(NamedTuple):
    """How the daily files of an archive differ from the documented ones. All of it was seen in real files (docs/exchanges.md 4.4, 8.24)."""

    unsorted: bool = False
    """The rows of the first and the second half of the day are interleaved."""
    repeated_every: int = 0
    """Every so many rows, one is there twice. 0 for none."""
    extra_column: bool = False
    """Another column follows the documented ones."""
    exponents: bool = False
    """Quantities are written with an exponent: `1.2e-3`."""


class Faults:
    """The hooks that a venue calls; the defaults change nothing."""

    skew: int = 0
    """Milliseconds by which the exchanges' clocks are ahead of ours."""
    absent_every: int = 0
    """The exchange itself lacks every id that is a multiple of this number, in its streams and its history. 0 for none."""

    empty_every: int = 0
    """The exchanges serve every id that is a multiple of this number with a quantity of zero, if it is in no aggregate with others. 0 for
    none."""
    archive_delay: int = 0
    """Milliseconds from the end of a day until its file is in the archive."""
    archive_rows: ArchiveFaults = ArchiveFaults()
    """What is wrong with the rows of daily files."""
    listings_page: int = 0
    """Most symbols on a page of Bybit's linear list. 0 for as many as the exchange has."""
    repeats_page: bool = False
    """Bybit's list of linear symbols serves its second page for ever."""
    fresh_cursors: bool = False
    """Each time with another cursor."""

    async def connecting(self, exchange: str, path: str) -> Reply | None:
        """Called before a WebSocket is accepted; returning a reply refuses it."""
        return None

    async def sending(self, exchange: str, market: str, connection: int, frame: str | bytes) -> Sequence[str | bytes]:
        """Called before a frame is sent to one client, identified by the number of its connection.

        The returned frames are sent instead, none if it is empty. Raising `Cut` ends the connection.
        """
        return (frame,)

    async def requested(self, exchange: str, path: str, params: Mapping[str, str]) -> Reply | None:
        """Called before a REST request is answered; a returned reply is sent instead of the answer."""
        return None

    def answered(self, exchange: str, path: str, params: Mapping[str, str], reply: Reply) -> Reply:
        """Called before the answer to a REST request is sent; the returned reply is sent instead."""
        return reply

    async def archived(self, exchange: str, path: str, reply: Reply) -> Reply:
        """Called before a file of an archive, or its checksum, is sent; the returned reply is sent instead."""
        return reply

    def status(self, instrument: Instrument) -> str | None:
        """The exchange's word for an instrument that does not trade now, empty for one that it does not list; None while it trades."""
        return None

    def has_finer_steps(self, instrument: Instrument) -> bool:
        """Whether an instrument is listed with a tick and a lot a hundredth as large as usual."""
        return False

    def lag(self, exchange: str, market: str) -> int:
        """Milliseconds by which the trades that REST serves are behind the stream."""
        return 0
