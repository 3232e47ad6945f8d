"""What a run of `benchmarks.recording` must reach, as ratios within the run and as limits of time and memory.

python -m benchmarks.bars       judges benchmarks/results.json; status 1 where anything falls short
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from benchmarks.table import RESULTS

Row = Mapping[str, Any]


class Bar(NamedTuple):
    """A measure, what it came to, and the most it may be (the least, where `least`)."""

    name: str
    reached: float
    bar: float
    least: bool = False

    @property
    def holds(self) -> bool:
        """Was it reached?"""
        return self.reached >= self.bar if self.least else self.reached <= self.bar


def bars(rows: Sequence[Row]) -> Iterator[Bar]:
    """Every bar of these rows."""
    peer, mongo, sqlite = (_row(rows, "paced 2000/s", name) for name in ("cryptofeed, MongoDB", "WADM, MongoDB", "WADM, SQLite"))
    yield Bar("CPU at 2,000/s on MongoDB against the peer's", mongo["cores"] / peer["cores"], 1 / 5)
    yield Bar("the same on SQLite", sqlite["cores"] / peer["cores"], 1 / 6)
    flooded, flooded_peer = (_row(rows, "flood", name) for name in ("WADM, MongoDB", "cryptofeed, MongoDB"))
    yield Bar(
        "trades stored a second when flooded against the peer's", flooded["stored_per_s"] / flooded_peer["stored_per_s"], 1.5, least=True
    )
    for row in rows:
        who = f"{row['scenario']}, {row.get('system', '')}"
        if who.endswith("cryptofeed, MongoDB"):
            continue
        if "memory_peak" in row:
            yield Bar(f"{who}: peak of memory, MB", row["memory_peak"], 150)
            yield Bar(f"{who}: above its rest, MB", row["memory_peak"] - row["memory_start"], 60)
        if "memory_minutes" in row:
            settled, *_, last = row["memory_minutes"][1:]
            yield Bar(f"{who}: growth from the second minute to the last, MB", last - settled, 10)
        if "stall_ms" in row:
            yield Bar(f"{who}: longest stall, ms", row["stall_ms"], 50)
        if "late_p99_ms" in row:
            yield Bar(f"{who}: sent to visible, p99 ms", row["late_p99_ms"], 50)
            yield Bar(f"{who}: answers in the burst, p99 ms", row["burst_answer_p99_ms"], 50)
        if "gaps" in row:
            yield Bar(f"{who}: gaps", row["gaps"], 0)
        if "first_answer_s" in row:
            yield Bar(f"{who}: start to first answer, s", row["first_answer_s"], 2)
    day, tenth, tenfold = (row for row in rows if row["scenario"] == "24-hour profile")
    yield Bar("24-hour profile, cold, ms", day["cold_ms"], 300)
    yield Bar("24-hour profile, warm, times a trivial call", day["warm_ms"] / day["trivial_ms"], 10)
    for how in ("cold", "warm"):
        yield Bar(f"24-hour profile, {how}, ten times the trades at the same prices", tenfold[f"{how}_ms"] / tenth[f"{how}_ms"], 1.2)


def judge(rows: Sequence[Row]) -> int:
    """Print every bar; how many are not reached."""
    found = list(bars(rows))
    for each in found:
        sign = "at least" if each.least else "at most"
        print(f"{'holds      ' if each.holds else 'FALLS SHORT'}  {each.reached:8.2f}  {sign} {each.bar:6.2f}  {each.name}")
    return sum(not each.holds for each in found)


def _row(rows: Sequence[Row], scenario: str, system: str) -> Row:
    return next(row for row in rows if row["scenario"] == scenario and row["system"] == system)


if __name__ == "__main__":
    sys.exit(1 if judge(json.loads(RESULTS.read_text())["recording"]) else 0)
