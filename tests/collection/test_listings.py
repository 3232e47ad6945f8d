from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from tests.market import SPOT, listing
from tests.venues import simulated_venue
from wadm_mcp.clock import SYSTEM_CLOCK, now_ms
from wadm_mcp.collection import listings as listings_module
from wadm_mcp.collection.listings import Listings, LookUp
from wadm_mcp.collection.rest.client import RestClient
from wadm_mcp.errors import ExchangeError
from wadm_mcp.exchanges.exchange import Venue
from wadm_mcp.health import Health
from wadm_mcp.model import Instrument, Listing
from wadm_mcp.simulator.chaos import Chaos
from wadm_mcp.simulator.fault_plan import Fault, Kind
from wadm_mcp.simulator.simulator import Simulator
from wadm_mcp.storage.sqlite import SqliteStore

pytestmark = pytest.mark.anyio

PAUSE = 0.5


@asynccontextmanager
async def exchanges(folder: Path, monkeypatch: pytest.MonkeyPatch, *faults: Fault) -> AsyncGenerator[tuple[Simulator, Listings, Chaos]]:
    monkeypatch.setattr(listings_module, "_HOST_PAUSE_SECONDS", PAUSE)
    chaos = Chaos(faults)
    async with Simulator(manual=True, faults=chaos) as simulator, SqliteStore(folder / "wadm.sqlite") as store, RestClient() as rest:
        chaos.begin()
        yield simulator, Listings(store, rest, Health(now_ms), SYSTEM_CLOCK), chaos


def moments(chaos: Chaos, exchange: str) -> list[float]:
    """When the lists of an exchange were requested, without the further lists of one reading."""
    found: list[float] = []
    for at, name, _, _ in chaos.requests:
        if name == exchange and (not found or at - found[-1] > PAUSE / 2):
            found.append(at)
    return found


async def test_lists_of_one_host_are_read_again_one_after_the_other_and_those_of_another_host_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with exchanges(tmp_path, monkeypatch) as (simulator, listings, chaos):
        bybit = [simulated_venue(simulator, "bybit", market) for market in ("spot", "linear")]
        binance = simulated_venue(simulator, "binance", "spot")
        began: list[str] = []

        async def read(venue: Venue) -> None:
            assert "BTCUSDT" in (await listings.read_again(venue, lambda: began.append(venue.name))).listed

        async with anyio.create_task_group() as tasks:
            for venue in (*bybit, binance, binance):
                tasks.start_soon(read, venue)
        assert sorted(began) == ["binance spot", "binance spot", "bybit linear", "bybit spot"]
        for exchange in ("bybit", "binance"):
            first, second = moments(chaos, exchange)
            assert second - first >= PAUSE * 0.9
        assert all(listings.read_at(venue) is not None for venue in (*bybit, binance))


async def test_a_host_that_fails_is_left_alone_for_as_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with exchanges(tmp_path, monkeypatch, Fault(Kind.ERROR, 0.0, 60.0, "binance", "spot")) as (simulator, listings, chaos):
        venue = simulated_venue(simulator, "binance", "spot")
        for _ in range(2):
            with pytest.raises(ExchangeError, match="503"):
                await listings.read_again(venue, lambda: None)
        first, second = moments(chaos, "binance")
        assert second - first >= PAUSE * 0.9
        assert listings.read_at(venue) is None


async def test_a_list_without_a_symbol_is_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with exchanges(tmp_path, monkeypatch) as (simulator, listings, _):
        for instrument in simulator.instruments:
            if instrument[:2] == ("binance", "spot"):
                simulator.set_status(*instrument, "")
        with pytest.raises(ExchangeError, match="empty list"):
            await listings.read_again(simulated_venue(simulator, "binance", "spot"), lambda: None)
        simulator.set_status("binance", "spot", "BTCUSDT", "BREAK")
        found = (await listings.read_again(simulated_venue(simulator, "binance", "spot"), lambda: None)).listed
        assert {symbol: one.status for symbol, one in found.items()} == {"BTCUSDT": "BREAK"}
        assert found["BTCUSDT"].instrument == Instrument("binance", "spot", "BTCUSDT")


async def test_a_start_that_gets_an_empty_list_uses_other_listings_until_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listings_module, "_FIRST_PAUSE_SECONDS", 0.1)
    corrections: list[LookUp] = []
    corrected = anyio.Event()

    async def correct(found: LookUp) -> None:
        corrections.append(found)
        corrected.set()

    async with exchanges(tmp_path, monkeypatch) as (simulator, listings, _), anyio.create_task_group() as tasks:
        every = [one for one in simulator.instruments if one[:2] == ("binance", "spot")]
        for instrument in every:
            simulator.set_status(*instrument, "")
        found = await listings.look_up(simulated_venue(simulator, "binance", "spot"), ["BTCUSDT"], tasks, correct)
        assert not found.confirmed
        assert found.listed["BTCUSDT"].provisional
        simulator.set_status("binance", "spot", "BTCUSDT", None)
        with anyio.fail_after(10):
            await corrected.wait()
        assert corrections[0].listed["BTCUSDT"].tick
        tasks.cancel_scope.cancel()


async def test_the_placeholder_of_an_unlisted_symbol_replaces_no_listing_that_was_confirmed(tmp_path: Path) -> None:
    other = Instrument("binance", "spot", "ETHUSDT")
    async with SqliteStore(tmp_path / "wadm.sqlite") as store, RestClient() as rest:
        listings = Listings(store, rest, Health(now_ms), SYSTEM_CLOCK)
        await listings.save([listing(SPOT), Listing.unconfirmed(other)])
        await listings.save([Listing.none(SPOT), Listing.none(other)])
        stored = {one.instrument: one for one in await store.listings()}
        assert stored == {SPOT: listing(SPOT), other: Listing.none(other)}


async def test_a_provisional_listing_that_is_being_stored_does_not_replace_the_real_one_stored_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with SqliteStore(tmp_path / "wadm.sqlite") as store, RestClient() as rest:
        listings, reading = Listings(store, rest, Health(now_ms), SYSTEM_CLOCK), anyio.Event()
        read_stored = store.listings

        async def slowly() -> list[Listing]:
            stored = list(await read_stored())
            reading.set()
            # For as long as the other one may take to be stored.
            with anyio.move_on_after(0.3):
                await anyio.sleep_forever()
            return stored

        monkeypatch.setattr(store, "listings", slowly)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(listings.save, [Listing.unconfirmed(SPOT)])
            await reading.wait()
            tasks.start_soon(listings.save, [listing(SPOT)])
        assert await read_stored() == [listing(SPOT)]
