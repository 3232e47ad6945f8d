"""Live recording and the archive of the same trades give the same footprints, byte for byte, in each archive format."""

from __future__ import annotations

import gzip
import json
import zipfile
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from tests.exchanges.test_binance import frames
from tests.market import ManualClock
from wadm_mcp.collection.backfill.archive_file import lines
from wadm_mcp.collection.backfill.archive_minutes import counted_minutes, whole_minutes
from wadm_mcp.collection.recording.recorder import Recorder
from wadm_mcp.exchanges.exchange import Trades
from wadm_mcp.exchanges.registry import find_exchange
from wadm_mcp.health import Health
from wadm_mcp.model import DAY, MINUTE, Instrument, Listing, Window
from wadm_mcp.tape import Tape

pytestmark = pytest.mark.anyio

Event = dict[str, Any]


def spot_events(captures: Path) -> list[Event]:
    """Five minutes before a midnight, and five after it."""
    names = ("btcusdt_20240808.gz", "btcusdt_20240809.gz")
    return [json.loads(frame)["data"] for name in names for frame in frames(captures / "binance-spot" / name, "trade")]


def linear_events(captures: Path) -> list[Event]:
    """Binance linear trades as aggregates of one price, one side and one window of 100 ms, without trades outside the order book."""
    raw = [json.loads(frame)["data"] for frame in frames(captures / "binance-linear" / "btcusdt_20230405.dat.gz", "trade")]
    folded: list[Event] = []
    for one in raw:
        if one.get("X", "MARKET") != "MARKET":
            continue
        last = folded[-1] if folded else None
        if last is not None and (last["p"], last["m"], last["T"] // 100) == (one["p"], one["m"], one["T"] // 100):
            last["q"] = str(Decimal(last["q"]) + Decimal(one["q"]))
            last["l"] = one["t"]
            last["E"] = one["E"]
        else:
            fresh = {"e": "aggTrade", "s": "BTCUSDT", "a": 500 + len(folded), "f": one["t"], "l": one["t"]}
            folded.append({**fresh, **{name: one[name] for name in ("E", "p", "q", "T", "m")}})
    return folded


def bybit_frame(event: Event) -> str:
    side = "Sell" if event["m"] else "Buy"
    row = {"T": event["T"], "s": "BTCUSDT", "S": side, "v": event["q"], "p": event["p"], "L": "PlusTick", "i": bybit_id(event), "BT": False}
    return json.dumps({"topic": "publicTrade.BTCUSDT", "type": "snapshot", "ts": event["E"], "data": [row]})


def bybit_id(event: Event) -> str:
    return str(UUID(int=event["t"]))


async def recorded(listing: Listing, live: Sequence[str], now: int) -> dict[int, bytes]:
    """Each minute's footprint, packed, after these frames were recorded."""
    exchange, market, _ = listing.instrument
    clock = ManualClock(now)
    recorder = Recorder(tape := Tape(), Health(clock.now), clock)
    recorder.start(listing, has_gapless_ids=find_exchange(exchange).traits[market].has_gapless_ids)
    decoder = find_exchange(exchange).decoder(market, [listing])
    for frame in live:
        message = decoder.decode(frame)
        assert isinstance(message, Trades)
        await recorder.take(1, message)
    return {minute: footprint.pack() for minute, footprint in tape[listing.instrument].minutes.items()}


def archived(listing: Listing, events: Sequence[Event], folder: Path) -> dict[int, bytes]:
    """Each minute's footprint, packed, from the archive files of these events."""
    exchange, market, symbol = listing.instrument
    traits = find_exchange(exchange).traits[market]
    form = traits.archive
    assert form is not None
    found: dict[int, bytes] = {}
    for start in sorted({event["T"] - event["T"] % DAY for event in events}):
        day = Window(start, start + DAY)
        name = form.path(symbol, datetime.fromtimestamp(start / 1_000, UTC).date()).rpartition("/")[2]
        text = "".join(file_lines(exchange, market, [event for event in events if event["T"] in day]))
        if name.endswith(".zip"):
            with zipfile.ZipFile(folder / name, "w", zipfile.ZIP_DEFLATED) as packed:
                packed.writestr(name.replace(".zip", ".csv"), text)
        else:
            (folder / name).write_bytes(gzip.compress(text.encode()))
        rows = form.rows(listing, lines(folder / name, symbol))
        if traits.has_gapless_ids:
            partials = counted_minutes(listing, rows, day, [])
        else:
            partials = whole_minutes(listing, rows, day, range(day.start, day.end, MINUTE), {})
        found.update((partial.minute, partial.unpack(listing).footprint.pack()) for partial in partials)
    return found


def file_lines(exchange: str, market: str, events: Sequence[Event]) -> Iterator[str]:
    """The rows of an archive file, as the exchange writes them (docs/exchanges.md 4.4)."""
    for number, event in enumerate(events, 1):
        price, quantity, at, sold = event["p"], event["q"], event["T"], event["m"]
        value = Decimal(price) * Decimal(quantity)
        match exchange, market:
            case "binance", "spot":
                yield f"{event['t']},{price},{quantity},{value:.8f},{at},{sold},True\n"
            case "binance", "linear":
                yield f"{event['a']},{price},{quantity},{event['f']},{event['l']},{at},{str(sold).lower()}\n"
            case "bybit", "linear":
                side = "Sell" if sold else "Buy"
                head = "timestamp,symbol,side,size,price,tickDirection,trdMatchID,grossValue,homeNotional,foreignNotional\n"
                line = f"{at // 1000}.{at % 1000:03d}7,BTCUSDT,{side},{quantity},{price},PlusTick,{bybit_id(event)},1,1,1\n"
                yield head + line if number == 1 else line
            case _:
                line = f"{number},{at},{price},{quantity},{'sell' if sold else 'buy'},0\n"
                yield "id,timestamp,price,volume,side,rpi\n" + line if number == 1 else line


@pytest.mark.parametrize(
    ("instrument", "tick", "lot"),
    [
        (Instrument("binance", "spot", "BTCUSDT"), "0.01", "0.00001"),
        (Instrument("binance", "linear", "BTCUSDT"), "0.1", "0.001"),
        (Instrument("bybit", "linear", "BTCUSDT"), "0.01", "0.00001"),
        (Instrument("bybit", "spot", "BTCUSDT"), "0.01", "0.00001"),
    ],
    ids=str,
)
async def test_an_archive_of_trades_gives_the_same_footprints_as_recording_them_live(
    instrument: Instrument, tick: str, lot: str, captures: Path, tmp_path: Path
) -> None:
    listing = Listing(instrument, Decimal(tick), Decimal(lot))
    events = linear_events(captures) if instrument[:2] == ("binance", "linear") else spot_events(captures)
    live = [bybit_frame(event) if instrument.exchange == "bybit" else json.dumps(event) for event in events]
    footprints = await recorded(listing, live, events[-1]["T"])
    assert len(footprints) >= 5
    assert archived(listing, events, tmp_path) == footprints
