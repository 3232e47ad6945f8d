"""What an attack measured, the bar it has to hold, and the table of all of them."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ABUSE: Final = os.environ.get("WADM_ABUSE") == "1"
"""Set by `make abuse`: full sizes against processes of their own."""
SEED: Final = int(os.environ.get("WADM_ABUSE_SEED", "1"))
TABLE: Final = os.environ.get("WADM_ABUSE_TABLE")
"""File that the table is written to as Markdown; unset, it is only printed."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One measure of one attack. `bar` is empty where the figure is only reported."""

    attack: str
    measure: str
    figure: str
    bar: str
    held: bool


MEASURED: Final[list[Measured]] = []
"""Everything that was measured in this run, in order."""


class Attack:
    """Collects the measures of one attack; `attack` makes one, and fails the test if a bar is missed."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.missed: list[str] = []

    def at_most(self, measure: str, figure: float | None, bar: float, unit: str) -> None:
        """A figure that may be at most `bar`. None: it could not be measured because the server did not answer."""
        shown = f"{figure:,.{_digits(figure)}f} {unit}" if figure is not None else "no answer"
        self._add(measure, shown, f"at most {bar:,g} {unit}", figure is not None and figure <= bar)

    def holds(self, measure: str, figure: object, held: bool, bar: str = "none") -> None:
        """A measure that holds or not, such as a number of lost trades; `figure` and `bar` are what the table shows."""
        self._add(measure, str(figure), bar, held)

    def note(self, measure: str, figure: object) -> None:
        """A figure without a bar."""
        self._add(measure, str(figure), "", True)

    def _add(self, measure: str, figure: str, bar: str, held: bool) -> None:
        MEASURED.append(Measured(self.name, measure, figure, bar, held))
        if not held:
            self.missed.append(f"{measure}: {figure}, the bar is {bar}")


@contextmanager
def attack(name: str) -> Generator[Attack]:
    """An attack with its measures. `AssertionError` names the bars that were missed; an error of the attack misses one too."""
    one = Attack(name)
    try:
        yield one
    except BaseException as error:
        reason = " ".join(str(error).split())[:120]
        one.holds("carried out to its end", f"{type(error).__name__}: {reason}".replace("|", "/"), held=False, bar="yes")
        raise
    assert not one.missed, f"{name}: " + "; ".join(one.missed)


def markdown() -> str:
    """The table of everything that was measured."""
    # Attacks that run at the same time are told one after the other.
    names = list(dict.fromkeys(one.attack for one in MEASURED))
    rows = [
        f"| {one.attack} | {one.measure} | {one.figure} | {one.bar} | {('held' if one.held else '**missed**') if one.bar else ''} |"
        for one in sorted(MEASURED, key=lambda one: names.index(one.attack))
    ]
    return "\n".join(["| attack | measure | measured | bar | verdict |", "| --- | --- | --- | --- | --- |", *rows, ""])


def write_table() -> None:
    """Write the table to the file in `WADM_ABUSE_TABLE`, if there is one."""
    if TABLE:
        Path(TABLE).write_text(markdown())


def _digits(figure: float) -> int:
    return 0 if abs(figure) >= 100 else 1 if abs(figure) >= 10 else 3
