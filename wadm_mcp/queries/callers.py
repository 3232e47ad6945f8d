"""Who asks, and what each caller has of a thing of which there is only so much.

While there is room anybody may take it. Where there is none, the caller that has most makes room, so that no caller can keep the others
out. A caller is an MCP session or, where there is none, an address.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Generator, Hashable
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final, Generic, TypeVar

from wadm_mcp.settings import is_loopback

_IPV6_PREFIX: Final = 64
"""Length of the IPv6 prefix that counts as one address, because a single machine usually has that whole network."""

_caller: ContextVar[str] = ContextVar("caller", default="")

_Thing = TypeVar("_Thing", bound=Hashable)


@contextmanager
def asked_by(caller: str) -> Generator[None]:
    """What is asked in this scope counts as this caller's: an address (`shared_address`), or a session."""
    token = _caller.set(caller)
    try:
        yield
    finally:
        _caller.reset(token)


def current_caller() -> str:
    """The caller of the scope that this runs in; empty for the client of the standard streams."""
    return _caller.get()


def shared_address(host: str) -> str:
    """The address, or the IPv6 network, whose clients are counted together. Empty for loopback: a reverse proxy may connect from there,
    on behalf of everybody."""
    if not host or is_loopback(host):
        return ""
    address = ipaddress.ip_address(host.partition("%")[0])
    return host if address.version == 4 else str(ipaddress.ip_network((address, _IPV6_PREFIX), strict=False))


class Shares(Generic[_Thing]):
    """What each caller has, in the order in which it was taken or last used."""

    def __init__(self) -> None:
        self._things: dict[str, dict[_Thing, None]] = {}
        self._callers: dict[_Thing, str] = {}

    def __len__(self) -> int:
        return len(self._callers)

    def add(self, thing: _Thing, caller: str) -> None:
        """A caller takes one."""
        self._things.setdefault(caller, {})[thing] = None
        self._callers[thing] = caller

    def discard(self, thing: _Thing) -> None:
        """One is given back; nothing is done if it was before."""
        caller = self._callers.pop(thing, None)
        if caller is not None:
            del self._things[caller][thing]
            if not self._things[caller]:
                del self._things[caller]

    def use(self, thing: _Thing) -> None:
        """One is used, so that it is its caller's last to be taken away."""
        if thing in self._callers:
            things = self._things[self._callers[thing]]
            del things[thing]
            things[thing] = None

    def of(self, caller: str) -> list[_Thing]:
        """What a caller has, the longest unused first."""
        return list(self._things.get(caller, ()))

    def makes_room_for(self, caller: str) -> str | None:
        """The caller that gives one up for one more of `caller`: the one that would then have most, `caller` itself if it is among them.
        None where `caller` has none and no other has more than one."""
        own = len(self._things.get(caller, ()))
        greediest = max(self._things, key=lambda each: len(self._things[each]), default=caller)
        if own + 1 >= len(self._things.get(greediest, ())):
            greediest = caller
        return greediest if greediest in self._things else None
