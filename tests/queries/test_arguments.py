from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any, Final

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.market import NOON, listing
from tests.queries.world import ETH, World, one_line, whole_day
from wadm_mcp.errors import QueryError, UnknownSymbol
from wadm_mcp.queries.arguments import Call, read_amount, read_market, read_time, read_timeframe, read_whole, shown
from wadm_mcp.queries.footprint import footprint
from wadm_mcp.queries.order_flow import order_flow
from wadm_mcp.queries.trades import trades
from wadm_mcp.queries.volume_profile import volume_profile

anyio_test = pytest.mark.anyio

Question = Callable[..., Awaitable[dict[str, Any]]]

_SHARED: Final = ("symbol", "exchange", "market", "window", "start", "end", "as_of")
_QUESTIONS: Final[dict[str, tuple[Question, tuple[str, ...]]]] = {
    "get_trades": (trades, (*_SHARED, "limit", "cursor", "min_notional")),
    "get_volume_profile": (volume_profile, (*_SHARED, "row_size", "value_area", "method", "detail")),
    "get_order_flow": (order_flow, (*_SHARED, "timeframe")),
    "get_footprint": (footprint, (*_SHARED, "timeframe", "row_size")),
}
_HOSTILE: Final[list[object]] = [
    "",
    " ",
    "\0",
    "a\nb\x1b[31m\u202e",
    "\ud800",
    "x" * 10_000_000,
    "9" * 10_000,
    "1e999",
    "-1e999",
    "NaN",
    "Infinity",
    "0x10",
    "१२",
    "1_0",
    float("nan"),
    float("inf"),
    -0.0,
    1e308,
    5e-324,
    10**5_000,
    -(10**5_000),
    2**63,
    -1,
    True,
    False,
    [],
    ["BTCUSDT"],
    {"a": 1},
    {"$ne": None},
    b"BTCUSDT",
    "0001-01-01T00:00:00+14:00",
    "9999-12-31T23:59:59-14:00",
    "2026-13-01",
    "BTCUSDT'; DROP TABLE trades; --",
    "../../etc/passwd",
    "🙂" * 50,
]


def _world() -> World:
    return whole_day(World(now=NOON))


@pytest.mark.parametrize("name", _QUESTIONS)
@anyio_test
async def test_whatever_is_sent_the_answer_is_a_dict_or_one_line_that_names_the_argument(name: str) -> None:
    question, arguments = _QUESTIONS[name]
    view = _world().view
    refused = 0
    for argument in arguments:
        for value in _HOSTILE:
            try:
                with anyio.fail_after(5):
                    answer = await question(view, **{"symbol": "BTCUSDT", argument: value})
            except QueryError as error:
                text = one_line(error)
                assert text.startswith((argument, "exchange=")), text
                assert f"Try {name}(" in text or text.endswith("Try list_markets()")
                refused += 1
            else:
                json.dumps(answer, allow_nan=False)
    assert refused > len(arguments) * len(_HOSTILE) * 0.8


_ANYTHING: Final = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.datetimes().map(str),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=4,
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.sampled_from(sorted(_QUESTIONS)), st.data())
def test_any_mix_of_arguments_ends_in_an_answer_or_a_query_error(name: str, data: st.DataObject) -> None:
    question, names = _QUESTIONS[name]
    chosen = data.draw(st.lists(st.sampled_from(names), max_size=4, unique=True))
    given_arguments = {"symbol": "BTCUSDT"} | {argument: data.draw(_ANYTHING) for argument in chosen}

    async def asked() -> None:
        try:
            json.dumps(await question(_world().view, **given_arguments), allow_nan=False)
        except QueryError as error:
            one_line(error)

    anyio.run(asked)


_WRONG: Final[list[tuple[str, dict[str, object], list[str]]]] = [
    (
        "get_order_flow",
        {"timeframe": "2m"},
        [
            'timeframe="2m": allowed are 1m, 5m, 15m, 30m, 1h, 4h, 1d. Try ',
            'Try get_order_flow(symbol="BTCUSDT", timeframe="5m", window="1h")',
        ],
    ),
    ("get_order_flow", {"timeframe": "1M"}, ['timeframe="1M": allowed are 1m']),
    (
        "get_order_flow",
        {"timeframe": "1m", "window": "7d"},
        ['timeframe="1m"', "10,080 such bars", "at most 1,500", 'use timeframe="15m" or longer, or a shorter window'],
    ),
    ("get_footprint", {"timeframe": "1m", "window": "4h"}, ["240 such bars, at most 100", 'use timeframe="5m" or longer']),
    ("get_footprint", {"timeframe": "1d", "start": NOON - 100 * 86_400_000}, ["at most 100", "choose a shorter window"]),
    ("get_volume_profile", {"exchange": "kraken"}, ['exchange="kraken": allowed are binance, bybit, all', 'exchange="all"']),
    ("get_volume_profile", {"market": "options"}, ['market="options": allowed are spot. Try', 'market="spot"']),
    ("get_volume_profile", {"window": "2h"}, ['window="2h": allowed are 15m, 1h, 4h, 24h, 7d, session', 'window="1h"']),
    ("get_volume_profile", {"window": "1h", "start": "2026-06-01"}, ['window="1h" with start="2026-06-01": choose one']),
    ("get_volume_profile", {"window": "1h", "end": "2026-06-01"}, ["choose one"]),
    (
        "get_volume_profile",
        {"end": "2026-06-01"},
        ["end works only together with start", 'start="2026-06-01T11:00:00Z", end="2026-06-01T12:00:00Z"'],
    ),
    ("get_volume_profile", {"start": "yesterday"}, ['start="yesterday": not a time from 2000 to 2099', "ISO 8601", "epoch"]),
    (
        "get_volume_profile",
        {"start": "2026-06-01T11:00Z", "end": "2026-06-01T10:00Z"},
        ["end=", 'it lies before start="2026-06-01T11:00Z"'],
    ),
    ("get_volume_profile", {"start": "2026-06-02"}, ["start=", "it lies in the future, now is 2026-06-01T12:00:00Z"]),
    (
        "get_volume_profile",
        {"start": "2025-01-01"},
        ["the window is 517 days long, at most 400 are allowed; start at 2025-04-27T12:00:00Z or later"],
    ),
    ("get_volume_profile", {"as_of": "2026-06-02"}, ["as_of=", "it lies in the future", 'as_of="2026-06-01T12:00:00Z"']),
    ("get_volume_profile", {"value_area": 0}, ["value_area=0: a whole number from 1 to 100 is needed", "value_area=70"]),
    ("get_volume_profile", {"value_area": 68.2}, ["value_area=68.2: a whole number"]),
    ("get_volume_profile", {"method": "tpo"}, ['method="tpo": allowed are two_row, one_row']),
    ("get_volume_profile", {"detail": "all"}, ['detail="all": allowed are brief, standard, full']),
    (
        "get_volume_profile",
        {"row_size": "0.015"},
        ['row_size="0.015": it must be a whole multiple of the tick 0.01; use 0.01 or 0.02', ", row_size=0.02"],
    ),
    ("get_volume_profile", {"row_size": 0.001}, ["row_size=0.001", "tick 0.01; use 0.01"]),
    (
        "get_volume_profile",
        {"row_size": "12345678901234567.0000000000000001"},
        ["tick 0.01; use 12345678901234567 or 12345678901234567.01"],
    ),
    ("get_volume_profile", {"row_size": 0}, ["row_size=0: a number above 0 is needed"]),
    ("get_trades", {"limit": 1001}, ["limit=1001: a whole number from 1 to 1,000 is needed", "limit=100"]),
    ("get_trades", {"limit": "many"}, ['limit="many"']),
    ("get_trades", {"min_notional": -1}, ["min_notional=-1: a number 0 or more is needed"]),
    ("get_trades", {"min_notional": "1e999"}, ['min_notional="1e999"']),
    ("get_trades", {"cursor": "abc"}, ['cursor="abc": it must be the unchanged next_cursor of the previous page']),
    ("get_trades", {"cursor": 5}, ["cursor=5"]),
    ("get_trades", {"window": ["1h"]}, ["window=(a list)"]),
    ("get_trades", {"exchange": {"a": 1}}, ["exchange=(an object)"]),
    ("get_trades", {"exchange": "x" * 61}, [f'exchange="{"x" * 60}...": allowed']),
    ("get_trades", {"exchange": 'a\nb\u202e"c\\'}, ['exchange="a\\nb\\u202e\\"c\\\\": allowed']),
]


@pytest.mark.parametrize(
    ("name", "arguments", "words"), _WRONG, ids=[f"{name}-{next(iter(a))}-{i}" for i, (name, a, _) in enumerate(_WRONG)]
)
@anyio_test
async def test_a_wrong_argument_is_named_with_what_is_allowed_and_a_call_that_would_work(
    name: str, arguments: dict[str, object], words: list[str]
) -> None:
    with pytest.raises(QueryError) as caught:
        await _QUESTIONS[name][0](_world().view, symbol="BTCUSDT", **arguments)
    text = one_line(caught.value)
    for word in words:
        assert word in text
    assert not isinstance(caught.value, UnknownSymbol)


@pytest.mark.parametrize(
    ("name", "arguments", "words"), _WRONG, ids=[f"{name}-{next(iter(a))}-{i}" for i, (name, a, _) in enumerate(_WRONG)]
)
@anyio_test
async def test_the_call_that_an_error_suggests_does_work(name: str, arguments: dict[str, object], words: list[str]) -> None:
    view = _world().view
    with pytest.raises(QueryError) as caught:
        await _QUESTIONS[name][0](view, symbol="BTCUSDT", **arguments)
    suggested = str(caught.value).rpartition(f"Try {name}(")[2].removesuffix(")")
    instead = {key: json.loads(value) for key, value in (part.split("=", 1) for part in suggested.split(", "))}
    await _QUESTIONS[name][0](view, **instead)


@anyio_test
async def test_an_unknown_symbol_gets_near_matches() -> None:
    world = World(listing(), listing(ETH), now=NOON)
    with pytest.raises(UnknownSymbol) as caught:
        await volume_profile(world.view, symbol="ETHUSDX")
    assert str(caught.value) == (
        'symbol "ETHUSDX" is not followed. Nearest: ETHUSDT. Followed: BTCUSDT, ETHUSDT. '
        'Try get_volume_profile(symbol="ETHUSDT", window="24h")'
    )
    with pytest.raises(UnknownSymbol, match=r"Followed: none yet\. Try list_markets"):
        await volume_profile(_without_instruments().view, symbol="BTCUSDT")


def _without_instruments() -> World:
    world = World(now=NOON)
    world.tape.keep_only([])
    return world


@pytest.mark.parametrize(
    ("given_time", "timestamp"),
    [
        ("2026-06-01T12:00:00Z", NOON),
        ("2026-06-01T14:00:00+02:00", NOON),
        ("2026-06-01T14:00:00 02:00", NOON),
        ("2026-06-01T12:00:00", NOON),
        ("2026-06-01 12:00", NOON),
        ("2026-06-01T12:00:00.007Z", NOON + 7),
        ("2026-06-01", NOON - 12 * 3_600_000),
        (NOON, NOON),
        (NOON // 1000, NOON),
        (float(NOON // 1000) + 0.5, NOON + 500),
        (str(NOON), NOON),
        (f" {NOON // 1000} ", NOON),
        (None, None),
    ],
)
def test_times_are_iso_8601_or_epoch_seconds_or_milliseconds(given_time: object, timestamp: int | None) -> None:
    assert read_time(Call("q"), "start", given_time) == timestamp


@pytest.mark.parametrize("given_number", [7, 7.0, "7", " 7 ", "7.0", "7e0"])
def test_a_whole_number_may_come_as_a_number_or_as_text(given_number: object) -> None:
    assert read_whole(Call("q"), "limit", given_number, 1, 10, 5) == 7


@pytest.mark.parametrize(
    ("given_amount", "exact"), [(0.1, "0.1"), ("0.10", "0.10"), (1e-7, "1E-7"), ("1e3", "1E+3"), (10**17, "1" + "0" * 17)]
)
def test_an_amount_is_exactly_what_was_written(given_amount: object, exact: str) -> None:
    assert str(read_amount(Call("q"), "row_size", given_amount, zero=False, example=1)) == exact


def test_what_was_given_is_shown_short_and_without_control_characters() -> None:
    assert shown("x" * 10_000_000) == f'"{"x" * 60}..."'
    assert shown("\0\r\n\x7f\x9b") == r'"\x00\r\n\x7f\x9b"'
    assert shown(10**5_000).startswith("(an integer of ")
    assert shown(b"x") == "(a bytes)"
    assert (shown(None), shown(True), shown([]), shown({}), shown(1.5)) == ("null", "true", "(a list)", "(an object)", "1.5")


@pytest.mark.parametrize(
    ("spelled", "timeframe"),
    [("4H", "4h"), ("1D", "1d"), ("60m", "1h"), ("15 min", "15m"), ("5M", "5m"), ("1 hour", "1h"), ("24h", "1d"), ("1440 minutes", "1d")],
)
def test_a_timeframe_is_known_however_it_is_written(spelled: str, timeframe: str) -> None:
    assert read_timeframe(Call("get_order_flow"), spelled) == timeframe


@pytest.mark.parametrize("spelled", ["1M", "2h", "h", "0m", "1 month", "1.5h", "999999999m"])
def test_what_may_be_another_length_is_refused(spelled: str) -> None:
    with pytest.raises(QueryError, match="allowed are 1m, 5m"):
        read_timeframe(Call("get_order_flow"), spelled)


@pytest.mark.parametrize("spelled", ["perp", "Perpetual", "futures", "swap", "USDM"])
def test_perpetuals_go_by_many_names(spelled: str) -> None:
    assert read_market(Call("get_trades"), spelled, ("spot", "linear")) == "linear"
    with pytest.raises(QueryError, match="the market linear is not followed here; followed: spot"):
        read_market(Call("get_trades"), spelled, ("spot",))
