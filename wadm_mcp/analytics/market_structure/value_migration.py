"""Value migration: how value areas and POCs move from session to session, and which POCs price has not reached since."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

Relation: TypeAlias = Literal["higher", "lower", "inside", "outside", "overlapping_higher", "overlapping_lower", "unchanged"]
Status: TypeAlias = Literal["naked", "unknown"]


class SessionValue(NamedTuple):
    """A session's profile levels and prices, as integers at one scale.

    `start` is the time of its start (ms). `poc` is the low price of the POC's row, `poc_top` the row's top tick. `complete` is true if no
    trade of the session is missing.
    """

    start: int
    poc: int
    poc_top: int
    vah: int
    val: int
    high: int
    low: int
    close: int
    complete: bool


class NakedPoc(NamedTuple):
    """A session's POC that price has not reached since. The status is `unknown` if missing trades may have reached it."""

    session: SessionValue
    status: Status


def relation(now: SessionValue, before: SessionValue) -> Relation:
    """The position of a value area relative to the one before (Dalton): above, below, inside or around it, or overlapping."""
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
    """The share of the narrower value area that lies inside the other, from 0 to 1. For an area of a single price it is 0 or 1."""
    shared = min(now.vah, before.vah) - max(now.val, before.val)
    narrower = min(now.vah - now.val, before.vah - before.val)
    if not narrower:
        return float(shared >= 0)
    return max(0, shared) / narrower


def streak(sessions: Sequence[SessionValue]) -> int:
    """Number of newest consecutive sessions whose POC moved in the same direction: above 0 upward, below 0 downward. Oldest first."""
    count = 0
    for now, before in zip(reversed(sessions), reversed(sessions[:-1]), strict=False):
        step = (now.poc > before.poc) - (now.poc < before.poc)
        if not step or count * step < 0:
            break
        count += step
    return count


def naked_pocs(sessions: Sequence[SessionValue]) -> list[NakedPoc]:
    """POCs of closed sessions, oldest first, that no later trade reached. `sessions` are consecutive days, the open one last.

    A POC is reached if the price path between consecutive trades touched its row or jumped across it. If its own session or a later one is
    not complete, missing trades may have moved or reached the POC: its status is then `unknown`.
    """
    naked: list[NakedPoc] = []
    for index, session in enumerate(sessions[:-1]):
        later = sessions[index + 1 :]
        last = session.close
        for one in later:
            if min(last, one.low) <= session.poc_top and max(last, one.high) >= session.poc:
                break
            last = one.close
        else:
            naked.append(NakedPoc(session, "naked" if session.complete and all(one.complete for one in later) else "unknown"))
    return naked
