"""Fixtures of every test: the event loop library, and the folder of real recorded trades where it exists."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import Phase, settings

from wadm_mcp.cli import tune_garbage_collector

# A loaded two-core machine makes a single example slow; that is no failure of what is tested. No test has a target, and the module for
# targets, imported deep in the stack when first needed, cannot always be compiled there.
settings.register_profile("wadm", deadline=None, phases=set(Phase) - {Phase.target})
settings.load_profile("wadm")

# Tests start a few hundred processes of ours; where bytecode may not be written each would compile the whole package for itself.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

_BESIDE = Path(__file__).parents[2] / "shared" / "captures"


_LONGEST = (
    "tests/soak/",
    "tests/storage/test_same_answers.py",
    "tests/end_to_end/test_history.py",
    "tests/end_to_end/test_production_store.py",
    "tests/test_containers.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin each worker's share with some of the longest tests, so that none has one of them left when the others have nothing to do."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    longest = [item for item in items if item.nodeid.startswith(_LONGEST)]
    others = [item for item in items if not item.nodeid.startswith(_LONGEST)]
    share = -(-len(others) // workers)
    items[:] = [item for first in range(workers) for item in (*longest[first::workers], *others[first * share : (first + 1) * share])]


def pytest_collection_finish() -> None:
    """Search for reference cycles as seldom as the product does. A worker has a million objects loaded, which each full search visits."""
    tune_garbage_collector()


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def captures() -> Path:
    """The folder of real recorded trades: `WADM_CAPTURES`, or the one beside the checkout."""
    folder = Path(os.environ.get("WADM_CAPTURES", _BESIDE))
    if not folder.is_dir():
        pytest.skip(f"no recorded trades at {folder}; set WADM_CAPTURES to their folder")
    return folder
