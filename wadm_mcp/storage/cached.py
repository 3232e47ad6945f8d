"""Cached merges of footprints, cached figures, and cached answers.

Measured with `benchmarks/cache.py`: reading packed hours and days is cheap in every store, while unpacking and merging them is slow. So
two things are cached: the merged footprint of a stretch of closed hours, and the answer to a question about an open window for one
second. Single bars are not cached.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from decimal import Decimal
from hashlib import blake2b
from typing import Any, Final, TypeAlias

import anyio
import msgspec
from anyio import to_thread

from wadm_mcp.analytics import volume_profile
from wadm_mcp.analytics.footprint import Bar, Footprint
from wadm_mcp.errors import Busy
from wadm_mcp.model import HOUR, Instrument, Scale, Window
from wadm_mcp.storage.cache import Cache

MERGED_TTL_SECONDS: Final = 3_600.0
"""Time to live of a merged stretch; an hour later, a window that ends now has other whole hours."""

MIN_CACHED_MS: Final = 6 * HOUR
"""Shortest stretch that is cached, in ms; shorter ones are merged from the store about as fast."""

ANSWER_TTL_SECONDS: Final = 1.0
"""Time to live of an answer."""

_MAX_BYTES_ON_LOOP: Final = 16_384
"""Largest packed footprint that is unpacked on the event loop; a larger one goes to a worker thread."""

_FIXED_TIME_ARGUMENTS: Final = frozenset(("end", "as_of", "cursor"))
"""Arguments that set a point in time: such a question is always answered from the tape, never from a recent answer."""

Answer: TypeAlias = dict[str, Any]


def closed_hours(window: Window, live: Iterable[int]) -> Window | None:
    """The whole hours at the start of a window that contain no live minute; None if they are shorter than `MIN_CACHED_MS`."""
    start = -(-window.start // HOUR) * HOUR
    end = min((window.end, *live))
    end -= end % HOUR
    return Window(start, end) if end - start >= MIN_CACHED_MS else None


class CachedFootprints:
    """Merged footprints of whole closed hours, and figures computed from them.

    No entry is ever invalidated. Instead each entry is checked when it is read: it is used only if its own bar equals, in every figure,
    the bar that the store's order flow gives for the stretch now. Trades are only ever added to an hour, so every revision (a late or
    repaired trade, stored by this process or another) changes fills, volumes and notional of that bar, and makes exactly the stretches
    that contain the hour misses. The same check prevents caching a merge during which the store changed.

    A merged footprint is a sum of trades, which no rule of ours can change; figures carry the version of their rule in the key.
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
        """The footprint of a window whose minutes `live` are not, or not completely, in the store.

        For a part of the window, `bars` returns the store's order flow in time order (of any timeframes), and `merge` computes the
        footprint, in rows of `row` if it is given. Only the last part may contain live minutes.
        """
        closed = closed_hours(window, live)
        if closed is None:
            return await merge(window)
        expected = Bar(Scale(0, 0))
        for bar in (await bars(closed)).values():
            expected = expected.merge_later(bar)
        parts = [await self._merged_hours(instrument, closed, expected, merge, row)]
        if window.start < closed.start:
            parts.insert(0, await merge(Window(window.start, closed.start)))
        if closed.end < window.end:
            parts.append(await merge(Window(closed.end, window.end)))
        return parts[0] if len(parts) == 1 else await to_thread.run_sync(_join, parts)

    async def _merged_hours(
        self,
        instrument: Instrument,
        window: Window,
        expected: Bar,
        merge: Callable[[Window], Awaitable[Footprint]],
        row: Decimal | None,
    ) -> Footprint:
        key = f"footprint:{instrument}:{window.start}:{window.end}" + (f":{row.normalize()}" if row is not None else "")
        (packed,) = await self._cache.get([key])
        if packed is not None:
            cached = await self._unpack(key, packed, row)
            if cached is not None and _equal(cached.bar, expected):
                return cached
        merged = await merge(window)
        if merged.bar.trade_count and _equal(merged.bar, expected):
            await self._cache.put(key, await to_thread.run_sync(merged.pack), MERGED_TTL_SECONDS)
        return merged

    async def figures(self, key: str, expected: Bar, make: Callable[[], Awaitable[list[int]]]) -> list[int]:
        """Three integers computed by `make` from the footprint of a closed stretch whose bar is `expected`.

        Cached ones are used only if they were computed while the stretch had the same bar, by the same value-area rule: the cache key
        contains the rule's version, so that figures of another rule are not found.
        """
        key = f"{key}:rule-{volume_profile.RULE_VERSION}"
        (packed,) = await self._cache.get([key])
        if packed is not None:
            try:
                bar, one, two, three = _FIGURES_DECODER.decode(packed)
                if _equal(Bar.unpack(bar), expected):
                    return [one, two, three]
            except (msgspec.DecodeError, ValueError):
                await self._cache.delete([key])
        made = await make()
        await self._cache.put(key, msgspec.msgpack.encode((expected.pack(), *made)), MERGED_TTL_SECONDS)
        return made

    async def _unpack(self, key: str, packed: bytes, row: Decimal | None) -> Footprint | None:
        try:
            if len(packed) <= _MAX_BYTES_ON_LOOP:
                return Footprint.unpack(packed, row)
            return await to_thread.run_sync(Footprint.unpack, packed, row)
        except ValueError:
            await self._cache.delete([key])
            return None


class CachedAnswers:
    """Answers to questions about open windows. Each is reused for a second, and computed once for concurrent callers.

    The age of an answer is counted from when its computation started, so no caller gets an answer that is more than
    `ANSWER_TTL_SECONDS` older than the question. The cache must be private to this process, because the tape of another process may be
    behind. Answers to questions that name `end`, `as_of` or a `cursor` are not cached. Any question that waits for its place is
    computed once for all who ask it before it is begun: their answer is then newer than each of their questions.
    """

    def __init__(self, cache: Cache, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._cache = cache
        self._monotonic = monotonic
        self._pending: dict[str, _PendingAnswer] = {}

    async def ask(
        self,
        question: str,
        arguments: Mapping[str, object],
        compute: Callable[[], Awaitable[Answer]],
        *,
        place: Callable[[], AbstractAsyncContextManager[None]] = nullcontext,
        reuse: bool = True,
    ) -> Answer:
        """The answer to a question with these arguments, computed by `compute` inside of `place`. Errors of both are raised to the caller.

        An argument of None counts as one that was left out. With `reuse` false the answer is computed after the question was asked.
        Callers may get the same object, which they must not change.
        """
        given = {name: value for name, value in arguments.items() if value is not None}
        key = _key(question, given)
        if key is None:
            async with place():
                return await compute()
        reuse = reuse and not _FIXED_TIME_ARGUMENTS & given.keys()
        asked_at = self._monotonic()
        while True:
            if reuse:
                (packed,) = await self._cache.get([key])
                if packed is not None:
                    return _decode(packed)
            pending = self._pending.get(key)
            if pending is None or not (pending.started is None or (reuse and asked_at - pending.started <= ANSWER_TTL_SECONDS)):
                return await self._compute(key, compute, place, reuse)
            await pending.done.wait()
            if pending.answer is not None:
                return pending.answer
            if pending.busy is not None:
                raise Busy(str(pending.busy), pending.busy.again_in)
            if not pending.given_up:
                async with place():
                    return await compute()

    async def _compute(
        self, key: str, compute: Callable[[], Awaitable[Answer]], place: Callable[[], AbstractAsyncContextManager[None]], reuse: bool
    ) -> Answer:
        pending = self._pending[key] = _PendingAnswer()
        try:
            async with place():
                started = pending.started = self._monotonic()
                pending.answer = answer = await compute()
            pending.given_up = False
        except Exception as error:
            if not isinstance(error, Busy):
                pending.given_up = False
            elif pending.started is not None:
                pending.busy = error
            raise
        finally:
            if self._pending.get(key) is pending:
                del self._pending[key]
            pending.done.set()
        ttl = started + ANSWER_TTL_SECONDS - self._monotonic()
        if reuse and ttl > 0 and (packed := _encode(answer)) is not None:
            await self._cache.put(key, packed, ttl)
        return answer


class _PendingAnswer:
    """An answer that is being computed, or waits for its place: then `started` is None.

    `given_up` if its task was cancelled or got no place: the next caller that waits for it takes over, in a place of its own. `busy` if it
    could not be computed now: that holds for all who wait for it.
    """

    def __init__(self) -> None:
        self.started: float | None = None
        self.done = anyio.Event()
        self.answer: Answer | None = None
        self.busy: Busy | None = None
        self.given_up = True


_FIGURES_DECODER: Final = msgspec.msgpack.Decoder(tuple[bytes, int, int, int])


def _join(parts: list[Footprint]) -> Footprint:
    return Footprint.merge_consecutive(parts, parts[0].scale, give_up=True)


def _equal(one: Bar, two: Bar) -> bool:
    scale = one.scale.finest(two.scale)
    return one.rescaled(scale) == two.rescaled(scale)


def _key(question: str, arguments: Mapping[str, object]) -> str | None:
    """A cache key that does not depend on the order of the arguments; None if the question cannot be encoded."""
    try:
        encoded = msgspec.msgpack.encode((question, sorted(arguments.items())))
    except (TypeError, ValueError, OverflowError, RecursionError):
        return None
    return f"answer:{blake2b(encoded, digest_size=16).hexdigest()}"


def _encode(answer: Answer) -> bytes | None:
    try:
        return msgspec.msgpack.encode(answer)
    except (TypeError, OverflowError):
        # MessagePack cannot hold every value, such as an integer beyond 64 bits: such an answer is computed each time.
        return None


_decode: Final = msgspec.msgpack.Decoder(Answer).decode
