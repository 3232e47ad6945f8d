from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable
from functools import partial
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

import anyio
import msgspec
import pytest
from anyio import to_thread
from hypothesis import given
from hypothesis import strategies as st

from tests.market import BYBIT, NOON, SPOT, trade
from wadm_mcp.analytics.footprint import Footprint
from wadm_mcp.collection.recording import journal as journal_module
from wadm_mcp.collection.recording import journal_segment as segment_module
from wadm_mcp.collection.recording.journal import Batch, Journal, StoreNote
from wadm_mcp.collection.recording.journal_segment import Entry, pack, unpack
from wadm_mcp.coverage.spans import Basis, GapReason, Span, SpanReason
from wadm_mcp.errors import JournalFull, StoreError
from wadm_mcp.model import Instrument, Scale, Trade, TradeType
from wadm_mcp.storage.store import PartialFootprint, StoreVersion

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

pytestmark = pytest.mark.anyio

ROOM = 10_000_000
FRAME = 8
HEADER = 8

names = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
instruments = st.sampled_from([SPOT, BYBIT, Instrument("binance", "linear", "ETHUSDT"), Instrument("bybit", "linear", "1000PEPEUSDT")])
integers = st.integers(0, (1 << 63) - 1)
seqs = st.integers(-(1 << 63), (1 << 63) - 1)
times = st.integers(0, 4_000_000_000_000)
trades = st.builds(
    Trade,
    instrument=instruments,
    timestamp=times,
    seq=seqs,
    trade_id=st.one_of(names, st.uuids().map(str), integers.map(str)),
    price=integers,
    quantity=integers,
    trade_type=st.sampled_from(TradeType),
    fills=st.integers(1, 1 << 40),
    scale=st.builds(Scale, st.integers(0, 18), st.integers(0, 18)),
)
spans = st.builds(
    Span,
    start=times,
    end=times,
    first_seq=seqs,
    last_seq=seqs,
    basis=st.sampled_from(Basis),
    reason=st.sampled_from(SpanReason),
    opened_by=st.sampled_from(GapReason),
    raw=st.booleans(),
)


def footprint(trades: Iterable[Trade]) -> Footprint:
    result = Footprint(Scale(2, 5))
    for each in trades:
        result.add(each)
    return result


partials = st.builds(
    PartialFootprint,
    instrument=instruments,
    minute=times,
    first_seq=seqs,
    last_seq=seqs,
    footprint=st.lists(st.builds(trade, st.integers(1, 1 << 40), price=integers, quantity=integers), min_size=1, max_size=5).map(footprint),
)
entries = st.builds(
    Entry, st.lists(trades, max_size=30), st.lists(st.tuples(instruments, spans), max_size=5), st.lists(partials, max_size=3)
)


class Clock:
    """A monotonic clock that tests set."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class FullDisk(FileIO):
    """A file on a disk with `room` bytes left, None for no limit. Like a real disk it writes what fits before it fails.

    Without `truncates` a file on the full disk cannot be truncated either.
    """

    room: int | None = None
    truncates = True

    def write(self, data: ReadableBuffer, /) -> int:
        if FullDisk.room is None:
            return super().write(data)
        if FullDisk.room == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = super().write(memoryview(data)[: FullDisk.room])
        FullDisk.room -= written
        return written

    def truncate(self, size: int | None = None, /) -> int:
        if not FullDisk.truncates and FullDisk.room == 0:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return super().truncate(size)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "journal"


@pytest.fixture
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new segment for each entry."""
    monkeypatch.setattr(journal_module, "SEGMENT_BYTES", 10)


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> type[FullDisk]:
    monkeypatch.setattr(journal_module, "FileIO", FullDisk)
    monkeypatch.setattr(FullDisk, "room", None)
    monkeypatch.setattr(FullDisk, "truncates", True)
    return FullDisk


@pytest.fixture
def no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every entry is read back from the disk."""
    monkeypatch.setattr(journal_module, "MAX_CACHED_TRADES", 0)


def entry(first: int, count: int = 3, *, span: bool = True) -> Entry:
    """Trades of one instrument with seqs from `first` on, and a span that ends with them."""
    covered = Span(NOON, NOON + first + count, 1, first + count - 1, Basis.EXACT)
    return Entry([trade(seq, NOON + seq) for seq in range(first, first + count)], [(SPOT, covered)] if span else [])


def numbers(found: Iterable[Trade]) -> list[int]:
    return [each.seq for each in found]


async def drained(journal: Journal, max_trades: int = 5_000) -> list[int]:
    """The seqs of all trades that were not released, in the order in which they are returned."""
    found: list[int] = []
    while (batch := await journal.next(max_trades)) is not None:
        found += numbers(batch.trades)
        await journal.release(batch)
    assert journal.backlog == 0
    return found


async def fill(folder: Path, *batches: Entry) -> None:
    async with Journal(folder, ROOM) as journal:
        for each in batches:
            await journal.append(each)


async def next_of(journal: Journal, max_trades: int = 5_000) -> Batch:
    batch = await journal.next(max_trades)
    assert batch is not None
    return batch


def segments(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.seg"))


def crashed(folder: Path) -> Path:
    """A copy of the folder, as a process killed at this moment would leave it."""
    left = folder.with_name(folder.name + "_")
    if left.exists():
        left = left.with_name(left.name + "_")
    shutil.copytree(folder, left)
    return left


@pytest.mark.parametrize("max_trades", [1, 2, 3, 7, 100])
async def test_the_next_batch_can_be_read_before_this_one_is_released(tmp_path: Path, max_trades: int) -> None:
    async with Journal(tmp_path, ROOM) as journal:
        for first in range(1, 30, 5):
            await journal.append(entry(first, 5))
        ahead = [await next_of(journal, max_trades)]
        while (following := await journal.next(max_trades, after=ahead[-1])) is not None:
            ahead.append(following)
        assert await journal.next(max_trades) == ahead[0]
        for each in ahead:
            assert await journal.next(max_trades) == each
            await journal.release(each)
        assert await journal.next(max_trades) is None


@given(entries)
def test_every_field_comes_back_as_it_went_in(given_entry: Entry) -> None:
    record = pack(given_entry)
    assert unpack(record[FRAME:]) == given_entry


def test_a_binance_trade_takes_fewer_than_40_bytes() -> None:
    tape = [trade(3_735_683_300 + n, NOON + 7 * n, 6_183_763 + n, 10_000_000 - n, "BUY" if n % 3 else "SELL") for n in range(1_000)]
    assert len(pack(Entry(tape, ()))) < 40 * 1_000


def test_a_price_beyond_64_bits_is_refused_before_anything_is_written() -> None:
    with pytest.raises(OverflowError):
        pack(Entry([trade(1, price=1 << 64)], ()))


@pytest.mark.parametrize("cached", [0, 20_000])
async def test_entries_come_back_in_order_from_memory_and_from_disk(folder: Path, cached: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "MAX_CACHED_TRADES", cached)
    odd = Trade(BYBIT, NOON, 9, str(UUID(int=5)), 7, 8, TradeType.SELL, 3, Scale(4, 6))
    late = (BYBIT, Span(NOON, NOON, -1, -1, Basis.OBSERVED, SpanReason.LIVE, GapReason.MUTE))
    async with Journal(folder, ROOM) as journal:
        await journal.append(Entry([trade(1), odd, trade(2, side="SELL")], [late]))
        await journal.append(Entry([odd], []))
        batch = await next_of(journal)
    assert batch.trades == [trade(1), odd, trade(2, side="SELL"), odd]
    assert batch.spans == [late]


async def test_an_empty_journal_returns_nothing_and_leaves_no_segment(folder: Path) -> None:
    async with Journal(folder, ROOM) as journal:
        assert await journal.next() is None
        await journal.append(Entry([], []))
        assert await journal.next() is None
        assert (journal.backlog, journal.bytes, journal.limit) == (0, 0, ROOM)
    assert segments(folder) == []


async def test_the_same_trades_are_returned_until_they_are_released(folder: Path) -> None:
    async with Journal(folder, ROOM) as journal:
        await journal.append(entry(1))
        first = await next_of(journal)
        await journal.append(entry(4))
        again = await next_of(journal)
        assert (numbers(first.trades), numbers(again.trades)) == ([1, 2, 3], [1, 2, 3, 4, 5, 6])
        await journal.release(first)
        assert journal.backlog == 3
        assert numbers((await next_of(journal)).trades) == [4, 5, 6]
        await journal.release(again)
        await journal.release(first)
        assert journal.backlog == 0
        assert await journal.next() is None


async def test_only_the_newest_version_of_a_span_is_returned(folder: Path) -> None:
    async with Journal(folder, ROOM) as journal:
        await journal.append(entry(1))
        await journal.append(entry(4))
        assert (await next_of(journal)).spans == entry(4).spans


async def test_coverage_without_trades_is_kept_too(folder: Path) -> None:
    async with Journal(folder, ROOM) as journal:
        await journal.append(Entry((), entry(1).spans))
    async with Journal(folder, ROOM) as journal:
        batch = await next_of(journal)
        assert (list(batch.trades), batch.spans) == ([], entry(1).spans)
        await journal.release(batch)
        assert await journal.next() is None
    assert segments(folder) == []


@pytest.mark.parametrize("cached", [0, 20_000])
@pytest.mark.parametrize("size", [4, 7, 20])
async def test_a_large_entry_comes_in_several_batches_with_its_coverage_last(
    folder: Path, size: int, cached: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "MAX_CACHED_TRADES", cached)
    monkeypatch.setattr(journal_module, "RECORD_TRADES", size)
    async with Journal(folder, ROOM) as journal:
        await journal.append(entry(1, 10))
        found: list[int] = []
        while not (batch := await next_of(journal, 4)).spans:
            assert 0 < len(batch.trades) <= 4
            found += numbers(batch.trades)
            await journal.release(batch)
            assert journal.backlog == 10 - len(found)
        assert found + numbers(batch.trades) == list(range(1, 11))
        assert batch.spans == entry(1, 10).spans


async def test_a_batch_is_about_as_large_as_asked(folder: Path) -> None:
    async with Journal(folder, ROOM) as journal:
        for first in range(1, 100, 3):
            await journal.append(entry(first, span=False))
        batch = await next_of(journal, 10)
        assert numbers(batch.trades) == list(range(1, 10))


@pytest.mark.usefixtures("small_segments")
async def test_a_segment_is_deleted_once_all_of_it_is_released(folder: Path) -> None:
    async with Journal(folder, ROOM) as journal:
        for first in (1, 4, 7):
            await journal.append(entry(first))
        assert segments(folder) == ["000001.seg", "000002.seg", "000003.seg"]
        assert journal.bytes == sum(path.stat().st_size for path in folder.glob("*.seg"))
        await journal.release(await next_of(journal, 2))
        assert segments(folder) == ["000001.seg", "000002.seg", "000003.seg"]
        await journal.release(await next_of(journal, 2))
        assert segments(folder) == ["000002.seg", "000003.seg"]
        await drained(journal)
        assert segments(folder) == ["000003.seg"]
        assert journal.bytes == (folder / "000003.seg").stat().st_size
    assert segments(folder) == []


@pytest.mark.parametrize("segment_bytes", [10, 300, 1_000_000])
@pytest.mark.parametrize("kill", [False, True])
async def test_a_restart_at_any_point_returns_everything_that_was_not_released(
    tmp_path: Path, segment_bytes: int, kill: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "SEGMENT_BYTES", segment_bytes)
    for appended in range(5):
        for released in range(appended + 1):
            folder = tmp_path / f"{appended}-{released}"
            async with Journal(folder, ROOM) as journal:
                for n in range(appended):
                    await journal.append(entry(1 + 3 * n))
                for _ in range(released):
                    await journal.release(await next_of(journal, 3))
                left = crashed(folder) if kill else folder
            async with Journal(left, ROOM) as journal:
                assert (journal.torn, journal.damaged) == (0, [])
                found = await drained(journal)
                assert found[len(found) - 3 * (appended - released) :] == list(range(3 * released + 1, 3 * appended + 1))
                assert found == sorted(set(found))
            assert segments(left) == []


_CHILD = """
import sys, itertools, functools, anyio
from pathlib import Path
from tests.collection.recording.test_journal import entry, next_of
from wadm_mcp.collection.recording import journal

async def main(folder, first, release):
    journal.SEGMENT_BYTES = 20_000
    async with journal.Journal(Path(folder), 1 << 30) as opened:
        if release:
            while (batch := await opened.next()) is not None:
                await opened.release(batch)
        for n in itertools.count(first, 7):
            await opened.append(entry(n, 7))
            print(n, flush=True)
            if release and n % 5 == 0:
                batch = await next_of(opened)
                await opened.release(batch)

anyio.run(main, sys.argv[1], int(sys.argv[2]), sys.argv[3] == "release")
"""


def _killed_after(folder: Path, first: int, lines: int, mode: str) -> list[int]:
    """Run a process that appends seven trades at a time until it is killed; the first seq of each acknowledged entry."""
    root = Path(__file__).parents[3]
    command = [sys.executable, "-c", _CHILD, str(folder), str(first), mode]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        printed = [child.stdout.readline() for _ in range(lines)]
        child.send_signal(signal.SIGKILL)
        printed += child.stdout.readlines()
    return [int(line) for line in printed if line.endswith(b"\n")]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
async def test_everything_acknowledged_survives_kill_9_once_and_in_order(folder: Path) -> None:
    acknowledged: list[int] = []
    possible = 0
    for round_, lines in enumerate((1, 40, 333, 777)):
        printed = _killed_after(folder, 1 + round_ * 1_000_000, lines, "keep")
        acknowledged += [seq for first in printed for seq in range(first, first + 7)]
        possible += 7
    async with Journal(folder, ROOM) as journal:
        assert journal.damaged == []
        found = await drained(journal)
    assert found == sorted(set(found))
    assert set(acknowledged) <= set(found)
    assert len(found) <= len(acknowledged) + possible


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
async def test_kill_9_between_releases_loses_nothing_that_was_not_released(folder: Path) -> None:
    _killed_after(folder, 1, 3, "release")
    printed = _killed_after(folder, 1_000_001, 500, "release")
    async with Journal(folder, ROOM) as journal:
        found = await drained(journal)
    assert found == sorted(set(found))
    last_released = max(first for first in printed if first % 5 == 0)
    assert {seq for first in printed if first > last_released for seq in range(first, first + 7)} <= set(found)


async def test_an_incomplete_record_is_truncated_at_any_byte_and_counted(folder: Path, tmp_path: Path) -> None:
    await fill(folder, entry(1), entry(4))
    content = (folder / "000001.seg").read_bytes()
    complete = HEADER + len(pack(entry(1)))
    for length in range(len(content)):
        left = tmp_path / str(length)
        left.mkdir()
        (left / "000001.seg").write_bytes(content[:length])
        kept = 0 if length < HEADER else HEADER if length < complete else complete
        async with Journal(left, ROOM) as journal:
            assert (journal.torn, journal.damaged) == (length - kept, [])
            assert journal.backlog == (3 if length >= complete else 0)
            await journal.append(entry(7))
            again = crashed(left)
            assert await drained(journal) == ([1, 2, 3] if length >= complete else []) + [7, 8, 9]
        async with Journal(again, ROOM) as journal:
            assert (journal.torn, journal.damaged) == (0, [])
            assert await drained(journal) == ([1, 2, 3] if length >= complete else []) + [7, 8, 9]


async def test_zeros_at_the_end_after_a_power_cut_are_truncated(folder: Path) -> None:
    await fill(folder, entry(1))
    with (folder / "000001.seg").open("ab") as file:
        file.write(bytes(4_096))
    async with Journal(folder, ROOM) as journal:
        assert (journal.torn, journal.damaged) == (4_096, [])
        assert await drained(journal) == [1, 2, 3]


def _damage(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 0x40
    path.write_bytes(data)


@pytest.mark.parametrize("byte", [0, 3, FRAME + 20])
async def test_damage_before_an_intact_record_is_not_an_incomplete_record(folder: Path, byte: int) -> None:
    await fill(folder, entry(1), entry(4), entry(7))
    at = HEADER + len(pack(entry(1)))
    _damage(folder / "000001.seg", at + byte)
    damaged = (folder / "000001.seg").read_bytes()
    async with Journal(folder, ROOM) as journal:
        assert journal.torn == 0
        assert len(journal.damaged) == 1
        assert await drained(journal) == [1, 2, 3]
    assert segments(folder) == []
    assert (folder / "damaged" / "000001.seg").read_bytes() == damaged


@pytest.mark.usefixtures("small_segments")
async def test_a_damaged_segment_is_set_aside_with_one_line_and_later_ones_are_drained(folder: Path) -> None:
    await fill(folder, entry(1), entry(4), entry(7))
    _damage(folder / "000002.seg", HEADER + FRAME + 10)
    async with Journal(folder, ROOM) as journal:
        assert journal.damaged == [
            "journal segment 000002.seg: checksum mismatch at byte 8; 0 trades before it are kept, the whole file is in journal/damaged/"
        ]
        assert (folder / "damaged" / "000002.seg").is_file()
        assert journal.backlog == 6
        assert await drained(journal) == [1, 2, 3, 7, 8, 9]
        await journal.append(entry(10))
        assert segments(folder) == ["000004.seg"]


async def test_a_file_with_an_invalid_header_is_set_aside(folder: Path) -> None:
    folder.mkdir()
    (folder / "000007.seg").write_bytes(b"some other text")
    async with Journal(folder, ROOM) as journal:
        (line,) = journal.damaged
        assert line.startswith("journal segment 000007.seg: invalid segment header at byte 0; 0 trades before it are kept")
        await journal.append(entry(1))
        assert segments(folder) == ["000008.seg"]
    assert (folder / "damaged" / "000007.seg").read_bytes() == b"some other text"


async def test_the_name_of_a_segment_that_was_set_aside_is_never_used_again(folder: Path) -> None:
    (folder / "damaged").mkdir(parents=True)
    (folder / "damaged" / "000041.seg").write_bytes(b"")
    await fill(folder, entry(1))
    assert segments(folder) == ["000042.seg"]


async def test_a_record_of_a_newer_version_is_set_aside_even_at_the_end(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await fill(folder, entry(1))
    with monkeypatch.context() as patch, (folder / "000001.seg").open("ab") as file:
        patch.setattr(segment_module, "VERSION", 2)
        file.write(pack(entry(4)))
    async with Journal(folder, ROOM) as journal:
        assert await drained(journal) == [1, 2, 3]
        (line,) = journal.damaged
        assert line.startswith("journal segment 000001.seg: unknown record version 2 at byte ")
        assert journal.torn == 0
    assert segments(folder / "damaged") == ["000001.seg"]


async def test_files_that_are_not_segments_are_left_alone(folder: Path, tmp_path: Path) -> None:
    (folder / "000003.seg").mkdir(parents=True)
    (tmp_path / "elsewhere").write_bytes(b"x")
    (folder / "000004.seg").symlink_to(tmp_path / "elsewhere")
    for name in ("notes.txt", "1.seg", "0000001.seg", "000001.seg.bak"):
        (folder / name).write_bytes(b"mine")
    before = sorted(folder.iterdir())
    async with Journal(folder, ROOM) as journal:
        assert (journal.damaged, journal.torn, journal.backlog) == ([], 0, 0)
    assert sorted(path for path in folder.iterdir() if path.name != "store.json") == before


@pytest.mark.usefixtures("small_segments")
async def test_coverage_after_damage_is_withheld_until_this_process_appends(folder: Path) -> None:
    await fill(folder, entry(1), entry(4), entry(7))
    _damage(folder / "000002.seg", HEADER + FRAME + 10)
    async with Journal(folder, ROOM) as journal:
        await journal.append(entry(10))
        found: list[tuple[list[int], int]] = []
        while (batch := await journal.next(3)) is not None:
            found.append((numbers(batch.trades), len(batch.spans)))
            await journal.release(batch)
    assert found == [([1, 2, 3], 1), ([7, 8, 9], 0), ([10, 11, 12], 1)]


@pytest.mark.usefixtures("small_segments")
async def test_coverage_after_damage_is_still_withheld_after_a_crash(folder: Path) -> None:
    await fill(folder, entry(1), entry(4), entry(7))
    _damage(folder / "000001.seg", HEADER + FRAME + 10)
    async with Journal(folder, ROOM) as journal:
        await journal.release(await next_of(journal, 3))
        left = crashed(folder)
    async with Journal(left, ROOM) as journal:
        assert len(journal.damaged) == 1
        batch = await next_of(journal)
        assert numbers(batch.trades)[-3:] == [7, 8, 9]
        assert batch.spans == []
        await journal.release(batch)
    assert segments(left) == []


@pytest.mark.usefixtures("no_cache")
async def test_a_segment_that_is_damaged_while_the_process_runs_is_set_aside_when_it_is_read(folder: Path) -> None:
    async with Journal(folder, ROOM) as journal:
        for first in (1, 4, 7):
            await journal.append(entry(first))
        _damage(folder / "000001.seg", HEADER + len(pack(entry(1))) + FRAME + 10)
        assert journal.backlog == 9
        stale = await next_of(journal, 3)
        batch = await next_of(journal)
        assert numbers(batch.trades) == [1, 2, 3]
        assert journal.damaged[0].startswith("journal segment 000001.seg: checksum mismatch at byte ")
        assert "; 3 trades before it are kept" in journal.damaged[0]
        assert journal.backlog == 3
        await journal.append(entry(10))
        assert journal.backlog == 6
        await journal.release(stale)
        assert await drained(journal) == [10, 11, 12]
        assert segments(folder) == ["000002.seg"]


@pytest.mark.usefixtures("no_cache")
async def test_a_deleted_segment_is_reported_and_the_next_one_is_read(folder: Path) -> None:
    await fill(folder, entry(1))
    await fill(folder, entry(4))
    async with Journal(folder, ROOM) as journal:
        (folder / "000001.seg").unlink()
        assert await drained(journal) == [4, 5, 6]
        assert journal.damaged == ["journal segment 000001.seg: file not found at byte 8; 0 trades before it are kept, the rest is lost"]


async def test_a_damaged_segment_is_copied_if_the_file_system_has_no_hard_links(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, target: Path) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    folder.mkdir()
    (folder / "000001.seg").write_bytes(b"not a segment")
    async with Journal(folder, ROOM) as journal:
        assert len(journal.damaged) == 1
    assert [path.name for path in (folder / "damaged").iterdir()] == ["000001.seg"]
    assert (folder / "damaged" / "000001.seg").read_bytes() == b"not a segment"
    assert segments(folder) == []


async def test_a_full_journal_refuses_an_entry_in_one_line_and_accepts_it_after_a_release(folder: Path) -> None:
    size = len(pack(entry(1)))
    async with Journal(folder, HEADER + 2 * size) as journal:
        await journal.append(entry(1))
        await journal.append(entry(4))
        with pytest.raises(JournalFull, match=r"is full: [0-9,]+ of [0-9,]+ bytes wait .* WADM_JOURNAL_MAX_MB$"):
            await journal.append(entry(7))
        assert (journal.backlog, journal.bytes) == (6, HEADER + 2 * size)
        batch = await next_of(journal)
        await journal.release(batch)
        await journal.append(entry(7))
        assert await drained(journal) == [7, 8, 9]
        assert journal.bytes <= journal.limit


async def test_an_entry_larger_than_the_limit_is_refused_completely(folder: Path) -> None:
    async with Journal(folder, 500) as journal:
        with pytest.raises(JournalFull):
            await journal.append(entry(1, 1_000))
        assert (journal.backlog, await journal.next()) == (0, None)
        await journal.append(entry(1))
        assert await drained(journal) == [1, 2, 3]


async def test_segments_beyond_a_lowered_limit_are_still_drained(folder: Path) -> None:
    await fill(folder, entry(1), entry(4))
    async with Journal(folder, 100) as journal:
        with pytest.raises(JournalFull):
            await journal.append(entry(7, 1))
        assert await drained(journal) == [1, 2, 3, 4, 5, 6]


async def test_a_disk_that_fills_up_during_a_write_keeps_nothing_of_the_entry(folder: Path, full_disk: type[FullDisk]) -> None:
    size = len(pack(entry(4)))
    async with Journal(folder, ROOM) as journal:
        await journal.append(entry(1))
        for room in range(size):
            full_disk.room = room
            with pytest.raises(JournalFull, match=r"cannot be written \(No space left on device\)"):
                await journal.append(entry(4))
            assert (journal.backlog, journal.bytes) == (3, HEADER + len(pack(entry(1))))
        full_disk.room = None
        await journal.append(entry(7, 1))
        left = crashed(folder)
        assert await drained(journal) == [1, 2, 3, 7]
    async with Journal(left, ROOM) as journal:
        assert (journal.torn, journal.damaged) == (0, [])
        assert await drained(journal) == [1, 2, 3, 7]


async def test_data_that_could_not_be_truncated_is_truncated_by_the_next_append_or_opening(folder: Path, full_disk: type[FullDisk]) -> None:
    written = len(pack(entry(4))) - 1
    assert written > len(pack(entry(7, 1)))
    async with Journal(folder, ROOM) as journal:
        await journal.append(entry(1))
        full_disk.room, full_disk.truncates = written, False
        with pytest.raises(JournalFull):
            await journal.append(entry(4))
        left = crashed(folder)
        full_disk.room, full_disk.truncates = None, True
        await journal.append(entry(7, 1))
        again = crashed(folder)
    for path, found, torn in ((left, [1, 2, 3], written), (again, [1, 2, 3, 7], 0)):
        async with Journal(path, ROOM) as journal:
            assert (journal.torn, journal.damaged) == (torn, [])
            assert await drained(journal) == found


async def test_a_disk_that_is_full_from_the_start_leaves_no_file(folder: Path, full_disk: type[FullDisk]) -> None:
    async with Journal(folder, ROOM) as journal:
        for room in range(HEADER):
            full_disk.room = room
            with pytest.raises(JournalFull):
                await journal.append(entry(1))
            assert (segments(folder), journal.bytes) == ([], 0)
        full_disk.room = None
        await journal.append(entry(1))
        assert await drained(journal) == [1, 2, 3]


async def test_a_folder_that_is_a_file_is_a_store_error_in_one_line(folder: Path) -> None:
    folder.write_text("x")
    with pytest.raises(StoreError, match=r"the journal in .* cannot be used \(File exists\); .*WADM_DATA_DIR"):
        async with Journal(folder, ROOM):
            pass


async def test_a_backlog_of_300_000_trades_drains_with_bounded_memory(folder: Path) -> None:
    async with Journal(folder, 100_000_000) as journal:
        for first in range(0, 300_000, 3_000):
            await journal.append(entry(first, 3_000, span=False))
            assert sum(len(each.trades) for each, _ in journal._cache.values()) <= journal_module.MAX_CACHED_TRADES
        assert journal.backlog == 300_000
        expected = 0
        while (batch := await journal.next(5_000)) is not None:
            assert len(batch.trades) <= 5_000
            assert numbers(batch.trades) == list(range(expected, expected + len(batch.trades)))
            expected += len(batch.trades)
            await journal.release(batch)
            assert sum(len(each.trades) for each, _ in journal._cache.values()) <= journal_module.MAX_CACHED_TRADES
        assert expected == 300_000
        assert journal._cache == {}


async def test_fsync_runs_at_most_once_a_second_and_also_when_the_market_is_quiet(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    real, count = os.fsync, 0

    def counted(handle: int) -> None:
        nonlocal count
        count += 1
        real(handle)

    async with Journal(folder, ROOM, monotonic=clock) as journal:
        await journal.append(entry(1))
        monkeypatch.setattr(os, "fsync", counted)
        for first in range(4, 100, 3):
            await journal.append(entry(first))
        assert count == 0
        clock.now += 1.0
        await journal.next()
        await journal.next()
        assert count == 1
        await journal.append(entry(100))
        assert count == 1
        clock.now += 1.0
        await journal.append(entry(103))
        assert count == 2


async def test_an_fsync_that_fails_keeps_nothing_of_the_entry(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()

    def fail(handle: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    async with Journal(folder, ROOM, monotonic=clock) as journal:
        await journal.append(entry(1))
        clock.now += 2.0
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fail)
            with pytest.raises(JournalFull):
                await journal.append(entry(4))
        left = crashed(folder)
        await journal.append(entry(7))
        assert await drained(journal) == [1, 2, 3, 7, 8, 9]
    async with Journal(left, ROOM) as journal:
        assert await drained(journal) == [1, 2, 3]


async def test_an_append_that_is_cancelled_while_it_writes_is_completed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writing, go_on = threading.Event(), threading.Event()
    real = journal_module._write_all

    def slowly(file: FileIO, data: bytes) -> None:
        writing.set()
        assert go_on.wait(5)
        real(file, data)

    async with Journal(folder, ROOM) as journal:
        await journal.append(entry(1))
        monkeypatch.setattr(journal_module, "_write_all", slowly)
        with anyio.fail_after(10):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(journal.append, entry(4))
                await to_thread.run_sync(partial(writing.wait, 5))
                tasks.cancel_scope.cancel()
                go_on.set()
        assert await drained(journal) == [1, 2, 3, 4, 5, 6]


async def test_an_append_that_is_cancelled_before_it_begins_keeps_nothing(folder: Path) -> None:
    async with Journal(folder, ROOM) as journal:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await journal.append(entry(1))
        assert scope.cancelled_caught
        assert (journal.backlog, await journal.next()) == (0, None)


async def test_many_callers_at_once_take_turns(folder: Path) -> None:
    async with Journal(folder, ROOM) as journal:
        async with anyio.create_task_group() as tasks:
            for first in range(0, 60, 3):
                tasks.start_soon(journal.append, entry(first))
                tasks.start_soon(journal.next)
        assert journal.backlog == 60
        assert sorted(await drained(journal)) == list(range(60))


async def compare(journal: Journal, store: StoreVersion) -> StoreVersion | None:
    """As the writer does it before the first batch."""
    expected = await journal.compare_store(store)
    await journal.adopt_store(store)
    return expected


def note_of(folder: Path) -> StoreNote:
    return msgspec.json.decode((folder / "store.json").read_bytes(), type=StoreNote)


async def found_spans(journal: Journal) -> list[int]:
    """The first ids of the spans that are returned."""
    batch = await journal.next()
    return [] if batch is None else [span.first_seq for _, span in batch.spans]


@pytest.mark.parametrize(
    ("earlier", "store", "expected"),
    [
        (StoreVersion("a", 7), StoreVersion("b", 9), StoreVersion("a", 7)),
        (StoreVersion("a", 7), StoreVersion("a", 6), StoreVersion("a", 7)),
        (None, StoreVersion("a", 0), None),
    ],
)
async def test_beside_another_or_an_older_store_the_coverage_of_an_earlier_process_is_not_returned(
    folder: Path, earlier: StoreVersion | None, store: StoreVersion, expected: StoreVersion | None
) -> None:
    span = Span(NOON, NOON + 5, 1, 9, Basis.EXACT)
    async with Journal(folder, ROOM) as journal:
        if earlier is not None:
            await compare(journal, earlier)
        await journal.append(Entry([trade(9)], [(SPOT, span)]))
    if earlier is None:
        # As an earlier release left it.
        (folder / "store.json").unlink()
    async with Journal(folder, ROOM) as journal:
        assert await compare(journal, store) == expected
        await journal.append(Entry([trade(10)], [(SPOT, Span(NOON + 6, NOON + 7, 10, 10, Basis.EXACT))]))
        batches = [await journal.next(1)]
        batches.append(await journal.next(1, after=batches[0]))
        found = [batch for batch in batches if batch is not None]
        assert [each.seq for batch in found for each in batch.trades] == [9, 10]
        assert [span.first_seq for batch in found for _, span in batch.spans] == [10]


@pytest.mark.parametrize("store", [StoreVersion("a", 0), StoreVersion("a", 7)])
async def test_a_journal_that_never_had_a_store_takes_any_as_its_own(folder: Path, store: StoreVersion) -> None:
    # The first process never reaches a store, and is killed; the second is as well.
    await fill(folder, entry(1))
    await fill(folder, entry(4))
    async with Journal(folder, ROOM) as journal:
        assert await compare(journal, store) is None
        assert await found_spans(journal) == [1]
        assert await drained(journal) == [1, 2, 3, 4, 5, 6]


async def test_a_difference_is_found_again_until_the_store_is_adopted(folder: Path) -> None:
    await fill(folder, entry(1))
    async with Journal(folder, ROOM) as journal:
        await compare(journal, StoreVersion("a", 7))
    for _ in range(2):
        async with Journal(folder, ROOM) as journal:
            for _ in range(2):
                assert await journal.compare_store(StoreVersion("a", 6)) == StoreVersion("a", 7)
                assert await found_spans(journal) == []
    async with Journal(folder, ROOM) as journal:
        await compare(journal, StoreVersion("a", 6))
    async with Journal(folder, ROOM) as journal:
        assert await compare(journal, StoreVersion("a", 6)) is None
        assert await found_spans(journal) == []


async def test_a_journal_whose_store_was_lost_keeps_what_it_released_for_the_next_store(folder: Path) -> None:
    async with Journal(folder, ROOM) as journal:
        await journal.append(Entry([trade(1)], ()))
        batch = await next_of(journal, 1)
        await journal.release(batch, StoreVersion("a", 1))
        journal.stop_deleting()
    async with Journal(folder, ROOM) as journal:
        assert await compare(journal, StoreVersion("b", 0)) is None
        assert await drained(journal) == [1]


@pytest.mark.usefixtures("small_segments")
async def test_on_a_full_disk_released_segments_are_deleted_after_the_note_was_written_over_itself(folder: Path) -> None:
    async with Journal(folder, ROOM) as journal:
        await compare(journal, StoreVersion("a", 7))
        for first in (1, 4, 7):
            await journal.append(entry(first))
        # No other file can be written there.
        (folder / "store.json.new").mkdir()
        await journal.release(await next_of(journal, 3), StoreVersion("a", 12_345))
        assert segments(folder) == ["000002.seg", "000003.seg"]
        assert note_of(folder) == StoreNote("a", 12_345)
        (folder / "store.json.new").rmdir()
        await journal.release(await next_of(journal, 3), StoreVersion("a", 12_346))
        assert segments(folder) == ["000003.seg"]
        assert note_of(folder) == StoreNote("a", 12_346)


@pytest.mark.usefixtures("small_segments")
async def test_on_a_full_disk_the_journal_of_an_earlier_release_is_drained_without_a_note(folder: Path) -> None:
    await fill(folder, entry(1), entry(4), entry(7))
    (folder / "store.json").unlink()
    (folder / "store.json.new").mkdir()
    async with Journal(folder, ROOM) as journal:
        assert await compare(journal, StoreVersion("a", 7)) is None
        await journal.release(await next_of(journal, 3), StoreVersion("a", 8))
        assert segments(folder) == ["000002.seg", "000003.seg"]
        (folder / "store.json.new").rmdir()
        await journal.release(await next_of(journal, 3), StoreVersion("a", 9))
        assert note_of(folder) == StoreNote("a", 9)


@pytest.mark.parametrize("written", [1, 2])
async def test_a_note_that_was_not_written_over_itself_completely_is_of_no_store(
    folder: Path, written: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process ends after one or two of the three steps."""

    def write(file: FileIO, data: bytes) -> None:
        nonlocal written
        written -= 1
        if written < 0:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        file.write(data)

    async with Journal(folder, ROOM) as journal:
        await journal.append(entry(1))
        await compare(journal, StoreVersion("a", 7))
        (folder / "store.json.new").mkdir()
        with monkeypatch.context() as patch:
            patch.setattr(journal_module, "_write_all", write)
            with pytest.raises(StoreError, match="cannot be used"):
                await journal.adopt_store(StoreVersion("a", 8))
        left = crashed(folder)
    async with Journal(left, ROOM) as journal:
        assert await compare(journal, StoreVersion("a", 8)) is not None
        assert await found_spans(journal) == []
        assert note_of(left) == StoreNote("a", 8, 1)


async def test_a_note_that_cannot_be_read_is_of_no_store(folder: Path) -> None:
    await fill(folder, entry(1))
    (folder / "store.json").write_bytes(b"{")
    async with Journal(folder, ROOM) as journal:
        assert await compare(journal, StoreVersion("a", 7)) is not None
        assert await found_spans(journal) == []


@pytest.mark.usefixtures("small_segments")
@pytest.mark.parametrize("damaged", [False, True])
async def test_spans_that_withdraw_coverage_are_returned_where_coverage_is_not(folder: Path, damaged: bool) -> None:
    """Beside another store, and after a damaged segment."""
    reasons = [SpanReason.LIVE, SpanReason.DIFFERS, SpanReason.ABSENT, SpanReason.REPAIRED, SpanReason.IMPORTED]
    spans = [(SPOT, Span(NOON, NOON + 5, seq, seq, Basis.EXACT, reason)) for seq, reason in enumerate(reasons)]
    async with Journal(folder, ROOM) as journal:
        if not damaged:
            await compare(journal, StoreVersion("a", 7))
        await journal.append(entry(1, span=False))
        await journal.append(Entry([trade(9)], spans))
    if damaged:
        path = folder / "000001.seg"
        path.write_bytes(path.read_bytes()[:-1] + b"!")
    async with Journal(folder, ROOM) as journal:
        await compare(journal, StoreVersion("a" if damaged else "b", 7))
        assert len(journal.damaged) == damaged
        batch = await next_of(journal)
        assert [span.reason for _, span in batch.spans] == [SpanReason.DIFFERS, SpanReason.ABSENT]
