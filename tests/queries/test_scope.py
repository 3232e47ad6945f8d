from __future__ import annotations

import pytest

from tests.market import BYBIT, NOON, SPOT, listing
from tests.queries.world import ETH, LINEAR, World
from wadm_mcp.errors import NotReady, QueryError, UnknownSymbol
from wadm_mcp.model import DAY, HOUR, MINUTE, SECOND, Instrument, Window
from wadm_mcp.queries.numbers import iso
from wadm_mcp.queries.scope import Scope, ask, read_scope

NOW = NOON + 25 * SECOND


def scope(world: World | None = None, **arguments: object) -> Scope:
    world = world or World(now=NOW)
    return read_scope(world.view, ask(world.view, "q"), **{"symbol": "BTCUSDT", **arguments})


def test_the_default_is_the_last_hour_of_all_exchanges_widened_to_whole_minutes() -> None:
    asked = scope()
    assert (asked.name, asked.instruments, asked.merged) == ("all:spot:BTCUSDT", (SPOT, BYBIT), True)
    assert asked.window == Window(NOON - HOUR, NOON + MINUTE)
    assert asked.heading({"ratio": 0}) == {
        "coverage": {"ratio": 0},
        "instrument": "all:spot:BTCUSDT",
        "window": {"start": "2026-06-01T11:00:00Z", "end": "2026-06-01T12:01:00Z", "closed": False},
    }


@pytest.mark.parametrize(
    ("name", "start"),
    [
        ("15m", NOON - 15 * MINUTE),
        ("1h", NOON - HOUR),
        ("4h", NOON - 4 * HOUR),
        ("24h", NOON - DAY),
        ("7d", NOON - 7 * DAY),
        ("session", NOON - 12 * HOUR),
    ],
)
def test_a_named_window_counts_back_from_now(name: str, start: int) -> None:
    assert scope(window=name).window == Window(start, NOON + MINUTE)


def test_on_a_whole_minute_nothing_is_widened_and_the_window_is_closed() -> None:
    asked = scope(World(now=NOON), window="15m")
    assert asked.window == Window(NOON - 15 * MINUTE, NOON)
    assert asked.closed


def test_as_of_takes_the_place_of_now_and_later_trades_are_left_out() -> None:
    asked = scope(as_of=NOON - DAY + 59 * SECOND, window="15m")
    assert (asked.window, asked.now, asked.as_of, asked.closed) == (Window(NOON - DAY - 15 * MINUTE, NOON - DAY), NOON - DAY, True, True)
    assert scope(as_of=NOON - 13 * HOUR, window="session").window == Window(NOON - 36 * HOUR, NOON - 13 * HOUR)
    assert scope(as_of=NOON, start=NOON - HOUR, end=NOON + DAY).window == Window(NOON - HOUR, NOON)
    assert scope(as_of=NOON + 20 * SECOND, start=NOON + 10 * SECOND).window == Window(NOON, NOON)
    with pytest.raises(QueryError, match="it lies in the future, now is 2026-06-01T12:00:00Z"):
        scope(as_of=NOON, start=NOON + MINUTE)


def test_start_and_end_are_widened_and_an_end_beyond_now_means_now() -> None:
    assert scope(start=NOON - 2 * HOUR + 1, end=NOON - HOUR + 1).window == Window(NOON - 2 * HOUR, NOON - HOUR + MINUTE)
    assert scope(start=NOON - 2 * HOUR, end=NOON - HOUR).window == Window(NOON - 2 * HOUR, NOON - HOUR)
    assert scope(start=NOON - 2 * HOUR, end=NOON + DAY).window == Window(NOON - 2 * HOUR, NOON + MINUTE)
    assert scope(start=NOON - 2 * HOUR).window == Window(NOON - 2 * HOUR, NOON + MINUTE)
    assert scope(start=iso(NOON - 400 * DAY), end=iso(NOON)).window.length == 400 * DAY
    assert scope(start=NOON - HOUR, end=NOON - HOUR).window.length == 0


def test_names_are_read_whatever_their_case() -> None:
    asked = scope(symbol=" btcusdt ", exchange="ByBit", market="SPOT")
    assert (asked.name, asked.instruments, asked.merged) == ("bybit:spot:BTCUSDT", (BYBIT,), False)


def test_the_market_is_the_first_configured_one_that_follows_the_symbol() -> None:
    both = World(listing(LINEAR), listing(ETH), listing(SPOT), now=NOW)
    assert scope(both, symbol="ETHUSDT").name == "all:spot:ETHUSDT"
    assert scope(both, symbol="ETHUSDT", market="linear").instruments == (LINEAR,)
    first_linear = World(listing(LINEAR), listing(ETH), listing(SPOT), now=NOW, markets=("linear", "spot"))
    assert scope(first_linear, symbol="ETHUSDT").name == "all:linear:ETHUSDT"
    assert scope(first_linear, symbol="BTCUSDT").name == "all:spot:BTCUSDT"
    apart = World(listing(ETH), listing(Instrument("bybit", "linear", "ETHUSDT")), now=NOW)
    assert scope(apart, symbol="ETHUSDT", exchange="bybit").name == "bybit:linear:ETHUSDT"


def test_all_is_named_all_even_with_one_exchange() -> None:
    asked = scope(World(listing(SPOT), now=NOW))
    assert (asked.name, asked.instruments, asked.merged) == ("all:spot:BTCUSDT", (SPOT,), True)


def test_exchanges_are_in_configured_order() -> None:
    assert scope(World(listing(BYBIT), listing(SPOT), now=NOW)).instruments == (SPOT, BYBIT)


def test_a_symbol_that_is_followed_elsewhere_is_refused_with_the_place() -> None:
    world = World(listing(SPOT), listing(LINEAR), listing(Instrument("bybit", "spot", "SOLUSDT")), now=NOW)
    with pytest.raises(UnknownSymbol) as caught:
        scope(world, market="linear")
    assert str(caught.value) == (
        'symbol "BTCUSDT" is not followed in market linear. Followed: binance:spot:BTCUSDT. Try q(symbol="BTCUSDT")'
    )
    with pytest.raises(UnknownSymbol, match=r'symbol "BTCUSDT" is not followed on bybit in market spot\. Followed: binance:spot:BTCUSDT'):
        scope(world, exchange="bybit")
    with pytest.raises(UnknownSymbol, match=r'symbol "ETHUSDT" is not followed on bybit in market linear'):
        scope(world, symbol="ETHUSDT", exchange="bybit")


def test_a_missing_symbol_is_asked_for() -> None:
    with pytest.raises(QueryError, match=r"symbol is missing\. Followed: BTCUSDT\. Try q\("):
        scope(symbol=None)


def test_two_spellings_of_a_question_are_the_same_question() -> None:
    world = World(now=NOW)
    assert scope(world).asked == scope(world, window="1h").asked
    spelled = scope(world, start=iso(NOON - HOUR), end=iso(NOON))
    assert spelled.asked == scope(world, start=NOON - HOUR, end=str(NOON // SECOND)).asked
    assert spelled.asked != scope(world, start=NOON - HOUR).asked
    assert scope(world, as_of=NOON).asked != scope(world).asked


def test_a_configured_market_whose_listings_are_not_loaded_yet_is_no_wrong_argument() -> None:
    world = World(listing(Instrument("binance", "linear", "BTCUSDT")), now=NOON)
    world.tape.add_awaited([SPOT])
    with pytest.raises(NotReady, match="BTCUSDT is configured, but the list of symbols of its exchange is not loaded yet"):
        read_scope(world.view, ask(world.view, "q"), symbol="BTCUSDT", exchange="binance", market="spot")


@pytest.mark.parametrize("symbol", ["btcusdt", " BTCUSDT ", "BTC/USDT", "btc-usdt", "BTC_USDT", "BTCUSDT:spot", "binance:spot:BTCUSDT"])
def test_a_symbol_is_known_however_it_is_written(symbol: str) -> None:
    asked = scope(symbol=symbol, exchange="binance")
    assert asked.name == "binance:spot:BTCUSDT"


@pytest.mark.parametrize("symbol", ["BTC/USDT:USDT", "BTCUSDT:linear", "BTCUSDT.P", "BTCUSDT-PERP", "all:linear:BTCUSDT", "btcusdt:perp"])
def test_a_name_of_a_perpetual_is_answered_as_linear_or_refused(symbol: str) -> None:
    perpetual, other = Instrument("binance", "linear", "BTCUSDT"), Instrument("bybit", "linear", "ETHUSDT")
    both = World(listing(SPOT), listing(BYBIT), listing(perpetual), now=NOW)
    assert scope(both, symbol=symbol).name == "all:linear:BTCUSDT"
    assert scope(both, symbol=symbol, exchange="binance", market="perp").name == "binance:linear:BTCUSDT"
    with pytest.raises(QueryError, match=r'with market="spot": the symbol names linear\. Try q\(symbol="all:linear:BTCUSDT"\)'):
        scope(both, symbol=symbol, market="spot")
    for world in (World(now=NOW), World(listing(SPOT), listing(BYBIT), listing(other), now=NOW)):
        with pytest.raises(UnknownSymbol, match=r'symbol "BTCUSDT" is not followed in market linear\. Followed: binance:spot:BTCUSDT'):
            scope(world, symbol=symbol)


def test_a_name_and_arguments_that_contradict_each_other_are_refused() -> None:
    for arguments in ({"exchange": "bybit"}, {"market": "spot"}, {"exchange": "bybit", "market": "spot"}):
        with pytest.raises(QueryError, match=r'symbol="binance:linear:ETHUSDT" with .* the symbol names .*Try q\(symbol="binance:linear'):
            scope(World(listing(LINEAR), listing(ETH), now=NOW), symbol="binance:linear:ETHUSDT", **arguments)


def test_a_dated_contract_is_never_answered_as_its_underlying() -> None:
    for symbol in ("BTCUSDT_270326", "BTC/USDT:USDT-270326", "binance:spot:BTCUSDT-26MAR27"):
        with pytest.raises(UnknownSymbol, match="is not followed: it names a contract with a delivery date"):
            scope(symbol=symbol)


def test_an_own_symbol_that_ends_like_another_name_is_followed_by_it() -> None:
    own = Instrument("bybit", "linear", "BTCPERP")
    world = World(listing(SPOT), listing(own), now=NOW)
    for symbol in ("BTCPERP", "btc-perp", "bybit:linear:BTCPERP"):
        assert scope(world, symbol=symbol).instruments == (own,)


def test_the_whole_name_of_an_instrument_names_its_exchange_and_market() -> None:
    assert scope(symbol="bybit:spot:BTCUSDT").name == "bybit:spot:BTCUSDT"
    assert scope(symbol="all:spot:BTCUSDT").name == "all:spot:BTCUSDT"


@pytest.mark.parametrize(
    ("spelled", "name"), [("4H", "4h"), ("1d", "24h"), ("24 hours", "24h"), ("1 week", "7d"), ("60m", "1h"), ("SESSION", "session")]
)
def test_a_window_is_known_however_it_is_written(spelled: str, name: str) -> None:
    assert scope(window=spelled).window == scope(window=name).window


def test_at_midnight_sharp_the_session_is_the_one_that_ends_there() -> None:
    midnight = NOON - 12 * HOUR
    assert scope(window="session", as_of=midnight).window == Window(midnight - 24 * HOUR, midnight)
    assert scope(window="session", as_of=midnight + MINUTE).window == Window(midnight, midnight + MINUTE)
