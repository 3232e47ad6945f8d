from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from tests.collection.rest.serving import serving
from tests.venues import venue
from wadm_mcp.collection.disk_reserve import DiskReserve
from wadm_mcp.collection.rest import downloads
from wadm_mcp.collection.rest.client import RestClient
from wadm_mcp.errors import ArchiveError, DiskReserved, ExchangeError
from wadm_mcp.exchanges.binance import Binance
from wadm_mcp.exchanges.bybit import Bybit

pytestmark = pytest.mark.anyio

ARCHIVE = "/data/spot/daily/trades/BTCUSDT/BTCUSDT-trades-2026-07-24.zip"


async def download(base_url: str, folder: Path, *, reserve: int = 0, most: int = 1_000_000) -> bool:
    here = venue(Binance(), "spot", archive_url=base_url)
    with anyio.fail_after(10):
        async with RestClient(whole=1.0) as rest:
            return await rest.archives.download(
                here, ARCHIVE, folder / "day.zip.new", lambda here, of: None, reserve=DiskReserve(folder, reserve), most=most
            )


def archive(body: Callable[[], AsyncGenerator[bytes]], headers: dict[str, str] | None = None) -> Starlette:
    async def answer(request: Request) -> Response:
        return StreamingResponse(body(), headers=headers)

    return Starlette(routes=[Route(ARCHIVE, answer)])


async def endless() -> AsyncGenerator[bytes]:
    while True:
        yield b"x" * 100_000
        await anyio.lowlevel.checkpoint()


async def slow_file() -> AsyncGenerator[bytes]:
    while True:
        yield b"x"
        await anyio.sleep(0.02)


async def small() -> AsyncGenerator[bytes]:
    yield b"x" * 1_000


async def test_an_archive_that_cannot_be_reached_is_reported_with_its_own_setting() -> None:
    async with RestClient() as rest:
        with anyio.fail_after(10), pytest.raises(ExchangeError) as caught:
            await rest.archives.size(venue(Bybit(), "linear"), "/file")
    said = "bybit archive: http://127.0.0.1:1 refused the connection. Check the network, the proxy and WADM_BYBIT_ARCHIVE"
    assert str(caught.value) == said


@pytest.mark.parametrize(
    ("head", "size"),
    [
        ({"Content-Range": "bytes 0-0/1234"}, 1234),
        ({"Content-Range": "bytes 0-0/*"}, None),
        ({"Content-Range": f"bytes 0-0/{'9' * 5_000}"}, None),
        ({"Content-Range": "bytes 0-0/1_000"}, None),
        ({"Content-Range": "bytes 0-0/²"}, None),
    ],
)
async def test_a_size_that_an_archive_cannot_have_counts_as_not_stated(head: dict[str, str], size: int | None) -> None:
    async def answer(request: Request) -> Response:
        return Response(b"x", 206, headers=head)

    with serving(Starlette(routes=[Route("/file", answer)])) as base_url:
        async with RestClient(proxied=False) as rest:
            with anyio.fail_after(10):
                assert await rest.archives.size(venue(Bybit(), "linear", archive_url=base_url), "/file") == size


async def test_a_file_without_end_is_refused_at_its_bound_and_leaves_nothing_on_disk(tmp_path: Path) -> None:
    with serving(archive(endless)) as url, pytest.raises(ArchiveError, match=r"day\.zip has more bytes, at most 1,000,000 are read"):
        await download(url, tmp_path)
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) == 0


async def test_a_file_that_states_too_many_bytes_is_not_begun(tmp_path: Path) -> None:
    stated = {"Content-Length": "1000001"}
    with serving(archive(endless, stated)) as url, pytest.raises(ArchiveError, match=r"day\.zip has 1,000,001 bytes"):
        await download(url, tmp_path)
    assert list(tmp_path.iterdir()) == []


async def test_a_file_that_drips_is_given_up_and_what_came_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "_CHUNK_SECONDS", 0.3)
    with serving(archive(slow_file)) as url, pytest.raises(ExchangeError, match=r"sent less than 131,072 bytes of a file in 0\.3 s"):
        await download(url, tmp_path)


async def test_a_file_that_takes_too_long_is_continued_by_the_next_attempt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "_DOWNLOAD_SECONDS", 0.0)
    with serving(archive(endless)) as url, pytest.raises(ExchangeError, match="The next attempt continues it"):
        await download(url, tmp_path)


async def test_a_download_leaves_the_disk_that_is_kept_for_the_journal(tmp_path: Path) -> None:
    with serving(archive(small)) as url:
        assert await download(url, tmp_path)
        with pytest.raises(DiskReserved, match=r"only [0-9,]+ MB are free on the disk of .*are kept for the journal; make room there"):
            await download(url, tmp_path, reserve=1 << 60)
