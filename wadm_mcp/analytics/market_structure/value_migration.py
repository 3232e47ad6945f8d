"""How value moves from session to session, and which points of control nobody has traded at since."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

Relation: TypeAlias = Literal["higher", "lower", "inside", "outside", "overlapping_higher", "overlapping_lower", "unchanged"]
Status: TypeAlias = Literal["naked", "unknown"]


class SessionValue(NamedTuple):
    """A session's profile and path, prices as integers at one scale. `poc` is the low price of its row, `poc_top` the row's top tick.

    `whole` says that nothing of it is missing. `close` is its last price.
    """

    start: int
    poc: int
    poc_top: int
    vah: int
    val: int
    high: int
    low: int
    close: int
    whole: bool


class Naked(NamedTuple):
    """A session's point of control at which price has not traded since; `unknown` where missing trades may have."""

    session: SessionValue
    status: Status


def relation(now: SessionValue, before: SessionValue) -> Relation:
    """Where the value area lies against the one before (Dalton): wholly above or below it, inside or around it, or overlapping."""
    if now.val > before.vah:
        return "higher"
    if now.vah < before.val:
        return "lower"
    if (now.vah, now.val) == (before.vah, before.val):
        return "unchanged"
    if now.vah <= before.vah and now.val >= before.val:
        return "inside"
    if now.vah >= before.vah and now.val <= before.val:
        return "outside"
    return "overlapping_higher" if now.vah > before.vah else "overlapping_lower"


def overlap(now: SessionValue, before: SessionValue) -> float:
    """The part of the narrower value area that the other covers, from 0 to 1. An area of one price is covered or not."""
    shared = min(now.vah, before.vah) - max(now.val, before.val)
    narrower = min(now.vah - now.val, before.vah - before.val)
    if not narrower:
        return float(shared >= 0)
    return max(0, shared) / narrower


def streak(sessions: Sequence[SessionValue]) -> int:
    """Sessions in a row, the newest last, whose POC moved the same way: above 0 upward, below 0 downward."""
    count = 0
    for now, before in zip(reversed(sessions), reversed(sessions[:-1]), strict=False):
        step = (now.poc > before.poc) - (now.poc < before.poc)
        if not step or count * step < 0:
            break
        count += step
    return count


def naked_pocs(sessions: Sequence[SessionValue]) -> list[Naked]:
    """POCs of closed sessions, oldest first, that no later trade reached; `sessions` are consecutive days, the open one last.

    Reached means that the price path between consecutive trades met the row, a jump across it included. Where a session since then, or its
    own, is not whole, the missing trades may have reached it, or moved the POC: then it is `unknown`.
    """
    found: list[Naked] = []
    for place, session in enumerate(sessions[:-1]):
        later = sessions[place + 1 :]
        last = session.close
        for one in later:
            if min(last, one.low) <= session.poc_top and max(last, one.high) >= session.poc:
                break
            last = one.close
        else:
            found.append(Naked(session, "naked" if session.whole and all(one.whole for one in later) else "unknown"))
    return found
