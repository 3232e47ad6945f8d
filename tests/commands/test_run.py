from __future__ import annotations

import pytest

from wadm_mcp.cli import _parser
from wadm_mcp.commands.audit import Choice
from wadm_mcp.commands.run import _choice
from wadm_mcp.errors import SettingError


def choice(*arguments: str) -> Choice:
    return _choice(_parser().parse_args(["audit", *arguments]))


@pytest.mark.parametrize(
    ("arguments", "chosen"),
    [
        ((), (None, None, None)),
        (("--symbol", "btcusdt"), (None, None, "BTCUSDT")),
        (("--symbol", "BTC/USDT:USDT"), (None, "linear", "BTCUSDT")),
        (("--symbol", "binance:spot:BTCUSDT", "--market", "spot"), ("binance", "spot", "BTCUSDT")),
        (("--symbol", "BTCUSDT.P", "--exchange", "bybit"), ("bybit", "linear", "BTCUSDT")),
        (("--symbol", "BTCPERP"), (None, None, "BTCPERP")),
        (("--symbol", "bybit:linear:BTCPERP"), ("bybit", "linear", "BTCPERP")),
    ],
)
def test_a_symbol_on_the_command_line_is_read_as_in_questions(arguments: tuple[str, ...], chosen: tuple[str | None, ...]) -> None:
    assert choice(*arguments)[:3] == chosen


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--symbol", "..."), "--symbol ...: the name of a symbol is needed, such as BTCUSDT"),
        (
            ("--symbol", "binance:spot:BTCUSDT", "--exchange", "bybit"),
            '--symbol binance:spot:BTCUSDT with --exchange="bybit": the symbol names binance. Give one of them',
        ),
        (
            ("--symbol", "BTCUSDT_270326"),
            "--symbol BTCUSDT_270326: it names a contract with a delivery date, and WADM records spot and perpetuals",
        ),
    ],
)
def test_a_symbol_that_cannot_be_meant_is_refused(arguments: tuple[str, ...], said: str) -> None:
    with pytest.raises(SettingError) as refused:
        choice(*arguments)
    assert str(refused.value) == said
