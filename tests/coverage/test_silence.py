"""The limit of silence against markets of every pace: made-up, simulated and recorded ones."""

from __future__ import annotations

import gzip
import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from random import Random

import msgspec
import pytest

from tests.market import BYBIT, NOON, trade
from wadm_mcp.coverage.by_connection import ConnectionCoverage
from wadm_mcp.coverage.silence import SHORTEST_SILENCE, SilenceLimit
from wadm_mcp.coverage.spans import GapReason, SpanReason
from wadm_mcp.model import HOUR, MINUTE, SECOND
from wadm_mcp.simulator.market import Market

RATES = (1 / 3_600, 1 / 300, 1 / 20, 1 / 2, 2.0, 12.0, 75.0)
"""Trades a second, from one an hour on."""


def random_times(rate: float, count: int, seed: int, since: int = NOON) -> list[int]:
    """Times of trades at random moments, with this many a second on average."""
    dice = Random(f"{seed}:{rate}")
    return [round(at) for at in accumulate((dice.expovariate(rate) * SECOND for _ in range(count)), initial=since)]


def learned(times: Iterable[int]) -> SilenceLimit:
    limit = SilenceLimit()
    limit.learn_all(times)
    return limit


def suspects(limit: SilenceLimit, times: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Pauses that are longer than the limit before them, with the limit. Only the others are learned, as without proof."""
    for since, until in pairwise(times):
        if until - since > limit.ms:
            yield until - since, limit.ms
        else:
            limit.learn(since, until)


def test_an_instrument_that_trades_75_times_a_second_may_be_silent_for_three_seconds() -> None:
    assert learned(random_times(75, 5_000, seed=1)).ms == SHORTEST_SILENCE


def test_an_instrument_that_trades_once_an_hour_may_be_silent_for_half_a_day() -> None:
    assert 8 * HOUR < learned(random_times(1 / 3_600, 60, seed=1)).ms < 24 * HOUR


def test_the_pace_is_unknown_until_more_than_ten_pauses_were_seen() -> None:
    limit = SilenceLimit(unknown=30 * SECOND)
    for number in range(11):
        assert not limit.known
        assert limit.ms == 30 * SECOND
        limit.learn(NOON + 100 * number, NOON + 100 * number + 100)
    assert limit.known
    assert limit.ms == SHORTEST_SILENCE


def test_bursts_do_not_shorten_the_limit() -> None:
    starts = random_times(0.2, 400, seed=1)
    with_bursts = sorted({at + 7 * place for at in starts for place in range(30)})
    assert 0.8 < learned(with_bursts).ms / learned(starts).ms < 1.25


def test_a_halt_of_hours_leaves_the_limit_of_a_busy_instrument_short() -> None:
    before = random_times(20, 20_000, seed=1)
    after = random_times(20, 20_000, seed=2, since=before[-1] + 5 * HOUR)
    limit = learned(before)
    limit.learn(before[-1], after[0])
    assert limit.ms < 10 * SECOND
    limit.learn_all(after)
    assert limit.ms < 4 * SECOND


def test_the_limit_follows_a_market_that_slows_down_within_a_few_proven_pauses() -> None:
    limit = learned(random_times(20, 20_000, seed=1))
    slow = random_times(1 / 60, 40, seed=2, since=NOON + HOUR)
    limit.learn_all(slow)
    assert limit.ms > 5 * MINUTE


def test_the_limit_follows_a_market_that_slows_down_without_any_proof() -> None:
    """Suspect pauses are not learned; what was learned before them fades, and the shorter ones raise the limit."""
    limit = learned(random_times(20, 20_000, seed=1))
    found = [place for place, _ in enumerate(suspects(limit, random_times(1 / 20, 2_000, seed=2, since=NOON + HOUR)))]
    assert len(found) < 250
    assert limit.ms > 2 * MINUTE


def test_the_limit_follows_a_market_that_speeds_up() -> None:
    limit = learned(random_times(1 / 10, 500, seed=1))
    assert limit.ms > MINUTE
    limit.learn_all(random_times(30, 60 * 60 * 30, seed=2, since=NOON + 5_000 * SECOND))
    assert limit.ms < 10 * SECOND


@pytest.mark.parametrize("rate", RATES)
def test_no_pause_of_thirty_thousand_is_suspect_at_any_pace(rate: float) -> None:
    times = random_times(rate, 30_000, seed=3)
    assert not list(suspects(learned(times[:61]), times[60:]))


@pytest.mark.parametrize("symbol", ["BTCUSDT", "ETHUSDT", "LTCUSDT"])
@pytest.mark.parametrize("market", ["spot", "linear"])
def test_two_hours_of_the_simulated_market_have_no_gap(market: str, symbol: str) -> None:
    source = Market("bybit", market, symbol, seed=4)
    times = [fill.time for minute in range(NOON - HOUR, NOON + HOUR, MINUTE) for fill in source.trades(minute)]
    coverage = covered(times, listed=60 if market == "spot" else 1_000)
    assert coverage.missing() == []
    # One list of newest trades proves each pause that is suspect and real.
    assert sum(span.opened_by is GapReason.SILENCE for span in coverage.spans if span.reason is SpanReason.LIVE) <= 2


RECORDINGS = (
    ("binance-spot/btcusdt_20240808.gz", "binance-spot/btcusdt_20240809.gz"),
    ("binance-spot/btcusdt_20230405.dat.gz",),
    ("binance-linear/btcusdt_20230404.dat.gz", "binance-linear/btcusdt_20230405.dat.gz"),
)


@pytest.mark.parametrize("files", RECORDINGS)
def test_at_most_one_pause_of_a_recording_is_suspect_and_that_one_is_proven(captures: Path, files: tuple[str, ...]) -> None:
    times = sorted(at for file in files for at in recorded_times(captures / file))
    limit = learned(times[:61])
    assert len(list(suspects(limit, times[60:]))) <= 1
    assert limit.ms < 6 * SECOND
    assert covered(times, listed=1_000).missing() == []


def covered(times: Sequence[int], *, listed: int) -> ConnectionCoverage:
    """The coverage after one connection delivered all but the first of these trades. REST returns the newest ones a quarter of a second
    after a gap opened."""
    trades = [trade(number, at, instrument=BYBIT) for number, at in enumerate(times)]
    coverage, breaks, due = ConnectionCoverage(), 0, math.inf
    for place, each in enumerate(trades):
        if place < listed // 2:
            continue
        if each.timestamp >= due:
            assert coverage.prove(trades[max(0, place - listed) : place])
            breaks, due = coverage.breaks, math.inf
        coverage.frame_received(1, each.timestamp)
        coverage.take(each)
        if coverage.breaks != breaks:
            breaks, due = coverage.breaks, each.timestamp + SECOND // 4
    return coverage


def recorded_times(path: Path) -> Iterator[int]:
    """Times of the trades in a recording; each line is the time it was received and a frame."""
    with gzip.open(path, "rt") as lines:
        for line in lines:
            if '@trade"' in line:
                yield msgspec.json.decode(line.partition(" ")[2])["data"]["T"]
