"""Fixtures of every test: the event loop library, and the folder of real recorded trades where it exists."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import Phase, settings

# A loaded two-core machine makes a single example slow; that is no failure of what is tested. No test has a target, and the module for
# targets, imported deep in the stack when first needed, cannot always be compiled there.
settings.register_profile("wadm", deadline=None, phases=set(Phase) - {Phase.target})
settings.load_profile("wadm")

# Tests start a few hundred processes of ours; where bytecode may not be written each would compile the whole package for itself.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

_BESIDE = Path(__file__).parents[2] / "shared" / "captures"


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
