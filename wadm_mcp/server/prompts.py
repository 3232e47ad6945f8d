"""The prompts: which questions to ask in which order, and the rules for a report written from the answers. `prompt_texts` has the texts
in each language."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta
from typing import Annotated, Any, Final

from mcp.server.mcpserver import MCPServer
from pydantic import Field

from wadm_mcp.analytics.order_flow import session_start
from wadm_mcp.errors import QueryError
from wadm_mcp.exchanges.registry import exchange_names
from wadm_mcp.model import MARKETS, SECOND
from wadm_mcp.queries.arguments import Call, read_place, read_symbol, read_window, shown
from wadm_mcp.queries.numbers import iso, iso_minute
from wadm_mcp.queries.scope import DEFAULT_WINDOW, about_asked, ask
from wadm_mcp.queries.view import View
from wadm_mcp.server.prompt_texts import COMPARE_VENUES, SESSION_REVIEW, WAICKOFF_REPORT
from wadm_mcp.suggest import plain

LANGUAGES: Final = {"en": "en", "english": "en", "inglés": "en", "es": "es", "spanish": "es", "español": "es"}

_Symbol = Annotated[str, Field(description="a followed symbol, e.g. BTCUSDT")]
_Window = Annotated[str, Field(description="15m, 1h, 4h, 24h, 7d or session")]
_Exchange = Annotated[str, Field(description=f"{', '.join(exchange_names())} or all; default: all, merged")]
_Market = Annotated[str, Field(description="spot or linear; default: the first market followed")]
_Language = Annotated[str, Field(description="en or es: the language of the report")]


def declare(server: MCPServer[Any], view: View) -> None:
    """Register the prompts."""

    @server.prompt(title="waickoff report")
    async def waickoff_report(
        symbol: _Symbol, window: _Window = "24h", exchange: _Exchange = "", market: _Market = "", language: _Language = "en"
    ) -> str:
        """A Wyckoff-style report on one symbol: coverage, facts, judgement, scenarios with their invalidation."""
        return _filled(WAICKOFF_REPORT, _about(view, "waickoff_report", symbol, exchange, market), language, window=window)

    @server.prompt(title="Session review")
    async def session_review(
        symbol: _Symbol,
        session: Annotated[str, Field(description="YYYY-MM-DD, a day in UTC; default: today so far")] = "",
        exchange: _Exchange = "",
        market: _Market = "",
        language: _Language = "en",
    ) -> str:
        """What one session did: where value went, who was aggressive, what the events led to within the session."""
        closed = session if session and _end_of(session) <= view.clock() else ""
        return _filled(SESSION_REVIEW, _about(view, "session_review", symbol, exchange, market), language, session=closed)

    @server.prompt(title="Compare venues")
    async def compare_venues(symbol: _Symbol, window: _Window = "4h", language: _Language = "en") -> str:
        """Spot against perpetuals, exchange against exchange: who trades, who is aggressive, who moves first, at what basis."""
        return _filled(COMPARE_VENUES, {"symbol": _about(view, "compare_venues", symbol)["symbol"]}, language, window=window)


def check(name: str, arguments: dict[str, str], view: View) -> None:
    """Check the values of a prompt's arguments. `QueryError` for an invalid one."""
    about = _about(view, name, arguments["symbol"], arguments.get("exchange", ""), arguments.get("market", ""))
    call = Call(name, tuple(about.items()))
    if arguments.get("window", "").strip():
        read_window(call, arguments["window"], DEFAULT_WINDOW)
    if "language" in arguments:
        _language(call, arguments["language"])
    day = arguments.get("session", "")
    if name == "session_review" and day and not _is_day(day):
        raise call.refuse("session", day, "a day as YYYY-MM-DD is needed", session=iso(session_start(view.clock()))[:10])


def _about(view: View, name: str, symbol: str, exchange: str = "", market: str = "") -> dict[str, str]:
    """Symbol, and exchange and market where they are said, as arguments of calls. `QueryError` for what those calls would refuse."""
    call = about_asked(view, ask(view, name), symbol)
    followed = {plain(listing.instrument.symbol) for listing in view.listings}
    named = read_symbol(call, symbol, sorted(followed), followed.__contains__)
    asked = read_place(call, exchange or None, market or None, MARKETS)
    problem = named.problem or ("" if named.symbol else "it has no letter or digit, or more than 100 characters")
    if problem:
        raise QueryError(f"symbol {shown(symbol)}: {problem}. Try {call.example()}")
    if clash := asked.contradiction(named):
        raise QueryError(f"symbol={shown(symbol)} with {clash}. Try {call.about(named.symbol).example()}")
    place = asked.completed_by(named)._asdict()
    return {"symbol": named.symbol, **{name: value for name, value in place.items() if value is not None}}


def _filled(texts: dict[str, str], about: dict[str, str], language: str, *, window: str = "", session: str = "") -> str:
    spoken = LANGUAGES[language.strip().lower()]
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


def _language(call: Call, given: str) -> str:
    spoken = LANGUAGES.get(given.strip().lower())
    if spoken is None:
        raise call.refuse("language", given, "allowed are en, es", language="es")
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
