"""Where a simulated exchange can be made to misbehave. Nothing does by default: subclass `Faults` and hand it to the simulator.

`chaos.py` is the subclass that follows a plan.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Reply(NamedTuple):
    """An HTTP answer; `body` is what JSON is made of, or bytes as they are. A `Content-Length` among the headers is believed."""

    status: int
    body: object
    headers: Mapping[str, str] = {}


class Cut(Exception):
    """Ends the connection: at once and without a closing handshake, or with a close frame of a `code`."""

    def __init__(self, code: int | None = None, reason: str = "") -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


class Faults:
    """The points at which a venue asks whether to behave."""

    skew: int = 0
    """Milliseconds by which the exchanges' clocks go ahead of ours."""
    absent_every: int = 0
    """Every so many ids the exchange itself does not have one: neither its streams nor its history tell it. 0 for none."""

    archive_delay: int = 0
    """Milliseconds after the end of a day before its file is in the archive."""

    async def connecting(self, exchange: str, path: str) -> Reply | None:
        """Before a WebSocket is accepted; a reply refuses it."""
        return None

    async def sending(self, exchange: str, market: str, connection: int, frame: str | bytes) -> Sequence[str | bytes]:
        """Before a frame goes to one client, by the number of its connection; what is returned goes instead, nothing to swallow it.

        `Cut` ends the connection.
        """
        return (frame,)

    async def requested(self, exchange: str, path: str, params: Mapping[str, str]) -> Reply | None:
        """Before a REST request is answered; a reply goes instead of the answer."""
        return None

    async def archived(self, exchange: str, path: str, reply: Reply) -> Reply:
        """Before a file of an archive, or its checksum, is sent: what is sent instead."""
        return reply

    def lag(self, exchange: str, market: str) -> int:
        """Milliseconds by which the trades that REST tells are behind the stream."""
        return 0
