"""The loopback archives, read without any code of WADM."""

from __future__ import annotations

import csv
import gzip
import io
import zipfile
from datetime import UTC, datetime
from decimal import Decimal
from hashlib import sha256

import pytest

from tests.simulator.wire import NOW, get
from wadm_mcp.model import DAY, Instrument
from wadm_mcp.simulator.faults import ArchiveFaults, Faults
from wadm_mcp.simulator.simulator import Simulator

pytestmark = pytest.mark.anyio

TODAY = NOW - NOW % DAY
YESTERDAY = TODAY - DAY
QUIET = 0.02


def path(kind: str, at: int = YESTERDAY, symbol: str = "BTCUSDT") -> str:
    day = datetime.fromtimestamp(at / 1_000, UTC).date().isoformat()
    return {
        "spot trades": f"/data/spot/daily/trades/{symbol}/{symbol}-trades-{day}.zip",
        "spot aggregates": f"/data/spot/daily/aggTrades/{symbol}/{symbol}-aggTrades-{day}.zip",
        "linear aggregates": f"/data/futures/um/daily/aggTrades/{symbol}/{symbol}-aggTrades-{day}.zip",
        "bybit linear": f"/trading/{symbol}/{symbol}{day}.csv.gz",
        "bybit spot": f"/spot/{symbol}/{symbol}_{day}.csv.gz",
    }[kind]


def rows(kind: str, body: bytes) -> list[list[str]]:
    if kind.startswith("bybit"):
        text = gzip.decompress(body).decode()
    else:
        with zipfile.ZipFile(io.BytesIO(body)) as packed:
            (member,) = packed.namelist()
            assert member == path(kind).rpartition("/")[2].replace(".zip", ".csv")
            text = packed.read(member).decode()
    return list(csv.reader(io.StringIO(text)))


async def test_every_kind_of_file_contains_the_trades_of_its_day() -> None:
    async with Simulator(seed=5, activity=QUIET, clock=lambda: NOW) as simulator:
        found = {
            kind: rows(kind, (await get(simulator, setting, path(kind))).content)
            for kind, setting in (
                ("spot trades", "binance_archive"),
                ("spot aggregates", "binance_spot_rest"),
                ("linear aggregates", "binance_archive"),
                ("bybit linear", "bybit_archive"),
                ("bybit spot", "bybit_archive"),
            )
        }
        prints = {market: list(simulator.tape(Instrument("binance", market, "BTCUSDT")).prints(YESTERDAY, TODAY)) for market in ("spot",)}
        folded = {
            market: [
                row
                for row in simulator.tape(Instrument("binance", market, "BTCUSDT")).aggregates(YESTERDAY, TODAY + 1_000)
                if row.time < TODAY
            ]
            for market in ("spot", "linear")
        }
        bybit = {
            market: list(simulator.tape(Instrument("bybit", market, "BTCUSDT")).prints(YESTERDAY, TODAY)) for market in ("spot", "linear")
        }
    assert found["spot trades"] == [
        [
            str(one.number),
            one.price,
            one.quantity,
            f"{Decimal(one.price) * Decimal(one.quantity):.16f}"[:-8],
            str(one.time * 1_000),
            str(not one.buy),
            "True",
        ]
        for one in prints["spot"]
    ]
    assert found["spot aggregates"] == [
        [str(one.number), one.price, one.quantity, str(one.first), str(one.last), str(one.time * 1_000), str(not one.buy), "True"]
        for one in folded["spot"]
    ]
    header, *linear = found["linear aggregates"]
    assert header == ["agg_trade_id", "price", "quantity", "first_trade_id", "last_trade_id", "transact_time", "is_buyer_maker"]
    assert linear == [
        [str(one.number), one.price, one.quantity, str(one.first), str(one.last), str(one.time), str(not one.buy).lower()]
        for one in folded["linear"]
    ]
    header, *linear = found["bybit linear"]
    assert header[:7] == ["timestamp", "symbol", "side", "size", "price", "tickDirection", "trdMatchID"]
    assert [(row[0], row[1], row[2], row[3], row[4], row[6]) for row in linear] == [
        (f"{Decimal(one.time) / 1000:.4f}", "BTCUSDT", "Buy" if one.buy else "Sell", one.quantity, one.price, one.trade_id)
        for one in bybit["linear"]
    ]
    header, *spot = found["bybit spot"]
    assert header == ["id", "timestamp", "price", "volume", "side", "rpi"]
    assert spot == [
        [str(number), str(one.time), one.price, one.quantity, "buy" if one.buy else "sell", "0"]
        for number, one in enumerate(bybit["spot"], 1)
    ]


async def test_a_file_is_the_same_bytes_each_time_with_the_checksum_beside_it() -> None:
    bodies: list[bytes] = []
    for _ in range(2):
        async with Simulator(seed=5, activity=QUIET, clock=lambda: NOW) as simulator:
            bodies.append((await get(simulator, "binance_archive", path("spot trades"))).content)
            stated = (await get(simulator, "binance_archive", path("spot trades") + ".CHECKSUM")).text
            assert stated == f"{sha256(bodies[-1]).hexdigest()}  {path('spot trades').rpartition('/')[2]}\n"
            assert (await get(simulator, "bybit_archive", path("bybit spot") + ".CHECKSUM")).status_code == 404
    assert bodies[0] == bodies[1]


async def test_a_file_is_served_from_the_requested_byte() -> None:
    async with Simulator(seed=5, activity=QUIET, clock=lambda: NOW) as simulator:
        whole = await get(simulator, "bybit_archive", path("bybit spot"))
        rest = await get(simulator, "bybit_archive", path("bybit spot"), Range="bytes=100-")
        size = len(whole.content)
        assert (whole.status_code, rest.status_code) == (200, 206)
        assert rest.content == whole.content[100:]
        assert rest.headers["Content-Range"] == f"bytes 100-{size - 1}/{size}"
        beyond = await get(simulator, "bybit_archive", path("bybit spot"), Range=f"bytes={size}-")
        assert (beyond.status_code, beyond.headers["Content-Range"]) == (416, f"bytes */{size}")


async def test_only_finished_days_of_listed_symbols_are_served_after_their_delay() -> None:
    faults = Faults()
    async with Simulator(seed=5, activity=QUIET, clock=lambda: NOW, faults=faults) as simulator:
        for asked in (path("bybit spot", TODAY), path("bybit spot", symbol="NOSUCHUSDT"), path("bybit spot").replace("-07-", "-77-")):
            assert (await get(simulator, "bybit_archive", asked)).status_code == 404
        faults.archive_delay = NOW - TODAY + 1
        assert (await get(simulator, "bybit_archive", path("bybit spot"))).status_code == 404
        faults.archive_delay -= 1
        assert (await get(simulator, "bybit_archive", path("bybit spot"))).status_code == 200


@pytest.mark.parametrize("kind", ["spot trades", "linear aggregates", "bybit linear", "bybit spot"])
async def test_a_faulty_file_has_the_same_rows_otherwise_written(kind: str) -> None:
    faults = Faults()
    setting = "bybit_archive" if kind.startswith("bybit") else "binance_archive"
    found: list[list[list[str]]] = []
    for wrong in (ArchiveFaults(), ArchiveFaults(unsorted=True, repeated_every=10, extra_column=True, exponents=True)):
        faults.archive_rows = wrong
        async with Simulator(seed=5, activity=QUIET / 4, clock=lambda: NOW, faults=faults) as simulator:
            found.append(rows(kind, (await get(simulator, setting, path(kind))).content))
    documented, faulty = found
    if documented[0][0][0].isalpha():
        assert faulty.pop(0) == [*documented.pop(0), "another"]
    quantity = 3 if kind.startswith("bybit") else 2
    assert all("e" in row[quantity] for row in faulty)
    assert len(faulty) == len(documented) + len(documented) // 10
    plain = [[*row[:quantity], f"{Decimal(row[quantity]):f}", *row[quantity + 1 : -1]] for row in faulty]
    assert sorted({tuple(row) for row in plain}) == sorted(tuple(row) for row in documented)
    assert plain[:2] == [documented[0], documented[len(documented) // 2]]


async def test_rows_without_volume_are_the_same_ones_in_every_source() -> None:
    faults = Faults()
    faults.empty_every = 5
    instrument = Instrument("binance", "spot", "BTCUSDT")
    async with Simulator(seed=5, activity=QUIET, clock=lambda: NOW, faults=faults) as simulator:
        tape = simulator.tape(instrument)
        prints = [row for row in tape.prints(YESTERDAY, TODAY) if not Decimal(row.quantity)]
        folded = [row for row in tape.aggregates(YESTERDAY, TODAY) if not Decimal(row.quantity)]
        assert prints
        assert all(row.number % 5 == 0 for row in prints)
        assert [row.number for row in prints] == [row.first for row in folded] == [row.last for row in folded]
        archived = rows("spot trades", (await get(simulator, "binance_archive", path("spot trades"))).content)
        assert [row[0] for row in archived if not Decimal(row[2])] == [str(row.number) for row in prints]
        served = (
            await get(simulator, "binance_spot_rest", f"/api/v3/historicalTrades?symbol=BTCUSDT&limit=1&fromId={prints[0].number}")
        ).json()
        assert Decimal(served[0]["qty"]) == 0
