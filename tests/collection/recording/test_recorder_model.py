"""The recorder against a naive model: in whatever order trades arrive, each is stored once and counted once, and none is lost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Coroutine
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.market import NOON, SPOT, ManualClock, listing, trade
from wadm_mcp.analytics.footprint import Footprint
from wadm_mcp.collection.recording.recorder import Recorder
from wadm_mcp.coverage.spans import GapReason
from wadm_mcp.exchanges.exchange import Trades
from wadm_mcp.health import Health
from wadm_mcp.model import MINUTE, Trade
from wadm_mcp.storage.store import PartialFootprint
from wadm_mcp.tape import Tape

IDS = 120
LIMIT = 7
"""Pending trades kept in memory before the oldest is evicted."""


def run(step: Coroutine[Any, Any, Any]) -> Any:
    """The result of a coroutine that finishes without waiting."""
    try:
        step.send(None)
    except StopIteration as ended:
        return ended.value
    raise AssertionError("the coroutine waits")


def trade_of(number: int) -> Trade:
    """The trade with this id: one every 1.5 s, over three minutes."""
    return trade(number, NOON + number * 1_500, 6_000_000 + number % 7, 10 + number, "SELL" if number % 3 else "BUY")


def minute_of(one: Trade) -> int:
    return one.timestamp - one.timestamp % MINUTE


class RecorderMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.clock = ManualClock(NOON + IDS * 1_500)
        self.tape = Tape()
        self.recorder = Recorder(self.tape, Health(self.clock.now), self.clock)
        self.recorder.start(listing(), has_gapless_ids=True)
        self.tape.pending_limit = LIMIT
        self.rows: set[int] = set()
        self.folded: dict[int, PartialFootprint] = {}
        self.unsaved: list[Trade | PartialFootprint] = []
        """Taken by the writer and not durable yet."""
        self.written: Counter[int] = Counter()
        """How often the writer took each id."""
        self.settled: int | None = None
        self.late: Counter[int] = Counter()

    def arrives(self, number: int) -> None:
        one = trade_of(number)
        if self.settled is None:
            self.settled = minute_of(one)
        if minute_of(one) < self.settled and not self.live(minute_of(one)):
            self.late[minute_of(one)] += 1
        self.rows.add(number)

    def live(self, minute: int) -> bool:
        return minute in self.tape[SPOT].minutes

    @property
    def known(self) -> set[int]:
        return self.rows | {number for partial in self.folded.values() for number in range(partial.first_seq, partial.last_seq + 1)}

    @rule(numbers=st.lists(st.integers(1, IDS), min_size=1, max_size=9))
    def frame(self, numbers: list[int]) -> None:
        for number in numbers:
            if number not in self.known:
                self.arrives(number)
            run(self.recorder.take(1, Trades(SPOT, (trade_of(number),), trade_of(number).timestamp + 1)))

    @rule(first=st.integers(1, IDS), count=st.integers(1, 15))
    def repair(self, first: int, count: int) -> None:
        numbers = range(first, min(IDS, first + count) + 1)
        fresh = [number for number in numbers if number not in self.known]
        for number in fresh:
            self.arrives(number)
        assert run(self.recorder.record_repaired(SPOT, [trade_of(number) for number in numbers])) == len(fresh)

    @precondition(lambda self: self.settled is not None)
    @rule(first=st.integers(1, IDS), count=st.integers(1, 15))
    def fold(self, first: int, count: int) -> None:
        trades = [one for one in map(trade_of, range(first, first + count)) if minute_of(one) == minute_of(trade_of(first))]
        footprint = Footprint(listing().scale)
        for one in trades:
            footprint.add(one)
        partial = PartialFootprint(SPOT, minute_of(trades[0]), first, trades[-1].seq, footprint)
        fresh = not self.known & set(range(partial.first_seq, partial.last_seq + 1))
        if fresh:
            assert self.settled is not None
            if partial.minute < self.settled and not self.live(partial.minute):
                self.late[partial.minute] += 1
            self.folded[first] = partial
        assert run(self.recorder.record_repaired(SPOT, (), [partial])) == (len(trades) if fresh else 0)

    @rule()
    def write(self) -> None:
        entry = self.recorder.take_batch()
        self.unsaved += [*entry.trades, *entry.pieces]
        self.written.update(one.seq for one in entry.trades)
        self.written.update(partial.first_seq for partial in entry.pieces)
        covered = {number for _, span in entry.spans for number in range(span.first_seq, span.last_seq + 1)}
        assert covered <= self.known

    @precondition(lambda self: self.unsaved)
    @rule(count=st.integers(1, 20))
    def save(self, count: int) -> None:
        saved, self.unsaved = self.unsaved[:count], self.unsaved[count:]
        self.recorder.mark_durable(
            [one for one in saved if isinstance(one, Trade)], [one for one in saved if isinstance(one, PartialFootprint)]
        )

    @rule()
    def lose(self) -> None:
        self.recorder.connection_lost(1, [SPOT], GapReason.DISCONNECT, "cut")

    @invariant()
    def every_trade_is_written_once(self) -> None:
        pending = [one.seq for one in self.recorder._pending] + [partial.first_seq for partial in self.recorder._partials]
        total = self.written + Counter(pending)
        assert total == Counter([*self.rows, *self.folded])

    @invariant()
    def trades_are_counted_by_minute_until_they_are_durable(self) -> None:
        not_durable = [*self.unsaved, *self.recorder._pending, *self.recorder._partials]
        expected = Counter(one.minute if isinstance(one, PartialFootprint) else minute_of(one) for one in not_durable)
        assert self.tape[SPOT].unstored == expected

    @invariant()
    def memory_keeps_the_newest_pending_trades_and_counts_the_evicted(self) -> None:
        tape = self.tape[SPOT]
        not_durable = [one for one in [*self.unsaved, *self.recorder._pending] if isinstance(one, Trade)]
        assert len(tape.pending) <= LIMIT
        assert {one.seq for one in tape.pending.values()} <= {one.seq for one in not_durable}
        evicted = [one for one in not_durable if one.trade_id not in tape.pending]
        assert tape.evicted == Counter(minute_of(one) for one in evicted)

    @invariant()
    def every_live_minute_is_the_sum_of_its_trades(self) -> None:
        tape = self.tape[SPOT]
        assert tape.revising == self.late
        for minute, footprint in tape.minutes.items():
            naive = Footprint(listing().scale)
            for number in sorted(self.known):
                if minute_of(trade_of(number)) == minute:
                    naive.add(trade_of(number))
            assert footprint.cells == naive.cells
            assert (footprint.bar.volume, footprint.bar.delta) == (naive.bar.volume, naive.bar.delta)

    @invariant()
    def spans_are_the_recorded_ids(self) -> None:
        ids = [number for span in self.recorder[SPOT].spans for number in range(span.first_seq, span.last_seq + 1)]
        assert sorted(ids) == sorted(self.known)


TestRecorder = RecorderMachine.TestCase
