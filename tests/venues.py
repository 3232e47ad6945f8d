"""Venues for tests: a market of an exchange, its base URLs on the loopback."""

from __future__ import annotations

from wadm_mcp.exchanges.exchange import Exchange, Venue
from wadm_mcp.settings import read_settings
from wadm_mcp.simulator.simulator import Simulator

NOWHERE = "http://127.0.0.1:1"
"""A base URL that refuses every connection."""


def simulated_venue(simulator: Simulator, exchange: str, market: str) -> Venue:
    """A market of the simulator."""
    urls = {f"WADM_{name.upper()}": url for name, url in simulator.urls.items()}
    return read_settings({}, overrides=urls).venue(exchange, market)


def venue(exchange: Exchange, market: str, *, socket_url: str = NOWHERE, rest_url: str = NOWHERE, archive_url: str = NOWHERE) -> Venue:
    """A market whose other base URLs lead nowhere."""
    return Venue(exchange, market, socket_url, rest_url, archive_url)
