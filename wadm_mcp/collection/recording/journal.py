"""The write-ahead log between recorder and store: trades in it survive the process, and are returned until the store has them.

It is a folder of segments, `000001.seg` and so on (format: `journal_segment`). One process at a time appends to it, the holder of the
`RecorderLock`. The next process continues with what it finds.

Every method works in a worker thread, one call at a time. A cancelled call has either not begun, or is completed first.
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

import msgspec
from anyio import CancelScope, CapacityLimiter, to_thread

from wadm_mcp.collection.recording.journal_segment import HEADER, Entry, Place, SegmentReader, Unreadable, pack
from wadm_mcp.coverage.spans import COVERS_NOTHING, Span
from wadm_mcp.errors import JournalFull, StoreError
from wadm_mcp.model import Instrument, Trade
from wadm_mcp.storage.store import PartialFootprint, StoreVersion
from wadm_mcp.tape import PENDING_LIMIT

MAX_CACHED_TRADES: Final = PENDING_LIMIT
"""Trades (or as much in spans and partials) cached in memory, so that a store that keeps up needs no reads from disk. They take no memory
of their own, since the tape refers to the same trades."""
SEGMENT_BYTES: Final = 8_000_000
"""After a segment has reached this size, a new one begins."""
RECORD_TRADES: Final = 5_000
"""Trades in one record. A larger entry is split into several records, so that no single one blocks for long."""
SYNC_SECONDS: Final = 1.0
"""Between fsyncs while there is something to sync."""

_NOTE: Final = "store.json"
_NOTE_BYTES: Final = 160
"""Length of the note: always the same, so that it can be written over itself."""

_NAME: Final = re.compile(r"([0-9]{6}|[1-9][0-9]{6,})\.seg", re.ASCII)

T = TypeVar("T")


class StoreNote(msgspec.Struct, frozen=True):
    """The store that must be beside this journal: what was deleted of the journal is in it. Coverage of the segments up to number
    `withheld` is not returned, since it was recorded beside another store. With `_NO_STORE` as identity nothing was deleted yet."""

    identity: str
    writes: int
    withheld: int = -1

    @property
    def version(self) -> StoreVersion:
        return StoreVersion(self.identity, self.writes)


_NO_STORE: Final = ""
_UNREADABLE_NOTE: Final = StoreNote("unreadable", 0)
"""Of no store: whichever is there may not have what the journal had."""


class Batch(NamedTuple):
    """The next data to store. Of several versions of a span (same instrument, start and first id) it contains only the newest."""

    trades: Sequence[Trade]
    spans: Sequence[tuple[Instrument, Span]]
    end: Place
    """Where the next batch begins."""
    pieces: Sequence[PartialFootprint] = ()


@dataclass(slots=True)
class _Segment:
    """One file. `size` is its length in bytes; `readable_bytes` of them, with `trades`, can be read."""

    number: int
    path: Path
    size: int
    readable_bytes: int = len(HEADER)
    trades: int = 0
    damaged: bool = False

    @property
    def start(self) -> Place:
        return Place(self.number, len(HEADER), 0, 0)

    @property
    def end(self) -> Place:
        return Place(self.number, self.readable_bytes, self.trades, 0)


class Journal:
    """The journal in `folder`, which is created if it does not exist. Its segments take at most `limit` bytes on disk.

    Enter it once as an async context manager. Opening recovers what an earlier process left. If the newest segment ends in an incomplete
    record, that record is truncated and its bytes are counted in `torn`. Any other unreadable record is damage: the records before it are
    returned, the segment is moved to `damaged/`, where nothing deletes it, and `damaged` gets a line. Trades after the damage are returned
    as well, but not the coverage recorded after it, since that may include lost trades; spans that withdraw coverage (`COVERS_NOTHING`)
    are. Files with other names are left alone.

    After `append` the operating system has the data, so it survives the end of the process, even `kill -9`. It is fsynced at most once a
    second, so a power cut loses about the last second. If an `append` did not return, some of its trades may still be found later; its
    coverage is found only together with all of them. `StoreError` if the folder cannot be used.

    A journal belongs to a store: a span that it returns may include trades that were deleted from it long ago, because the store had them.
    Beside the segments is a note of what the store must have. `compare_store` compares it with the store that is there.
    """

    def __init__(self, folder: Path, limit: int, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._folder = folder
        self._note: StoreNote | None = None
        """The note on disk; None if there is none, as beside the journal of an earlier release."""
        self._store: StoreVersion | None = None
        """The store, after everything that is released."""
        self._earlier = self._withheld = -1
        """Numbers of the newest segment of an earlier process, and of the newest one whose coverage is not returned."""
        self._deletes = True
        self._limit = limit
        self._monotonic = monotonic
        self._segments: deque[_Segment] = deque()
        self._file: FileIO | None = None
        """The newest segment, open for appending."""
        self._newest = 0
        """Number of the newest segment."""
        self._synced_at = float("-inf")
        self._unsynced = False
        self._released = self._suspended_until = Place(-1, 0, 0, 0)
        """`_suspended_until`: coverage between a damaged segment and this place is not returned."""
        self._cache: dict[tuple[int, int], tuple[Entry, Place]] = {}
        """The newest records by segment and byte, each with the place of the next: without a hole up to the journal's end."""
        self._cached_weight = 0
        self._backlog = 0
        self._bytes = 0
        self.torn = 0
        """Bytes of incomplete records that opening truncated."""
        self.damaged: list[str] = []
        """One line for each segment moved to `damaged/` since opening."""

    @property
    def backlog(self) -> int:
        """Trades that are not released yet."""
        return self._backlog

    @property
    def bytes(self) -> int:
        """Bytes of all segments on disk, without those in `damaged/`."""
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
        """Write an entry. When this returns, the entry survives `kill -9`, and after about a second a power cut.

        `JournalFull` if the limit is reached or the disk refuses the data. Then nothing of the entry is kept, and a later one may fit.
        """
        await self._run(partial(self._append, entry))

    async def next(self, max_trades: int = RECORD_TRADES, after: Batch | None = None) -> Batch | None:
        """The oldest trades not released, up to about `max_trades` (at least 1), with their coverage; None if there are none.

        Returns the same until it is released; with `after` it returns what follows that batch, which need not be released. An entry with
        more than `max_trades` comes in several batches, its spans with the last. A batch may be without trades, and where coverage is
        suspended it may be empty; release it like any other.
        """
        return await self._run(partial(self._next, max_trades, after))

    async def release(self, batch: Batch, store: StoreVersion | None = None) -> None:
        """The store has this batch and all before it durably, and its version is `store` since. Deletes the segments that are completely
        released, after that version is noted."""
        await self._run(partial(self._release, batch, store))

    async def compare_store(self, store: StoreVersion) -> StoreVersion | None:
        """Compare the store with the one that this journal was beside. Call it before the first `next`. It writes nothing.

        Where it is another one, or an older copy, coverage that earlier processes left in the journal is not returned, as after damage,
        and the version that the store should have had is. Otherwise None.
        """
        return await self._run(partial(self._compare_store, store))

    async def adopt_store(self, store: StoreVersion) -> None:
        """Note that this journal is beside `store` from now on. Call it once all that follows from `compare_store` is done: until then
        the next process would find the same difference."""
        await self._run(partial(self._adopt_store, store))

    def stop_deleting(self) -> None:
        """Delete nothing from now on: the store was lost, and the next one may not have what was released."""
        self._deletes = False

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
        # Without this a power cut could remove the new folder, with segments in it that were fsynced.
        _sync_folder(self._folder.parent)
        numbers = _segment_numbers(self._folder)
        self._note = self._read_note()
        if self._note is None and not numbers:
            self._write_note(StoreNote(_NO_STORE, 0))
        self._withheld = -1 if self._note is None else self._note.withheld
        self._newest = max([*numbers, *_segment_numbers(self._folder / "damaged"), self._withheld, 0])
        self._earlier = numbers[-1] if numbers else -1
        unreadable: list[Unreadable] = []
        for number in numbers:
            try:
                self._recover(number, newest=number == numbers[-1])
            except Unreadable as error:
                unreadable.append(error)
        for error in unreadable:
            self._quarantine(error)
        self._update_backlog()
        self._delete_released()

    def _compare_store(self, store: StoreVersion) -> StoreVersion | None:
        note = self._note
        if note is None:
            # Left by an earlier release, which had written to its store.
            own = store.writes > 0
        else:
            own = note.identity == _NO_STORE or (note.identity == store.identity and note.writes <= store.writes)
        if not own:
            self._withheld = self._earlier
        return None if own or note is None else note.version

    def _adopt_store(self, store: StoreVersion) -> None:
        self._store = store
        self._write_note(StoreNote(*store, self._withheld))

    def _read_note(self) -> StoreNote | None:
        try:
            return msgspec.json.decode((self._folder / _NOTE).read_bytes(), type=StoreNote)
        except FileNotFoundError:
            return None
        except msgspec.DecodeError:
            return _UNREADABLE_NOTE

    def _write_note(self, note: StoreNote) -> None:
        """Replace the note. On a full disk it is written over itself, since deleting segments is what gives space back."""
        if note == self._note:
            return
        data = msgspec.json.encode(note).ljust(_NOTE_BYTES)
        path, fresh = self._folder / _NOTE, self._folder / f"{_NOTE}.new"
        try:
            with fresh.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(path)
        except OSError:
            if self._note is None:
                # There is nothing to write over. Until there is space, the journal stays one of an earlier release.
                return
            _overwrite(path, data)
        else:
            _sync_folder(self._folder)
        self._note = note

    def _recover(self, number: int, *, newest: bool) -> None:
        """Add a segment of an earlier process and count its trades. `Unreadable` if it is damaged, and not only incomplete at the end."""
        path = self._path(number)
        segment = _Segment(number, path, path.stat().st_size)
        with SegmentReader(path) as reader:
            self._segments.append(segment)
            self._bytes += segment.size
            complete = reader.check_header(number)
            while complete and segment.readable_bytes < segment.size:
                try:
                    size, trades = reader.size(segment.end)
                except Unreadable:
                    if not newest or reader.intact_record_after(segment.end):
                        raise
                    complete = False
                else:
                    segment.readable_bytes += size
                    segment.trades += trades
        if not complete:
            self._truncate(segment)

    def _truncate(self, segment: _Segment) -> None:
        kept = segment.readable_bytes if segment.readable_bytes <= segment.size else 0
        with segment.path.open("r+b") as file:
            file.truncate(kept)
            # Without this a power cut could bring the incomplete record back. With segments after it, it would count as damage.
            os.fsync(file.fileno())
        self.torn += segment.size - kept
        self._bytes -= segment.size - kept
        segment.size = kept

    def _close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            with file:
                os.fsync(file.fileno())
        self._delete_released()

    def _append(self, entry: Entry) -> None:
        records = [(part, pack(part)) for part in _split(entry)]
        if not records:
            return
        data = b"".join(packed for _, packed in records)
        try:
            file = self._file_with_room(len(data))
            self._write(file, data)
        except OSError as error:
            raise JournalFull(
                f"the journal in {self._folder} cannot be written ({error.strerror}); free space on its disk, or make it writable"
            ) from error
        segment = self._segments[-1]
        for part, packed in records:
            start = segment.end
            segment.readable_bytes += len(packed)
            segment.trades += len(part.trades)
            self._cache_record(start, part, segment.end)
        segment.size += len(data)
        self._bytes += len(data)
        self._update_backlog()

    def _file_with_room(self, size: int) -> FileIO:
        """The newest segment, or a new one. `JournalFull` if `size` more bytes exceed the limit."""
        full = self._bytes + size > self._limit
        if self._file is not None and (self._segments[-1].size >= SEGMENT_BYTES or (full and not self._has_unreleased())):
            # Only the newest segment may lose its last records in a power cut.
            os.fsync(self._file.fileno())
            self._file.close()
            self._file = None
            self._delete_released()
        if self._bytes + size + (len(HEADER) if self._file is None else 0) > self._limit:
            raise JournalFull(
                f"the journal in {self._folder} is full: {self._bytes:,} of {self._limit:,} bytes wait for the store, "
                f"and {size:,} more do not fit; bring the store back, or raise WADM_JOURNAL_MAX_MB"
            )
        if self._file is None:
            self._file = self._create()
        return self._file

    def _create(self) -> FileIO:
        # Before the attempt: if this file can be neither completed nor deleted, the next one gets another name.
        self._newest += 1
        path = self._path(self._newest)
        file = FileIO(path, "xb")
        try:
            _write_all(file, HEADER)
            os.fsync(file.fileno())
            # The fsync of a file does not make its name durable; that of its folder does.
            _sync_folder(self._folder)
        except BaseException:
            file.close()
            path.unlink()
            raise
        self._segments.append(_Segment(self._newest, path, len(HEADER)))
        self._bytes += len(HEADER)
        self._update_backlog()
        return file

    def _write(self, file: FileIO, data: bytes) -> None:
        """Write all of the data or nothing."""
        end = self._segments[-1].readable_bytes
        # A failed write before may have left data that could not be truncated then.
        file.truncate(end)
        file.seek(end)
        try:
            _write_all(file, data)
            self._unsynced = True
            self._sync()
        except BaseException:
            # If this fails too, the next append or the next opening truncates the file.
            with suppress(OSError):
                file.truncate(end)
            raise

    def _sync(self) -> None:
        if self._file is not None and self._unsynced and self._monotonic() - self._synced_at >= SYNC_SECONDS:
            os.fsync(self._file.fileno())
            self._synced_at = self._monotonic()
            self._unsynced = False

    def _cache_record(self, start: Place, entry: Entry, end: Place) -> None:
        self._cache[start[:2]] = entry, end
        self._cached_weight += entry.weight
        while self._cached_weight > MAX_CACHED_TRADES:
            self._evict(next(iter(self._cache)))

    def _evict(self, key: tuple[int, int]) -> None:
        entry, _ = self._cache.pop(key)
        self._cached_weight -= entry.weight

    def _next(self, max_trades: int, after: Batch | None) -> Batch | None:
        if self._has_unreleased():
            # A quiet market appends nothing, and so does not sync the last append. The writer calls this regularly.
            self._sync()
        while True:
            try:
                return self._read_batch(max_trades, self._released if after is None else max(self._released, after.end))
            except Unreadable as error:
                self._quarantine(error)
                self._update_backlog()

    def _read_batch(self, max_trades: int, start: Place) -> Batch | None:
        end = start
        trades: list[Trade] = []
        spans: dict[tuple[Instrument, int, int], tuple[Instrument, Span]] = {}
        partials: list[PartialFootprint] = []
        weight = 0
        for place, entry, following in self._records(start):
            unread = entry.trades[place.trades_read :]
            unread_weight = entry.weight - place.trades_read
            if weight and weight + unread_weight > max_trades:
                break
            if len(unread) > max_trades:
                return Batch(unread[:max_trades], (), place._replace(trades_read=place.trades_read + max_trades))
            weight += unread_weight
            trades += unread
            partials += entry.pieces
            suspended = self._coverage_suspended(place)
            for instrument, span in entry.spans:
                if not suspended or span.reason in COVERS_NOTHING:
                    spans[instrument, span.start, span.first_seq] = instrument, span
            end = following
        return None if end == start else Batch(trades, list(spans.values()), end, partials)

    def _records(self, place: Place) -> Iterator[tuple[Place, Entry, Place]]:
        """Every record from a place on: its place, its entry, and the place of the next record. `Unreadable` if one cannot be read."""
        for segment in list(self._segments):
            if segment.number < place.segment:
                continue
            if segment.number > place.segment:
                place = segment.start
            with SegmentReader(segment.path) as reader:
                while place.offset < segment.readable_bytes:
                    entry, following = self._cache.get(place[:2]) or reader.entry(place)
                    yield place, entry, following
                    place = following

    def _release(self, batch: Batch, store: StoreVersion | None) -> None:
        self._store = store or self._store
        self._released = max(self._released, batch.end)
        self._update_backlog()
        for key in list(takewhile(lambda key: key < self._released[:2], self._cache)):
            self._evict(key)
        self._delete_released()

    def _has_unreleased(self) -> bool:
        return bool(self._segments) and self._released < self._segments[-1].end

    def _update_backlog(self) -> None:
        """Skip the segments that are completely released, and count the trades that are not."""
        unreleased = [segment for segment in self._segments if max(self._released, segment.start) < segment.end]
        if unreleased:
            self._released = max(self._released, unreleased[0].start)
        elif self._segments:
            self._released = max(self._released, self._segments[-1].end)
        backlog = sum(segment.trades for segment in unreleased) - self._released.trades_before - self._released.trades_read
        self._backlog = max(0, backlog) if unreleased else 0

    def _delete_released(self) -> None:
        """Delete the oldest segments that are completely released.

        Without fsync: a power cut may bring them back, and storing their trades again changes nothing.
        """
        while self._segments and self._deletes:
            oldest = self._segments[0]
            if self._released < oldest.end or (self._file is not None and len(self._segments) == 1):
                return
            # As long as the file exists, a restart finds the damage again and goes on withholding the coverage after it.
            if oldest.damaged and self._released < self._suspended_until:
                return
            if self._store is not None:
                # Before what only the store has from then on.
                self._write_note(StoreNote(*self._store, self._withheld))
            oldest.path.unlink(missing_ok=True)
            self._segments.popleft()
            self._bytes -= oldest.size

    def _coverage_suspended(self, place: Place) -> bool:
        if place.segment <= self._withheld:
            return True
        return place < self._suspended_until and any(segment.damaged and segment.number < place.segment for segment in self._segments)

    def _quarantine(self, error: Unreadable) -> None:
        """Put a damaged segment into `damaged/`, for a later attempt to read more of it, and use only the records before the damage."""
        (segment,) = (segment for segment in self._segments if segment.number == error.place.segment)
        name, kept = segment.path.name, error.place.trades_before
        if segment.path.exists():
            folder = self._folder / "damaged"
            folder.mkdir(exist_ok=True)
            _link(segment.path, folder / name)
            # The new name has to be durable before the old one is deleted.
            _sync_folder(folder)
            _sync_folder(self._folder)
            result = f"{kept:,} trades before it are kept, the whole file is in {self._folder.name}/damaged/"
        else:
            result = f"{kept:,} trades before it are kept, the rest is lost"
        self.damaged.append(f"journal segment {name}: {error.why} at byte {error.place.offset}; {result}")
        if self._file is not None and segment is self._segments[-1]:
            self._file.close()
            self._file = None
        segment.readable_bytes, segment.trades, segment.damaged = max(len(HEADER), error.place.offset), kept, True
        self._suspended_until = self._segments[-1].end

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:06d}.seg"


def _split(entry: Entry) -> list[Entry]:
    """The records of an entry: at most `RECORD_TRADES` trades in each, the partials and spans in the last."""
    if not entry.weight:
        return []
    parts = [tuple(entry.trades[start : start + RECORD_TRADES]) for start in range(0, len(entry.trades) or 1, RECORD_TRADES)]
    return [*(Entry(part, ()) for part in parts[:-1]), Entry(parts[-1], tuple(entry.spans), tuple(entry.pieces))]


def _segment_numbers(folder: Path) -> list[int]:
    """Numbers of the segments in a folder, oldest first; an empty list if the folder does not exist."""
    try:
        with os.scandir(folder) as files:
            names = [_NAME.fullmatch(file.name) for file in files if file.is_file(follow_symlinks=False)]
    except FileNotFoundError:
        return []
    return sorted(int(name[1]) for name in names if name is not None)


def _write_all(file: FileIO, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]


def _overwrite(path: Path, data: bytes) -> None:
    """Write over a file without taking space. Until it is complete its first byte makes it unreadable."""
    with path.open("r+b", buffering=0) as file:
        for offset, part in ((0, b"!"), (1, data[1:]), (0, data[:1])):
            file.seek(offset)
            _write_all(file, part)
            os.fsync(file.fileno())


def _link(path: Path, target: Path) -> None:
    """Hard-link a file, which takes no space; copy it if the file system has no hard links."""
    if target.exists():
        return
    try:
        target.hardlink_to(path)
    except OSError:
        shutil.copyfile(path, target.with_suffix(".part"))
        target.with_suffix(".part").replace(target)


def _sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut. Windows has no such call and does not need it."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some file systems (FUSE, network shares) cannot fsync a folder.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)
