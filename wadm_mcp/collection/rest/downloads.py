"""Downloads the daily files of exchanges' archives, which are hosts of their own."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Final

import anyio
import anyio.to_thread
import httpx2

from wadm_mcp.clock import Clock
from wadm_mcp.collection.disk_reserve import DiskReserve
from wadm_mcp.collection.rest.failures import REFUSAL_BYTES, Timeouts, network_errors, read_body, status_error, too_slow
from wadm_mcp.collection.rest.hosts import QUOTED_CHARS, ExchangeHost, KnownHosts
from wadm_mcp.collection.rest.rate_limit import Priority, RateLimiter
from wadm_mcp.errors import ArchiveError, ExchangeError
from wadm_mcp.exchanges.exchange import Allowance, Request, Venue
from wadm_mcp.texts import printable

_ARCHIVE: Final = Allowance(120, 60.0)
"""No exchange documents a rate limit of its archive, which serves plain files. This one is a courtesy."""
_SERVED: Final = (HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT, HTTPStatus.NOT_FOUND, HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE)
MAX_ARCHIVE_BYTES: Final = 1 << 30
"""Bytes of a daily file, many times those of the largest that is known (docs/exchanges.md 4.4)."""
_CHUNK_BYTES: Final = 1 << 17
_CHUNK_SECONDS: Final = 60.0
"""Time in which an archive has to send that many bytes."""
_DOWNLOAD_SECONDS: Final = 3_600.0
"""Time of one attempt at a file. The next attempt continues where it ended."""
_CHECKED_BYTES: Final = 1 << 23
"""Bytes of a file after which the disk is looked at again."""
_SIZE_DIGITS: Final = 18
"""Digits of the largest file at most."""


class Downloads:
    """Downloads files, each within the rate limit of its host. The attribute `archives` of a `RestClient`; errors as there."""

    def __init__(self, client: httpx2.AsyncClient, hosts: KnownHosts, timeouts: Timeouts, clock: Clock) -> None:
        self._client = client
        self._hosts = hosts
        self._timeouts = timeouts
        self._clock = clock

    async def download(
        self,
        venue: Venue,
        path: str,
        file: Path,
        progress: Callable[[int, int], None],
        *,
        reserve: DiskReserve,
        most: int = MAX_ARCHIVE_BYTES,
    ) -> bool:
        """Download a file of the exchange's archive to `file`, resuming an earlier attempt; False where the archive has no such file.

        `progress` is called with the bytes that are here and their total. `ExchangeError` also where the archive sends almost nothing, or
        takes too long: the next attempt resumes. `ArchiveError` where the file is of more than `most` bytes, `DiskReserved` where the disk
        has less than `reserve` free, `OSError` where the file cannot be written.
        """
        part = file.with_name(f"{file.name}.part")
        here = await anyio.to_thread.run_sync(_size, part)
        async with self._archived(venue, path, f"bytes={here}-" if here else "") as response:
            match response.status_code:
                case HTTPStatus.NOT_FOUND:
                    return False
                case HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                    # The earlier attempt has all of it.
                    pass
                case status:
                    here = here if status == HTTPStatus.PARTIAL_CONTENT else 0
                    await self._save(ExchangeHost.archive(venue), response, part, here, progress, reserve, most)
        await anyio.Path(part).replace(file)
        return True

    async def size(self, venue: Venue, path: str) -> int | None:
        """Size in bytes of a file of the exchange's archive; None where there is no such file, or its size is not stated."""
        async with self._archived(venue, path, "bytes=0-0") as response:
            whole = response.headers.get("Content-Range", "").rpartition("/")[2] or response.headers.get("Content-Length", "")
            return _byte_count(whole) if response.status_code != HTTPStatus.NOT_FOUND else None

    @asynccontextmanager
    async def _archived(self, venue: Venue, path: str, wanted: str) -> AsyncGenerator[httpx2.Response]:
        """A reply of the exchange's archive before its body is read: 206 with the range `wanted`, 200 with the whole file, 404 or 416."""
        host = ExchangeHost.archive(venue)
        url, address = host.url(path), host.address
        limiter = self._hosts.limiters.setdefault(
            f"{address} archive", RateLimiter(f"{host.name} at {address}", _ARCHIVE, clock=self._clock)
        )
        head = {"Range": wanted} if wanted else {}
        async with limiter.request(1, Priority.HISTORY) as number:
            with network_errors(host, self._timeouts):
                async with AsyncExitStack() as stack:
                    try:
                        with anyio.fail_after(self._timeouts.whole):
                            response = await stack.enter_async_context(self._client.stream("GET", url, headers=head))
                            limiter.note_reply(number, response.status_code, response.headers, b"")
                            if response.status_code not in _SERVED:
                                text = await read_body(host, response, most=REFUSAL_BYTES, cut=True)
                                raise status_error(host, Request(path, {}), response, text)
                    except TimeoutError:
                        raise too_slow(host, self._timeouts) from None
                    yield response

    async def _save(
        self,
        host: ExchangeHost,
        response: httpx2.Response,
        part: Path,
        here: int,
        progress: Callable[[int, int], None],
        reserve: DiskReserve,
        most: int,
    ) -> None:
        """Append the reply's body to a part of a file, of which `here` bytes are here."""
        length = _byte_count(response.headers.get("Content-Length", ""))
        whole = here + length if length is not None else 0
        if whole > most:
            raise _too_large(host, part, f"{whole:,}", most)
        await anyio.to_thread.run_sync(reserve.check, whole - here if whole else 0)
        unchecked = 0
        async with await anyio.open_file(part, "r+b" if here else "wb") as file:
            await file.seek(here)
            async for piece in self._pieces(host, response):
                here += len(piece)
                if here > most:
                    await file.truncate(0)
                    raise _too_large(host, part, "more", most)
                await file.write(piece)
                unchecked += len(piece)
                if unchecked >= _CHECKED_BYTES:
                    await anyio.to_thread.run_sync(reserve.check)
                    unchecked = 0
                progress(here, max(here, whole))

    async def _pieces(self, host: ExchangeHost, response: httpx2.Response) -> AsyncGenerator[bytes]:
        """The body of a file; `ExchangeError` where its pieces come too slowly, or all of them take too long."""
        pieces, began = response.aiter_raw(_CHUNK_BYTES), anyio.current_time()
        while True:
            try:
                # The client's own timeout begins anew with every byte.
                with anyio.fail_after(_CHUNK_SECONDS):
                    piece = await anext(pieces, b"")
            except TimeoutError:
                raise ExchangeError(
                    f"{host.name}: {host.address} sent less than {_CHUNK_BYTES:,} bytes of a file in {_CHUNK_SECONDS:g} s. Try again later"
                ) from None
            if not piece:
                return
            if anyio.current_time() - began > _DOWNLOAD_SECONDS:
                raise ExchangeError(
                    f"{host.name}: {host.address} did not send all of a file in {_DOWNLOAD_SECONDS:,g} s. The next attempt continues it"
                )
            yield piece


def _too_large(host: ExchangeHost, part: Path, size: str, most: int) -> ArchiveError:
    name = printable(part.name.removesuffix(".part").removesuffix(".new"), QUOTED_CHARS)
    return ArchiveError(f"{host.name}: {name} has {size} bytes, at most {most:,} are read; no day of an exchange has as much")


def _byte_count(text: str) -> int | None:
    """A number of bytes in a header; None where it states none, or one that no file has."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= _SIZE_DIGITS else None


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0
