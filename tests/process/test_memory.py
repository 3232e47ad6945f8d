"""Giving freed memory back to the system."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from pathlib import Path

import pytest

from wadm_mcp.process import memory
from wadm_mcp.process.memory import release_free_memory, share_heap

_HEAPS_OF_THREADS = """
import threading
from wadm_mcp.process.memory import share_heap
share_heap()
together = threading.Barrier(4)
def allocate():
    blocks = [bytes(2_000) for _ in range(100)]
    together.wait()
threads = [threading.Thread(target=allocate) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
starts = [int(line.partition("-")[0], 16) for line in open("/proc/self/maps")]
print(sum(start % (64 << 20) == 0 for start in starts))
"""
"""Prints how many threads have a heap of their own: glibc aligns each to 64 MiB."""


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
    monkeypatch.setattr(memory, "_set_option", None)
    release_free_memory()
    share_heap()


@pytest.mark.skipif(sys.platform != "linux" or memory._trim is None, reason="needs glibc")
def test_threads_share_one_heap() -> None:
    assert subprocess.run([sys.executable, "-c", _HEAPS_OF_THREADS], capture_output=True, text=True, check=True).stdout == "0\n"


def test_what_refused_requests_leave_behind_is_freed() -> None:
    class Refused:
        def __init__(self) -> None:
            self.error = self

    gc.disable()
    try:
        left = weakref.ref(Refused())
        release_free_memory()
        assert left() is None
    finally:
        gc.enable()
