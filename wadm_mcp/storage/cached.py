"""What earns its place in a cache, and how it is kept right.

Measured (`benchmarks/cache.py`): reading packed hours and days is cheap in every store, unpacking and merging them is what costs. So
whole stretches of closed hours are cached merged, and whole answers of open windows for a second. Single bars are not.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from decimal import Decimal
from hashlib import blake2b
from typing import Any, Final, TypeAlias

import anyio
import msgspec
from anyio import to_thread

from wadm_mcp.analytics import volume_profile
from wadm_mcp.analytics.footprint import Bar, Footprint
from wadm_mcp.model import HOUR, Instrument, Scale, Window
from wadm_mcp.storage.cache import Cache

LIFE: Final = 3_600.0
"""Seconds a merged stretch is held; the whole hours of a window that ends now are others by then."""

SHORTEST: Final = 6 * HOUR
"""Fewer hours are merged from the store about as fast."""

HOT: Final = 1.0
"""Seconds an answer is given again."""

_ON_LOOP: Final = 16_384
"""Bytes of a packed footprint that is unpacked on the event loop; a larger one goes to a worker thread."""

_PAST: Final = frozenset(("end", "as_of", "cursor"))
"""Arguments that tie a question to a time of its own: its answer must be the tape's, whatever was said a moment ago."""

Answer: TypeAlias = dict[str, Any]


def closed_hours(window: Window, live: Iterable[int]) -> Window | None:
    """The whole hours at the head of a window that hold none of the live minutes; None for fewer than are worth a cache."""
    start = -(-window.start // HOUR) * HOUR
    end = min((window.end, *live))
    end -= end % HOUR
    return Window(start, end) if end - start >= SHORTEST else None


class CachedFootprints:
    """Merged footprints of whole closed hours.

    No entry needs to be invalidated, since none is believed: each is given only where its own bar equals the bar that the store's order
    flow has for the stretch right now, to the last figure. Trades are only ever added to an hour, so whatever revises one (a late or
    repaired trade, in this process or another, reported to the cache or not) changes fills, volumes and notional of that bar, and makes
    exactly the stretches that hold the hour misses. The same check keeps a merge out that a revision overtook.
    """

    def __init__(self, cache: Cache) -> None:
        self._cache = cache

    async def footprint(
        self,
        instrument: Instrument,
        window: Window,
        live: Iterable[int],
        bars: Callable[[Window], Awaitable[Mapping[int, Bar]]],
        merge: Callable[[Window], Awaitable[Footprint]],
        row: Decimal | None = None,
    ) -> Footprint:
        """The footprint of a window whose minutes `live` are not, or not only, in the store.

        For any part of the window `bars` gives the store's order flow in time order, whatever the bars' lengths, and `merge` makes the
        footprint, in rows of `row` where there is one. They are called for parts without live minutes, but for the last part.
        """
        closed = closed_hours(window, live)
        if closed is None:
            return await merge(window)
        proof = Bar(Scale(0, 0))
        for bar in (await bars(closed)).values():
            proof = proof.then(bar)
        parts = [await self._proven(instrument, closed, proof, merge, row)]
        if window.start < closed.start:
            parts.insert(0, await merge(Window(window.start, closed.start)))
        if closed.end < window.end:
            parts.append(await merge(Window(closed.end, window.end)))
        return parts[0] if len(parts) == 1 else await to_thread.run_sync(_joined, parts)

    async def _proven(
        self,
        instrument: Instrument,
        window: Window,
        proof: Bar,
        merge: Callable[[Window], Awaitable[Footprint]],
        row: Decimal | None,
    ) -> Footprint:
        key = f"footprint:{instrument}:{window.start}:{window.end}" + (f":{row.normalize()}" if row is not None else "")
        (packed,) = await self._cache.get([key])
        if packed is not None:
            held = await self._unpacked(key, packed, row)
            if held is not None and _equal(held.bar, proof):
                return held
        merged = await merge(window)
        if merged.bar.trade_count and _equal(merged.bar, proof):
            await self._cache.put(key, await to_thread.run_sync(merged.pack), LIFE)
        return merged

    async def figures(self, key: str, proof: Bar, make: Callable[[], Awaitable[list[int]]]) -> list[int]:
        """Three integers that were computed from the footprint of a closed stretch, used only while the stretch's bar equals `proof`.

        The key carries the version of the value-area rule, so that figures of another rule are not found.
        """
        key = f"{key}:rule-{volume_profile.RULE_VERSION}"
        (packed,) = await self._cache.get([key])
        if packed is not None:
            try:
                bar, one, two, three = _FIGURES.decode(packed)
                if _equal(Bar.unpack(bar), proof):
                    return [one, two, three]
            except (msgspec.DecodeError, ValueError):
                await self._cache.forget([key])
        made = await make()
        await self._cache.put(key, msgspec.msgpack.encode((proof.pack(), *made)), LIFE)
        return made

    async def _unpacked(self, key: str, packed: bytes, row: Decimal | None) -> Footprint | None:
        try:
            return Footprint.unpack(packed, row) if len(packed) <= _ON_LOOP else await to_thread.run_sync(Footprint.unpack, packed, row)
        except ValueError:
            await self._cache.forget([key])
            return None


class CachedAnswers:
    """Answers of open windows, given again for a second, and made once for all who ask at the same time.

    An answer is counted from when its making began, so it is never more than `HOT` seconds older than the question it is given to. The
    cache must be this process's own: another process's tape may be behind. Questions that name `end`, `as_of` or a `cursor` pass through.
    """

    def __init__(self, cache: Cache, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._cache = cache
        self._monotonic = monotonic
        self._making: dict[str, _Making] = {}

    async def ask(self, question: str, arguments: Mapping[str, object], answer: Callable[[], Awaitable[Answer]]) -> Answer:
        """The answer of a question with these arguments, None as good as left out; `answer` makes it. Its errors pass through."""
        key = _key(question, {name: value for name, value in arguments.items() if value is not None})
        if key is None:
            return await answer()
        asked = self._monotonic()
        while True:
            (packed,) = await self._cache.get([key])
            if packed is not None:
                return _decode(packed)
            making = self._making.get(key)
            if making is None or asked - making.began > HOT:
                return await self._make(key, asked, answer)
            await making.done.wait()
            if making.packed is not None:
                return _decode(making.packed)
            if not making.abandoned:
                return await answer()

    async def _make(self, key: str, asked: float, answer: Callable[[], Awaitable[Answer]]) -> Answer:
        began = self._monotonic()
        making = self._making[key] = _Making(began)
        try:
            try:
                told = await answer()
            except Exception:
                making.abandoned = False
                raise
            making.abandoned = False
            making.packed = _encode(told)
        finally:
            if self._making.get(key) is making:
                del self._making[key]
            making.done.set()
        left = began + HOT - self._monotonic()
        if making.packed is not None and left > 0:
            await self._cache.put(key, making.packed, left)
        return told


class _Making:
    """An answer on its way. `abandoned` where whoever made it was cancelled, so that another must."""

    def __init__(self, began: float) -> None:
        self.began = began
        self.done = anyio.Event()
        self.packed: bytes | None = None
        self.abandoned = True


_FIGURES: Final = msgspec.msgpack.Decoder(tuple[bytes, int, int, int])


def _joined(parts: list[Footprint]) -> Footprint:
    return Footprint.consecutive(parts, parts[0].scale, give_up=True)


def _equal(one: Bar, two: Bar) -> bool:
    scale = one.scale.finest(two.scale)
    return one.rescaled(scale) == two.rescaled(scale)


def _key(question: str, arguments: Mapping[str, object]) -> str | None:
    """A question in one form whatever the order of its arguments; None where its answer is not to be held or it has no such form."""
    if _PAST & arguments.keys():
        return None
    try:
        asked = msgspec.msgpack.encode((question, sorted(arguments.items())))
    except (TypeError, ValueError, OverflowError, RecursionError):
        return None
    return f"answer:{blake2b(asked, digest_size=16).hexdigest()}"


def _encode(answer: Answer) -> bytes | None:
    try:
        return msgspec.msgpack.encode(answer)
    except (TypeError, OverflowError):
        # What MessagePack does not have, such as an integer beyond 64 bits: this answer is made anew each time.
        return None


_decode: Final = msgspec.msgpack.Decoder(Answer).decode
