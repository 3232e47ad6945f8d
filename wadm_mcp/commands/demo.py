"""`--demo`: records simulated exchanges on this machine instead of the real ones. Everything else works as usual."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from wadm_mcp.errors import SettingError
from wadm_mcp.settings import Settings, unusable_folder
from wadm_mcp.simulator.simulator import Simulator

DEMO_SUFFIX: Final = "_demo"
"""Appended to the database name, so that demo data never mixes with recorded data."""

_SEED: Final = 7
_ACTIVITY: Final = {"binance": 1 / 4}
"""Share of its usual activity at which an exchange trades: at this one, Binance's rate limit lets a day of history in within 30 s."""


@asynccontextmanager
async def demo(settings: Settings) -> AsyncGenerator[Settings]:
    """Run the simulated exchanges; yields the settings that record them into the subfolder `demo` of the data directory.

    Only exchanges that the simulator has are followed. `SettingError` where the settings name none of them, or the folder is unusable.
    """
    folder = data_subfolder(settings.WADM_DATA_DIR, "demo")
    async with Simulator(seed=_SEED, activity=_ACTIVITY) as simulator:
        simulated = {instrument.exchange for instrument in simulator.instruments}
        exchanges = tuple(name for name in settings.WADM_EXCHANGES if name in simulated)
        if not exchanges:
            given = ",".join(settings.WADM_EXCHANGES)
            raise SettingError(f"WADM_EXCHANGES={given}: the demo has none of these; it has {', '.join(sorted(simulated))}")
        followed = settings.model_copy(update={"WADM_DATA_DIR": folder, "WADM_EXCHANGES": exchanges})
        yield followed.with_hosts(base_urls(simulator))


def base_urls(simulator: Simulator) -> dict[str, str]:
    """The settings that name the simulator's base URLs, such as `WADM_BYBIT_REST`."""
    return {f"WADM_{name.upper()}": url for name, url in simulator.urls.items()}


def data_subfolder(data_dir: Path, name: str) -> Path:
    """A subfolder of the data directory, created where it is missing. `SettingError` names the data directory."""
    folder = data_dir / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unusable_folder(data_dir, error) from error
    return folder
