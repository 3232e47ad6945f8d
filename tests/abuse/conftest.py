"""Prints the table of verdicts at the end of a run of the full sizes, and removes what the attacks left on disk."""

from __future__ import annotations

import resource
import shutil
from collections.abc import Generator
from pathlib import Path

import pytest

from tests.abuse.verdict import ABUSE, MEASURED, markdown, write_table


@pytest.fixture(autouse=True, scope="session")
def many_descriptors() -> None:
    """An attacker has thousands of sockets: raise this process's own soft limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@pytest.fixture(autouse=True)
def emptied(tmp_path: Path) -> Generator[None]:
    """Logs and stores of an attack may be hundreds of megabytes."""
    yield
    if ABUSE:
        shutil.rmtree(tmp_path, ignore_errors=True)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if ABUSE and MEASURED:
        write_table()
        terminalreporter.section("abuse")
        terminalreporter.write(markdown())
