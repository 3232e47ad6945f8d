"""Retention is lowered and raised again and again: what answers claim is compared with a ledger of everything that was traded."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tests.market import NOON, ManualClock, trade
from tests.recording import recording
from wadm_mcp.coverage.spans import GapReason
from wadm_mcp.model import HOUR, MINUTE, SECOND, Retention, Trade
from wadm_mcp.queries.numbers import iso
from wadm_mcp.queries.order_flow import order_flow
from wadm_mcp.queries.trades import trades
from wadm_mcp.queries.view import View
from wadm_mcp.queries.volume_profile import volume_profile
from wadm_mcp.storage.sqlite import SqliteStore

pytestmark = pytest.mark.anyio

RECORDED = 5 * HOUR
EVERY = 20 * SECOND


def volume(ledger: list[Trade], start: int, end: int) -> Decimal:
    return sum((Decimal(each.quantity) / 10**each.scale.quantity for each in ledger if start <= each.timestamp < end), Decimal(0))


async def asked(view: View, question: Any, start: int, end: int, **how: object) -> dict[str, Any]:
    return await question(view.reading(), symbol="BTCUSDT", exchange="binance", market="spot", start=iso(start), end=iso(end), **how)


def only_expired(answer: dict[str, Any]) -> bool:
    """True if the answer claims its whole window; else every gap must have expired."""
    gaps = answer["coverage"]["gaps"]
    assert {gap[3] for gap in gaps} <= {GapReason.EXPIRED.value}, gaps
    return not gaps


@pytest.mark.parametrize("seed", [1, 2])
async def test_no_window_is_claimed_whose_data_expired_whatever_the_retention_is_now(tmp_path: Path, seed: int) -> None:
    random, clock = Random(seed), ManualClock()
    ledger = [trade(seq, NOON + seq * EVERY, quantity=seq % 7 + 1) for seq in range(1, RECORDED // EVERY)]
    async with recording(tmp_path, clock) as r:
        for each in ledger:
            clock.at = each.timestamp
            await r.trade(each)
            if not each.seq % 60:
                await r.write()
        clock.pass_seconds(10)
        await r.write()
    first, now = NOON + EVERY // MINUTE * MINUTE + MINUTE, (ledger[-1].timestamp) // MINUTE * MINUTE
    claimed = 0
    for _ in range(10):
        retention = Retention(*(random.randrange(30 * MINUTE, 6 * HOUR, SECOND) for _ in range(3)))
        async with SqliteStore(tmp_path / "wadm.sqlite") as store:
            while await store.expire(clock.now(), retention):
                pass
        retention = Retention(*(random.choice([length, 400 * 24 * HOUR]) for length in retention))
        async with SqliteStore(tmp_path / "wadm.sqlite") as store:
            view = View(store, r.tape, clock.now, ("spot",), ("binance",), retention)
            for _ in range(12):
                start, end = sorted(random.sample(range(first, now + 1, MINUTE), 2))
                profile = await asked(view, volume_profile, start, end)
                if only_expired(profile):
                    claimed += 1
                    assert Decimal(str(profile["volume"])) == volume(ledger, start, end)
                bars = await asked(view, order_flow, start, end, timeframe=random.choice(["5m", "1h"]))
                if only_expired(bars):
                    claimed += 1
                    assert sum(Decimal(str(row[5])) for row in bars["bars"]["rows"]) == volume(ledger, start, end)
                rows = await asked(view, trades, start, min(end, start + 30 * MINUTE), limit=500)
                if only_expired(rows):
                    claimed += 1
                    expected = [each for each in ledger if start <= each.timestamp < min(end, start + 30 * MINUTE)]
                    assert len(rows["trades"]["rows"]) == len(expected)
    assert claimed > 5
