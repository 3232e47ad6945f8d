"""Silence on open sockets: connections that deliver nothing for a while, lose what is traded meanwhile, and go on.

Most silences take place in fast motion: the coverage of one Bybit instrument against a ledger, without sockets. One run has real sockets.
"""

from __future__ import annotations

from collections import deque
from pathlib import Path
from random import Random
from typing import Final, NamedTuple

import anyio
import pytest

from tests.market import BYBIT, NOON, ManualClock, listing
from tests.soak.deployment import INSTRUMENTS, SEED, SOAK, deployment
from wadm_mcp.collection.recording.recorded_instrument import RecordedInstrument
from wadm_mcp.coverage.by_connection import ConnectionCoverage
from wadm_mcp.coverage.spans import GapReason, SpanReason
from wadm_mcp.model import HOUR, MINUTE, SECOND, Trade, TradeType
from wadm_mcp.simulator.chaos import Chaos
from wadm_mcp.simulator.fault_plan import Fault, Kind
from wadm_mcp.tape import InstrumentTape

RATES: Final = (1 / 3_600, 1 / 300, 1 / 30, 1 / 4, 2.0, 15.0, 75.0)
"""Trades a second: from one an hour to 75 a second."""
SILENCES: Final = 500 if SOAK else 10
"""At each rate."""
LONGEST: Final = 120 * SECOND
CONNECTIONS: Final = (1, 2)
DELAY: Final = 400
"""Milliseconds by which connection 2 is behind connection 1."""
PAUSES: Final = (250, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 30_000)
"""Before REST is asked again, as in `recent_trades.py`."""


class Silence(NamedTuple):
    """A time in which a connection delivers nothing and loses what is traded."""

    start: int
    end: int
    connection: int


def random_silences(dice: Random, count: int, start: int) -> list[Silence]:
    """Silences of one connection, of both, and alternating ones that overlap a little or not at all."""
    silences: list[Silence] = []
    for _ in range(count):
        start += dice.randint(5 * SECOND, 40 * SECOND)
        lasts = dice.randint(SECOND // 2, LONGEST)
        first, other = dice.sample(CONNECTIONS, 2)
        kind = dice.choice(("one", "both", "alternating"))
        silences.append(Silence(start, start + lasts, first))
        if kind == "both":
            silences.append(Silence(start, start + lasts, other))
        elif kind == "alternating":
            turn = start + lasts - dice.randint(-SECOND, min(lasts, 10 * SECOND))
            lasts = dice.randint(SECOND // 2, LONGEST)
            silences.append(Silence(turn, turn + lasts, other))
        start = max(silence.end for silence in silences[-2:])
    return silences


class Run:
    """One Bybit instrument on two connections, its REST, and a ledger of what was lost."""

    def __init__(self, rate: float, dice: Random, *, listed: int = 60) -> None:
        self.coverage = ConnectionCoverage()
        self.clock = ManualClock()
        self.recorded = RecordedInstrument(InstrumentTape(listing(BYBIT)), self.coverage, self.clock)
        self.now = NOON
        self.traded = 0
        self.lost: dict[str, int] = {}
        """Times of the trades that nobody delivered, by id."""
        self.bridged: list[tuple[int, int]] = []
        """Silences within the limit of which a connection lost something: such a loss cannot be seen."""
        self.requests = 0
        self._rate = rate
        self._dice = dice
        self._newest: deque[Trade] = deque(maxlen=listed + 400)
        self._listed = listed
        self._delayed: deque[Trade] = deque()
        self._last: dict[int, int] = dict.fromkeys(CONNECTIONS, 0)
        self._missed: dict[int, int] = dict.fromkeys(CONNECTIONS, 0)
        self._due: int | None = None
        self._attempt = 0
        self._scale = listing(BYBIT).scale

    def trade(self) -> Trade:
        """The next trade of the market."""
        self.now += round(self._dice.expovariate(self._rate) * SECOND)
        self.traded += 1
        one = Trade(BYBIT, self.now, self.traded, str(self.traded), 6_000_000, 100, TradeType.BUY, 1, self._scale)
        self._newest.append(one)
        return one

    def go(self, until: int, silences: list[Silence]) -> None:
        """Trade until this time, with these silences."""
        waiting, active = deque(sorted(silences)), list[Silence]()
        while self.now < until:
            one = self.trade()
            while waiting and waiting[0].start <= self.now:
                active.append(waiting.popleft())
            active = [silence for silence in active if silence.end > self.now]
            silent = {silence.connection for silence in active}
            self._arrive(self.now)
            if len(silent) == len(CONNECTIONS):
                self.lost[one.trade_id] = self.now
                self._check_live_edge()
            for connection in silent:
                self._missed[connection] += 1
            if 1 not in silent:
                self._deliver(1, one, self.now)
            if 2 not in silent:
                self._delayed.append(one)
        self._arrive(self.now + MINUTE)

    def unseen(self) -> list[str]:
        """Lost trades whose time is covered."""
        spans = self.coverage.spans
        return [trade_id for trade_id, at in self.lost.items() if any(span.start <= at < span.end for span in spans)]

    def contradicted(self) -> list[str]:
        """Lost trades whose time is covered although no connection was silent for less than the limit."""
        return [trade_id for trade_id in self.unseen() if not any(since <= self.lost[trade_id] <= until for since, until in self.bridged)]

    def _arrive(self, now: int) -> None:
        """What connection 2 and REST deliver until now."""
        while True:
            late = self._delayed[0].timestamp + DELAY if self._delayed else now + 1
            asked = self._due if self._due is not None else now + 1
            if min(late, asked) > now:
                return
            if asked < late:
                self._due = None
                self._ask(asked)
            else:
                self._deliver(2, self._delayed.popleft(), late)

    def _deliver(self, connection: int, one: Trade, at: int) -> None:
        self.clock.at = at
        last, limit, breaks = self._last[connection], self.coverage.silence_limit.ms, self.coverage.breaks
        if self._missed[connection] and last and one.timestamp - last <= limit:
            self.bridged.append((last, one.timestamp))
        self._missed[connection], self._last[connection] = 0, one.timestamp
        self.coverage.frame_received(connection, at)
        self.coverage.take(one)
        self.recorded.frames_received(at, one.timestamp, self.clock.monotonic())
        if self.coverage.breaks != breaks:
            self._due, self._attempt = at + self._dice.randint(50, 400), 0

    def _ask(self, at: int) -> None:
        """REST returns the newest trades, up to half a second late."""
        self.requests += 1
        seen = at - self._dice.randint(0, 500)
        newest = [one for one in self._newest if one.timestamp <= seen][-self._listed :]
        for one in self.coverage.unclaimed(newest):
            self.coverage.take(one, SpanReason.REPAIRED)
            self.lost.pop(one.trade_id, None)
        if not self.coverage.prove(newest):
            self._due = at + PAUSES[min(self._attempt, len(PAUSES) - 1)]
            self._attempt += 1

    def _check_live_edge(self) -> None:
        """Beyond the limit no time after the newest trade that was delivered is covered, for now there is a trade that was not."""
        self.clock.at = self.now
        newest = max(self._last.values())
        alive_until = self.recorded.alive_until()
        if self.now - newest > self.coverage.silence_limit.ms + SECOND:
            assert alive_until is None or alive_until <= newest


def running(rate: float, *, listed: int = 60) -> Run:
    """A run whose exchange has traded before; both connections deliver."""
    run = Run(rate, Random(f"{SEED}:{rate}"), listed=listed)
    for _ in range(200):
        run.trade()
    run.go(run.now + max(20 * SECOND, round(3 * SECOND / rate)), [])
    return run


@pytest.mark.parametrize("rate", RATES)
def test_no_silence_beyond_the_limit_is_covered_unless_it_was_real(rate: float) -> None:
    run = running(rate)
    silences = random_silences(Random(SEED), SILENCES, run.now)
    run.go(max(silence.end for silence in silences) + 4 * MINUTE, silences)
    assert not run.contradicted()
    unseen = len(run.unseen())
    print(
        f"{rate:.4f} trades/s: {SILENCES} silences, {run.traded:,} trades, {len(run.lost):,} lost in the end, {unseen} of them unseen "
        f"({unseen / run.traded:.4%}), limit {run.coverage.silence_limit.ms / SECOND:,.0f} s, {run.requests} requests"
    )


@pytest.mark.parametrize("rate", RATES)
def test_an_hour_without_silences_has_no_gap(rate: float) -> None:
    run = running(rate)
    began, requests, traded = run.now, run.requests, run.traded
    hour = HOUR if SOAK or rate < 10 else HOUR // 10
    run.go(began + max(hour, round(100 * SECOND / rate)), [])
    assert run.coverage.missing() == []
    assert not any(span.opened_by is GapReason.SILENCE for span in run.coverage.spans)
    assert run.requests - requests <= 2 + (run.traded - traded) // 300


def test_an_instrument_that_has_never_traded_before_is_covered_as_soon_as_rest_answers() -> None:
    run = Run(1 / 600, Random(SEED))
    run.go(NOON + 6 * HOUR, [])
    assert run.coverage.missing() == []
    assert run.requests <= run.traded + 1


@pytest.mark.anyio
async def test_every_connection_of_a_market_falls_silent_at_once(tmp_path: Path) -> None:
    instruments = tuple(each for each in INSTRUMENTS if each.symbol == "BTCUSDT" and (SOAK or each.market == "spot"))
    dice = Random(SEED)
    silences = [dice.uniform(6, 60) for _ in range(12)] if SOAK else [4.0]
    chaos = Chaos(seed=SEED)
    # So many trades that the limit is three seconds.
    async with deployment(tmp_path, instruments=instruments, faults=chaos, activity=19) as one:
        wadm = one.wadm()
        await wadm.start()
        await one.live(wadm)
        chaos.begin()
        for place, lasts in enumerate(silences, 1):
            for instrument in instruments:
                chaos.order(Fault(Kind.SILENCE, chaos.now, lasts, instrument.exchange, instrument.market))
            with anyio.fail_after(30):
                while len(chaos.happened) < place * len(instruments):
                    await anyio.sleep(0.05)
            await anyio.sleep(lasts)
            await one.live(wadm)
        await one.settled(wadm)
        found = await one.check(wadm)
        for instrument, each in found.items():
            # What the newest trades of Bybit do not reach lies in a gap: `check` sees to that.
            assert (each.lost == 0) is (instrument.exchange == "binance"), instrument
        assert await wadm.stop() == 0
