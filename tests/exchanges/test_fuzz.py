"""Every decoder of what an exchange sends, against whatever bytes may come. `WADM_FUZZ` is how many each is tried on."""

from __future__ import annotations

import json
import os
import random
import sys
from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial
from typing import Any, Final, NamedTuple

import pytest

from wadm_mcp.errors import ExchangeError, FrameError, WadmError
from wadm_mcp.exchanges.binance import Binance
from wadm_mcp.exchanges.bybit import Bybit
from wadm_mcp.exchanges.exchange import Aggregate, Exchange, Trades
from wadm_mcp.model import Trade

from . import test_binance, test_binance_rest, test_bybit, test_bybit_rest

TRIED: Final = int(os.environ.get("WADM_FUZZ", "20000"))
SEED: Final = 20_260_726

BINANCE: Exchange = Binance()
BYBIT: Exchange = Bybit()

_VALUES: Final[Sequence[Any]] = (
    None, True, False, 0, 1, -1, 255, 1 << 31, (1 << 63) - 1, 1 << 63, -(1 << 63), 1 << 70, 0.0, -0.5, 1e308, 1.5,
    "", "0", "-1", "1", "0.000000000000000001", "999999999999999999.999999999999999999", "9999999999999999999", "1e5", "NaN", "Infinity",
    "١٢", "\ud800", "\x00", "BTCUSDT", "ETHUSDT", "Buy", "Sell", "MARKET", "true", "null", "1785060230817", "1785060180000",
    1785060230817, 1785060180000, 1785060230, 4_102_444_800_001, [], {}, [[]], [None], {"": None}, {"code": -1121, "msg": "no"},
)  # fmt: skip
_RAW: Final = (
    b"[" * 5_000, b'{"a":' * 5_000, b"\xff\xfe", b"\xef\xbb\xbf", b"9" * 400, b"9" * 5_000, b'"\\ud800"', b"NaN", b"-", b"1e999",
    b'"', b"]", b"}", b",", b":",
)  # fmt: skip


class Subject(NamedTuple):
    """A decoder, valid examples of what it reads, and the one error it may raise."""

    read: Callable[[bytes], object]
    valid: Sequence[bytes]
    error: type[WadmError]


def _frames(decoder: Callable[[], Any], valid: Sequence[str]) -> Subject:
    return Subject(decoder().decode, [frame.encode() for frame in valid], FrameError)


_SPOT, _LINEAR = test_binance_rest.SPOT, test_binance_rest.LINEAR
_ROWS = {
    "raw": test_binance_rest.body(*[{**test_binance_rest.RAW_ROW, "id": number} for number in range(3)]),
    "spot": test_binance_rest.body(test_binance_rest.SPOT_AGGREGATE, test_binance_rest.EMPTIED),
    "linear": test_binance_rest.body(test_binance_rest.LINEAR_AGGREGATE, test_binance_rest.EMPTIED),
    "minutes": test_binance_rest.body(test_binance_rest.MINUTE_ROW, test_binance_rest.MINUTE_ROW),
    "error": b'{"code":-1121,"msg":"Invalid symbol."}',
    "listings": json.dumps(
        {"symbols": [test_binance_rest.record(), test_binance_rest.record("ETHUSDT", contractType="PERPETUAL")]}
    ).encode(),
}
_BYBIT_SPOT, _BYBIT_LINEAR = test_bybit_rest.SPOT, test_bybit_rest.LINEAR
_TOLD = {
    "spot": test_bybit_rest.recent(test_bybit_rest.as_rest(test_bybit.SPOT_ROW), category="spot"),
    "linear": test_bybit_rest.recent(*[test_bybit_rest.at(number, number, str(number)) for number in (3, 2, 1)]),
    "minutes": test_bybit_rest.minutes(test_bybit_rest.MINUTE_ROW, test_bybit_rest.MINUTE_ROW),
    "error": b'{"retCode":10006,"retMsg":"Too many visits!","result":{},"retExtInfo":{},"time":1}',
    "listings": test_bybit_rest.reply(test_bybit_rest.record(), test_bybit_rest.contract(), cursor="more"),
}

SUBJECTS: Final = {
    "binance spot frames": _frames(partial(test_binance.decoder, "spot"), test_binance.VALID["spot"]),
    "binance linear frames": _frames(partial(test_binance.decoder, "linear"), test_binance.VALID["linear"]),
    "bybit spot frames": _frames(partial(test_bybit.decoder, "spot"), test_bybit.VALID["spot"]),
    "bybit linear frames": _frames(partial(test_bybit.decoder, "linear"), test_bybit.VALID["linear"]),
    "binance spot trades": Subject(partial(BINANCE.read_trades, _SPOT), [_ROWS["raw"], _ROWS["error"]], ExchangeError),
    "binance linear trades": Subject(partial(BINANCE.read_trades, _LINEAR), [_ROWS["linear"], _ROWS["error"]], ExchangeError),
    "binance spot aggregates": Subject(partial(BINANCE.read_aggregates, _SPOT), [_ROWS["spot"], _ROWS["error"]], ExchangeError),
    "binance minutes": Subject(partial(BINANCE.read_candles, _SPOT), [_ROWS["minutes"], _ROWS["error"]], ExchangeError),
    "binance listings": Subject(partial(BINANCE.read_listings, "linear"), [_ROWS["listings"], _ROWS["error"]], ExchangeError),
    "bybit spot trades": Subject(partial(BYBIT.read_trades, _BYBIT_SPOT), [_TOLD["spot"], _TOLD["error"]], ExchangeError),
    "bybit linear trades": Subject(partial(BYBIT.read_trades, _BYBIT_LINEAR), [_TOLD["linear"], _TOLD["error"]], ExchangeError),
    "bybit minutes": Subject(partial(BYBIT.read_candles, _BYBIT_LINEAR), [_TOLD["minutes"], _TOLD["error"]], ExchangeError),
    "bybit listings": Subject(partial(BYBIT.read_listings, "linear"), [_TOLD["listings"], _TOLD["error"]], ExchangeError),
}


def hostile_body(chance: random.Random, valid: Sequence[bytes], trees: Sequence[Any]) -> bytes:
    """Noise, a valid body with bytes changed, or one with values exchanged, repeated or removed; now and then a valid one."""
    kind = chance.random()
    if kind < 0.05:
        return chance.randbytes(chance.randrange(80))
    if kind < 0.35:
        return _scratched(chance, chance.choice(valid))
    tree = deepcopy(chance.choice(trees))
    for _ in range(chance.choice((0, 1, 1, 1, 2, 3))):
        tree = _changed(chance, tree)
    return json.dumps(tree).encode()


def _scratched(chance: random.Random, body: bytes) -> bytes:
    scratched = bytearray(body)
    for _ in range(chance.choice((1, 1, 2, 4))):
        start = chance.randrange(len(scratched) + 1)
        put = chance.choice(_RAW) if chance.random() < 0.1 else chance.randbytes(chance.randrange(4))
        scratched[start : start + chance.choice((0, 1, 1, 8))] = put
    return bytes(scratched[: chance.randrange(len(scratched) + 1)] if chance.random() < 0.2 else scratched)


def _changed(chance: random.Random, node: Any) -> Any:
    """The tree with one thing in it exchanged, repeated or removed."""
    if not isinstance(node, dict | list) or not node or chance.random() < 0.1:
        return _swapped(chance, node)
    key = chance.choice(list(node) if isinstance(node, dict) else range(len(node)))
    fate = chance.random()
    if fate < 0.15:
        del node[key]
    elif fate < 0.25 and isinstance(node, list):
        node.extend([node[key]] * chance.choice((1, 2, 50)))
    else:
        node[key] = _changed(chance, node[key])
    return node


def _swapped(chance: random.Random, value: Any) -> Any:
    """Another value, or the same one as another type."""
    if isinstance(value, str) and chance.random() < 0.3:
        return float(value) if value.replace(".", "", 1).isdecimal() else [value]
    if isinstance(value, int | float) and chance.random() < 0.3:
        return chance.choice((str(value), float(value), -value, value * 1_000, bool(value)))
    return deepcopy(chance.choice(_VALUES))


def _check(found: object) -> None:
    """What was read can be stored, whatever it was read from."""
    found = found.trades if isinstance(found, Trades) else found
    for each in found if isinstance(found, list) else ():
        trade = each.trade if isinstance(each, Aggregate) else each
        if isinstance(trade, Trade):
            assert 0 <= trade.seq < 1 << 63
            if not trade.quantity:
                assert (trade.price, trade.fills) == (0, 0)
                continue
            assert 0 < trade.price < 1 << 63
            assert 0 < trade.quantity < 1 << 63
            assert 0 < trade.fills < 1 << 31


@pytest.mark.parametrize("name", SUBJECTS)
def test_a_decoder_reads_it_or_says_in_one_line_why_not(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    read, valid, error = SUBJECTS[name]
    chance = random.Random(f"{SEED} {name}")
    trees = [json.loads(body) for body in valid]
    refused = 0
    for number in range(TRIED):
        body = hostile_body(chance, valid, trees)
        said = ""
        try:
            _check(read(body))
        except error as caught:
            said = str(caught)
            refused += 1
        except Exception as caught:
            raise AssertionError(f"{name}: body {number} of seed {SEED} raised {caught!r}: {body!r}") from caught
        assert said.isprintable(), (number, body)
        assert len(said) < 400, (number, body)
    assert 0 < refused < TRIED
    with capsys.disabled():
        sys.stdout.write(f"\n{name}: {TRIED:,} hostile bodies (seed {SEED}), {refused:,} refused\n")
