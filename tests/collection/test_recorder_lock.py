from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from wadm_mcp.collection.recorder_lock import RecorderLock
from wadm_mcp.errors import StoreError

HOLD = """
import sys
from pathlib import Path
from wadm_mcp.collection.recorder_lock import RecorderLock
lock = RecorderLock(Path(sys.argv[1]))
print(lock.take(), flush=True)
sys.stdin.read()
"""


def test_of_two_processes_one_records_and_the_other_takes_over_when_it_is_killed(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "True\n"
        with RecorderLock(tmp_path) as lease:
            assert not lease.take()
            holder.kill()
            holder.wait()
            assert lease.take()


def test_a_released_lease_can_be_taken_again(tmp_path: Path) -> None:
    with RecorderLock(tmp_path) as lease:
        assert lease.take()
    with RecorderLock(tmp_path) as lease:
        assert lease.take()


def test_a_folder_that_allows_no_lock_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with RecorderLock(tmp_path / "file") as lease, pytest.raises(StoreError, match=r"recorder\.lock: cannot be locked"):
        lease.take()
