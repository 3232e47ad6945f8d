from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from wadm_mcp.collection.recorder_lock import RecorderLock
from wadm_mcp.errors import StoreError

HOLDER = """
import sys
from pathlib import Path
from wadm_mcp.collection.recorder_lock import RecorderLock
lock = RecorderLock(Path(sys.argv[1]))
print(lock.take(), flush=True)
sys.stdin.read()
"""


def test_the_second_process_acquires_the_lock_when_the_first_is_killed(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLDER, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "True\n"
        with RecorderLock(tmp_path) as lock:
            assert not lock.take()
            holder.kill()
            holder.wait()
            assert lock.take()


def test_a_released_lock_can_be_acquired_again(tmp_path: Path) -> None:
    with RecorderLock(tmp_path) as lock:
        assert lock.take()
    with RecorderLock(tmp_path) as lock:
        assert lock.take()


def test_the_error_names_a_lock_file_that_cannot_be_locked(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with RecorderLock(tmp_path / "file") as lock, pytest.raises(StoreError, match=r"recorder\.lock: cannot be locked"):
        lock.take()
