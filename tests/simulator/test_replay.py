from __future__ import annotations

import gzip
from collections.abc import Sequence
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest

from tests.simulator.wire import NOW, get, heard, heard_many, opened
from wadm_mcp.errors import WadmError
from wadm_mcp.model import MINUTE
from wadm_mcp.simulator.replay import Recording, read_recording
from wadm_mcp.simulator.simulator import Simulator
from wadm_mcp.simulator.tape import Aggregate, Print

SPOT = ("btcusdt_20240808.gz", "btcusdt_20240809.gz")
LINEAR = ("btcusdt_20230404.dat.gz", "btcusdt_20230405.dat.gz")
START = 1_700_000_000_000


def spot_line(number: int, at: int = START, price: str = "100.10000000", symbol: str = "BTCUSDT", receive_ns: int | None = None) -> str:
    event = {"e": "trade", "E": at + 1, "s": symbol, "t": number, "p": price, "q": "0.00100000", "T": at, "m": True, "M": True}
    return framed(symbol, event, receive_ns or at * 1_000_000)


def linear_line(number: int, at: int = START, price: str = "100.1", quantity: str = "0.1", kind: str = "MARKET", sold: bool = False) -> str:
    event = {"e": "trade", "E": at + 2, "T": at, "s": "BTCUSDT", "t": number, "p": price, "q": quantity, "X": kind, "m": sold}
    return framed("BTCUSDT", event, at * 1_000_000)


def framed(symbol: str, event: dict[str, Any], receive_ns: int) -> str:
    return f"{receive_ns} {msgspec.json.encode({'stream': f'{symbol.lower()}@trade', 'data': event}).decode()}\n"


def written(folder: Path, name: str, *lines: str) -> Path:
    path = folder / name
    path.write_text("".join(lines), encoding="utf-8")
    return path


def aggregates(recording: Recording) -> list[Aggregate]:
    return [one.row for one in recording.rows if isinstance(one.row, Aggregate)]


def recorded_trades(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """The trades of the files, read without the module under test."""
    found: list[dict[str, Any]] = []
    for path in paths:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            found += [msgspec.json.decode(line.split(" ", 1)[1])["data"] for line in file if "@trade" in line]
    return found


@pytest.mark.anyio
async def test_a_real_spot_recording_is_played_once_each_in_order_with_its_text(captures: Path) -> None:
    paths = [captures / "binance-spot" / name for name in SPOT]
    wanted = recorded_trades(paths)
    assert len(wanted) == 9_757 + 10_147
    recording = await anyio.to_thread.run_sync(read_recording, list(reversed(paths)))
    assert (recording.market, recording.symbols, recording.skipped) == ("spot", ["BTCUSDT"], 0)
    async with (
        Simulator(replay=recording, speed=0) as simulator,
        opened(simulator, "binance_spot_ws", "/ws/btcusdt@trade") as socket,
    ):
        assert simulator.replay is not None
        heard_events = await heard_many(socket, len(wanted))
        await simulator.replay.finished.wait()
        assert simulator.replay.played == simulator.replay.total == len(wanted)
        shift = simulator.replay.shift
        assert shift is not None
        assert shift % MINUTE == 0
        assert [moved(event, -shift) for event in heard_events] == [{**event, "E": event["E"], "T": event["T"]} for event in wanted]
        assert list(heard_events[0]) == ["e", "E", "s", "t", "p", "q", "T", "m", "M"]
        assert simulator.sent["binance", "spot", "BTCUSDT"] == len(wanted)
        last = wanted[-1]
        path = f"/api/v3/historicalTrades?symbol=BTCUSDT&fromId={last['t'] - 9}&limit=1000"
        served = (await get(simulator, "binance_spot_rest", path)).json()
        assert [row["id"] for row in served] == [event["t"] for event in wanted[-10:]]
        assert served[-1]["time"] == last["T"] + shift
        listed = (await get(simulator, "binance_spot_rest", "/api/v3/exchangeInfo")).json()["symbols"]
        assert [one["symbol"] for one in listed] == ["BTCUSDT"]
        assert sorted(simulator.urls) == ["binance_archive", "binance_spot_rest", "binance_spot_ws"]


def moved(event: dict[str, Any], by: int) -> dict[str, Any]:
    return {**event, "E": event["E"] + by, "T": event["T"] + by}


def test_a_real_usd_m_recording_is_aggregated_with_every_market_print(captures: Path) -> None:
    paths = [captures / "binance-linear" / name for name in LINEAR]
    prints = recorded_trades(paths)
    recording = read_recording(reversed(paths))
    rows = aggregates(recording)
    market = [one for one in prints if one["X"] == "MARKET"]
    assert (recording.market, recording.fills, recording.set_aside, recording.skipped) == ("linear", len(market), 1, 0)
    ids = [number for row in rows for number in range(row.first, row.last + 1)]
    assert ids == [one["t"] for one in market]
    assert 3_535_191_080 not in ids
    assert sum(Decimal(row.quantity) for row in rows) == sum(Decimal(one["q"]) for one in market)
    by_id = {one["t"]: one for one in market}
    for row in rows:
        parts = [by_id[number] for number in range(row.first, row.last + 1)]
        assert {(one["p"], one["m"], one["T"] // 100) for one in parts} == {(row.price, not row.buy, row.time // 100)}
        assert row.time == parts[0]["T"]
        assert Decimal(row.quantity) == sum(Decimal(one["q"]) for one in parts)
    assert all(after.number == before.number + 1 for before, after in pairwise(rows))
    assert all(
        (after.price, after.buy, after.time // 100) != (before.price, before.buy, before.time // 100) or after.first != before.last + 1
        for before, after in pairwise(rows)
    )


def test_the_older_spot_payload_with_order_ids_is_read(captures: Path) -> None:
    recording = read_recording([captures / "binance-spot" / "btcusdt_20230405.dat.gz"])
    assert (len(recording.rows), recording.skipped) == (3_144, 0)
    assert 400 < recording.duration < 430


def test_fills_are_aggregated_within_an_aligned_window_and_never_over_a_missing_id(tmp_path: Path) -> None:
    aligned = START - START % MINUTE + MINUTE
    lines = [
        linear_line(1, aligned - 3, quantity="0.1"),
        linear_line(2, aligned - 1, quantity="0.25"),
        linear_line(3, aligned, quantity="1"),
        linear_line(4, aligned, kind="INSURANCE_FUND", price="150"),
        linear_line(5, aligned, quantity="2"),
        linear_line(6, aligned, quantity="4", kind="RPI"),
        linear_line(7, aligned, sold=True),
        linear_line(8, aligned, price="100.2"),
        linear_line(9, aligned + 1, kind="NA", price="0", quantity="0"),
    ]
    recording = read_recording([written(tmp_path, "a", *lines)])
    assert (recording.fills, recording.set_aside) == (7, 2)
    assert [(row.number, row.first, row.last, row.quantity, row.plain, row.time - aligned) for row in aggregates(recording)] == [
        (1, 1, 2, "0.35", "0.35", -3),
        (2, 3, 3, "1", "1", 0),
        (3, 5, 6, "6", "2", 0),
        (4, 7, 7, "0.1", "0.1", 0),
        (5, 8, 8, "0.1", "0.1", 0),
    ]


def test_invalid_lines_are_counted_and_named(tmp_path: Path) -> None:
    snapshot = f'{START * 1_000} {{"lastUpdateId":1,"bids":[]}}\n'
    book = f'{START * 1_000} {{"stream":"btcusdt@bookTicker","data":{{"u":1}}}}\n'
    wrong = spot_line(3).replace('"100.10000000"', '"dear"')
    path = written(tmp_path, "a", snapshot, spot_line(1), "what?\n", book, wrong, spot_line(2), spot_line(2), spot_line(4)[:60])
    recording = read_recording([path])
    assert [one.row.number for one in recording.rows if isinstance(one.row, Print)] == [1, 2]
    assert recording.skipped == 4
    assert recording.notes[0].startswith(f"{path}: line 3: skipped")
    assert recording.notes[1].startswith(f"{path}: line 5: skipped")
    assert recording.notes[2].startswith(f"{path}: line 8: skipped")
    assert "trade 2: repeated" in recording.notes[3]


def test_a_truncated_gz_file_is_read_as_far_as_possible(tmp_path: Path) -> None:
    whole = gzip.compress("".join(spot_line(n, START + n) for n in range(20_000)).encode())
    path = tmp_path / "cut.gz"
    path.write_bytes(whole[: len(whole) // 2])
    recording = read_recording([path])
    assert 5_000 < len(recording.rows) < 15_000
    assert recording.skipped >= 1
    assert any("truncated" in note for note in recording.notes)


@pytest.mark.parametrize(
    ("lines", "number"),
    [(["hello\n", "world\n"], 1), ([f'{START} {{"stream":"btcusdt@depth","data":{{}}}}\n'] * 3, 3), ([""], 1)],
)
def test_a_file_without_trades_is_one_line_of_error(tmp_path: Path, lines: list[str], number: int) -> None:
    path = written(tmp_path, "a", *lines)
    with pytest.raises(WadmError) as caught:
        read_recording([path])
    assert str(caught.value).startswith(f"{path}: line {number}: ")
    assert "expected lines `<receive time> <JSON>`" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere.gz", tmp_path):
        with pytest.raises(WadmError, match="cannot be read"):
            read_recording([path])
    with pytest.raises(WadmError, match="no recording given"):
        read_recording([])


def test_two_markets_do_not_replay_together(tmp_path: Path) -> None:
    spot, linear = written(tmp_path, "spot", spot_line(1)), written(tmp_path, "linear", linear_line(1, START + 5))
    with pytest.raises(WadmError, match="one market at a time"):
        read_recording([linear, spot])
    with pytest.raises(WadmError, match="line 2: a linear trade among spot ones"):
        read_recording([written(tmp_path, "both", spot_line(1), linear_line(2))])


def test_files_of_several_symbols_are_put_in_order_of_time(tmp_path: Path) -> None:
    one = written(tmp_path, "one", spot_line(1, START), spot_line(2, START + 20))
    two = written(tmp_path, "two", spot_line(7, START + 10, symbol="ETHUSDT"), spot_line(8, START + 30, symbol="ETHUSDT"))
    recording = read_recording([two, one])
    assert [row.symbol for row in recording.rows] == ["BTCUSDT", "ETHUSDT"] * 2
    assert recording.symbols == ["BTCUSDT", "ETHUSDT"]


@pytest.mark.anyio
async def test_a_replay_waits_for_a_subscriber_and_keeps_the_recorded_pauses(tmp_path: Path) -> None:
    recording = read_recording([written(tmp_path, "a", *(spot_line(n, START + n * 1_000) for n in range(5)))])
    async with Simulator(replay=recording, speed=40) as simulator:
        assert simulator.replay is not None
        async with opened(simulator, "binance_spot_ws", "/ws/ethusdt@trade"):
            assert simulator.replay.played == 0
        began = anyio.current_time()
        async with opened(simulator, "binance_spot_ws", "/stream?streams=btcusdt@trade") as socket:
            events = [(await heard(socket))["data"] for _ in range(5)]
        assert 0.1 <= anyio.current_time() - began < 2
        assert [event["T"] - events[0]["T"] for event in events] == [0, 1_000, 2_000, 3_000, 4_000]


@pytest.mark.anyio
@pytest.mark.parametrize("speed", [0.5, 1, 4, 0])
async def test_times_are_shifted_by_whole_minutes_and_no_trade_is_in_the_future(tmp_path: Path, speed: float) -> None:
    hour = [spot_line(n, START + n * MINUTE, receive_ns=(START + n * MINUTE - 1_270) * 1_000_000) for n in range(60)]
    recording = read_recording([written(tmp_path, "a", *hour)])
    async with Simulator(replay=recording, speed=speed, clock=lambda: NOW) as simulator:
        assert simulator.replay is not None
        async with opened(simulator, "binance_spot_ws", "/ws/btcusdt@trade") as socket:
            first = await heard(socket)
            shift = simulator.replay.shift
    assert shift is not None
    assert (shift % MINUTE, first["T"]) == (0, START + shift)
    lateness = [NOW + (n * MINUTE / speed if speed else 0) - (START + n * MINUTE + shift) for n in range(60)]
    assert min(lateness) >= 0
    assert min(lateness) < MINUTE


@pytest.mark.anyio
async def test_a_slow_client_slows_the_replay_down_and_loses_nothing(tmp_path: Path) -> None:
    recording = read_recording([written(tmp_path, "a", *(linear_line(n, START + n * 100) for n in range(2_000)))])
    async with (
        Simulator(replay=recording, speed=0, queue=8) as simulator,
        opened(simulator, "binance_linear_ws", "/market/ws/btcusdt@aggTrade") as quick,
        opened(simulator, "binance_linear_ws", "/market/ws/btcusdt@aggTrade") as slow,
    ):
        assert simulator.replay is not None
        assert [event["a"] for event in await heard_many(quick, 2_000)] == list(range(2_000))
        numbers = [event["a"] for event in await heard_many(slow, 1_900)]
        assert numbers == list(range(numbers[0], numbers[0] + 1_900))
        await simulator.replay.finished.wait()
        assert simulator.connections("binance", "linear") == 2
