"""Asks a server one light question after another, from a process of its own, and prints how long each answer took.

    python probe.py URL [HEADER...]

Each question has a new connection. It ends when its standard input is closed, and then prints one JSON list of milliseconds, in which null
is a question without an answer within five seconds.
"""

from __future__ import annotations

import http.client
import json
import select
import sys
import time
from urllib.parse import urlsplit

_EVERY_SECONDS = 0.05
_TIMEOUT_SECONDS = 5.0


def ask(url: str, headers: dict[str, str]) -> float | None:
    """Milliseconds until the whole answer was there; None if there was none or it was not 200."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=_TIMEOUT_SECONDS)
    began = time.perf_counter()
    try:
        connection.request("GET", f"{parts.path}?{parts.query}" if parts.query else parts.path, headers=headers)
        response = connection.getresponse()
        response.read()
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
    return (time.perf_counter() - began) * 1_000 if response.status == 200 else None


def main() -> None:
    """Ask until standard input ends."""
    url = sys.argv[1]
    headers = dict(line.split(": ", 1) for line in sys.argv[2:])
    took: list[float | None] = []
    while not select.select([sys.stdin], [], [], _EVERY_SECONDS)[0]:
        took.append(ask(url, headers))
    sys.stdout.write(json.dumps(took))


if __name__ == "__main__":
    main()
