"""The lock that decides which of several processes on one data directory records: the operating system's lock on `recorder.lock`.

The lock ends with its process, however that ends, so no stale lock is ever left.
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Self

from filelock import FileLock, Timeout

from wadm_mcp.errors import StoreError


class RecorderLock:
    """The right to record into a data directory. Nothing here waits for the lock."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "recorder.lock"
        self._lock = FileLock(self._path, mode=0o600)

    def take(self) -> bool:
        """Try to acquire the lock without waiting. Returns whether this process holds it; `StoreError` if the folder is not writable."""
        if self._lock.is_locked:
            return True
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            return False
        except OSError as error:
            raise StoreError(
                f"{self._path}: cannot be locked ({error.strerror}); make the folder writable, or set WADM_DATA_DIR to another"
            ) from error
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._lock.release()
