from __future__ import annotations

import pytest

from wadm_mcp.health import Health
from wadm_mcp.settings import read_settings
from wadm_mcp.storage import opening


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("mongodb://wadm:old@db:27017/tape?authSource=admin", "mongodb://wadm:new@db:27017/tape", True),
        ("mongodb://db:27017/tape", "mongodb://db:27017/other", False),
        ("mongodb://a,b/tape", "mongodb://a,c/tape", False),
    ],
)
def test_a_tape_in_redis_is_named_by_hosts_and_database_and_by_no_password(
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
