"""Which store and which cache the settings name."""

from __future__ import annotations

from socket import gethostname

from wadm_mcp.health import Health
from wadm_mcp.settings import Settings
from wadm_mcp.storage.cache import Cache, InProcessCache, tape_name
from wadm_mcp.storage.mongo import MongoStore
from wadm_mcp.storage.redis_cache import RedisCache
from wadm_mcp.storage.sqlite import SqliteStore
from wadm_mcp.storage.store import Store


def open_store(settings: Settings, suffix: str = "") -> Store:
    """The store, not entered yet. `suffix` is added to a database's name: it sets the data of demo and replay apart."""
    if settings.MONGODB_URL is not None:
        return MongoStore(settings.MONGODB_URL.get_secret_value(), settings.retention, suffix=suffix)
    return SqliteStore(settings.WADM_DATA_DIR / "wadm.sqlite")


def open_cache(settings: Settings, health: Health, suffix: str = "") -> Cache:
    """The cache, not entered yet. Its keys bear the tape's name, so that two tapes on one Redis never mix."""
    if settings.REDIS_URL is None:
        return InProcessCache()
    if settings.MONGODB_URL is not None:
        tape = _without_user(settings.MONGODB_URL.get_secret_value()) + suffix
    else:
        tape = f"{gethostname()}:{settings.WADM_DATA_DIR.resolve()}"
    return RedisCache(settings.REDIS_URL.get_secret_value(), tape_name(tape), health)


def _without_user(url: str) -> str:
    """Hosts and database of a URL: a tape stays the same one when its password changes, and no name is made of a password."""
    _, _, rest = url.partition("://")
    hosts, slash, database = rest.partition("/")
    return f"{hosts.rpartition('@')[2]}{slash}{database.partition('?')[0]}"
