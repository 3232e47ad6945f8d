"""`wadm-mcp replay`: the process follows a loopback Binance that plays recorded frames, into a data folder that starts empty."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from anyio import to_thread

from wadm_mcp.collection.recorder_lock import RecorderLock
from wadm_mcp.commands.demo import base_urls, data_subfolder
from wadm_mcp.errors import SettingError, WadmError
from wadm_mcp.logs import log
from wadm_mcp.settings import Settings, unusable_folder
from wadm_mcp.simulator.feed import ReplayFeed
from wadm_mcp.simulator.replay import Recording, read_recording
from wadm_mcp.simulator.simulator import Simulator
from wadm_mcp.storage.opening import open_mongo

REPLAY_SUFFIX: Final = "_replay_demo"
"""Appended to the database name; that database is dropped when a replay starts."""


@asynccontextmanager
async def replay(settings: Settings, files: Sequence[Path], speed: float) -> AsyncGenerator[tuple[Settings, ReplayFeed]]:
    """Play the files; yields the settings that follow them, and the feed with its progress.

    Data of an earlier replay is removed first: its trades have the same ids at other times. `SettingError` for files that are no
    recording and for a folder that is unusable or in use.
    """
    recording = await to_thread.run_sync(_read, files)
    for note in recording.notes:
        log.warning("recording.skipped", note=note)
    folder = data_subfolder(settings.WADM_DATA_DIR, "replay")
    _remove_data(folder)
    if settings.MONGODB_URL is not None:
        await open_mongo(settings, REPLAY_SUFFIX).drop()
    async with Simulator(replay=recording, speed=speed) as simulator:
        assert simulator.replay is not None
        changes = {
            "WADM_DATA_DIR": folder,
            "WADM_SYMBOLS": tuple(recording.symbols),
            "WADM_EXCHANGES": ("binance",),
            "WADM_MARKETS": (recording.market,),
            "WADM_HISTORY_HOURS": 0,
        }
        yield settings.model_copy(update=changes).with_hosts(base_urls(simulator)), simulator.replay


def _read(files: Sequence[Path]) -> Recording:
    try:
        return read_recording(files)
    except WadmError as error:
        raise SettingError(str(error)) from error


def _remove_data(folder: Path) -> None:
    """Delete the store and the journal of an earlier replay."""
    try:
        with RecorderLock(folder) as lock:
            if not lock.take():
                raise SettingError(f"{folder} is in use by another replay; stop it, or set WADM_DATA_DIR to another folder")
            for file in (*folder.glob("wadm.sqlite*"), *folder.glob("journal/*.seg"), *folder.glob("journal/store.json")):
                file.unlink()
    except OSError as error:
        raise unusable_folder(folder.parent, error) from error
