"""Giving freed memory back to the system."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from wadm_mcp.process import memory
from wadm_mcp.process.memory import release_free_memory


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.skipif(sys.platform != "linux" or memory._trim is None, reason="needs glibc")
def test_freed_memory_goes_back_to_the_system() -> None:
    blocks = [bytes(2_000) for _ in range(40_000)]
    # One block that stays at the end keeps glibc from shrinking its heap by itself.
    last = bytes(2_000)
    del blocks
    before = _resident_bytes()
    release_free_memory()
    assert len(last) == 2_000
    assert before - _resident_bytes() > 40 << 20


def test_without_glibc_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_trim", None)
    release_free_memory()
