"""The table of what recording costs in `docs/performance.md`, generated from the results of `benchmarks.recording`.

python -m benchmarks.table      writes the table from benchmarks/results.json
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).parents[1]
PAGE: Final = ROOT / "docs" / "performance.md"
RESULTS: Final = ROOT / "benchmarks" / "results.json"
SYSTEMS: Final = ("cryptofeed, MongoDB", "WADM, MongoDB", "WADM, SQLite")
_MARKED: Final = re.compile(r"(<!-- costs -->\n).*?(<!-- /costs -->)", re.DOTALL)
_DATABASE: Final = re.compile(r" \+ \{mongod_.*?\}")
"""The part of a cell that does not exist for a system whose database runs inside its own process."""

_CORES: Final = "{process_cores:.2f} + {mongod_cores:.2f}"
_LINES: Final = (
    ("2,000 trades/s: CPU cores, process + database", "paced 2000/s", _CORES),
    ("10,000 trades/s: CPU cores, process + database", "paced 10000/s", _CORES),
    ("flood: trades stored per second", "flood", "{stored_per_s:,.0f}"),
    ("flood: CPU per trade, process + database", "flood", "{process_us:.1f} + {mongod_us:.1f} µs"),
    ("flood: memory at rest, peak", "flood", "{memory_start:.0f}, {memory_peak:.0f} MB"),
    ("flood: longest event-loop stall", "flood", "{stall_ms:.0f} ms"),
    ("flood and one querying client: longest stall, peak memory", "flood, asked", "{stall_ms:.0f} ms, {memory_peak:.0f} MB"),
    ("flood and one querying client: p50, p99 of its answers", "flood, asked", "{answer_p50_ms:.0f}, {answer_p99_ms:.0f} ms"),
    ("2,000 trades/s: from sent to visible in an answer, p50, p99", "burst", "{late_p50_ms:.0f}, {late_p99_ms:.0f} ms"),
    ("burst of 20,000 more in one second: gaps, p99 of answers", "burst", "{gaps}, {burst_answer_p99_ms:.0f} ms"),
    ("burst of 20,000 more in one second: longest stall, peak memory", "burst", "{stall_ms:.0f} ms, {memory_peak:.0f} MB"),
    *(
        (f"400 {exchange.capitalize()} instruments{measure}", f"400 instruments of {exchange}, {length}", shape)
        for exchange in ("binance", "bybit")
        for measure, length, shape in (
            (", 5,000 trades/s: CPU cores, process + database", "5,000/s", _CORES),
            (", 5,000 trades/s: longest stall, peak memory", "5,000/s", "{stall_ms:.0f} ms, {memory_peak:.0f} MB"),
            (", 5,000 trades/s: memory after 2, 10 minutes", "ten minutes", "{memory_minutes[1]:.0f}, {memory_minutes[9]:.0f} MB"),
        )
    ),
    ("from start to first answer, 30 days stored", "start with 30 days", "{first_answer_s:.1f} s"),
)
_PROFILE_LABEL: Final = (
    "24-hour profile of {trades:,} trades, {levels_minute:,} price levels a minute, {levels_day:,} in total: cold, warm, no-op tool"
)
_PROFILE: Final = "{cold_ms:.0f}, {warm_ms:.0f}, {trivial_ms:.1f} ms"


def table(results: Mapping[str, Any]) -> str:
    """Return the machine and one row per measure with a cell per system. A cell is empty where nothing was measured."""
    rows: Sequence[Mapping[str, Any]] = results["recording"]
    lines = [f"Measured on {results['machine']}.", "", f"| measure | {' | '.join(SYSTEMS)} |", f"| --- |{' --- |' * len(SYSTEMS)}"]
    for label, scenario, shape in _LINES:
        known = {row["system"]: row for row in rows if row["scenario"] == scenario}
        lines.append(_line(label, *(_cell(shape, known[system]) if system in known else "" for system in SYSTEMS)))
    profiles = (row for row in rows if row["scenario"] == "24-hour profile")
    return "\n".join((*lines, *_profiles(profiles), ""))


def write(results: Mapping[str, Any]) -> None:
    """Replace the table in `docs/performance.md`."""
    PAGE.write_text(_MARKED.sub(rf"\g<1>{table(results)}\g<2>", PAGE.read_text()))


def _profiles(rows: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    for row in rows:
        yield _line(_PROFILE_LABEL.format(**row), "", "", _PROFILE.format(**row))


def _cell(shape: str, row: Mapping[str, Any]) -> str:
    if "stall_ms" in shape and "stall_ms" not in row:
        return ""
    return (_DATABASE.sub("", shape) if "SQLite" in row["system"] else shape).format(**row)


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    write(json.loads(RESULTS.read_text()))
