"""The prompts: which questions to ask in which order, and the rules for a report written from the answers. `prompt_texts` has the texts
in each language."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta
from typing import Annotated, Any, Final

from mcp.server.mcpserver import MCPServer
from pydantic import Field

from wadm_mcp.errors import QueryError
from wadm_mcp.model import SECOND
from wadm_mcp.queries.arguments import shown
from wadm_mcp.queries.numbers import iso_minute
from wadm_mcp.server.prompt_texts import COMPARE_VENUES, SESSION_REVIEW, WAICKOFF_REPORT

LANGUAGES: Final = {"en": "en", "english": "en", "inglés": "en", "es": "es", "spanish": "es", "español": "es"}

_Symbol = Annotated[str, Field(description="a followed symbol, e.g. BTCUSDT")]
_Window = Annotated[str, Field(description="15m, 1h, 4h, 24h, 7d or session")]
_Exchange = Annotated[str, Field(description="binance, bybit or all; default: all, merged")]
_Market = Annotated[str, Field(description="spot or linear; default: the first market followed")]
_Language = Annotated[str, Field(description="en or es: the language of the report")]


def declare(server: MCPServer[Any], clock: Callable[[], int]) -> None:
    """Register the prompts."""

    @server.prompt(title="waickoff report")
    async def waickoff_report(
        symbol: _Symbol, window: _Window = "24h", exchange: _Exchange = "", market: _Market = "", language: _Language = "en"
    ) -> str:
        """A Wyckoff-style report on one symbol: coverage, facts, judgement, scenarios with their invalidation."""
        return _filled(WAICKOFF_REPORT, symbol, exchange, market, language, window=window)

    @server.prompt(title="Session review")
    async def session_review(
        symbol: _Symbol,
        session: Annotated[str, Field(description="YYYY-MM-DD, a day in UTC; default: today so far")] = "",
        exchange: _Exchange = "",
        market: _Market = "",
        language: _Language = "en",
    ) -> str:
        """What one session did: where value went, who was aggressive, what the events led to within the session."""
        closed = session if session and _end_of(session) <= clock() else ""
        return _filled(SESSION_REVIEW, symbol, exchange, market, language, session=closed)

    @server.prompt(title="Compare venues")
    async def compare_venues(symbol: _Symbol, window: _Window = "4h", language: _Language = "en") -> str:
        """Spot against perpetuals, Binance against Bybit: who trades, who is aggressive, who moves first, at what basis."""
        return _filled(COMPARE_VENUES, symbol, "", "", language, window=window)


def check(name: str, arguments: dict[str, str]) -> None:
    """Check the values of a prompt's arguments. `QueryError` for an invalid one."""
    if "language" in arguments:
        _language(name, arguments["language"])
    day = arguments.get("session", "")
    if name == "session_review" and day and not _is_day(day):
        raise QueryError(f'session={shown(day)}: a day as YYYY-MM-DD is needed. Try session_review(symbol="BTCUSDT", session="2026-06-01")')


def _filled(texts: dict[str, str], symbol: str, exchange: str, market: str, language: str, *, window: str = "", session: str = "") -> str:
    where = {"exchange": exchange, "market": market}
    about = {"symbol": symbol.strip().upper(), **{name: value for name, value in where.items() if value}}
    spoken = _language("waickoff_report", language)
    after = iso_minute(_end_of(session)) if session else ""
    ends = {"as_of": after} if session else {}
    stretch = {"start": f"{session}T00:00Z", "end": after} if session else {"window": window or "session"}
    return texts[spoken].format(
        symbol=about["symbol"],
        window=window,
        session=session or {"en": "today so far", "es": "de hoy hasta ahora"}[spoken],
        about=_arguments(about),
        structure=_arguments({**about, **ends}),
        stretch=_arguments({**about, **stretch}),
        compared=_arguments({"symbol": about["symbol"], **stretch}),
    )


def _arguments(values: dict[str, str]) -> str:
    return ", ".join(f'{name}="{value}"' for name, value in values.items())


def _language(name: str, given: str) -> str:
    spoken = LANGUAGES.get(given.strip().lower())
    if spoken is None:
        raise QueryError(f'language={shown(given)}: allowed are en, es. Try {name}(symbol="BTCUSDT", language="es")')
    return spoken


def _end_of(day: str) -> int:
    """The end of a day in UTC (ms)."""
    start = datetime.combine(date.fromisoformat(day), time(), UTC)
    return round((start + timedelta(1)).timestamp() * SECOND)


def _is_day(text: str) -> bool:
    try:
        day = date.fromisoformat(text)
    except ValueError:
        return False
    return day.isoformat() == text and 2000 <= day.year < 2100
