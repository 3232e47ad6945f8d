"""The journal against a plain list and against flipped bits, and its reader against arbitrary bytes."""

from __future__ import annotations

import random
import shutil
import struct
import sys
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final
from zlib import crc32

import anyio
import msgspec
import pytest
from anyio.from_thread import start_blocking_portal
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.market import BYBIT, NOON, SPOT, trade
from wadm_mcp.collection.recording import journal as journal_module
from wadm_mcp.collection.recording.journal import Batch, Journal
from wadm_mcp.collection.recording.journal_segment import Entry, pack, unpack
from wadm_mcp.coverage.spans import Basis, Span
from wadm_mcp.errors import JournalFull
from wadm_mcp.model import Instrument, Trade

ROOM: Final = 10_000_000
FUZZED: Final = 1_500
"""Segments that the reader is tested with; records are ten times as many."""

_SEGMENTS: Final = 3
_RECORDS: Final = 3


def entry(first: int, count: int) -> Entry:
    """Trades with seqs from `first` on, every other one of Bybit, and a span with the last one."""
    trades = [trade(seq, NOON + seq, instrument=SPOT if seq % 2 else BYBIT) for seq in range(first, first + count)]
    return Entry(trades, [(SPOT, Span(NOON + first, NOON + first + count, -1, first + count - 1, Basis.OBSERVED))])


def numbers(trades: Any) -> list[int]:
    return [each.seq for each in trades]


async def _drained(folder: Path) -> tuple[list[int], Journal]:
    async with Journal(folder, ROOM) as journal:
        found: list[int] = []
        while (batch := await journal.next()) is not None:
            found += numbers(batch.trades)
            await journal.release(batch)
        assert journal.backlog == 0
    assert not list(folder.glob("*.seg"))
    return found, journal


async def _written(folder: Path) -> None:
    """Three segments of three records of three trades, seqs from 0 on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(journal_module, "SEGMENT_BYTES", 8 + sum(len(pack(entry(3 * n, 3))) for n in range(_RECORDS)))
        async with Journal(folder, ROOM) as journal:
            for n in range(_SEGMENTS * _RECORDS):
                await journal.append(entry(3 * n, 3))
    assert len(list(folder.glob("*.seg"))) == _SEGMENTS


@settings(max_examples=150)
@given(st.data())
def test_flipped_bits_cost_at_most_the_rest_of_their_segment(data: st.DataObject) -> None:
    with TemporaryDirectory() as name:
        folder = Path(name) / "journal"
        anyio.run(_written, folder)
        expected: list[int] = []
        torn = damaged = 0
        for number, path in enumerate(sorted(folder.glob("*.seg"))):
            content = bytearray(path.read_bytes())
            flips = data.draw(st.sets(st.integers(0, 8 * len(content) - 1), max_size=2))
            for bit in flips:
                content[bit // 8] ^= 1 << bit % 8
            path.write_bytes(content)
            ends = [8]
            for record in range(_RECORDS):
                ends.append(ends[-1] + len(pack(entry(3 * (number * _RECORDS + record), 3))))
            first = min((bit // 8 for bit in flips), default=ends[-1])
            kept = 0 if first < 8 else sum(end <= first for end in ends[1:])
            expected += range(9 * number, 9 * number + 3 * kept)
            # A bad record at the very end of the newest segment cannot be distinguished from an interrupted append.
            flipped_records = {sum(end <= bit // 8 for end in ends[1:]) for bit in flips}
            intact = any(record not in flipped_records for record in range(kept + 1, _RECORDS))
            if flips and number == _SEGMENTS - 1 and first >= 8 and not intact:
                torn = ends[-1] - ends[kept]
            elif flips:
                damaged += 1
        found, journal = anyio.run(_drained, folder)
        assert found == expected
        assert journal.torn == torn
        assert len(journal.damaged) == damaged
        assert len(list(folder.glob("damaged/*.seg"))) == damaged


def _noise(dice: random.Random, max_bytes: int = 300) -> bytes:
    return dice.randbytes(dice.randrange(max_bytes))


def _any_value(dice: random.Random, depth: int = 0) -> Any:
    """Something that MessagePack can encode, often similar to the content of a record."""
    plain: list[Any] = [0, 1, -1, 255, 1 << 63, (1 << 64) - 1, -(1 << 63), None, True, "", "x", "exact", 1.5, b"", SPOT, (2, 5)]
    if depth > 4 or dice.random() < 0.4:
        return dice.choice(plain)
    return [_any_value(dice, depth + 1) for _ in range(dice.choice([0, 1, 2, 4, 8, 8]))]


def _replaced(node: Any, dice: random.Random) -> Any:
    """A tree with one value replaced by another."""
    if not isinstance(node, list) or not node or dice.random() < 0.15:
        return _any_value(dice, 3)
    place = dice.randrange(len(node))
    return [*node[:place], _replaced(node[place], dice), *node[place + 1 :]]


def _record(payload: bytes) -> bytes:
    """A record with a valid checksum and any payload."""
    return struct.pack(">II", len(payload), crc32(payload)) + payload


def _hostile_record(dice: random.Random) -> bytes:
    valid = pack(entry(dice.randrange(9), dice.randrange(1, 5)))
    tree = msgspec.msgpack.decode(valid[13:])
    forged = msgspec.msgpack.encode(_replaced(tree, dice))
    lead = valid[8:13] if dice.random() < 0.8 else struct.pack(">BI", dice.choice([0, 1, 2]), dice.choice([0, 3, 1 << 31]))
    if dice.random() < 0.6:
        return valid
    choices = [_record(lead + forged), _record(lead + _noise(dice)), _record(_noise(dice, 8)), _noise(dice)]
    return dice.choice(choices)


def _hostile_segment(dice: random.Random) -> bytes:
    header = b"WADMSEG\x01" if dice.random() < 0.9 else _noise(dice, 12)
    content = bytearray(header + b"".join(_hostile_record(dice) for _ in range(dice.randrange(6))))
    for _ in range(dice.choice([0, 0, 1, 3])):
        if content:
            start = dice.randrange(len(content))
            content[start : start + dice.randrange(9)] = _noise(dice, 9)
    return bytes(content[: dice.randrange(len(content) + 1)] if dice.random() < 0.3 else content)


async def _read_hostile(folder: Path, count: int, seed: int) -> tuple[int, int, int]:
    dice = random.Random(seed)
    tried = kept = damaged = 0
    while tried < count:
        journal_folder = folder / str(tried)
        journal_folder.mkdir()
        content = {f"{number + 1:06d}.seg": _hostile_segment(dice) for number in range(dice.randrange(1, 5))}
        for name, data in content.items():
            (journal_folder / name).write_bytes(data)
        found, journal = await _drained(journal_folder)
        for path in journal_folder.glob("damaged/*"):
            aside = path.read_bytes()
            assert aside == content[path.name] or (path.name == max(content) and content[path.name].startswith(aside))
        tried += len(content)
        kept += len(found)
        damaged += len(journal.damaged)
        shutil.rmtree(journal_folder)
    return tried, kept, damaged


def test_the_reader_survives_any_segment(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seed = 20_260_601
    tried, kept, damaged = anyio.run(_read_hostile, tmp_path, FUZZED, seed)
    assert kept
    assert damaged
    with capsys.disabled():
        sys.stdout.write(f"\njournal reader: {tried:,} hostile segments (seed {seed}), {damaged:,} set aside, {kept:,} trades read\n")


def test_any_payload_is_an_entry_or_a_value_error(capsys: pytest.CaptureFixture[str]) -> None:
    seed, refused = 7, 0
    dice = random.Random(seed)
    for _ in range(10 * FUZZED):
        payload = _hostile_record(dice)[8:]
        try:
            found = unpack(payload)
        except ValueError:
            refused += 1
        else:
            assert unpack(pack(found)[8:]) == found
    assert refused
    with capsys.disabled():
        sys.stdout.write(f"\njournal records: {10 * FUZZED:,} hostile payloads (seed {seed}), {refused:,} refused\n")


class JournalBesideAList(RuleBasedStateMachine):
    """The journal behaves like a list that survives crashes."""

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        patch = self.stack.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(journal_module, "SEGMENT_BYTES", 400)
        patch.setattr(journal_module, "RECORD_TRADES", 4)
        patch.setattr(journal_module, "MAX_CACHED_TRADES", 12)
        self.home = Path(self.stack.enter_context(TemporaryDirectory()))
        self.portal = self.stack.enter_context(start_blocking_portal())
        self.crashes = 0
        self.trades: list[Trade] = []
        self.coverage: dict[int, tuple[Instrument, Span]] = {}
        """Spans by the number of trades that have to be stored before them."""
        self.released = 0
        self.batch: Batch | None = None
        self._open(self.home / "0")

    def _open(self, folder: Path) -> None:
        self.folder = folder
        self.batch = None
        self.opened = ExitStack()
        self.journal = self.opened.enter_context(self.portal.wrap_async_context_manager(Journal(folder, 2_000)))
        backlog = self.journal.backlog
        # After a restart released trades may be returned again if their segment could not be deleted yet.
        assert len(self.trades) - self.released <= backlog <= len(self.trades)
        self.released = len(self.trades) - backlog

    def _next(self, max_trades: int = 5_000) -> Batch | None:
        return self.portal.call(self.journal.next, max_trades)

    @rule(count=st.integers(1, 10))
    def append(self, count: int) -> None:
        fresh = entry(len(self.trades), count)
        try:
            self.portal.call(self.journal.append, fresh)
        except JournalFull:
            assert self.journal.bytes + sum(len(pack(part)) for part in journal_module._split(fresh)) + 8 > 2_000
            return
        self.trades += fresh.trades
        self.coverage[len(self.trades)] = fresh.spans[0]

    @rule(max_trades=st.integers(1, 12))
    def next(self, max_trades: int) -> None:
        batch = self._next(max_trades)
        if batch is None:
            assert self.released == len(self.trades)
            return
        end = self.released + len(batch.trades)
        assert 0 < len(batch.trades) <= max_trades
        assert list(batch.trades) == self.trades[self.released : end]
        assert list(batch.spans) == [span for at, span in self.coverage.items() if self.released < at <= end]
        self.batch = batch

    @precondition(lambda self: self.batch is not None)
    @rule(again=st.booleans())
    def release(self, again: bool) -> None:
        assert self.batch is not None
        self.portal.call(self.journal.release, self.batch)
        self.released = max(self.released, self.batch.trades[-1].seq + 1)
        self.batch = self.batch if again else None

    @rule()
    def restart(self) -> None:
        self.opened.close()
        self._open(self.folder)
        assert (self.journal.torn, self.journal.damaged) == (0, [])

    @rule(begun=st.integers(0, 200))
    def crash(self, begun: int) -> None:
        """The process is killed after it wrote `begun` bytes of an entry."""
        self.crashes += 1
        left = self.home / str(self.crashes)
        shutil.copytree(self.folder, left)
        self.opened.close()
        written = pack(entry(1_000_000, 4))[:-1][:begun]
        segments = sorted(left.glob("*.seg"))
        if segments:
            with segments[-1].open("ab") as file:
                file.write(written)
        self._open(left)
        assert (self.journal.torn, self.journal.damaged) == (len(written) if segments else 0, [])

    @invariant()
    def counts_agree(self) -> None:
        assert self.journal.backlog == len(self.trades) - self.released
        assert self.journal.bytes == sum(path.stat().st_size for path in self.folder.glob("*.seg")) <= 2_000
        assert sum(len(each.trades) for each, _ in self.journal._cache.values()) <= 12

    def teardown(self) -> None:
        while (batch := self._next()) is not None:
            assert list(batch.trades) == self.trades[self.released : self.released + len(batch.trades)]
            self.portal.call(self.journal.release, batch)
            self.released += len(batch.trades)
        assert self.released == len(self.trades)
        self.opened.close()
        self.stack.close()


TestJournalBesideAList = JournalBesideAList.TestCase
TestJournalBesideAList.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)


def test_the_reader_of_records_survives_twenty_thousand_hostile_records() -> None:
    dice, refused, tried = random.Random(20_260_726), 0, 20_000
    whole = pack(Entry([trade(seq, NOON + seq) for seq in range(1, 40)], [(SPOT, Span(NOON, NOON + 9, 1, 39, Basis.EXACT))]))[8:]
    for _ in range(tried):
        hostile = bytearray(whole)
        for _ in range(dice.randint(1, 6)):
            place = dice.randrange(len(hostile))
            match dice.randrange(4):
                case 0:
                    hostile[place] = dice.randrange(256)
                case 1:
                    del hostile[place : place + dice.randint(1, 30)]
                case 2:
                    hostile[place:place] = dice.randbytes(dice.randint(1, 30))
                case _:
                    hostile[place:] = b""
            if not hostile:
                break
        try:
            unpack(bytes(hostile))
        except ValueError:
            refused += 1
    print(f"journal records: {tried:,} hostile records (seed 20260726), {refused:,} refused")
