"""Opens the store and the cache that the settings name.

The drivers of MongoDB and Redis are imported only where their URL is set: they take 0.2 s and 10 MB.
"""

from __future__ import annotations

from pathlib import Path
from socket import gethostname
from typing import TYPE_CHECKING

from wadm_mcp.health import Health
from wadm_mcp.settings import Settings
from wadm_mcp.storage.cache import Cache, InProcessCache, tape_name
from wadm_mcp.storage.sqlite import SqliteStore
from wadm_mcp.storage.store import Store

if TYPE_CHECKING:
    from wadm_mcp.storage.mongo import MongoStore


def open_store(settings: Settings, suffix: str = "", *, read_only: bool = False) -> Store:
    """The store that the settings name, not entered yet: MongoDB where `MONGODB_URL` is set, otherwise SQLite in the data directory.

    `suffix` is added to the name of a MongoDB database: it keeps the data of demo and replay apart.
    """
    if settings.MONGODB_URL is None:
        return SqliteStore(sqlite_path(settings), read_only=read_only)
    return open_mongo(settings, suffix, read_only=read_only)


def open_mongo(settings: Settings, suffix: str = "", *, read_only: bool = False) -> MongoStore:
    """The store of settings with a `MONGODB_URL`, not entered yet."""
    from wadm_mcp.storage.mongo import MongoStore

    assert settings.MONGODB_URL is not None
    return MongoStore(settings.MONGODB_URL.get_secret_value(), settings.retention, suffix=suffix, read_only=read_only)


def sqlite_path(settings: Settings) -> Path:
    """The file of the SQLite store."""
    return settings.WADM_DATA_DIR / "wadm.sqlite"


def open_cache(settings: Settings, health: Health, suffix: str = "") -> Cache:
    """The cache, not entered yet. Its keys contain a name derived from the store's place, so that several stores can share one Redis."""
    if settings.REDIS_URL is None:
        return InProcessCache()
    if settings.MONGODB_URL is not None:
        tape = _without_user(settings.MONGODB_URL.get_secret_value()) + suffix
    else:
        tape = f"{gethostname()}:{settings.WADM_DATA_DIR.resolve()}"
    from wadm_mcp.storage.redis_cache import RedisCache

    return RedisCache(settings.REDIS_URL.get_secret_value(), tape_name(tape), health)


def _without_user(url: str) -> str:
    """Hosts and database of a URL. User and password are left out: a new password keeps the name, and no secret goes into it."""
    _, _, rest = url.partition("://")
    hosts, slash, database = rest.partition("/")
    return f"{hosts.rpartition('@')[2]}{slash}{database.partition('?')[0]}"
