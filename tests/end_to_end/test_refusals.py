"""Every mistake of a user ends in one clear line, without a traceback, with the right exit status."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from tests.end_to_end.process import run
from wadm_mcp.simulator.simulator import Simulator

_KEY = "sixteen letters!"
BAD_SETTINGS = [
    ({"WADM_PORT": "eighty"}, "WADM_PORT=eighty: a port is a whole number from 1 to 65535"),
    ({"WADM_PORT": "70000"}, "WADM_PORT=70000: a port is a whole number from 1 to 65535"),
    ({"ENVIRONMENT": "staging"}, "ENVIRONMENT=staging: allowed are development and production"),
    ({"WADM_EXCHANGES": "binance,kraken"}, "WADM_EXCHANGES=binance,kraken: allowed are binance, bybit, comma separated"),
    ({"WADM_MARKETS": "futures"}, "WADM_MARKETS=futures: allowed are spot, linear, comma separated"),
    ({"WADM_SYMBOLS": "BTC/USDT"}, "WADM_SYMBOLS=BTC/USDT: allowed are letters and digits"),
    ({"WADM_SYMBOLS": ","}, "WADM_SYMBOLS=,: at least one symbol is needed"),
    ({"WADM_TRADES_TTL_HOURS": "0"}, "WADM_TRADES_TTL_HOURS=0: a whole number from 1 to 87600"),
    ({"WADM_BYBIT_WS": "https://x"}, "WADM_BYBIT_WS=https://x: a base URL without path is needed, such as wss://host:port"),
    ({"WADM_BINANCE_SPOT_REST": "https://x/api"}, "WADM_BINANCE_SPOT_REST=https://x/api: a base URL without path"),
    ({"WADM_HOST": "0.0.0.0"}, "WADM_HOST=0.0.0.0: API_KEY must be set when the host is not loopback"),
    ({"WADM_HOST": "0.0.0.0", "API_KEY": "fifteen letters"}, "API_KEY=(hidden): has 15 characters; with WADM_HOST=0.0.0.0 at least 16 are"),
    ({"WADM_HOST": "nowhere.invalid", "API_KEY": _KEY}, "WADM_HOST=nowhere.invalid: "),
    ({"WADM_ROOT_PATH": "wadm/"}, "WADM_ROOT_PATH=wadm/: a path is needed that begins with / and does not end with it"),
    ({"WADM_DATA_DIR": "/proc/nowhere"}, "WADM_DATA_DIR=/proc/nowhere"),
    (
        {"WADM_DATA_DIR": "/etc/passwd"},
        "WADM_DATA_DIR=/etc/passwd: the folder cannot be used (Not a directory); set it to a writable folder",
    ),
    ({"WADM_DATA_DIR": "~nouser/x"}, "WADM_DATA_DIR=~nouser/x: no such home folder; set it to a writable folder"),
    ({"WADM_DATA_DIR": "/tmp/" + "x" * 300}, "the folder cannot be used (File name too long); set it to a writable folder"),
    ({"WADM_HOST": "nowhere\ninvalid", "API_KEY": _KEY}, r"WADM_HOST=nowhere\ninvalid: "),
    ({"API_KEY": "  "}, "API_KEY=(hidden): must not begin or end with a space"),
    ({"MONGODB_URL": "localhost"}, "MONGODB_URL"),
    ({"REDIS_URL": "localhost"}, "REDIS_URL"),
    ({"WADM_BYBIT_REST": "http://127.0.0.1:99999999"}, "WADM_BYBIT_REST=http://127.0.0.1:99999999: a base URL without path"),
    ({"WADM_ALLOWED_HOSTS": "https://wadm.example"}, "WADM_ALLOWED_HOSTS=https://wadm.example: names or addresses of hosts are needed"),
]
UNREACHABLE = dict.fromkeys(("WADM_BINANCE_SPOT_REST", "WADM_BYBIT_REST"), "http://127.0.0.1:1")
"""Base URLs at which no exchange listens."""


@pytest.mark.parametrize(("settings", "line"), BAD_SETTINGS, ids=lambda value: next(iter(value)) if isinstance(value, dict) else "")
def test_a_bad_setting_is_one_line_that_names_it(tmp_path: Path, settings: dict[str, str], line: str) -> None:
    ended = run(tmp_path, "serve", "--demo", **settings)
    assert ended.returncode == 2
    assert line in ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 1
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("command", [("serve",), ("serve", "--demo"), (), ("--demo",), ("doctor",), ("replay", "absent")], ids=" ".join)
@pytest.mark.parametrize("folder", ["~nouser/x", "/etc/passwd", "x" * 3_000], ids=["no home", "a file", "too long"])
def test_a_data_folder_that_cannot_be_used_is_one_line_in_every_mode(tmp_path: Path, command: tuple[str, ...], folder: str) -> None:
    # Doctor reports a file in its table; a missing recording is reported before the folder is checked.
    ended = run(tmp_path, *command, WADM_DATA_DIR=folder, **UNREACHABLE)
    assert "Traceback" not in ended.stderr
    if folder == "/etc/passwd" and command == ("doctor",):
        assert ended.returncode == 1
        assert "data folder" in ended.stdout
        return
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert line.startswith("wadm-mcp: absent" if folder == "/etc/passwd" and command[:1] == ("replay",) else "wadm-mcp: WADM_DATA_DIR=")
    assert len(line) < 300


@pytest.mark.parametrize(
    "arguments", [("sevre",), ("serve", "--port", "1"), ("replay",), ("replay", "--speed", "fast", "x"), ("--speed",), ("a\nb",)]
)
def test_a_bad_argument_is_one_line_and_status_2(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    ended = run(tmp_path, *arguments)
    assert ended.returncode == 2
    assert len(ended.stderr.strip().splitlines()) == 1


def test_a_wrong_argument_or_setting_is_refused_before_a_server_or_a_store_is_loaded() -> None:
    script = "import sys, wadm_mcp.cli, wadm_mcp.settings; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert "pydantic" in loaded
    assert not {"mcp", "motor", "redis", "anyio", "wadm_mcp.runtime"} & set(loaded)


def test_a_server_without_mongodb_and_redis_loads_neither_their_drivers_nor_other_commands() -> None:
    script = "import sys, wadm_mcp.commands.run, wadm_mcp.commands.serve, wadm_mcp.runtime; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert "mcp" in loaded
    assert not {"motor", "pymongo", "redis", "wadm_mcp.simulator", "wadm_mcp.commands.audit", "wadm_mcp.commands.doctor"} & set(loaded)


def test_a_secret_is_never_shown(tmp_path: Path) -> None:
    ended = run(tmp_path, "serve", "--demo", WADM_HOST="nowhere.invalid", API_KEY="very-secret-indeed")
    assert "very-secret" not in ended.stderr + ended.stdout


@pytest.mark.anyio
async def test_a_symbol_that_no_exchange_knows_stops_the_start_and_names_near_matches(tmp_path: Path) -> None:
    async with Simulator(manual=True) as simulator:
        urls = {f"WADM_{name.upper()}": url for name, url in simulator.urls.items()}
        from anyio import to_thread

        ended = await to_thread.run_sync(lambda: run(tmp_path, "serve", WADM_SYMBOLS="ETHUSDX", **urls))
    assert ended.returncode == 2
    (line,) = [line for line in ended.stderr.splitlines() if line.startswith("wadm-mcp: ")]
    assert "WADM_SYMBOLS=ETHUSDX" in line
    assert "Nearest: ETHUSDT" in line
    assert "symbol.unknown" not in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: path.write_bytes(b"not a database at all" * 100), "set WADM_DATA_DIR to another folder"),
        (lambda path: newer(path), "was written by a newer WADM (its schema is 99"),
    ],
    ids=["no database", "newer"],
)
@pytest.mark.parametrize("command", [("serve", "--demo"), ("--demo",)], ids=" ".join)
def test_a_store_that_cannot_be_used_is_named_and_left_as_it_is(tmp_path: Path, command: tuple[str, ...], make: object, said: str) -> None:
    folder = tmp_path / "demo"
    folder.mkdir()
    path = folder / "wadm.sqlite"
    make(path)  # type: ignore[operator]
    before = path.read_bytes()
    ended = run(tmp_path, *command)
    assert ended.returncode == 1
    assert ended.stderr.startswith(f"wadm-mcp: {path}")
    assert said in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
    assert path.read_bytes() == before


def newer(path: Path) -> None:
    with closing(sqlite3.connect(path)) as database:
        from wadm_mcp.storage.sqlite_schema import APPLICATION_ID

        database.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        database.execute("PRAGMA user_version = 99")
        database.commit()


def test_a_file_that_is_not_a_recording_is_named(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello\n")
    ended = run(tmp_path, "replay", "notes.txt")
    assert ended.returncode == 2
    assert "notes.txt" in ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 1
    missing = run(tmp_path, "replay", "absent.gz")
    assert missing.returncode == 2
    assert "absent.gz" in missing.stderr
