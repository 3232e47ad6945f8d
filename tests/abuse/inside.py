"""Fuzz of what can be called without a server. Each function returns a line for every fault that it found, none if all is well."""

from __future__ import annotations

import contextlib
import io
import json
import random
import re
from collections.abc import Generator
from pathlib import Path
from typing import Final

from tests.abuse import fuzz
from tests.exchanges.test_fuzz import SUBJECTS, hostile_body
from tests.market import BYBIT, SPOT, listing
from tests.server.fake import FakeRuntime
from wadm_mcp.cli import _arguments
from wadm_mcp.collection.backfill.archive_file import lines
from wadm_mcp.errors import ArchiveError, WadmError
from wadm_mcp.exchanges.binance_archive import BinanceAggregates
from wadm_mcp.exchanges.bybit_archive import BybitSpotTrades
from wadm_mcp.server.questions import QUESTIONS
from wadm_mcp.settings import read_settings

_MAX_ERROR_CHARS: Final = 1_000
_CODE: Final = re.compile(r"Traceback|File \"/|<\w+ object| at 0x[0-9a-f]{8,}")


def check_text(text: str | bytes) -> None:
    """`AssertionError` for text that shows the inside of the program."""
    shown = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
    assert not (found := _CODE.search(shown)), f"shown to a caller: {shown[max(0, found.start() - 80) : found.end() + 80]!r}"


def _faults_of_line(text: str) -> Generator[str]:
    if not text.isprintable():
        yield f"not one printable line: {text[:120]!r}"
    if len(text) > _MAX_ERROR_CHARS:
        yield f"{len(text):,} characters: {text[:80]!r}"
    if _CODE.search(text):
        yield f"shows the inside: {text[:120]!r}"


def decode_frames(count: int, seed: int) -> list[str]:
    """Frames, REST replies and lists, of both exchanges."""
    faults: list[str] = []
    for name, (read, valid, error) in SUBJECTS.items():
        draw, trees = random.Random(f"{seed} {name}"), [json.loads(body) for body in valid]
        for number in range(count // len(SUBJECTS)):
            body = hostile_body(draw, valid, trees)
            try:
                read(body)
            except error as said:
                faults += _faults_of_line(str(said))
            except Exception as crash:  # noqa: BLE001 - any other exception is what is looked for
                faults.append(f"{name}: body {number} of seed {seed}: {crash!r}")
    return faults


async def ask_questions(count: int, seed: int) -> list[str]:
    """Arguments of every tool that does not wait."""
    faults: list[str] = []
    runtime, draw = FakeRuntime(), random.Random(seed)
    questions = [one for one in QUESTIONS if one.name != "wait_for"]
    for number in range(count):
        question = draw.choice(questions)
        given = fuzz.arguments(draw, question.arguments)
        try:
            await question.ask(runtime, given)
        except WadmError as said:
            faults += _faults_of_line(str(said))
        except Exception as crash:  # noqa: BLE001 - any other exception is what is looked for
            faults.append(f"{question.name}: {given!r}, number {number} of seed {seed}: {crash!r}")
    return faults


def read_archives(count: int, seed: int, folder: Path) -> list[str]:
    """Daily files with rows and bytes changed."""
    faults: list[str] = []
    draw = random.Random(seed)
    formats = {"binance": BinanceAggregates("spot"), "bybit": BybitSpotTrades()}
    listings = {"binance": listing(SPOT), "bybit": listing(BYBIT)}
    for number in range(count):
        exchange, packed = fuzz.archive(draw)
        file = folder / ("BTCUSDT-aggTrades-2026-06-01.zip" if exchange == "binance" else "BTCUSDT_2026-06-01.csv.gz")
        file.write_bytes(packed)
        try:
            for _ in formats[exchange].rows(listings[exchange], lines(file)):
                pass
        except ArchiveError as said:
            faults += _faults_of_line(str(said))
        except Exception as crash:  # noqa: BLE001 - any other exception is what is looked for
            faults.append(f"{exchange} file {number} of seed {seed}: {crash!r}")
    return faults


def read_environments(count: int, seed: int, secret: str) -> list[str]:
    """Settings with a secret in every place that may have one; it must be in no error and in no settings that are shown."""
    faults: list[str] = []
    draw = random.Random(seed)
    for number in range(count):
        environ = fuzz.environment(draw, secret)
        try:
            shown = repr(read_settings(environ))
        except WadmError as said:
            shown = str(said)
            faults += _faults_of_line(shown)
        except Exception as crash:  # noqa: BLE001 - any other exception is what is looked for
            faults.append(f"{environ!r}, number {number} of seed {seed}: {crash!r}")
            continue
        if secret in shown:
            faults.append(f"secret shown, number {number} of seed {seed}: {shown[:200]}")
    return faults


def parse_command_lines(count: int, seed: int) -> list[str]:
    """Command lines: a refusal is one line on stderr and status 2."""
    faults: list[str] = []
    draw = random.Random(seed)
    for number in range(count):
        line, printed = fuzz.command_line(draw), io.StringIO()
        try:
            with contextlib.redirect_stderr(printed), contextlib.redirect_stdout(io.StringIO()):
                _arguments(line)
        except SystemExit as ended:
            if ended.code not in (0, 2):
                faults.append(f"{line!r}: status {ended.code}")
            said = printed.getvalue()
            faults += _faults_of_line(said.removesuffix("\n")) if ended.code == 2 else ()
        except Exception as crash:  # noqa: BLE001 - any other exception is what is looked for
            faults.append(f"{line!r}, number {number} of seed {seed}: {crash!r}")
    return faults
