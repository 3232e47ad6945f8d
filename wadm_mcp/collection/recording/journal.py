"""The journal between socket and store: what it has taken survives this process, and is handed out until the store has it.

It is a folder of segments, `000001.seg` and on, that one process at a time appends to (the holder of the lease); any later process
on that folder hands out what it finds. `segment.py` says how they are written.

Every method does its work in a worker thread, one at a time. A call that is cancelled has either not begun, or is finished first.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from io import FileIO
from itertools import takewhile
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple, Self, TypeVar

from anyio import CancelScope, CapacityLimiter, to_thread

from wadm_mcp.collection.recording.journal_segment import HEADER, Entry, Place, SegmentReader, Unreadable, pack
from wadm_mcp.errors import JournalFull, StoreError
from wadm_mcp.model import Instrument, Span, Trade
from wadm_mcp.storage.store import PartialFootprint
from wadm_mcp.tape import PENDING_LIMIT

REMEMBERED: Final = PENDING_LIMIT
"""Trades and spans kept in memory beside the disk, so that a store that keeps up costs no reading. The tape holds the same trades."""
SEGMENT_BYTES: Final = 8_000_000
"""A segment that has reached this is followed by a new one."""
RECORD_TRADES: Final = 5_000
"""Trades in one record; an entry with more becomes several, so that no single one holds up the process for long."""
SYNC_EVERY: Final = 1.0
"""Seconds between fsyncs while there is something to sync."""

_NAME: Final = re.compile(r"([0-9]{6}|[1-9][0-9]{6,})\.seg", re.ASCII)

T = TypeVar("T")


class Batch(NamedTuple):
    """What the store is to keep next. Of spans that share instrument, start and first id only the last is there."""

    trades: Sequence[Trade]
    spans: Sequence[tuple[Instrument, Span]]
    end: Place
    """Where the next batch begins once this one is released."""
    pieces: Sequence[PartialFootprint] = ()


@dataclass(slots=True)
class _Segment:
    """One file. `size` is the file's, `end` and `trades` are of what can be read of it."""

    number: int
    path: Path
    size: int
    end: int = len(HEADER)
    trades: int = 0
    damaged: bool = False

    @property
    def start(self) -> Place:
        return Place(self.number, len(HEADER), 0, 0)

    @property
    def finish(self) -> Place:
        return Place(self.number, self.end, self.trades, 0)


class Journal:
    """The journal in `folder`, which is made where it is missing; its segments take at most `limit` bytes on disk.

    Entered once as an async context manager. Opening takes up what an earlier process left: a torn tail of the newest segment (nothing
    intact follows it) is cut off and counted in `torn`. Any other segment with unreadable content hands out the records before
    it, is put into `damaged/` beside the segments, where nothing ever deletes it, and gets its line in `damaged`. Coverage recorded behind
    such a loss is not handed out, since it may claim what was lost; trades behind it are. Files of other names are left alone.

    What `append` took survives the end of the process, even by `kill -9`: the operating system has it. Against a power cut it is
    fsynced, at most once a second: a cut loses about the last second. Of a batch whose `append` never returned trades may come back,
    its coverage only if all of them do. `StoreError` where the folder cannot be used.
    """

    def __init__(self, folder: Path, limit: int, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._folder = folder
        self._limit = limit
        self._monotonic = monotonic
        self._segments: deque[_Segment] = deque()
        self._file: FileIO | None = None
        """The newest segment's, while it is appended to."""
        self._newest = 0
        self._synced_at = float("-inf")
        self._unsynced = False
        self._released = self._doubted = Place(-1, 0, 0, 0)
        self._memory: dict[tuple[int, int], tuple[Entry, Place]] = {}
        """The newest records and where each ends: an unbroken row up to the journal's end."""
        self._weight = 0
        self._backlog = 0
        self._bytes = 0
        self.torn = 0
        """Bytes of torn tails that opening cut off."""
        self.damaged: list[str] = []
        """One line for each segment set aside since opening."""

    @property
    def backlog(self) -> int:
        """Trades not released."""
        return self._backlog

    @property
    def bytes(self) -> int:
        """Bytes of all segments on disk, without those set aside."""
        return self._bytes

    @property
    def limit(self) -> int:
        """Bytes the segments may take."""
        return self._limit

    async def __aenter__(self) -> Self:
        self._limiter = CapacityLimiter(1)
        await self._run(self._open)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        with CancelScope(shield=True):
            await self._run(self._close)

    async def append(self, entry: Entry) -> None:
        """Take a batch: after return it survives a `kill -9`, and within about a second a power cut.

        `JournalFull` when the bound is reached or the disk does not take it; then nothing of the batch is kept, and a later one may fit.
        """
        await self._run(partial(self._append, entry))

    async def next(self, most: int = RECORD_TRADES, after: Batch | None = None) -> Batch | None:
        """The oldest trades not released, up to about `most` (at least 1), and their coverage; None when nothing is left.

        The same again until they are released; with `after` what follows that batch, before it is released. An entry with more trades
        than `most` comes in several batches, its spans with the last. A batch may hold no trade, and where coverage is withheld nothing at
        all: it is released like any other.
        """
        return await self._run(partial(self._next, most, after))

    async def release(self, batch: Batch) -> None:
        """The store has this batch, and all before it, durably. Segments of which nothing is left to hand out are deleted."""
        await self._run(partial(self._release, batch))

    async def _run(self, work: Callable[[], T]) -> T:
        try:
            return await to_thread.run_sync(work, limiter=self._limiter)
        except OSError as error:
            raise StoreError(
                f"the journal in {self._folder} cannot be used ({error.strerror}); make the folder readable and writable, "
                "or set WADM_DATA_DIR to another"
            ) from error

    def _open(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        # Without this a power cut could take the new folder away, and with it segments whose own content was fsynced.
        _sync_folder(self._folder.parent)
        numbers = _numbers(self._folder)
        self._newest = max([*numbers, *_numbers(self._folder / "damaged")], default=0)
        unreadable: list[Unreadable] = []
        for number in numbers:
            try:
                self._take_up(number, last=number == numbers[-1])
            except Unreadable as found:
                unreadable.append(found)
        for found in unreadable:
            self._set_aside(found)
        self._settle()
        self._trim()

    def _take_up(self, number: int, *, last: bool) -> None:
        """List a segment of an earlier process and count what it holds; `Unreadable` where something but a torn tail is wrong with it."""
        path = self._path(number)
        segment = _Segment(number, path, path.stat().st_size)
        with SegmentReader(path) as reader:
            self._segments.append(segment)
            self._bytes += segment.size
            whole = reader.check_header(number)
            while whole and segment.end < segment.size:
                try:
                    size, trades = reader.size(segment.finish)
                except Unreadable:
                    if not last or reader.intact_record_after(segment.finish):
                        raise
                    whole = False
                else:
                    segment.end += size
                    segment.trades += trades
        if not whole:
            self._cut(segment)

    def _cut(self, segment: _Segment) -> None:
        kept = segment.end if segment.end <= segment.size else 0
        with segment.path.open("r+b") as file:
            file.truncate(kept)
            # Or after a power cut the tail might be found torn again, with other segments behind it, and look damaged.
            os.fsync(file.fileno())
        self.torn += segment.size - kept
        self._bytes -= segment.size - kept
        segment.size = kept

    def _close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            with file:
                os.fsync(file.fileno())
        self._trim()

    def _append(self, entry: Entry) -> None:
        records = [(part, pack(part)) for part in _parts(entry)]
        if not records:
            return
        data = b"".join(packed for _, packed in records)
        try:
            file = self._writable(len(data))
            self._write(file, data)
        except OSError as error:
            raise JournalFull(
                f"the journal in {self._folder} cannot be written ({error.strerror}); free space on its disk, or make it writable"
            ) from error
        segment = self._segments[-1]
        for part, packed in records:
            start = segment.finish
            segment.end += len(packed)
            segment.trades += len(part.trades)
            self._remember(start, part, segment.finish)
        segment.size += len(data)
        self._bytes += len(data)
        self._settle()

    def _writable(self, size: int) -> FileIO:
        """The newest segment, or a new one, with `size` bytes to spare below the limit."""
        full = self._bytes + size > self._limit
        if self._file is not None and (self._segments[-1].size >= SEGMENT_BYTES or (full and not self._left())):
            # Only the last segment may have a tail that a power cut tears.
            os.fsync(self._file.fileno())
            self._file.close()
            self._file = None
            self._trim()
        if self._bytes + size + (len(HEADER) if self._file is None else 0) > self._limit:
            raise JournalFull(
                f"the journal in {self._folder} is full: {self._bytes:,} of {self._limit:,} bytes wait for the store, "
                f"and {size:,} more do not fit; bring the store back, or raise WADM_JOURNAL_MAX_MB"
            )
        if self._file is None:
            self._file = self._create()
        return self._file

    def _create(self) -> FileIO:
        # Counted before it is tried: a file that could be neither finished nor deleted is not in the way of the next one.
        self._newest += 1
        path = self._path(self._newest)
        file = FileIO(path, "xb")
        try:
            _write_all(file, HEADER)
            os.fsync(file.fileno())
            # A file's fsync does not keep its name: that is in the folder.
            _sync_folder(self._folder)
        except BaseException:
            file.close()
            path.unlink()
            raise
        self._segments.append(_Segment(self._newest, path, len(HEADER)))
        self._bytes += len(HEADER)
        self._settle()
        return file

    def _write(self, file: FileIO, data: bytes) -> None:
        """All of it, or nothing."""
        end = self._segments[-1].end
        # An earlier attempt may have left a piece that could not be cut off then.
        file.truncate(end)
        file.seek(end)
        try:
            _write_all(file, data)
            self._unsynced = True
            self._sync()
        except BaseException:
            # If this fails too, the next append or the next opening cuts it off.
            with suppress(OSError):
                file.truncate(end)
            raise

    def _sync(self) -> None:
        if self._file is not None and self._unsynced and self._monotonic() - self._synced_at >= SYNC_EVERY:
            os.fsync(self._file.fileno())
            self._synced_at = self._monotonic()
            self._unsynced = False

    def _remember(self, start: Place, entry: Entry, after: Place) -> None:
        self._memory[start[:2]] = entry, after
        self._weight += entry.weight
        while self._weight > REMEMBERED:
            self._forget(next(iter(self._memory)))

    def _forget(self, key: tuple[int, int]) -> None:
        entry, _ = self._memory.pop(key)
        self._weight -= entry.weight

    def _next(self, most: int, after: Batch | None) -> Batch | None:
        if self._left():
            # A quiet market appends nothing that would sync what came before; the writer's asking does.
            self._sync()
        while True:
            try:
                return self._gather(most, self._released if after is None else max(self._released, after.end))
            except Unreadable as found:
                self._set_aside(found)
                self._settle()

    def _gather(self, most: int, end: Place) -> Batch | None:
        began = end
        trades: list[Trade] = []
        spans: dict[tuple[Instrument, int, int], tuple[Instrument, Span]] = {}
        pieces: list[PartialFootprint] = []
        weight = 0
        for start, entry, after in self._records(began):
            fresh = entry.trades[start.taken :]
            adds = entry.weight - start.taken
            if weight and weight + adds > most:
                break
            if len(fresh) > most:
                return Batch(fresh[:most], (), start._replace(taken=start.taken + most))
            weight += adds
            trades += fresh
            pieces += entry.pieces
            if not self._doubtful(start):
                spans |= {(instrument, span.start, span.first_seq): (instrument, span) for instrument, span in entry.spans}
            end = after
        return None if end == began else Batch(trades, list(spans.values()), end, pieces)

    def _records(self, place: Place) -> Iterator[tuple[Place, Entry, Place]]:
        """Every record from a place on: its own place, what it holds, where it ends. `Unreadable` for one that cannot be read."""
        for segment in list(self._segments):
            if segment.number < place.segment:
                continue
            if segment.number > place.segment:
                place = segment.start
            with SegmentReader(segment.path) as reader:
                while place.offset < segment.end:
                    entry, after = self._memory.get(place[:2]) or reader.entry(place)
                    yield place, entry, after
                    place = after

    def _release(self, batch: Batch) -> None:
        self._released = max(self._released, batch.end)
        self._settle()
        for key in list(takewhile(lambda key: key < self._released[:2], self._memory)):
            self._forget(key)
        self._trim()

    def _left(self) -> bool:
        """Is anything not released?"""
        return bool(self._segments) and self._released < self._segments[-1].finish

    def _settle(self) -> None:
        """Move on from segments of which nothing is left, and count what waits."""
        left = [segment for segment in self._segments if max(self._released, segment.start) < segment.finish]
        if left:
            self._released = max(self._released, left[0].start)
        elif self._segments:
            self._released = max(self._released, self._segments[-1].finish)
        waiting = sum(segment.trades for segment in left) - self._released.before - self._released.taken
        self._backlog = max(0, waiting) if left else 0

    def _trim(self) -> None:
        """Delete the oldest segments of which nothing is left. No fsync: storing what a power cut brings back again changes nothing."""
        while self._segments:
            oldest = self._segments[0]
            if self._released < oldest.finish or (self._file is not None and len(self._segments) == 1):
                return
            # While it is there, a crash finds the damage again, and goes on withholding the coverage behind it.
            if oldest.damaged and self._released < self._doubted:
                return
            oldest.path.unlink(missing_ok=True)
            self._segments.popleft()
            self._bytes -= oldest.size

    def _doubtful(self, place: Place) -> bool:
        return place < self._doubted and any(segment.damaged and segment.number < place.segment for segment in self._segments)

    def _set_aside(self, found: Unreadable) -> None:
        """Keep a damaged segment for whoever can read more of it, and hand out only what lies before the damage."""
        (segment,) = (segment for segment in self._segments if segment.number == found.place.segment)
        name, kept = segment.path.name, found.place.before
        if segment.path.exists():
            folder = self._folder / "damaged"
            folder.mkdir(exist_ok=True)
            _link(segment.path, folder / name)
            # The name there has to last before the one here is deleted.
            _sync_folder(folder)
            _sync_folder(self._folder)
            fate = f"{kept:,} trades before it were kept, the rest is set aside in {self._folder.name}/damaged/"
        else:
            fate = f"{kept:,} trades before it were kept, the rest is lost"
        self.damaged.append(f"journal segment {name}: {found.why} at byte {found.place.offset}; {fate}")
        if self._file is not None and segment is self._segments[-1]:
            self._file.close()
            self._file = None
        segment.end, segment.trades, segment.damaged = max(len(HEADER), found.place.offset), kept, True
        self._doubted = self._segments[-1].finish

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:06d}.seg"


def _parts(entry: Entry) -> list[Entry]:
    """The records of an entry: its trades in bounded numbers, its pieces and spans with the last of them."""
    if not entry.weight:
        return []
    parts = [tuple(entry.trades[start : start + RECORD_TRADES]) for start in range(0, len(entry.trades) or 1, RECORD_TRADES)]
    return [*(Entry(part, ()) for part in parts[:-1]), Entry(parts[-1], tuple(entry.spans), tuple(entry.pieces))]


def _numbers(folder: Path) -> list[int]:
    """Numbers of the segments in a folder, oldest first; none where there is no folder."""
    try:
        with os.scandir(folder) as files:
            names = [_NAME.fullmatch(file.name) for file in files if file.is_file(follow_symlinks=False)]
    except FileNotFoundError:
        return []
    return sorted(int(name[1]) for name in names if name is not None)


def _write_all(file: FileIO, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[file.write(left) :]


def _link(path: Path, target: Path) -> None:
    """Give a file a second name, which costs no space; where the file system has no such thing, a copy."""
    if target.exists():
        return
    try:
        target.hardlink_to(path)
    except OSError:
        shutil.copyfile(path, target.with_suffix(".part"))
        target.with_suffix(".part").replace(target)


def _sync_folder(folder: Path) -> None:
    """Make names created in a folder survive a power cut. Windows cannot and need not."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some file systems (FUSE, network shares) have no fsync of folders.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)
