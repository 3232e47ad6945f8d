"""The disk space that downloads leave to the journal: what is recorded live cannot be fetched again, history can."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final, NamedTuple

from wadm_mcp.errors import DiskReserved

MAX_RESERVE_BYTES: Final = 512 << 20


class DiskReserve(NamedTuple):
    """Free bytes to leave on the disk of a folder."""

    folder: Path
    bytes: int

    @classmethod
    def for_journal(cls, folder: Path, journal_limit: int) -> DiskReserve:
        """What a journal of at most `journal_limit` bytes in the data directory may need for hours."""
        return cls(folder, min(journal_limit, MAX_RESERVE_BYTES))

    def check(self, wanted: int = 0) -> None:
        """`DiskReserved` if fewer are free, or would be after `wanted` bytes are written. Blocks for a moment. `OSError` without folder."""
        free = shutil.disk_usage(self.folder).free
        if free - wanted < self.bytes:
            more = f", {wanted / 1e6:,.0f} MB are needed" if wanted else ""
            raise DiskReserved(
                f"only {free / 1e6:,.0f} MB are free on the disk of {self.folder}{more}, "
                f"and {self.bytes / 1e6:,.0f} MB of it are kept for the journal; make room there"
            )
