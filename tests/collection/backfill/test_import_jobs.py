"""What an import by hand reports while it waits for its instrument."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from tests.market import ManualClock
from wadm_mcp.collection.backfill import import_jobs
from wadm_mcp.collection.backfill.import_jobs import ImportJob, ImportJobRunner, ImportProgress, leave_job, read_progress
from wadm_mcp.commands.import_history import _line
from wadm_mcp.health import Health

pytestmark = pytest.mark.anyio

FILE = "BTCUSDT-trades-2026-06-01.zip"


async def test_an_import_that_waits_for_the_first_trade_says_so_and_claims_no_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_jobs, "_LISTED_SECONDS", 0.6)
    (tmp_path / FILE).write_bytes(b"not read")
    folder = tmp_path / "import"
    leave_job(folder, "job", ImportJob(0, 0, "binance", "spot", files=[str(tmp_path / FILE)]))
    seen: list[ImportProgress] = []
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ImportJobRunner(folder, list, Health(ManualClock().now)).run)
        with anyio.fail_after(10):
            while not (seen and seen[-1].done):
                progress = read_progress(folder, "job")
                if progress is not None and progress not in seen:
                    seen.append(progress)
                await anyio.sleep(0.02)
        tasks.cancel_scope.cancel()
    waiting, done = seen
    assert (waiting.part, waiting.seconds) == (0.0, None)
    assert waiting.doing == "file 1 of 1: waiting for the first trade of binance:spot:BTCUSDT"
    assert _line(waiting) == f"[{'-' * 24}]   0%  {waiting.doing}"
    assert "is not followed here" in done.lines[0]


def test_the_line_of_an_import_shows_rate_and_time_where_they_are_known() -> None:
    assert _line(ImportProgress(0.5, 1_200, 61.0, [])) == f"[{'#' * 12}{'-' * 12}]  50%  1,200 trades/s, about 1 min 1 s left"
    step = ImportProgress(0.25, 0, 3.0, [], doing="file 2 of 4: reading x.zip")
    assert _line(step) == f"[{'#' * 6}{'-' * 18}]  25%  file 2 of 4: reading x.zip, about 3 s left"
