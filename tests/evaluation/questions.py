"""The questions of the evaluation, the calls with which an agent finds the answers, and the true answers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from decimal import Decimal
from typing import Any, Final, NamedTuple

from tests.evaluation.agent import Agent, rows
from tests.evaluation.tape import BEGUN, CRASH, LARGEST, LATE, MIDNIGHT, NOW, PERP, TORN, bars, delta, of, poc, top, volume, vwap
from tests.market import BYBIT, NOON, SPOT
from tests.queries.world import ETH, price_of
from wadm_mcp.model import DAY, HOUR, MINUTE, SECOND, Trade, TradeType
from wadm_mcp.queries.numbers import iso, iso_minute, iso_ms

_BTC: Final = {"symbol": "BTCUSDT", "exchange": "binance", "market": "spot"}
_BYBIT: Final = {**_BTC, "exchange": "bybit"}
_BOTH: Final = (SPOT, BYBIT)


class Question(NamedTuple):
    """A question in words, the calls that answer it, and the answer counted from the trades."""

    text: str
    find: Callable[[Agent], Awaitable[Any]]
    true: Callable[[], Any]


async def _markets(agent: Agent, **asked: Any) -> list[dict[str, Any]]:
    return rows((await agent.ask("instruments recorded followed", **asked))["markets"])


async def _profile(agent: Agent, **asked: Any) -> dict[str, Any]:
    return await agent.ask("volume by price poc value area", **{**_BTC, "detail": "brief", **asked})


async def _flow(agent: Agent, **asked: Any) -> list[dict[str, Any]]:
    return rows((await agent.ask("bars OHLC cumulative delta imbalance ratio", **{**_BTC, **asked}))["bars"])


async def _structure(agent: Agent, **asked: Any) -> dict[str, Any]:
    return await agent.ask("market structure evidence swings event candidates", **{**_BTC, **asked})


async def _trades(agent: Agent, **asked: Any) -> dict[str, Any]:
    return await agent.ask("single public trades large prints", **{**_BTC, **asked})


async def _compare(agent: Agent, **asked: Any) -> dict[str, Any]:
    return await agent.ask("compare every exchange and market basis share", symbol="BTCUSDT", **asked)


async def _which_symbols(agent: Agent) -> Any:
    return sorted({row["symbol"] for row in await _markets(agent, detail="brief")})


async def _since_when(agent: Agent) -> Any:
    return {row["history_from"] for row in await _markets(agent)}


async def _least_covered(agent: Agent) -> Any:
    found = min(await _markets(agent, detail="brief"), key=lambda row: Decimal(row["coverage_24h"]))
    return f"{found['exchange']}:{found['market']}:{found['symbol']}"


async def _poc_of_a_day(agent: Agent) -> Any:
    return Decimal((await _profile(agent, window="24h", row_size=10))["poc"])


async def _vwap_of_the_session(agent: Agent) -> Any:
    return Decimal((await _profile(agent, window="session"))["vwap"])


async def _bought_yesterday(agent: Agent) -> Any:
    return Decimal((await _profile(agent, start=iso(MIDNIGHT - DAY), end=iso(MIDNIGHT)))["buy_volume"])


async def _merged_volume(agent: Agent) -> Any:
    return Decimal((await _profile(agent, exchange="all", window="4h"))["volume"])


async def _perpetual_trades(agent: Agent) -> Any:
    return (await _profile(agent, market="linear", window="24h"))["trade_count"]


async def _heaviest_row(agent: Agent) -> Any:
    found = rows((await _profile(agent, window="4h", row_size=50, detail="full"))["nodes"])
    return Decimal(max(found, key=lambda row: Decimal(row["volume"]))["volume"])


async def _largest_delta_bar(agent: Agent) -> Any:
    found = await _flow(agent, window="4h", timeframe="15m", detail="brief")
    return max(found[1:-1], key=lambda row: Decimal(row["delta"]))["timestamp"]


async def _close_at_nine(agent: Agent) -> Any:
    return Decimal((await _flow(agent, start=iso(NOON - 4 * HOUR), end=iso(NOON - 3 * HOUR), timeframe="1h"))[0]["close"])


async def _cumulative_now(agent: Agent) -> Any:
    return Decimal((await _flow(agent, window="1h", timeframe="1h", detail="brief"))[-1]["cumulative_delta"])


async def _cumulative_then(agent: Agent) -> Any:
    return Decimal((await _flow(agent, window="1h", timeframe="1h", detail="brief", as_of=iso(NOON - 3 * HOUR)))[-1]["cumulative_delta"])


async def _eth_low(agent: Agent) -> Any:
    found = await _flow(agent, symbol="ETHUSDT", window="24h", timeframe="4h")
    return min(Decimal(row["low"]) for row in found)


async def _crash_row(agent: Agent) -> Any:
    asked = {"start": iso(CRASH), "end": iso(CRASH + 15 * MINUTE), "timeframe": "15m", "row_size": 100}
    (bar,) = (await agent.ask("inside each bar buy and sell volume by price row diagonal imbalances footprint", **{**_BTC, **asked}))[
        "bars"
    ]
    return Decimal(max(rows(bar["nodes"]), key=lambda row: Decimal(row["sell_volume"]))["price_level"])


async def _largest_trade(agent: Agent) -> Any:
    answer = await _trades(agent, start=iso(MIDNIGHT - DAY), end=iso(MIDNIGHT), min_notional=1_000_000)
    return [(row["timestamp"], row["trade_type"]) for row in rows(answer["trades"])]


async def _third_page(agent: Agent) -> Any:
    cursor: dict[str, Any] = {}
    answer: dict[str, Any] = {}
    for _ in range(3):
        answer = await _trades(agent, window="1h", limit=9, detail="brief", **cursor)
        cursor = {"cursor": answer["next_cursor"]}
    return rows(answer["trades"])[0]["timestamp"]


async def _last_price(agent: Agent) -> Any:
    return Decimal((await _structure(agent, detail="brief"))["session"]["last"])


async def _crash_event(agent: Agent) -> Any:
    found = [row for row in rows((await _structure(agent, detail="full"))["events"]) if row["kind"] == "climax_down"]
    return [(row["timestamp"], Decimal(row["price"]), Decimal(row["delta"])) for row in found]


async def _what_was_known_before_the_crash(agent: Agent) -> Any:
    found = rows((await _structure(agent, as_of=iso(CRASH)))["events"])
    return [row for row in found if row["kind"] == "climax_down"]


async def _yesterdays_poc(agent: Agent) -> Any:
    answer = await _structure(agent, row_size=50)
    (row,) = rows(answer["value"]["prior"])
    return row["session"], Decimal(row["poc"])


async def _session_high(agent: Agent) -> Any:
    return Decimal((await _structure(agent, exchange="all", detail="brief"))["session"]["high"])


async def _bybit_missing(agent: Agent) -> Any:
    return (await _profile(agent, **_BYBIT, window="24h"))["coverage"]["gaps"]


async def _can_bybit_be_trusted(agent: Agent) -> Any:
    answer = await _profile(agent, **_BYBIT, window="session")
    return "volume" in answer["coverage"]["broken"]


async def _worst(agent: Agent) -> Any:
    return (await _profile(agent, exchange="all", window="24h"))["coverage"]["worst"]


async def _bars_not_judged(agent: Agent) -> Any:
    answer = await _structure(agent, **_BYBIT, detail="brief")
    return answer["bars"]["of"] - answer["bars"]["usable"]


async def _before_recording(agent: Agent) -> Any:
    answer = await _profile(agent, start=iso(BEGUN - 2 * DAY), end=iso(BEGUN - DAY))
    return answer["coverage"]["ratio"], answer["poc"]


async def _share_of_the_perpetual(agent: Agent) -> Any:
    found = rows((await _compare(agent, window="24h", timeframe="5m", detail="brief"))["venues"])
    return next(Decimal(row["volume_share"]) for row in found if row["instrument"] == str(PERP))


async def _who_leads(agent: Agent) -> Any:
    found = rows((await _compare(agent, window="24h", timeframe="5m"))["pairs"])
    (pair,) = [row for row in found if (row["first"], row["second"]) == (str(SPOT), str(PERP))]
    return pair["lead_bars"], abs(Decimal(pair["lead_correlation"])) > Decimal(pair["noise"])


async def _was_the_level_reached(agent: Agent) -> Any:
    answer = await agent.ask("wait until timeout met", **_BTC, condition="coverage_back", timeframe="5m", timeout=1)
    return answer["met"], Decimal(answer["price"])


async def _typo(agent: Agent) -> Any:
    answer = await agent.ask("volume by price poc value area", symbol="BTCUSDX", window="24h")
    return answer["instrument"], agent.calls


async def _mistaken_window(agent: Agent) -> Any:
    answer = await agent.ask("volume by price poc value area", symbol="BTCUSDT", window="2h")
    return answer["instrument"], agent.calls


async def _mistaken_argument(agent: Agent) -> Any:
    answer = await agent.ask("bars OHLC cumulative delta imbalance ratio", symbol="BTCUSDT", interval="5m", window="1h")
    return answer["instrument"], agent.calls


async def _loosely_written(agent: Agent) -> Any:
    answer = await agent.ask(
        "bars OHLC cumulative delta", symbol="eth/usdt", exchange="binance", timeframe="4H", start=NOW // SECOND - 86_400
    )
    return answer["instrument"], answer["timeframe"], agent.calls


def _lead() -> Any:
    return 2, True


def _share() -> Decimal:
    everything = volume(of((SPOT, BYBIT, PERP), NOW - DAY))
    return (volume(of(PERP, NOW - DAY)) / everything).quantize(Decimal("0.0001"))


def _largest_row() -> Decimal:
    found: dict[Decimal, Decimal] = {}
    for one in of(SPOT, NOW - 4 * HOUR):
        low = price_of(one) // 50 * 50
        found[low] = found.get(low, Decimal(0)) + volume([one])
    return max(found.values())


def _gap() -> Any:
    return [[iso(TORN[0]), iso(TORN[1]), None, "disconnect"]]


def _largest_bar() -> str:
    first = NOW - NOW % (15 * MINUTE) - 4 * HOUR + 15 * MINUTE
    found = bars(of(SPOT, first, NOW - NOW % (15 * MINUTE)), 15 * MINUTE)
    return iso(top(found, delta))


def _most_sold() -> Decimal:
    found: dict[Decimal, Decimal] = {}
    for one in of(SPOT, CRASH, CRASH + 15 * MINUTE):
        if one.trade_type is TradeType.SELL:
            low = price_of(one) // 100 * 100
            found[low] = found.get(low, Decimal(0)) + volume([one])
    return max(found, key=lambda low: found[low])


def _climax() -> Any:
    crash = of(SPOT, CRASH, CRASH + 15 * MINUTE)
    return [(iso_minute(CRASH), min(map(price_of, crash)), delta(crash))]


def _day() -> list[Trade]:
    return of(SPOT, NOW - DAY)


def _yesterday() -> list[Trade]:
    return of(SPOT, MIDNIGHT - DAY, MIDNIGHT)


QUESTIONS: Final = (
    Question("Which symbols can be asked about?", _which_symbols, lambda: ["BTCUSDT", "ETHUSDT"]),
    Question("From when on is the tape recorded?", _since_when, lambda: {iso(BEGUN)}),
    Question("Which instrument has the lowest coverage over the last day?", _least_covered, lambda: str(BYBIT)),
    Question(
        "Where is the POC of the last 24 hours on Binance spot, in rows of 10?",
        _poc_of_a_day,
        lambda: poc(_day(), Decimal(10)),
    ),
    Question("What is the VWAP of today's session on Binance spot?", _vwap_of_the_session, lambda: vwap(of(SPOT, MIDNIGHT))),
    Question(
        "How much did takers buy on Binance spot yesterday?",
        _bought_yesterday,
        lambda: volume(_yesterday(), TradeType.BUY),
    ),
    Question("What volume did both exchanges trade in spot in four hours?", _merged_volume, lambda: volume(of(_BOTH, NOW - 4 * HOUR))),
    Question("How many trades did the perpetual have in a day?", _perpetual_trades, lambda: len(of(PERP, NOW - DAY))),
    Question("How much traded in the heaviest 50-dollar row of the last four hours?", _heaviest_row, _largest_row),
    Question("Which quarter of an hour of the last four hours had the largest delta?", _largest_delta_bar, _largest_bar),
    Question("Where did the hour from 08:00 close?", _close_at_nine, lambda: price_of(of(SPOT, NOON - 4 * HOUR, NOON - 3 * HOUR)[-1])),
    Question("What is cumulative delta now?", _cumulative_now, lambda: delta(of(SPOT, MIDNIGHT))),
    Question("What was cumulative delta at 09:00?", _cumulative_then, lambda: delta(of(SPOT, MIDNIGHT, NOON - 3 * HOUR))),
    Question("What was the low of ETHUSDT in the last day?", _eth_low, lambda: min(map(price_of, of(ETH, NOW - DAY)))),
    Question("At which 100-dollar row were most sold in the quarter from 08:00?", _crash_row, _most_sold),
    Question("Which trades of yesterday were above a million dollars?", _largest_trade, lambda: [(iso_ms(LARGEST), "BUY")]),
    Question("Which trade is the nineteenth of the last hour?", _third_page, lambda: iso_ms(of(SPOT, NOW - HOUR)[18].timestamp)),
    Question("What is the last price on Binance spot?", _last_price, lambda: price_of(of(SPOT, MIDNIGHT)[-1])),
    Question("Was there a climax today, when, and with which delta?", _crash_event, _climax),
    Question("Was a climax known before it happened?", _what_was_known_before_the_crash, list),
    Question(
        "Where was yesterday's POC, in rows of 50?",
        _yesterdays_poc,
        lambda: ("2026-05-31", poc(_yesterday(), Decimal(50))),
    ),
    Question("What is the high of the session over both exchanges?", _session_high, lambda: max(map(price_of, of(_BOTH, MIDNIGHT)))),
    Question("What is missing on Bybit over the last day, and why?", _bybit_missing, _gap),
    Question("May Bybit's session volume be called incomplete?", _can_bybit_be_trusted, lambda: True),
    Question("Which exchange is the reason that the merged day is not whole?", _worst, lambda: "bybit"),
    Question("How many bars can not be judged on Bybit?", _bars_not_judged, lambda: (TORN[1] - TORN[0]) // (15 * MINUTE)),
    Question("What is known of a day before recording?", _before_recording, lambda: (0, None)),
    Question("Which share of the volume is the perpetual's?", _share_of_the_perpetual, _share),
    Question("Whose flow comes first, spot's or the perpetual's?", _who_leads, _lead),
    Question("Is the tape whole again, and at which price?", _was_the_level_reached, lambda: (True, price_of(of(SPOT, LATE)[0]))),
    Question("BTCUSDX: which symbol was meant?", _typo, lambda: ("all:spot:BTCUSDT", 2)),
    Question("A window that does not exist: which call works?", _mistaken_window, lambda: ("all:spot:BTCUSDT", 2)),
    Question("An argument that does not exist: which call works?", _mistaken_argument, lambda: ("all:spot:BTCUSDT", 2)),
    Question("eth/usdt in bars of 4H since an epoch time?", _loosely_written, lambda: ("binance:spot:ETHUSDT", "4h", 1)),
)
