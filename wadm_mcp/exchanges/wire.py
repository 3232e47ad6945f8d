"""What the wires of all venues share: the bounds of lawful values, exact figures at a widening scale, errors in one line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from decimal import Decimal
from functools import lru_cache
from typing import Annotated, Final, NamedTuple

import msgspec

from wadm_mcp.errors import ExchangeError, FrameError
from wadm_mcp.model import Instrument, Listing, Scale, parse_decimal, to_decimal

Millis = Annotated[int, msgspec.Meta(ge=1_230_768_000_000, le=4_102_444_800_000)]
"""A time in milliseconds. Before 2009 or after 2100 it is another unit, or no time at all."""

Count = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
"""An id or a sequence number that every store can hold."""

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=64, pattern=r"^[^\s:/]+$")]
"""A symbol as a listing states it: free of what separates an instrument's parts."""

UNREADABLE: Final = (msgspec.MsgspecError, UnicodeError, RecursionError)
"""What decoding bytes of a stranger may raise."""


class Held(NamedTuple):
    """What a decoder remembers of an instrument: the scale now, and the one its listing gives."""

    instrument: Instrument
    scale: Scale
    listed: Scale

    @classmethod
    def by_symbol(cls, listings: Sequence[Listing]) -> dict[str, Held]:
        return {listing.instrument.symbol: cls(listing.instrument, listing.scale, listing.scale) for listing in listings}


@lru_cache(maxsize=16_384)
def figure(text: str, decimals: int, listed: int) -> tuple[int, int]:
    """A price or a quantity above zero as `(integer, decimals)`, exact; `ValueError` for any other text.

    A value finer than `decimals` widens them. One that no longer fits 64 bits there is read at the `listed` decimals again: a single
    print of absurd fineness must not put every later trade out of reach.
    """
    # Cached: on a real tape three figures of four were seen shortly before (price levels and round lots repeat).
    try:
        value, finest = parse_decimal(text, decimals)
    except ValueError:
        if decimals == listed:
            raise
        value, finest = parse_decimal(text, listed)
    if not value:
        raise ValueError(f"{text!r} is not above zero")
    return value, finest


def step(text: str) -> Decimal:
    """A tick or a lot of a listing; `ValueError` when it is not a plain decimal above zero."""
    return to_decimal(*figure(text, 0, 0))


def wrong(who: str, why: object, path: str = "") -> FrameError:
    """The error of a frame of `who` (`binance spot`): one bounded line that ends in the path of the wrong value."""
    return FrameError(one_line(f"{who} frame: {why}" + (f" - at `{path}`" if path else "")))


def one_line(text: str, most: int = 240) -> str:
    """A stranger's text in one bounded line of printable characters."""
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in text[: 4 * most]).split())
    return line if len(line) <= most else line[: most - 1] + "…"


def listings_refused(who: str, code: int, text: str) -> ExchangeError:
    """The error of a reply in which the exchange says no."""
    said = one_line(text, 160) or "no reason given"
    return ExchangeError(
        f"{who} refused to list its symbols: {said} (code {code}). Wait if it speaks of limits; otherwise check the REST base URL"
    )


def listings_unreadable(who: str, why: object) -> ExchangeError:
    """The error of a reply that is not a list of symbols."""
    return ExchangeError(
        f"{who} sent a list of symbols that cannot be read: {one_line(str(why), 160)}. Check that the REST base URL leads to it"
    )


def read_records(who: str, records: Sequence[msgspec.Raw], read: Callable[[msgspec.Raw], Listing | None]) -> list[Listing]:
    """The listings of a reply's records. `read` gives None for a record of no interest, and raises for a malformed one, which is skipped.

    `ExchangeError` when every single record is malformed: then it is the reply that cannot be read.
    """
    listings: list[Listing] = []
    malformed = 0
    why: Exception | None = None
    for record in records:
        try:
            listing = read(record)
        except (*UNREADABLE, ValueError) as error:
            malformed, why = malformed + 1, error
            continue
        if listing is not None:
            listings.append(listing)
    if malformed and malformed == len(records):
        raise listings_unreadable(who, f"none of its {malformed} records is whole, the last one: {why}")
    return listings
