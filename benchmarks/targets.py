"""The targets of `benchmarks.recording`: ratios within a run, and limits of time and memory.

python -m benchmarks.targets       checks benchmarks/results.json; exit status 1 if a target is missed
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from benchmarks.table import RESULTS

Row = Mapping[str, Any]


class Target(NamedTuple):
    """A measured value and its highest allowed value, `limit`; with `at_least` the lowest one."""

    name: str
    measured: float
    limit: float
    at_least: bool = False

    @property
    def met(self) -> bool:
        """Whether the measured value is within its limit."""
        return self.measured >= self.limit if self.at_least else self.measured <= self.limit


def targets(rows: Sequence[Row]) -> Iterator[Target]:
    """The targets of all rows."""
    peer, mongo, sqlite = (_row(rows, "paced 2000/s", name) for name in ("cryptofeed, MongoDB", "WADM, MongoDB", "WADM, SQLite"))
    yield Target("CPU at 2,000/s on MongoDB against the peer's", mongo["cores"] / peer["cores"], 1 / 5)
    yield Target("the same on SQLite", sqlite["cores"] / peer["cores"], 1 / 6)
    flooded, flooded_peer = (_row(rows, "flood", name) for name in ("WADM, MongoDB", "cryptofeed, MongoDB"))
    yield Target(
        "trades stored a second when flooded against the peer's", flooded["stored_per_s"] / flooded_peer["stored_per_s"], 1.5, at_least=True
    )
    for row in rows:
        subject = f"{row['scenario']}, {row.get('system', '')}"
        if subject.endswith("cryptofeed, MongoDB"):
            continue
        if "memory_peak" in row:
            yield Target(f"{subject}: peak of memory, MB", row["memory_peak"], 150)
            yield Target(f"{subject}: above the memory at rest, MB", row["memory_peak"] - row["memory_start"], 60)
        if "memory_minutes" in row:
            settled, *_, last = row["memory_minutes"][1:]
            yield Target(f"{subject}: growth from the second minute to the last, MB", last - settled, 10)
        if "stall_ms" in row:
            yield Target(f"{subject}: longest stall, ms", row["stall_ms"], 50)
        if "late_p99_ms" in row:
            yield Target(f"{subject}: sent to visible, p99 ms", row["late_p99_ms"], 50)
            yield Target(f"{subject}: answers in the burst, p99 ms", row["burst_answer_p99_ms"], 50)
        if "gaps" in row:
            yield Target(f"{subject}: gaps", row["gaps"], 0)
        if "first_answer_s" in row:
            yield Target(f"{subject}: start to first answer, s", row["first_answer_s"], 2)
    day, tenth, tenfold = (row for row in rows if row["scenario"] == "24-hour profile")
    yield Target("24-hour profile, cold, ms", day["cold_ms"], 300)
    yield Target("24-hour profile, warm, times a trivial call", day["warm_ms"] / day["trivial_ms"], 10)
    for kind in ("cold", "warm"):
        yield Target(f"24-hour profile, {kind}, ten times the trades at the same prices", tenfold[f"{kind}_ms"] / tenth[f"{kind}_ms"], 1.2)


def judge(rows: Sequence[Row]) -> int:
    """Print every target; returns how many are missed."""
    found = list(targets(rows))
    for each in found:
        sign = "at least" if each.at_least else "at most"
        print(f"{'met   ' if each.met else 'MISSED'}  {each.measured:8.2f}  {sign} {each.limit:6.2f}  {each.name}")
    return sum(not each.met for each in found)


def _row(rows: Sequence[Row], scenario: str, system: str) -> Row:
    return next(row for row in rows if row["scenario"] == scenario and row["system"] == system)


if __name__ == "__main__":
    sys.exit(1 if judge(json.loads(RESULTS.read_text())["recording"]) else 0)
