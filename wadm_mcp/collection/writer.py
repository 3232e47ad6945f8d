"""From memory to the store, in batches, and after each batch whatever became due: rollup, expiry.

One task, so that what is derived never runs ahead of the trades it is derived from. A store that fails costs time, not trades:
the batch is kept and tried again until the recorder's bound is reached.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import anyio

from wadm_mcp.collection.recorder import Recorder
from wadm_mcp.collection.rollup import Rollup
from wadm_mcp.errors import StoreError
from wadm_mcp.health import Health, State
from wadm_mcp.model import Instrument, Lives, Span, Trade
from wadm_mcp.storage.store import Store

_EVERY: Final = 0.25
"""Seconds between writes."""
_CHUNK: Final = 5_000
"""Trades in one write: each is one transaction, and coverage follows with the last."""
_ROLLUP_EVERY: Final = 1.0
_EXPIRE_EVERY: Final = 30.0
_LONGEST_PAUSE: Final = 5.0


class Writer:
    """Drains the recorder into the store until cancelled; `flush` writes what is left at the end."""

    def __init__(
        self,
        recorder: Recorder,
        rollup: Rollup,
        store: Store,
        health: Health,
        lives: Lives,
        clock: Callable[[], int],
        monotonic: Callable[[], float],
    ) -> None:
        self._recorder = recorder
        self._rollup = rollup
        self._store = store
        self._health = health
        self._lives = lives
        self._clock = clock
        self._monotonic = monotonic
        self._left: tuple[list[Trade], Sequence[tuple[Instrument, Span]]] = ([], ())

    async def run(self) -> None:
        """Write, roll up and expire for as long as this process records."""
        rolled = expired = self._monotonic()
        while True:
            with anyio.move_on_after(_EVERY):
                await self._recorder.enough()
            await self._write()
            now = self._monotonic()
            if now - rolled >= _ROLLUP_EVERY:
                rolled = now
                await self._patiently(self._rollup.run)
            if now - expired >= _EXPIRE_EVERY:
                expired = now
                await self._patiently(self._expire)

    async def flush(self) -> None:
        """Write what waits, once; `StoreError` when the store does not take it."""
        await self._cut_and_write()
        await self._rollup.run()

    async def _write(self) -> None:
        await self._patiently(self._cut_and_write)

    async def _cut_and_write(self) -> None:
        trades, spans = self._left
        if not trades and not spans:
            waiting = self._recorder.cut()
            trades, spans = list(waiting.trades), waiting.spans
            self._left = trades, spans
        while trades:
            chunk = trades[:_CHUNK]
            last = len(chunk) == len(trades)
            await self._store.write(chunk, spans if last else ())
            del trades[: len(chunk)]
            self._recorder.saved(chunk)
            if last:
                spans = ()
        if spans:
            await self._store.write((), spans)
        self._left = [], ()

    async def _expire(self) -> None:
        while await self._store.expire(self._clock(), self._lives):
            await self._cut_and_write()

    async def _patiently(self, step: Callable[[], Awaitable[None]]) -> None:
        pause = _EVERY
        while True:
            try:
                await step()
            except StoreError as error:
                self._health.report("store", State.DOWN, str(error))
                self._health.count("store.failures")
                await anyio.sleep(pause)
                pause = min(_LONGEST_PAUSE, pause * 2)
            else:
                self._health.report("store", State.OK)
                return
