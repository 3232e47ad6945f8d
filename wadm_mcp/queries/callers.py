"""Who asks, and what each caller has of a thing of which there is only so much.

While there is room anybody may take it. Where there is none, the address that has most makes room, with what the caller that has most there
had. A caller is an MCP session or, where there is none, an address. So one address cannot keep the others out, however many sessions it
opens, and one session not the others of its address.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Generator, Hashable, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final, Generic, NamedTuple, TypeVar

from wadm_mcp.settings import is_loopback

_IPV6_PREFIX: Final = 64
"""Length of the IPv6 prefix that counts as one address, because a single machine usually has that whole network."""

_Thing = TypeVar("_Thing", bound=Hashable)
_Key = TypeVar("_Key", bound=Hashable)


class Caller(NamedTuple):
    """Who asks: its address (`shared_address`) and its session, empty where it has none. The client of the standard streams has neither."""

    address: str = ""
    session: str = ""

    @property
    def party(self) -> str:
        """Callers of one party are counted together: those of one address, but each session alone whose address may be everybody's."""
        return self.address or self.session


_caller: ContextVar[Caller] = ContextVar("caller", default=Caller())  # noqa: B039 - cannot be changed


@contextmanager
def asked_by(address: str, session: str = "") -> Generator[None]:
    """What is asked in this scope counts as this caller's."""
    token = _caller.set(Caller(address, session))
    try:
        yield
    finally:
        _caller.reset(token)


def current_caller() -> Caller:
    """The caller of the scope that this runs in."""
    return _caller.get()


def shared_address(host: str) -> str:
    """The address, or the IPv6 network, whose clients are counted together; a text that is no address as it is. Empty for loopback: a
    reverse proxy may connect from there, on behalf of everybody."""
    if not host or is_loopback(host):
        return ""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    return host if address.version == 4 else str(ipaddress.ip_network((address, _IPV6_PREFIX), strict=False))


class Shares(Generic[_Thing]):
    """What each caller has, in the order in which it was taken or last used."""

    def __init__(self) -> None:
        self._things: dict[str, dict[Caller, dict[_Thing, None]]] = {}
        """By party and caller; those whose turn is next come first."""
        self._callers: dict[_Thing, Caller] = {}

    def __len__(self) -> int:
        return len(self._callers)

    def add(self, thing: _Thing, caller: Caller) -> None:
        """A caller takes one."""
        self._things.setdefault(caller.party, {}).setdefault(caller, {})[thing] = None
        self._callers[thing] = caller

    def discard(self, thing: _Thing) -> None:
        """One is given back; nothing is done if it was before."""
        caller = self._callers.pop(thing, None)
        if caller is not None:
            callers = self._things[caller.party]
            del callers[caller][thing]
            if not callers[caller]:
                del callers[caller]
            if not callers:
                del self._things[caller.party]

    def use(self, thing: _Thing) -> None:
        """One is used, so that it is its caller's last to be taken away."""
        if thing in self._callers:
            things = self._of(self._callers[thing])
            del things[thing]
            things[thing] = None

    def of(self, caller: Caller) -> list[_Thing]:
        """What a caller has, the longest unused first."""
        return list(self._of(caller))

    def take_turn(self) -> _Thing:
        """Give back the first one of the caller whose turn it is: parties take turns, and so do the callers of each. There must be one."""
        party = next(iter(self._things))
        callers = self._things[party] = self._things.pop(party)
        caller = next(iter(callers))
        callers[caller] = callers.pop(caller)
        thing = next(iter(callers[caller]))
        self.discard(thing)
        return thing

    def makes_room_for(self, caller: Caller) -> Caller | None:
        """The caller that gives one up for one more of `caller`: of the party that would then have most, the caller that would have most,
        `caller` itself if it is among them. None where `caller` has none and should give one up."""
        party = _greediest({party: sum(map(len, callers.values())) for party, callers in self._things.items()}, caller.party)
        counts = {each: len(things) for each, things in self._things.get(party, {}).items()}
        greediest = _greediest(counts, caller) if party == caller.party else max(counts, key=counts.__getitem__)
        return greediest if greediest in counts else None

    def _of(self, caller: Caller) -> dict[_Thing, None]:
        return self._things.get(caller.party, {}).get(caller, {})


def _greediest(counts: Mapping[_Key, int], own: _Key) -> _Key:
    """The one that would have most if `own` had one more, `own` if it is among them."""
    greediest = max(counts, key=counts.__getitem__, default=own)
    return own if counts.get(own, 0) + 1 >= counts.get(greediest, 0) else greediest
