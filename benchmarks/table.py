"""The README's table of what recording costs, made from the rows of `benchmarks.recording`.

python -m benchmarks.table      puts benchmarks/results.json into the README
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).parents[1]
README: Final = ROOT / "README.md"
RESULTS: Final = ROOT / "benchmarks" / "results.json"
SYSTEMS: Final = ("cryptofeed, MongoDB", "WADM, MongoDB", "WADM, SQLite")
_MARKED: Final = re.compile(r"(<!-- costs -->\n).*?(<!-- /costs -->)", re.DOTALL)
_DATABASE: Final = re.compile(r" \+ \{mongod_.*?\}")
"""What a system whose database is in the process has not."""

_CORES: Final = "{process_cores:.2f} + {mongod_cores:.2f}"
_LINES: Final = (
    ("2,000 trades/s, one frame a send: cores of process and database", "paced 2000/s", _CORES),
    ("10,000 trades/s: the same", "paced 10000/s", _CORES),
    ("flood: trades stored a second", "flood", "{stored_per_s:,.0f}"),
    ("flood: CPU of process and database a trade", "flood", "{process_us:.1f} + {mongod_us:.1f} µs"),
    ("flood: memory, resting and peak", "flood", "{memory_start:.0f}, {memory_peak:.0f} MB"),
    ("flood: longest stall of the event loop", "flood", "{stall_ms:.0f} ms"),
    ("flood, one client asking: longest stall, peak of memory", "flood, asked", "{stall_ms:.0f} ms, {memory_peak:.0f} MB"),
    ("flood, one client asking: p50 and p99 of its answers", "flood, asked", "{answer_p50_ms:.0f}, {answer_p99_ms:.0f} ms"),
    ("2,000 trades/s: sent to visible in a tool's answer, p50 and p99", "burst", "{late_p50_ms:.0f}, {late_p99_ms:.0f} ms"),
    ("20,000 more in one second: gaps, p99 of answers", "burst", "{gaps}, {burst_answer_p99_ms:.0f} ms"),
    ("20,000 more in one second: longest stall, peak of memory", "burst", "{stall_ms:.0f} ms, {memory_peak:.0f} MB"),
    *(
        (f"400 instruments of {exchange.capitalize()}{measure}", f"400 instruments of {exchange}, {length}", shape)
        for exchange in ("binance", "bybit")
        for measure, length, shape in (
            (", 5,000 trades/s: cores", "5,000/s", _CORES),
            (": longest stall, peak of memory", "5,000/s", "{stall_ms:.0f} ms, {memory_peak:.0f} MB"),
            (", ten minutes: memory after the second and the last", "ten minutes", "{memory_minutes[1]:.0f}, {memory_minutes[9]:.0f} MB"),
        )
    ),
    ("start to first answer with 30 days stored", "start with 30 days", "{first_answer_s:.1f} s"),
)
_PROFILE: Final = "{cold_ms:.0f}, {warm_ms:.0f} ms beside {trivial_ms:.1f} ms"


def table(results: Mapping[str, Any]) -> str:
    """The machine, and a line for each measure with a cell for each system; empty where it was not measured."""
    rows: Sequence[Mapping[str, Any]] = results["recording"]
    lines = [f"Measured on {results['machine']}.", "", f"| measure | {' | '.join(SYSTEMS)} |", f"| --- |{' --- |' * len(SYSTEMS)}"]
    for label, scenario, shape in _LINES:
        known = {row["system"]: row for row in rows if row["scenario"] == scenario}
        lines.append(_line(label, *(_cell(shape, known[system]) if system in known else "" for system in SYSTEMS)))
    profiles = [row for row in rows if row["scenario"] == "24-hour profile"]
    return "\n".join((*lines, *(_line(label, "", "", cell) for label, cell in _profiles(*profiles)), ""))


def write(results: Mapping[str, Any]) -> None:
    """Put the table into the README."""
    README.write_text(_MARKED.sub(rf"\g<1>{table(results)}\g<2>", README.read_text()))


def _profiles(*rows: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    names = ("24-hour profile, {trades:,} trades", "a tenth of these", "ten times that tenth, at its prices")
    for name, row in zip(names, rows, strict=True):
        levels = "{levels_minute:,} price levels a minute, {levels_day:,} in all: cold, warm beside a tool that does nothing"
        yield f"{name}, {levels}".format(**row), _PROFILE.format(**row)


def _cell(shape: str, row: Mapping[str, Any]) -> str:
    if "stall_ms" in shape and "stall_ms" not in row:
        return ""
    return (_DATABASE.sub("", shape) if "SQLite" in row["system"] else shape).format(**row)


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    write(json.loads(RESULTS.read_text()))
