from __future__ import annotations

from pathlib import Path

import pytest

from wadm_mcp.errors import StoreError
from wadm_mcp.health import Health
from wadm_mcp.settings import read_settings
from wadm_mcp.storage import opening
from wadm_mcp.storage.mongo import MongoStore
from wadm_mcp.storage.sqlite import SqliteStore

from . import every_trade, trade

pytestmark = pytest.mark.anyio


def test_the_store_is_mongodb_where_a_url_is_set_and_a_file_in_the_data_directory_otherwise(tmp_path: Path) -> None:
    embedded = read_settings({"WADM_DATA_DIR": str(tmp_path)})
    assert isinstance(opening.open_store(embedded), SqliteStore)
    assert opening.sqlite_path(embedded) == tmp_path / "wadm.sqlite"
    assert isinstance(opening.open_store(read_settings({"MONGODB_URL": "mongodb://db:27017/tape"}), "_demo"), MongoStore)


async def test_a_store_that_is_opened_for_reading_makes_no_file(tmp_path: Path) -> None:
    settings = read_settings({"WADM_DATA_DIR": str(tmp_path)})
    with pytest.raises(StoreError, match="nothing was recorded"):
        await opening.open_store(settings, read_only=True).__aenter__()
    assert list(tmp_path.iterdir()) == []
    async with opening.open_store(settings) as store:
        await store.write([trade(1)], [])
    async with opening.open_store(settings, read_only=True) as store:
        assert await every_trade(store) == [trade(1)]
        with pytest.raises(StoreError, match="opened for reading only"):
            await store.write([trade(2)], [])


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("mongodb://wadm:old@db:27017/tape?authSource=admin", "mongodb://wadm:new@db:27017/tape", True),
        ("mongodb://db:27017/tape", "mongodb://db:27017/other", False),
        ("mongodb://a,b/tape", "mongodb://a,c/tape", False),
    ],
)
def test_the_name_of_a_tape_in_redis_contains_hosts_and_database_and_no_password(
    monkeypatch: pytest.MonkeyPatch, one: str, other: str, same: bool
) -> None:
    named: list[str] = []

    def remember(place: str) -> str:
        named.append(place)
        return place

    monkeypatch.setattr(opening, "tape_name", remember)
    for url in (one, other):
        opening.open_cache(read_settings({"MONGODB_URL": url, "REDIS_URL": "redis://localhost:6379/0"}), Health(lambda: 0))
    assert (named[0] == named[1]) is same
    assert not any("old" in name or "new" in name or "wadm" in name for name in named)
