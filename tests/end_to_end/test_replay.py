"""Recorded trades of the real exchange go in over sockets; what comes out is compared with a count from the files themselves."""

from __future__ import annotations

import gzip
import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.end_to_end.process import Served, serving, until

pytestmark = pytest.mark.anyio

MINUTE = 60_000


class Row(NamedTuple):
    id: int
    at: int
    price: Decimal
    quantity: Decimal
    sells: bool


def rows_of(*files: Path) -> list[Row]:
    """Every market print of the files, read with nothing of WADM's."""
    rows: list[Row] = []
    for file in files:
        with gzip.open(file, "rt") as lines:
            for line in lines:
                frame = json.loads(line.split(" ", 1)[1])
                if not frame.get("stream", "").endswith("@trade"):
                    continue
                data = frame["data"]
                if data.get("X", "MARKET") in ("MARKET", "RPI"):
                    rows.append(Row(data["t"], data["T"], Decimal(data["p"]), Decimal(data["q"]), data["m"]))
    return rows


def by_minute(rows: Sequence[Row]) -> dict[int, list[Row]]:
    """Rows of the minutes that the files cover completely: all but the first and the last."""
    minutes: dict[int, list[Row]] = defaultdict(list)
    for row in rows:
        minutes[row.at - row.at % MINUTE].append(row)
    return {start: minutes[start] for start in sorted(minutes)[1:-1]}


def profile_by_hand(rows: Sequence[Row], row_size: Decimal, tick: Decimal) -> tuple[Decimal, Decimal, Decimal]:
    """POC, VAH and VAL by walking outwards over explicit rows; an own coding of the rule."""
    volumes: Counter[int] = Counter()
    for row in rows:
        volumes[int(row.price // row_size)] += 0
        volumes[int(row.price // row_size)] = volumes[int(row.price // row_size)] + row.quantity  # type: ignore[assignment]
    low, high = min(volumes), max(volumes)
    poc = sorted(range(low, high + 1), key=lambda at: (-volumes.get(at, 0), abs(2 * at - low - high), at))[0]
    inside, goal = {poc}, sum(volumes.values()) * Decimal("0.7")
    while sum((Decimal(volumes.get(at, 0)) for at in inside), Decimal(0)) < goal:
        above = [at for at in (max(inside) + 1, max(inside) + 2) if at <= high]
        below = [at for at in (min(inside) - 1, min(inside) - 2) if at >= low]
        up, down = (sum((Decimal(volumes.get(at, 0)) for at in side), Decimal(0)) for side in (above, below))
        inside |= set(above if above and (not below or up >= down) else below)
    return poc * row_size, (max(inside) + 1) * row_size - tick, min(inside) * row_size


def exact(value: float | int | str) -> Decimal:
    return Decimal(str(value))


async def check(served: Served, rows: Sequence[Row], *, tick: Decimal) -> None:
    """Every answer about every whole minute of the recording equals the count by hand."""
    first = (await served.get("/api/trades", symbol="BTCUSDT", window="24h", limit=1))["trades"]["rows"][0]
    shift = _ms(first[0]) - rows[0].at
    assert shift % MINUTE == 0
    minutes = by_minute(rows)
    starts = {start + shift: members for start, members in minutes.items()}
    flow = await served.get("/api/order-flow", symbol="BTCUSDT", timeframe="1m", start=min(starts), end=max(starts) + MINUTE)
    bars = {_ms(bar[0]): dict(zip(flow["bars"]["columns"], bar, strict=True)) for bar in flow["bars"]["rows"]}
    assert flow["coverage"]["ratio"] == 1
    for start, members in starts.items():
        answer = await served.get(
            "/api/volume-profile", symbol="BTCUSDT", start=start, end=start + MINUTE, row_size=1, detail="full", exchange="binance"
        )
        assert answer["coverage"]["ratio"] == 1
        assert answer["coverage"]["gaps"] == []
        buys = sum((row.quantity for row in members if not row.sells), Decimal(0))
        sells = sum((row.quantity for row in members if row.sells), Decimal(0))
        assert (exact(answer["buy_volume"]), exact(answer["sell_volume"]), answer["trade_count"]) == (buys, sells, len(members))
        assert tuple(exact(answer[name]) for name in ("poc", "vah", "val")) == profile_by_hand(members, Decimal(1), tick)
        assert sum(exact(node[1]) for node in answer["nodes"]["rows"]) == buys + sells
        bar = bars[start]
        assert (exact(bar["buy_volume"]), exact(bar["sell_volume"]), bar["trade_count"]) == (buys, sells, len(members))
        assert exact(bar["delta"]) == buys - sells
        assert (exact(bar["high"]), exact(bar["low"])) == (max(row.price for row in members), min(row.price for row in members))
        assert (exact(bar["open"]), exact(bar["close"])) == (members[0].price, members[-1].price)


async def pages(served: Served) -> list[list[Any]]:
    """Every trade that is recorded, page by page."""
    found: list[list[Any]] = []
    cursor: dict[str, str] = {}
    while True:
        page = await served.get("/api/trades", symbol="BTCUSDT", window="24h", limit=1000, **cursor)
        found += page["trades"]["rows"]
        if page["next_cursor"] is None:
            return found
        cursor = {"cursor": page["next_cursor"]}


async def recorded(served: Served, count: int) -> None:
    """Wait until so many fills are answered and all their minutes are closed and stored."""

    async def all_told() -> bool:
        answer = await served.get("/api/volume-profile", symbol="BTCUSDT", window="24h", detail="brief")
        assert answer["trade_count"] <= count
        return answer["trade_count"] == count

    await until(all_told, within=90)


def _ms(text: str) -> int:
    from datetime import datetime

    return round(datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp() * 1000)


async def test_every_spot_trade_of_two_recordings_is_recorded_once_and_every_minute_adds_up(tmp_path: Path, captures: Path) -> None:
    files = [captures / "binance-spot" / name for name in ("btcusdt_20240808.gz", "btcusdt_20240809.gz")]
    rows = rows_of(*files)
    assert len(rows) == 19_904
    async with serving(tmp_path / "data", "replay", "--speed", "0", *map(str, files)) as served:
        await recorded(served, len(rows))
        trades = await pages(served)
        assert [int(trade[4]) for trade in trades] == [row.id for row in rows]
        assert [(exact(trade[1]), exact(trade[2]), trade[3]) for trade in trades] == [
            (row.price, row.quantity, "SELL" if row.sells else "BUY") for row in rows
        ]
        await check(served, rows, tick=Decimal("0.01"))
        assert await served.stop() == 0
        assert "Traceback" not in served.stderr


async def test_linear_recordings_are_folded_and_every_minute_adds_up(tmp_path: Path, captures: Path) -> None:
    files = [captures / "binance-linear" / name for name in ("btcusdt_20230404.dat.gz", "btcusdt_20230405.dat.gz")]
    rows = rows_of(*files)
    assert len(rows) == 2_197 + 10_738 - 1
    async with serving(tmp_path / "data", "replay", "--speed", "0", *map(str, files)) as served:
        await recorded(served, len(rows))
        trades = await pages(served)
        assert len(trades) < len(rows)
        assert sum(exact(trade[2]) for trade in trades) == sum(row.quantity for row in rows)
        assert not any(exact(trade[1]) > 28_700 for trade in trades)
        await check(served, rows, tick=Decimal("0.1"))
        assert await served.stop() == 0


async def test_a_second_replay_begins_anew(tmp_path: Path, captures: Path) -> None:
    file = str(captures / "binance-spot" / "btcusdt_20230405.dat.gz")
    for name in ("first", "second"):
        async with serving(tmp_path / "data", "replay", "--speed", "0", file, name=name) as served:
            await recorded(served, 3_144)
