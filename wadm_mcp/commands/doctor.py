"""`wadm-mcp doctor`: checks whether settings, store and exchanges are ready for recording. Prints a table and changes nothing."""

from __future__ import annotations

import os
import ssl
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

import anyio
from anyio.lowlevel import checkpoint
from websockets.exceptions import WebSocketException

from wadm_mcp.clock import SYSTEM_CLOCK
from wadm_mcp.clock_check import TOLERANCE, Judgement, Verdict
from wadm_mcp.collection.live.frame_socket import FrameSocket
from wadm_mcp.collection.network import SocketFailure, SocketHosts, connect, socket_options, socket_url
from wadm_mcp.collection.recorder_lock import RecorderLock
from wadm_mcp.collection.rest.client import RestClient
from wadm_mcp.errors import FrameError, WadmError
from wadm_mcp.exchanges.exchange import Trades, Venue
from wadm_mcp.health import Health
from wadm_mcp.model import Listing
from wadm_mcp.process.standard_streams import print_lines
from wadm_mcp.settings import Settings, unusable_folder
from wadm_mcp.storage.opening import open_cache, open_mongo, open_store, sqlite_path
from wadm_mcp.suggest import nearest

_TRADE_SECONDS: Final = 15.0
"""Time within which a subscribed stream must deliver a trade."""


class Finding(NamedTuple):
    """One line of the table. `ok` is None for a check that was not tried because of another finding; it is no failure of its own."""

    part: str
    ok: bool | None
    detail: str

    @property
    def mark(self) -> str:
        """The word in the table."""
        return "skip" if self.ok is None else "ok" if self.ok else "FAIL"


class _NotTriedError(Exception):
    """A check has nothing to try."""


async def examine(settings: Settings) -> int:
    """Check everything, print the table, and return the exit status: 0 when every check passed, 1 otherwise.

    `WadmError` when the table cannot be printed.
    """
    findings: list[Finding] = []

    async def check(part: str, step: Callable[[], Awaitable[str]]) -> None:
        try:
            findings.append(Finding(part, True, await step()))
        except _NotTriedError as error:
            findings.append(Finding(part, None, f"not tried: {error}"))
        except WadmError as error:
            findings.append(Finding(part, False, str(error)))

    findings.append(Finding("settings", True, _settings(settings)))
    await check("data folder", lambda: _folder(settings))
    if settings.MONGODB_URL is not None:
        findings.append(_processor())
        await check("MongoDB", lambda: _mongodb(settings))
    else:
        await check("SQLite", lambda: _sqlite(settings))
    if settings.REDIS_URL is not None:
        await check("Redis", lambda: _redis(settings))
    offsets: dict[str, int] = {}

    def heard(source: str, time: int) -> None:
        offsets[source] = SYSTEM_CLOCK.now() - time

    async with RestClient(proxied=not settings.stays_on_loopback, heard=heard) as rest:
        for venue in settings.venues:
            # Until the exchange answers, the collectors record with provisional listings: so is its stream tried here.
            listings = [Listing.unconfirmed(venue.instrument(symbol)) for symbol in settings.WADM_SYMBOLS]
            await check(f"{venue.name} REST", partial(_listings, rest, settings, venue, listings))
            await check(f"{venue.name} stream", partial(_stream, rest, venue, listings, heard))
    await check("clock", partial(_clock, offsets))
    width = max(len(finding.part) for finding in findings)
    lines: list[str] = []
    for finding in findings:
        first, *more = finding.detail.splitlines()
        lines.append(f"{finding.part:<{width}}  {finding.mark:<4}  {first}")
        lines += [f"{'':<{width}}        {line}" for line in more]
    failed = sum(finding.ok is False for finding in findings)
    lines.append(f"{failed} of {len(findings)} checks failed" if failed else "ready to record")
    print_lines(lines)
    return 1 if failed else 0


async def _folder(settings: Settings) -> str:
    folder = settings.WADM_DATA_DIR
    try:
        existing = next(path for path in (folder, *folder.parents) if path.exists())
    except OSError as error:
        raise unusable_folder(folder, error) from error
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise WadmError(f"{existing} is not a writable folder; set WADM_DATA_DIR to one")
    if not folder.exists():
        return f"{folder} (created at the first start)"
    with RecorderLock(folder) as lock:
        return f"{folder} ({'no process records' if lock.take() else 'another process records'})"


def _processor() -> Finding:
    """MongoDB 5 and later need a processor with AVX, where they run on this machine."""
    flags = Path("/proc/cpuinfo")
    if not flags.exists() or "flags" not in (text := flags.read_text()):
        return Finding("processor", True, "unknown; MongoDB 5 and later need AVX")
    has = " avx " in text.replace("\n", " ")
    return Finding("processor", has, "has AVX" if has else "has no AVX, which MongoDB 5 and later need; run MongoDB on another machine")


async def _mongodb(settings: Settings) -> str:
    async with open_mongo(settings, read_only=True) as store:
        state = await store.describe()
    lines = [f"{state.version} at {state.place}, {sum(each.bytes for each in state.collections) / 1e6:.1f} MB"]
    for each in state.collections:
        retention = ", ".join(f"{name} {seconds / 3600:g} h" for name, seconds in sorted(each.ttl_seconds.items()))
        text = f"{each.name}: {each.documents:,} documents, {each.bytes / 1e6:.1f} MB, indexes {', '.join(each.indexes)}"
        lines.append(text + (f"; retention {retention}" if retention else ""))
    return "\n".join(lines)


async def _redis(settings: Settings) -> str:
    cache = open_cache(settings, Health(lambda: 0))
    async with cache:
        await cache.probe()
        state = cache.state
    if not state.ok:
        raise WadmError(f"{state.place}: {state.detail}; check that redis-server runs there, or unset REDIS_URL")
    return f"{state.kind} at {state.place}"


async def _sqlite(settings: Settings) -> str:
    try:
        if not sqlite_path(settings).exists():
            return "nothing recorded yet"
    except OSError as error:
        raise unusable_folder(settings.WADM_DATA_DIR, error) from error
    async with open_store(settings, read_only=True) as store:
        state = await store.state()
        listings = await store.listings()
    return f"{state.bytes / 1e6:.1f} MB, {len(listings)} instruments"


async def _listings(rest: RestClient, settings: Settings, venue: Venue, found: list[Listing]) -> str:
    """Request the symbol list; `found` then has the configured symbols that are listed. Unchanged where the exchange does not answer."""
    every = await rest.listings(venue)
    listed = venue.by_symbol(every)
    found[:] = [listed[symbol] for symbol in settings.WADM_SYMBOLS if symbol in listed]
    missing = [symbol for symbol in settings.WADM_SYMBOLS if symbol not in listed]
    if doubt := next((doubt for symbol in missing if (doubt := every.doubt(symbol))), ""):
        raise WadmError(f"the list of symbols could not be read whole ({doubt}), so {', '.join(missing)} may be listed or not; try again")
    if missing:
        raise WadmError(f"{missing[0]} is not listed here. Nearest: {', '.join(nearest(missing[0], listed)) or 'none'}")
    steps = ", ".join(f"{each.instrument.symbol} {'' if each.trading else 'halted, '}tick {each.tick} lot {each.lot}" for each in found[:3])
    return "\n".join([f"{len(every):,} instruments; {steps}", *rest.notes(venue)])


async def _clock(offsets: Mapping[str, int]) -> str:
    """Compare this machine's clock with the times of the exchanges: ms by which it is ahead of each."""
    if not offsets:
        raise _NotTriedError("no exchange has said what time it is")
    wrong = {source: ahead for source, ahead in offsets.items() if abs(ahead) > TOLERANCE}
    if not wrong:
        return Judgement(Verdict.AGREES, 0, tuple(offsets)).sentence
    ahead = sorted(wrong.values())[len(wrong) // 2]
    raise WadmError(Judgement(Verdict.AHEAD if ahead > 0 else Verdict.BEHIND, ahead, tuple(wrong)).sentence)


async def _stream(rest: RestClient, venue: Venue, listings: list[Listing], heard: Callable[[str, int], None]) -> str:
    """Subscribe and wait for a trade: an acknowledged subscription alone does not prove that trades arrive."""
    traded = [listing for listing in listings if listing.trading]
    if not traded:
        halted = ", ".join(listing.instrument.symbol for listing in listings)
        raise _NotTriedError(f"{halted} is halted, so no trade is expected" if halted else "nothing to subscribe to")
    hosts = SocketHosts(venue, SYSTEM_CLOCK)
    while True:
        base_url = hosts.base_url
        url = socket_url(venue, base_url)
        began = anyio.current_time()
        try:
            event_time = await _first_trade(venue, url, rest.certificates, traded)
            heard(venue.exchange.name, event_time)
        except (OSError, ValueError, WebSocketException) as error:
            failure = SocketFailure.of(error, base_url, venue, SYSTEM_CLOCK.now())
            hosts.failed(base_url, failure)
            if hosts.base_url == base_url or hosts.wait:
                raise WadmError(failure.reason) from error
        except FrameError as error:
            raise WadmError(f"{url}: {error}") from error
        else:
            note = hosts.note(base_url)
            return f"first trade after {anyio.current_time() - began:.1f} s" + (f"\n{note}" if note else "")


async def _first_trade(venue: Venue, url: str, certificates: ssl.SSLContext | None, listings: list[Listing]) -> int:
    """Return the event time (ms) of the first trade that a socket delivers.

    `WadmError` when it delivers none, `OSError` when it cannot be opened.
    """
    exchange, market = venue.exchange, venue.market
    names = [each.instrument.symbol for each in listings][: exchange.limits(market).names_per_request]
    decoder = exchange.decoder(market, listings)
    options = {"compression": None, "ping_interval": None, "close_timeout": 1, "create_connection": FrameSocket}
    async with connect(url, **options, **socket_options(url, certificates)) as socket:
        assert isinstance(socket, FrameSocket)
        await socket.send(exchange.subscribe(market, names, 1))
        with anyio.move_on_after(_TRADE_SECONDS):
            while True:
                for frame in await socket.frames():
                    message = decoder.decode(frame)
                    if isinstance(message, Trades):
                        return message.event_time
                await checkpoint()
    unconfirmed = any(listing.provisional for listing in listings)
    raise WadmError(
        f"{url}: connected, but no trade arrived within {_TRADE_SECONDS:g} s; the market may be quiet, "
        + ("the symbol may not be listed, " * unconfirmed)
        + "or the network may block trades"
    )


def _settings(settings: Settings) -> str:
    """What is configured, and which `.env` that comes from: `serve` reads another one than every other command."""
    lines = [f"{', '.join(settings.WADM_SYMBOLS)} at {', '.join(settings.WADM_EXCHANGES)} ({', '.join(settings.WADM_MARKETS)})"]
    if settings.dotenv is not None:
        own, other = settings.dotenv.absolute(), Path(".env").absolute()
        lines.append(f"{'read' if own.is_file() else 'not found:'} {own}")
        if other != own:
            lines.append(f"wadm-mcp serve, started here, reads {other}" + ("" if other.is_file() else ", which does not exist"))
    return "\n".join(lines)
