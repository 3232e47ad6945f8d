"""Every kind of store, so that each runs through the same contract."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager
from itertools import count
from typing import TypeAlias

import pytest

from wadm_mcp.storage.sqlite import SqliteStore
from wadm_mcp.storage.store import Store

NewStore: TypeAlias = Callable[[], AbstractAsyncContextManager[Store]]


@pytest.fixture(scope="session", params=["sqlite"])
def new_store(tmp_path_factory: pytest.TempPathFactory) -> NewStore:
    """Makes empty stores, one a call."""
    folder, number = tmp_path_factory.mktemp("stores"), count()
    return lambda: SqliteStore(folder / f"{next(number)}.sqlite")


@pytest.fixture
async def store(new_store: NewStore) -> AsyncGenerator[Store]:
    async with new_store() as opened:
        yield opened
