"""Simulated exchanges that can be stopped, and WADM processes on them that can be killed and restarted."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any, Final

import anyio

from tests.end_to_end.process import Served, serving
from tests.soak.verdict import Found, check, ms
from wadm_mcp.clock import now_ms
from wadm_mcp.model import MINUTE, SECOND, Instrument
from wadm_mcp.simulator.faults import Faults
from wadm_mcp.simulator.simulator import Simulator

SOAK: Final = os.environ.get("WADM_SOAK") == "1"
"""Set by `make soak`: full rates, long outages and many kills."""
SEED: Final = int(os.environ.get("WADM_SOAK_SEED", "1"))
SYMBOLS: Final = ("BTCUSDT", "ETHUSDT") if SOAK else ("BTCUSDT",)
INSTRUMENTS: Final = tuple(
    Instrument(exchange, market, symbol) for exchange in ("binance", "bybit") for market in ("spot", "linear") for symbol in SYMBOLS
)
ACTIVITY: Final = 33.0 if SOAK else 4.0
"""Multiple of the usual trade rate: 33 gives about 2,000 trades a second, with each aggregate of Binance counted once."""


class MarketClock:
    """The exchanges' clock: now, until it is stopped. After that nothing is traded."""

    def __init__(self) -> None:
        self.stopped: int | None = None
        self.began = now_ms()

    def __call__(self) -> int:
        return self.stopped if self.stopped is not None else now_ms()

    def stop(self) -> None:
        """Stop it; it stays where it is if it is stopped already."""
        self.stopped = self() if self.stopped is None else self.stopped


class Wadm:
    """One `wadm-mcp serve` with its own data folder. It can be started several times."""

    def __init__(self, folder: Path, number: int, settings: Mapping[str, str]) -> None:
        self.folder = folder
        self._number = number
        self.settings = settings
        self._stack = AsyncExitStack()
        self._served: Served | None = None
        self.starts = 0
        self.started_at = 0.0

    @property
    def served(self) -> Served:
        assert self._served is not None
        return self._served

    @property
    def log(self) -> str:
        """The log of all its processes."""
        return "".join(path.read_text() for path in sorted(self.folder.parent.glob(f"{self.folder.name}-{self._number}-*.txt")))

    async def start(self) -> None:
        self.starts += 1
        self.started_at = anyio.current_time()
        self._served = await self._stack.enter_async_context(
            serving(self.folder, "serve", settings=self.settings, name=f"{self._number}-{self.starts:03}")
        )

    async def kill(self) -> None:
        """End the process with `kill -9`."""
        self.served.process.kill()
        await self.served.process.wait()
        await self._stack.aclose()

    async def stop(self) -> int:
        status = await self.served.stop()
        await self._stack.aclose()
        return status


class Deployment:
    """The simulated exchanges and the WADM processes that a test starts on them."""

    def __init__(self, simulator: Simulator, clock: MarketClock, folder: Path, settings: Mapping[str, str]) -> None:
        self.simulator = simulator
        self.clock = clock
        self.random = Random(SEED)
        self._folder = folder
        self._settings = settings
        self._wadms: list[Wadm] = []

    def wadm(self, name: str = "data", **settings: str) -> Wadm:
        """A process that is not started yet."""
        one = Wadm(self._folder / name, len(self._wadms), {**self._settings, **settings})
        self._wadms.append(one)
        return one

    async def close(self) -> None:
        for one in self._wadms:
            await one._stack.aclose()

    async def live(self, wadm: Wadm, within: float = 90) -> None:
        """Wait until every instrument has new trades, on connections that are stable after the faults before this call."""
        since = now_ms() + SECOND

        async def every_one() -> bool:
            markets = (await wadm.served.get("/api/markets"))["markets"]
            lag, last = markets["columns"].index("lag_ms"), markets["columns"].index("last_trade_at")
            rows = [row for row in markets["rows"] if row[lag] is not None and row[lag] < 3_000 and ms(row[last]) >= since]
            return len(rows) == len(self.simulator.instruments)

        with anyio.fail_after(within):
            good = 0
            while good < 3:
                good = good + 1 if await every_one() else 0
                await anyio.sleep(0.3)

    async def settled(self, wadm: Wadm, within: float = 120) -> None:
        """Stop the market, and wait until nothing is left to be written, repaired or derived."""
        self.clock.stop()
        quiet, left = 0, ""
        with anyio.move_on_after(within):
            while quiet < 4:
                left = await self._left(wadm)
                quiet = 0 if left else quiet + 1
                await anyio.sleep(0.5)
        assert quiet == 4, f"not settled within {within} s: {left}"

    async def _left(self, wadm: Wadm) -> str:
        """What is still to be written, repaired or derived; an empty text if there is nothing."""
        health = (await wadm.served.client.get("/health")).json()
        markets = (await wadm.served.get("/api/markets"))["markets"]
        every = [dict(zip(markets["columns"], row, strict=True)) for row in markets["rows"]]
        # A store may have symbols from before that no exchange lists.
        rows = [row for row in every if (row["exchange"], row["market"], row["symbol"]) in self.simulator.instruments]
        # Where ids are not gapless, a gap closes only with a later trade, which a stopped market does not have. So wait for Binance alone.
        if health["parts"]["store"]["state"] != "ok":
            return f"the store is {health['parts']['store']}"
        if under_repair := [row for row in rows if row["exchange"] == "binance" and row["repairing"]]:
            return f"under repair: {under_repair}"
        now = now_ms()
        for row in rows:
            question = {name: row[name] for name in ("exchange", "market", "symbol")}
            window = {"start": self.clock.began - MINUTE, "end": now}
            # Trades that only the journal has, and figures without their late trades.
            raw = await wadm.served.get("/api/trades", **question, **window, limit=1)
            flow = await wadm.served.get("/api/order-flow", **question, **window, timeframe="1m")
            # Binance is repaired completely; elsewhere only running repairs are waited for.
            settled = {"not_recorded", "not_yet_seen", "without_rows"}
            for coverage in (raw["coverage"], flow["coverage"]):
                reasons = {gap[3] for gap in coverage["gaps"]}
                if reasons & {"being_revised", "store_unreachable"} or (row["exchange"] == "binance" and not reasons <= settled):
                    return f"{question}: {coverage['gaps']}"
        return ""

    async def check(self, wadm: Wadm, unseen: Collection[str] = ()) -> dict[Instrument, Found]:
        """Compare all answers with all trades of the exchanges; `unseen` as of `verdict.check`."""
        assert self.clock.stopped is not None
        # Bybit's newest trades, requested at the start, are from a little earlier.
        start = self.clock.began - self.clock.began % MINUTE - 5 * MINUTE
        end = self.clock.stopped - self.clock.stopped % MINUTE + MINUTE
        found = {
            instrument: await check(wadm.served, self.simulator, instrument, start, end, traded_until=self.clock.stopped, unseen=unseen)
            for instrument in self.simulator.instruments
        }
        for instrument, one in found.items():
            stored, covered = f"{one.stored:,} of {one.traded:,} trades stored", f"{one.covered} of {one.minutes} minutes covered"
            print(f"{instrument}: {stored}, {covered}, {one.lost:,} lost in gaps")
        return found


@asynccontextmanager
async def deployment(
    folder: Path,
    *,
    instruments: Sequence[Instrument] = INSTRUMENTS,
    faults: Faults | None = None,
    activity: float | Mapping[str, float] = ACTIVITY,
    **settings: Any,
) -> AsyncGenerator[Deployment]:
    """Simulated exchanges that trade, and a deployment whose processes end with the block."""
    print(f"seed {SEED}")
    clock = MarketClock()
    async with Simulator(seed=SEED, instruments=instruments, activity=activity, clock=clock, wall=now_ms, faults=faults) as simulator:
        urls = {f"WADM_{name.upper()}": url for name, url in simulator.urls.items()}
        common = {
            **urls,
            "WADM_EXCHANGES": ",".join(dict.fromkeys(each.exchange for each in instruments)),
            "WADM_MARKETS": ",".join(dict.fromkeys(each.market for each in instruments)),
            "WADM_SYMBOLS": ",".join(dict.fromkeys(each.symbol for each in instruments)),
        }
        one = Deployment(simulator, clock, folder, {**common, **settings})
        try:
            yield one
        finally:
            await one.close()
