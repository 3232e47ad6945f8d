"""Log lines are events with fields, not prose: `instrument.live instrument=binance:spot:BTCUSDT`. They go to stderr, never to stdout."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from wadm_mcp.texts import printable, redacted

_FIELDS: Final = "wadm_fields"
_OWN: Final = "wadm"
"""The logger of our own events. All others are of libraries."""
_MAX_CHARS: Final = 2_000
"""Characters of a message, and of each field, that a line shows."""
_MAX_TRACEBACK_LINES: Final = 200
_BURST: Final = 5
_BURST_SECONDS: Final = 60.0
"""A place in a library logs at most so many lines in so many seconds: what they say may be up to a client or an exchange."""


class EventLog:
    """Writes events with fields through the standard `logging`."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger

    def debug(self, event: str, **fields: object) -> None:
        """A detail for developers."""
        self._log(logging.DEBUG, event, fields)

    def info(self, event: str, **fields: object) -> None:
        """An event of normal operation."""
        self._log(logging.INFO, event, fields)

    def warning(self, event: str, **fields: object) -> None:
        """A failure that the program handles."""
        self._log(logging.WARNING, event, fields)

    def error(self, event: str, *, exc_info: BaseException | None = None, **fields: object) -> None:
        """A failure that should not happen, such as a bug."""
        self._log(logging.ERROR, event, fields, exc_info)

    def _log(self, level: int, event: str, fields: dict[str, object], exc_info: BaseException | None = None) -> None:
        if self._logger.isEnabledFor(level):
            self._logger.log(level, event, extra={_FIELDS: fields}, exc_info=exc_info)


log: Final = EventLog(logging.getLogger(_OWN))


class RateLimitedWarning:
    """A warning for an event that may be frequent: the first is logged at once, then at most one every `every` seconds.

    The field `count` of a line counts its own event and those since the previous line.
    """

    def __init__(self, event: str, monotonic: Callable[[], float] = time.monotonic, every: float = 60.0) -> None:
        self._event = event
        self._monotonic = monotonic
        self._every = every
        self._logged_at: float | None = None
        self._count = 0

    def __call__(self, **fields: object) -> None:
        """Count one event, and log it where it is due."""
        self._count += 1
        now = self._monotonic()
        if self._logged_at is None or now - self._logged_at >= self._every:
            log.warning(self._event, **fields, count=self._count)
            self._logged_at, self._count = now, 0


class PlainFormatter(logging.Formatter):
    """`10:31:07 info instrument.live instrument=binance:spot:BTCUSDT`."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).strftime("%H:%M:%S")
        fields = "".join(f" {name}={_shown(value)}" for name, value in _fields(record).items())
        line = f"{time} {record.levelname.lower()} {_safe(record.getMessage())}{fields}"
        # Indented, so that no line of an error's text looks like a line of the log.
        return "\n  ".join([line, *_traceback(self, record)])


class JsonFormatter(logging.Formatter):
    """One JSON object per line: time, level, event, then the event's fields."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        entry: dict[str, Any] = {"time": time, "level": record.levelname.lower(), "event": _safe(record.getMessage())}
        entry |= {name: value if isinstance(value, int | float | bool) else _safe(value) for name, value in _fields(record).items()}
        if record.exc_info:
            entry["exception"] = "\n".join(_traceback(self, record))
        return json.dumps(entry, ensure_ascii=False)


@dataclass(slots=True)
class _Repeats:
    """The lines of one place in a library since `since` (monotonic seconds), and how many of them were left out."""

    since: float
    lines: int = 0
    left_out: int = 0


class _Handler(logging.StreamHandler[Any]):
    """Writes to stderr; a status line on the terminal is cleared first. Frequent messages of libraries are left out and counted."""

    clears_line = False

    def __init__(self, stream: Any, monotonic: Callable[[], float] = time.monotonic) -> None:
        super().__init__(stream)
        self._monotonic = monotonic
        self._repeats: dict[tuple[str, int], _Repeats] = {}
        """By file and line: their number is that of the places in the code."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, unless its place in a library has logged too much."""
        if record.name == _OWN or self._is_due(record):
            super().emit(record)

    def _is_due(self, record: logging.LogRecord) -> bool:
        now = self._monotonic()
        place = self._repeats.setdefault((record.pathname, record.lineno), _Repeats(now))
        if now - place.since >= _BURST_SECONDS:
            place.since, place.lines = now, 0
        place.lines += 1
        if place.lines > _BURST:
            place.left_out += 1
            return False
        if place.left_out:
            setattr(record, _FIELDS, {"left_out": place.left_out})
            place.left_out = 0
        return True

    def format(self, record: logging.LogRecord) -> str:
        line = super().format(record)
        return f"\r\x1b[K{line}" if self.clears_line else line

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the base class's name
        """Ignore a stderr that cannot be written (closed, full, gone): there is nowhere to report it."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


def clear_line_first(clears: bool) -> None:
    """Set whether the terminal shows a status line, which each log line must clear first."""
    _Handler.clears_line = clears


def configure_logs(*, production: bool, level: int = logging.INFO) -> None:
    """Send all loggers' lines to stderr: WADM's own from `level` up, those of libraries from warnings up."""
    handler = _Handler(sys.stderr)
    handler.setFormatter(JsonFormatter() if production else PlainFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger(_OWN).setLevel(level)


def _fields(record: logging.LogRecord) -> dict[str, object]:
    return getattr(record, _FIELDS, {})


def _shown(value: object) -> str:
    text = _safe(value)
    return json.dumps(text, ensure_ascii=False) if any(mark in text for mark in ' "\\') else text


def _safe(value: object) -> str:
    """A message or a value as one bounded line without passwords and invisible letters."""
    # What is cut could lose the end of a password, and with it what shows that it is one.
    return printable(redacted(str(value)), _MAX_CHARS)


def _traceback(formatter: logging.Formatter, record: logging.LogRecord) -> list[str]:
    """The lines of a record's traceback, of a long one the last."""
    if not record.exc_info:
        return []
    return [_safe(line) for line in formatter.formatException(record.exc_info).splitlines()[-_MAX_TRACEBACK_LINES:]]
