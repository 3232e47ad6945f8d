"""A store that is not the one its journal was written beside: a restored backup, or another one in its place."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.market import NOON, SPOT, trade
from tests.recording import ALWAYS, Recording, recording
from wadm_mcp.coverage.spans import COVERS_NOTHING
from wadm_mcp.errors import StoreError
from wadm_mcp.health import State
from wadm_mcp.model import Instrument
from wadm_mcp.storage.sqlite import SqliteStore

pytestmark = pytest.mark.anyio

BYBIT = Instrument("bybit", "spot", "BTCUSDT")


async def record(folder: Path, first: int, last: int, instrument: Instrument, *, store: bool = True) -> None:
    """A process that records these trades, one every 100 ms, and is killed before it stores them unless `store`."""
    async with recording(folder, instrument=instrument) as r:
        await take(r, first, last)
        if store:
            await r.write()
        else:
            await r.writer._journal_all()


async def take(r: Recording, first: int, last: int) -> None:
    for seq in range(first, last + 1):
        await r.trade(trade(seq, NOON + 100 * seq, instrument=r.instrument))


async def claimed_and_stored(r: Recording) -> tuple[int, int]:
    """Ids that coverage claims, and of how many of them the trades are stored."""
    spans = [span for span in await r.store.spans(r.instrument, ALWAYS) if span.reason not in COVERS_NOTHING]
    stored = await r.store.trades(r.instrument, ALWAYS, limit=1_000)
    claimed = {seq for seq in range(1, 1_000) if any(span.first_seq <= seq <= span.last_seq for span in spans)}
    return len(claimed), len(claimed & {each.seq for each in stored})


def copy_store(folder: Path, copy: Path) -> None:
    copy.mkdir(exist_ok=True)
    for file in folder.glob("wadm.sqlite*"):
        shutil.copy(file, copy)


def restore(folder: Path, copy: Path) -> None:
    for file in folder.glob("wadm.sqlite*"):
        file.unlink()
    copy_store(copy, folder)


@pytest.mark.parametrize("instrument", [SPOT, BYBIT], ids=str)
async def test_a_restored_backup_is_not_claimed_to_have_what_an_old_journal_says_was_stored_later(
    instrument: Instrument, tmp_path: Path
) -> None:
    folder, backup = tmp_path / "data", tmp_path / "backup"
    await record(folder, 1, 10, instrument)
    copy_store(folder, backup)
    await record(folder, 11, 20, instrument)
    await record(folder, 21, 22, instrument, store=False)
    restore(folder, backup)
    async with recording(folder, instrument=instrument) as r:
        await r.write()
        claimed, stored = await claimed_and_stored(r)
        assert claimed == stored
        # The trades of the journal are stored; where ids count they are claimed as well.
        assert stored == (12 if instrument is SPOT else 10)
        assert "is older than the journal" in r.health.parts["restored store"].detail
        await take(r, 23, 25)
        await r.write()
        claimed, stored = await claimed_and_stored(r)
        assert claimed == stored


async def test_an_older_store_is_named_although_the_journal_was_empty_and_is_the_journals_own_from_then_on(tmp_path: Path) -> None:
    folder, backup = tmp_path / "data", tmp_path / "backup"
    await record(folder, 1, 10, SPOT)
    copy_store(folder, backup)
    await record(folder, 11, 20, SPOT)
    later = tmp_path / "later"
    copy_store(folder, later)
    restore(folder, backup)
    async with recording(folder) as r:
        await take(r, 31, 32)
        await r.write()
        assert r.health.parts["restored store"].state is State.OK
    async with recording(folder) as r:
        await take(r, 33, 34)
        await r.write()
        assert "restored store" not in r.health.parts
    # The one that was taken away has as many writes as the restored one by now, and is another store all the same.
    await record(folder, 35, 36, SPOT, store=False)
    restore(folder, later)
    async with recording(folder) as r:
        await r.write()
        assert "is not the store of its journal" in r.health.parts["restored store"].detail
        claimed, stored = await claimed_and_stored(r)
        assert claimed == stored


async def test_what_was_withheld_stays_withheld_after_a_crash(tmp_path: Path) -> None:
    folder, backup = tmp_path / "data", tmp_path / "backup"
    await record(folder, 1, 10, SPOT)
    copy_store(folder, backup)
    await record(folder, 11, 20, SPOT)
    await record(folder, 21, 22, SPOT, store=False)
    restore(folder, backup)
    async with recording(folder) as r:
        # It finds out, and is killed before it has stored anything.
        await r.writer._compare_store()
    async with recording(folder) as r:
        await r.write()
        claimed, stored = await claimed_and_stored(r)
        assert claimed == stored == 12


async def test_a_store_that_only_grew_is_the_journals_own(tmp_path: Path) -> None:
    for first in (1, 11, 21):
        await record(tmp_path, first, first + 4, SPOT)
        await record(tmp_path, first + 5, first + 9, SPOT, store=False)
    async with recording(tmp_path) as r:
        await r.write()
        assert "restored store" not in r.health.parts
        assert await claimed_and_stored(r) == (30, 30)


@pytest.mark.parametrize("instrument", [SPOT, BYBIT], ids=str)
async def test_what_was_recorded_before_the_first_store_could_be_reached_is_claimed_after_a_crash(
    instrument: Instrument, tmp_path: Path
) -> None:
    await record(tmp_path, 1, 10, instrument, store=False)
    async with recording(tmp_path, instrument=instrument) as r:
        await r.write()
        claimed, stored = await claimed_and_stored(r)
        assert claimed == stored >= 9
        assert "restored store" not in r.health.parts


@pytest.mark.parametrize("failing", ["state", "renew_identity"])
async def test_a_store_that_fails_while_it_is_compared_is_compared_again(
    failing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, backup = tmp_path / "data", tmp_path / "backup"
    async with recording(folder) as r:
        identity = r.store.version.identity
        await take(r, 1, 10)
        await r.write()
    copy_store(folder, backup)
    await record(folder, 11, 20, SPOT)
    await record(folder, 21, 22, SPOT, store=False)
    restore(folder, backup)

    async def fail(store: SqliteStore) -> None:
        raise StoreError("down for a moment")

    with monkeypatch.context() as patch:
        patch.setattr(SqliteStore, failing, fail)
        with pytest.raises(StoreError, match="down for a moment"):
            async with recording(folder):
                pass
    async with recording(folder) as r:
        await r.write()
        assert "is older than the journal" in r.health.parts["restored store"].detail
        assert r.store.version.identity != identity
        claimed, stored = await claimed_and_stored(r)
        assert claimed == stored == 12
