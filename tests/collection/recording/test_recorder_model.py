"""The recorder against a naive reference: whatever comes in whatever order, each trade goes each road once and is lost on none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Coroutine
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.market import NOON, SPOT, ManualClock, listing, trade
from wadm_mcp.analytics.footprint import Footprint
from wadm_mcp.collection.recording.recorder import Recorder
from wadm_mcp.exchanges.exchange import Trades
from wadm_mcp.health import Health
from wadm_mcp.model import MINUTE, GapReason, Trade
from wadm_mcp.storage.store import PartialFootprint
from wadm_mcp.tape import Tape

IDS = 120
LIMIT = 7
"""Trades that memory holds for questions before the oldest is let go."""


def done(step: Coroutine[Any, Any, Any]) -> Any:
    """Runs a step that has nothing to wait for."""
    try:
        step.send(None)
    except StopIteration as ended:
        return ended.value
    raise AssertionError("it waits")


def made(number: int) -> Trade:
    """The trade of an id: three a second and a half, over three minutes."""
    return trade(number, NOON + number * 1_500, 6_000_000 + number % 7, 10 + number, "SELL" if number % 3 else "BUY")


def minute_of(one: Trade) -> int:
    return one.timestamp - one.timestamp % MINUTE


class RecorderMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.clock = ManualClock(NOON + IDS * 1_500)
        self.tape = Tape()
        self.recorder = Recorder(self.tape, Health(self.clock.now), self.clock)
        self.recorder.start(listing(), counts_trades=True)
        self.tape.pending_limit = LIMIT
        self.rows: set[int] = set()
        self.folded: dict[int, PartialFootprint] = {}
        self.cut: list[Trade | PartialFootprint] = []
        """What was cut and is not saved."""
        self.gone: Counter[int] = Counter()
        """How often each id was cut."""
        self.settled: int | None = None
        self.late: Counter[int] = Counter()

    def comes(self, number: int) -> None:
        one = made(number)
        if self.settled is None:
            self.settled = minute_of(one)
        if minute_of(one) < self.settled and not self.live(minute_of(one)):
            self.late[minute_of(one)] += 1
        self.rows.add(number)

    def live(self, minute: int) -> bool:
        return minute in self.tape[SPOT].minutes

    @property
    def held(self) -> set[int]:
        return self.rows | {number for piece in self.folded.values() for number in range(piece.first_seq, piece.last_seq + 1)}

    @rule(numbers=st.lists(st.integers(1, IDS), min_size=1, max_size=9))
    def frame(self, numbers: list[int]) -> None:
        for number in numbers:
            if number not in self.held:
                self.comes(number)
            done(self.recorder.take(1, Trades(SPOT, (made(number),), made(number).timestamp + 1)))

    @rule(first=st.integers(1, IDS), count=st.integers(1, 15))
    def repair(self, first: int, count: int) -> None:
        numbers = range(first, min(IDS, first + count) + 1)
        fresh = [number for number in numbers if number not in self.held]
        for number in fresh:
            self.comes(number)
        assert done(self.recorder.record_repaired(SPOT, [made(number) for number in numbers])) == len(fresh)

    @precondition(lambda self: self.settled is not None)
    @rule(first=st.integers(1, IDS), count=st.integers(1, 15))
    def fold(self, first: int, count: int) -> None:
        trades = [one for one in map(made, range(first, first + count)) if minute_of(one) == minute_of(made(first))]
        footprint = Footprint(listing().scale)
        for one in trades:
            footprint.add(one)
        piece = PartialFootprint(SPOT, minute_of(trades[0]), first, trades[-1].seq, footprint)
        fresh = not self.held & set(range(piece.first_seq, piece.last_seq + 1))
        if fresh:
            assert self.settled is not None
            if piece.minute < self.settled and not self.live(piece.minute):
                self.late[piece.minute] += 1
            self.folded[first] = piece
        assert done(self.recorder.record_repaired(SPOT, (), [piece])) == (len(trades) if fresh else 0)

    @rule()
    def write(self) -> None:
        entry = self.recorder.take_batch()
        self.cut += [*entry.trades, *entry.pieces]
        self.gone.update(one.seq for one in entry.trades)
        self.gone.update(piece.first_seq for piece in entry.pieces)
        covered = {number for _, span in entry.spans for number in range(span.first_seq, span.last_seq + 1)}
        assert covered <= self.held

    @precondition(lambda self: self.cut)
    @rule(count=st.integers(1, 20))
    def save(self, count: int) -> None:
        saved, self.cut = self.cut[:count], self.cut[count:]
        self.recorder.mark_durable(
            [one for one in saved if isinstance(one, Trade)], [one for one in saved if isinstance(one, PartialFootprint)]
        )

    @rule()
    def lose(self) -> None:
        self.recorder.connection_lost(1, [SPOT], GapReason.DISCONNECT, "cut")

    @invariant()
    def every_trade_goes_out_once(self) -> None:
        waiting = [one.seq for one in self.recorder._pending] + [piece.first_seq for piece in self.recorder._partials]
        out = self.gone + Counter(waiting)
        assert out == Counter([*self.rows, *self.folded])

    @invariant()
    def what_waits_is_counted_by_its_minute_until_it_is_saved(self) -> None:
        unsaved = [*self.cut, *self.recorder._pending, *self.recorder._partials]
        waiting = Counter(one.minute if isinstance(one, PartialFootprint) else minute_of(one) for one in unsaved)
        assert self.tape[SPOT].unstored == waiting

    @invariant()
    def memory_holds_the_newest_that_came_and_counts_the_others(self) -> None:
        tape = self.tape[SPOT]
        unsaved = [one for one in [*self.cut, *self.recorder._pending] if isinstance(one, Trade)]
        assert len(tape.pending) <= LIMIT
        assert {one.seq for one in tape.pending.values()} <= {one.seq for one in unsaved}
        let_go = [one for one in unsaved if one.trade_id not in tape.pending]
        assert tape.evicted == Counter(minute_of(one) for one in let_go)

    @invariant()
    def every_live_minute_is_the_sum_of_what_came_for_it(self) -> None:
        tape = self.tape[SPOT]
        assert tape.revising == self.late
        for minute, footprint in tape.minutes.items():
            naive = Footprint(listing().scale)
            for number in sorted(self.held):
                if minute_of(made(number)) == minute:
                    naive.add(made(number))
            assert footprint.cells == naive.cells
            assert (footprint.bar.volume, footprint.bar.delta) == (naive.bar.volume, naive.bar.delta)

    @invariant()
    def spans_are_what_is_held(self) -> None:
        ids = [number for span in self.recorder[SPOT].spans for number in range(span.first_seq, span.last_seq + 1)]
        assert sorted(ids) == sorted(self.held)


TestRecorder = RecorderMachine.TestCase
