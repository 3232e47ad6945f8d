"""Where a simulated exchange can be made to misbehave. Nothing does by default: subclass `Faults` and hand it to the simulator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Reply(NamedTuple):
    """An HTTP answer; `body` is what JSON is made of."""

    status: int
    body: object
    headers: Mapping[str, str] = {}


class Faults:
    """The points at which a venue asks whether to behave."""

    async def connecting(self, exchange: str, path: str) -> Reply | None:
        """Before a WebSocket is accepted; a reply refuses it."""
        return None

    async def sending(self, exchange: str, market: str, frame: str | bytes) -> Sequence[str | bytes]:
        """Before a frame goes to one client; what is returned goes instead, nothing to swallow it."""
        return (frame,)

    async def requested(self, exchange: str, path: str, params: Mapping[str, str]) -> Reply | None:
        """Before a REST request is answered; a reply goes instead of the answer."""
        return None
