"""Compares the answers of WADM with the trades of the simulated exchanges: every trade, every figure, every gap.

The answers are read over HTTP, as any client does. The expected figures are computed here from the exchanges' ledger, without WADM's code.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from itertools import accumulate
from typing import Any, NamedTuple

from tests.end_to_end.process import Served, until
from wadm_mcp.clock import now_ms
from wadm_mcp.model import HOUR, MINUTE, Instrument
from wadm_mcp.simulator.simulator import Simulator
from wadm_mcp.simulator.tape import MARKET_PRINTS

COLUMNS = ("timestamp", "open", "high", "low", "close", "volume", "buy_volume", "sell_volume", "delta", "cumulative_delta")
AUDITED_MS = 7 * MINUTE
"""Time from the end of an hour until its audit has compared it with the candles twice, and made gaps of the minutes that lack trades."""
TIMEFRAMES = {"1m": MINUTE, "5m": 5 * MINUTE, "15m": 15 * MINUTE, "1h": 60 * MINUTE}


class Traded(NamedTuple):
    """A trade of the simulated exchange, or one that WADM returned."""

    trade_id: str
    at: int
    price: Decimal
    quantity: Decimal
    buys: bool
    fills: int
    seq: int


class Found(NamedTuple):
    """The result of one instrument."""

    traded: int
    """Trades of the exchange in the window."""
    stored: int
    """Single trades that WADM returned."""
    covered: int
    """Minutes with coverage 1."""
    minutes: int
    gaps: int
    lost: int
    """Trades after the first stored one that are not stored. Each is in a reported gap."""


def ledger(simulator: Simulator, instrument: Instrument, start: int, end: int) -> list[Traded]:
    """All trades that the exchange published before `end`, in the order of WADM's answers."""
    tape = simulator.tape(instrument)
    if instrument[:2] == ("binance", "linear"):
        # An aggregate has the time of its first execution, and is published after its window has ended.
        folded = (one for one in tape.aggregates(start - MINUTE, end) if start <= one.time and Decimal(one.quantity))
        return [
            Traded(str(one.number), one.time, Decimal(one.price), Decimal(one.quantity), one.buy, one.last - one.first + 1, one.number)
            for one in folded
        ]
    # A row of quantity zero is no trade.
    prints = [one for one in tape.prints(start, end) if one.kind in MARKET_PRINTS and Decimal(one.quantity)]
    prints.sort(key=lambda one: (one.time, one.seq, Decimal(one.price) if one.buy else -Decimal(one.price), one.trade_id))
    return [Traded(one.trade_id, one.time, Decimal(one.price), Decimal(one.quantity), one.buy, 1, one.seq) for one in prints]


async def returned(served: Served, instrument: Instrument, start: int, end: int) -> list[Traded]:
    """All trades that WADM returns for a window, read page by page."""
    question: dict[str, Any] = {**_of(instrument), "start": start, "end": end, "limit": 1_000}
    rows: list[Traded] = []
    cursor: str | None = None
    while True:
        answer = await served.get("/api/trades", **question, **({"cursor": cursor} if cursor else {}))
        for at, price, quantity, side, trade_id, _ in answer["trades"]["rows"]:
            rows.append(Traded(trade_id, ms(at), exact(price), exact(quantity), side == "BUY", 0, 0))
        cursor = answer["next_cursor"]
        if cursor is None:
            return rows


async def check(
    served: Served,
    simulator: Simulator,
    instrument: Instrument,
    start: int,
    end: int,
    *,
    traded_until: int,
    unseen: Collection[str] = (),
) -> Found:
    """Assert that no trade is invented, repeated or missing outside a reported gap, and that every figure equals that of its trades.

    `start` and `end` are whole minutes. The exchange traded nothing after `traded_until`. The trades of `unseen` (by id) were sent on no
    connection: they may be missing outside gaps until the audit of their hour has compared the candles.
    """
    rows = await returned(served, instrument, start, end)
    unnoticed = set(unseen) - {one.trade_id for one in rows}
    audited_until = (now_ms() - AUDITED_MS) // HOUR * HOUR
    traded = [
        one
        for one in ledger(simulator, instrument, start, min(end, traded_until))
        if one.trade_id not in unnoticed or one.at < audited_until
    ]
    by_id = {one.trade_id: one for one in traded}
    assert len({one.trade_id for one in rows}) == len(rows), f"{instrument}: a trade is returned twice"
    for row in rows:
        assert row.trade_id in by_id, f"{instrument}: {row} was never traded"
        assert row == by_id[row.trade_id]._replace(fills=0, seq=0), f"{instrument}: {row} was traded as {by_id[row.trade_id]}"
    known = {row.trade_id for row in rows}
    of_minute = _by_minute(traded)
    first = next((place for place, one in enumerate(traded) if one.trade_id in known), len(traded))
    # Where ids are not gapless, the newest trades that REST returned may begin in the middle of a millisecond.
    began = traded[first].at if first < len(traded) and instrument.exchange == "bybit" else -1
    missed = {one.trade_id: one for one in traded[first:] if one.trade_id not in known and one.at > began}
    gaps = covered = 0
    counted: dict[int, list[Traded]] = {}
    open_minutes: set[int] = set()
    for minute in range(start, end, MINUTE):
        missing = [one for one in of_minute[minute] if one.trade_id not in known]
        raw = (await served.get("/api/trades", **_of(instrument), start=minute, end=minute + MINUTE, limit=1))["coverage"]
        reported = [(ms(first), ms(last)) for first, last, *_ in raw["gaps"]]
        folded = [(ms(first), ms(last)) for first, last, _, reason in raw["gaps"] if reason == "without_rows"]
        for one in missing:
            if any(first <= one.at < last for first, last in folded):
                # Stored as figures without single trades. The figures are compared below.
                missed.pop(one.trade_id, None)
        if "more_gaps" not in raw:
            for one in missing:
                assert any(first <= one.at < last or (first == last and first - 1 <= one.at <= last) for first, last in reported), (
                    f"{instrument}: {one} is missing outside every gap of {raw}"
                )
        assert not missing or raw["ratio"] < 1
        gaps += len(raw["gaps"])
        profile = await served.get(
            "/api/volume-profile", **_of(instrument), start=minute, end=minute + MINUTE, detail="full", row_size=_row(instrument)
        )
        is_covered = profile["coverage"]["ratio"] == 1
        covered += is_covered
        # A covered minute has all trades of the exchange. Any other one has exactly those that WADM returns.
        counted[minute] = of_minute[minute] if is_covered else [one for one in of_minute[minute] if one.trade_id in known]
        if not is_covered and minute + MINUTE > now_ms() - 5_000:
            # An open minute that is not covered may be without trades that another process stored. It is derived again when it closes.
            open_minutes.add(minute)
        elif is_covered or raw["gaps"] == profile["coverage"]["gaps"]:
            _check_profile(instrument, minute, profile, counted[minute])
    if missed:
        print(f"{instrument}: of those lost the first is {next(iter(missed.values()))}; stored from {traded[first].at}")
    for timeframe, length in TIMEFRAMES.items():
        await _check_bars(served, instrument, timeframe, length, start, min([end, *open_minutes]), counted)
    return Found(len(traded), len(rows), covered, (end - start) // MINUTE, gaps, len(missed))


def _check_profile(instrument: Instrument, minute: int, profile: Mapping[str, Any], trades: Sequence[Traded]) -> None:
    size = exact(profile["row_size"]) if profile["row_size"] is not None else Decimal(1)
    rows: dict[Decimal, list[Decimal | int]] = defaultdict(lambda: [Decimal(0), Decimal(0), Decimal(0), 0])
    for one in trades:
        row = rows[one.price // size * size]
        row[0] += one.quantity
        row[1 if one.buys else 2] += one.quantity
        row[3] += one.fills
    nodes = {exact(level): [exact(one) for one in figures] for level, *figures in profile["nodes"]["rows"]}
    other = {level: (nodes.get(level), rows.get(level)) for level in nodes.keys() | rows.keys() if nodes.get(level) != rows.get(level)}
    assert not other, f"{instrument} at {minute}: nodes of the answer and of its trades differ: {other}; {profile['coverage']}"
    assert exact(profile["volume"] or 0) == sum((one.quantity for one in trades), Decimal(0))


async def _check_bars(
    served: Served, instrument: Instrument, timeframe: str, length: int, start: int, end: int, counted: Mapping[int, Sequence[Traded]]
) -> None:
    first = start - start % length

    async def derived() -> Any:
        answer = await served.get("/api/order-flow", **_of(instrument), timeframe=timeframe, start=start, end=end)
        # A minute that was judged while it was open may have closed since. Its figures are complete again within seconds.
        return None if any(gap[3] == "being_revised" for gap in answer["coverage"]["gaps"]) else answer

    answer = await until(derived)
    columns = answer["bars"]["columns"]
    bars = {ms(row[0]): dict(zip(columns, row, strict=True)) for row in answer["bars"]["rows"]}
    total = Decimal(0)
    for opened in range(first, end, length):
        trades = [one for minute in range(max(opened, start), min(opened + length, end), MINUTE) for one in counted[minute]]
        total += sum((_signed(one) for one in trades), Decimal(0))
        if opened not in bars:
            assert not trades, f"{instrument} {timeframe}: there is no bar at {opened}"
            continue
        bar = bars[opened]
        figures = _figures(trades)
        for name, value in figures.items():
            if name in ("min_delta", "max_delta") and bar[name] is None:
                continue
            assert _maybe(bar[name]) == value, f"{instrument} {timeframe} at {opened}: {name} is {bar[name]}, its trades give {value}"
        assert exact(bar["cumulative_delta"]) == total, (
            f"{instrument} {timeframe} at {opened}: cumulative delta {bar['cumulative_delta']} is not {total}"
        )


def _figures(trades: Sequence[Traded]) -> dict[str, Decimal | None]:
    deltas = list(accumulate(_signed(one) for one in trades))
    # Trades with the same time and seq are one event.
    events = [(one.at, one.seq) for one in trades]
    path = [delta for place, delta in enumerate(deltas) if events[place : place + 1] != events[place + 1 : place + 2]]
    bought = sum((one.quantity for one in trades if one.buys), Decimal(0))
    sold = sum((one.quantity for one in trades if not one.buys), Decimal(0))
    prices = [one.price for one in trades]
    return {
        "open": prices[0] if prices else None,
        "high": max(prices, default=None),
        "low": min(prices, default=None),
        "close": prices[-1] if prices else None,
        "volume": bought + sold,
        "buy_volume": bought,
        "sell_volume": sold,
        "delta": bought - sold,
        "trade_count": Decimal(sum(one.fills for one in trades)),
        "min_delta": min(path, default=None),
        "max_delta": max(path, default=None),
    }


def _signed(one: Traded) -> Decimal:
    return one.quantity if one.buys else -one.quantity


def _by_minute(trades: Iterable[Traded]) -> dict[int, list[Traded]]:
    minutes: dict[int, list[Traded]] = defaultdict(list)
    for one in trades:
        minutes[one.at - one.at % MINUTE].append(one)
    return minutes


def _of(instrument: Instrument) -> dict[str, str]:
    return {"exchange": instrument.exchange, "market": instrument.market, "symbol": instrument.symbol}


def _row(instrument: Instrument) -> str:
    """A row size that is a multiple of every tick, so that a minute has few rows."""
    return "1" if instrument.symbol.startswith("ETH") else "10"


def exact(value: float | str) -> Decimal:
    return Decimal(str(value))


def _maybe(value: float | str | None) -> Decimal | None:
    return None if value is None else exact(value)


def ms(text: str) -> int:
    return round(datetime.fromisoformat(text).timestamp() * 1_000)
