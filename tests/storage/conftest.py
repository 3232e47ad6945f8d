"""Fixtures for every kind of store, so that the same contract tests run on each."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from itertools import count
from typing import Any, TypeAlias

import pymongo
import pytest

from tests.servers import mongodb_url
from wadm_mcp.model import DAY, Retention
from wadm_mcp.storage.mongo import MongoStore
from wadm_mcp.storage.sqlite import SqliteStore
from wadm_mcp.storage.store import Store

NewStore: TypeAlias = Callable[[], AbstractAsyncContextManager[Store]]
Client: TypeAlias = pymongo.MongoClient[dict[str, Any]]

LIVES = Retention(3_650 * DAY, 3_650 * DAY, 3_650 * DAY)
"""Long enough that no document of a test expires."""


@pytest.fixture(scope="session")
def mongodb() -> Generator[str]:
    """The URL of a MongoDB server, without a database."""
    with mongodb_url() as url:
        yield url


@pytest.fixture(scope="session")
def mongodb_client(mongodb: str) -> Generator[Client]:
    """A plain client of that server."""
    with pymongo.MongoClient[dict[str, Any]](mongodb, tz_aware=True) as client:
        yield client


@pytest.fixture(scope="session", params=["sqlite", "mongo"])
def new_store(request: pytest.FixtureRequest) -> Generator[NewStore]:
    """A function that creates an empty store on each call."""
    number = count()
    if request.param == "sqlite":
        folder = request.getfixturevalue("tmp_path_factory").mktemp("stores")
        yield lambda: SqliteStore(folder / f"{next(number)}.sqlite")
        return
    url, client = request.getfixturevalue("mongodb"), request.getfixturevalue("mongodb_client")
    free: list[str] = []
    made: list[str] = []

    @asynccontextmanager
    async def empty() -> AsyncGenerator[Store]:
        # Emptied, not dropped: creating forty indexes takes longer than most examples.
        name = free.pop() if free else f"wadm_contract_{next(number)}"
        made.append(name)
        try:
            async with MongoStore(f"{url}/{name}", LIVES) as store:
                yield store
        finally:
            for collection in client[name].list_collection_names():
                if collection != "schema":
                    client[name][collection].delete_many({})
            free.append(name)

    yield empty
    for name in made:
        client.drop_database(name)


@pytest.fixture
async def store(new_store: NewStore) -> AsyncGenerator[Store]:
    async with new_store() as opened:
        yield opened
