"""The answer of `market_structure`, built from the evidence that it collected. Pure: no I/O.

Ratios and scores have no unit and are rounded to two or three digits; prices, volumes and deltas are exact.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any, Final, NamedTuple

import msgspec

from wadm_mcp.analytics.footprint import Bar, Footprint
from wadm_mcp.analytics.market_structure import trading_range
from wadm_mcp.analytics.market_structure.events import Event
from wadm_mcp.analytics.market_structure.parameters import DEFAULT
from wadm_mcp.analytics.market_structure.profile_shape import ProminentNode, profile_shape
from wadm_mcp.analytics.market_structure.series import CoveredBar, Series
from wadm_mcp.analytics.market_structure.swings import Leg, Pivot, alternating, legs
from wadm_mcp.analytics.market_structure.trading_range import TradingRange
from wadm_mcp.analytics.market_structure.value_migration import SessionValue, naked_pocs, overlap, relation, streak
from wadm_mcp.analytics.market_structure.zones import TakerOrder, fading_edges, stacks
from wadm_mcp.analytics.order_flow import imbalance_ratio
from wadm_mcp.analytics.volume_profile import MAX_ROWS, VolumeProfile, row_count, volume_profile, vwap
from wadm_mcp.coverage.judge import Judgement
from wadm_mcp.model import Instrument, Scale, Timeframe, TradeType, Window
from wadm_mcp.queries.arguments import Detail
from wadm_mcp.queries.coverage import nothing_traded, ratio
from wadm_mcp.queries.figures import table
from wadm_mcp.queries.numbers import Number, decimal_number, iso_minute, iso_ms, number, optional_number
from wadm_mcp.queries.scope import Scope

SWINGS: Final = ("timestamp", "side", "price", "cumulative_delta", "leg_volume", "leg_delta")
EVENTS: Final = ("timestamp", "known_after", "kind", "price", "delta", "volume_z", "range_z", "close_position", "more")
"""`known_after` is the number of bars after its own bar at whose close an event became known; 0 is the close of its own bar."""
EFFORT: Final = ("timestamp", "volume_z", "range_z", "progress_z", "close_position", "delta")
PRIOR: Final = ("session", "poc", "vah", "val", "coverage")
NAKED: Final = ("price", "session", "status")

_COMPARED_LEGS: Final = 3
"""Newest legs of each direction whose volume is compared."""

_DETECTOR_PARAMETERS: Final = {
    "climax": ("climax_volume", "climax_range"),
    "effort": ("effort",),
    "ease": ("effort",),
    "absorbed": ("absorbed_delta", "absorbed_move"),
    "spring": ("back_within",),
    "upthrust": ("back_within",),
    "break": ("break_atr", "break_volume", "break_range"),
    "retest": ("retest",),
    "stacked": ("diagonal", "stacked"),
    "large": ("large",),
}
"""Parameters that the answer states for a detector, by the first word of its event's kind."""
_MINOR_EVENTS: Final = ("effort", "ease", "fading")
"""First words of kinds that only the full detail lists, because they are frequent."""
_RELATION_TEXTS: Final[Mapping[str, str]] = {
    "higher": "above yesterday's",
    "lower": "below yesterday's",
    "inside": "inside yesterday's",
    "outside": "around yesterday's",
    "overlapping_higher": "overlapping yesterday's and higher",
    "overlapping_lower": "overlapping yesterday's and lower",
    "unchanged": "equal to yesterday's",
}
"""How the reading states each relation of the session's value area to the previous one."""
_COMMON_PARAMETERS: Final = ("baseline", "swing", "atr")
_SCORE_COLUMNS: Final = ("volume_z", "range_z", "close_position")


class _Lengths(NamedTuple):
    """The length of each list of an answer, by detail."""

    events: int
    swings: int
    effort: int
    sessions: int
    nodes: int
    naked: int
    minor: bool


_LENGTHS: Final[dict[Detail, _Lengths]] = {
    "brief": _Lengths(3, 0, 0, 0, 0, 1, False),
    "standard": _Lengths(5, 3, 0, 1, 0, 2, False),
    "full": _Lengths(40, 20, 12, 5, 5, 10, True),
}


_MAX_BYTES: Final[dict[Detail, int]] = {"brief": 1_700, "standard": 2_350, "full": 1_000_000}
"""Most bytes of coverage and figures together. They have about 2.5 bytes a token; a standard answer must stay below 1,000 tokens."""


class OutsideVolume(NamedTuple):
    """The trades beyond the edge of a range: their share of the volume of the event's bars, and their delta."""

    share: float
    delta: int


class Levels(NamedTuple):
    """POC and value area of a session, at the evidence's scale."""

    poc: int
    vah: int
    val: int


@dataclass(frozen=True, slots=True)
class Day:
    """One session: its bar, the coverage of each exchange, and its levels (None if there are none)."""

    window: Window
    bar: Bar
    judgements: Sequence[Judgement]
    levels: Levels | None = None

    @property
    def ratio(self) -> Number:
        """Coverage of the exchange with the lowest coverage."""
        return ratio(min(self.judgements, key=lambda one: one.millionths))

    @property
    def complete(self) -> bool:
        """Whether no trade of the session is missing."""
        return all(not judgement.gaps and judgement.basis is not None for judgement in self.judgements)


@dataclass(frozen=True, slots=True)
class Evidence:
    """Everything that an answer is computed from. Integers are at `scale`.

    `footprint` has the trades of `session`, the open session, in rows, and `deviation` is that of their prices. `days` are the consecutive
    sessions before it. `outside` belongs to `events`, one for each. `inside` are the newest closed bars by start, in rows. `large` is None
    if the large orders are not known.
    """

    scope: Scope
    timeframe: Timeframe
    scale: Scale
    tick: int
    row: int | None
    covered_bars: Sequence[CoveredBar]
    series: Series
    pivots: Sequence[Pivot]
    events: Sequence[Event]
    outside: Sequence[OutsideVolume | None]
    inside: Sequence[tuple[int, Footprint]]
    large: Sequence[tuple[Instrument, TakerOrder]] | None
    footprint: Footprint
    deviation: Decimal | None
    session: Day
    days: Sequence[Day]
    last_hour: Bar

    def price(self, value: int | None) -> Number | None:
        """A price as a JSON number."""
        return optional_number(value, self.scale.price)

    def quantity(self, value: int | None) -> Number | None:
        """A volume or a delta as a JSON number."""
        return optional_number(value, self.scale.quantity)


def structure_answer(evidence: Evidence, covered: Mapping[str, Any], detail: Detail) -> dict[str, Any]:
    """The answer without its heading (coverage, instrument, window)."""
    lengths = _LENGTHS[detail]
    day, profile = evidence.footprint, _profile(evidence)
    session = evidence.session if profile is None else replace(evidence.session, levels=Levels(profile.poc, profile.vah, profile.val))
    values = [_value(evidence, one) for one in (*evidence.days, session)]
    current_range = trading_range.range_before(evidence.series, evidence.pivots, len(evidence.series))
    answer: dict[str, Any] = {
        "bars": _bars(evidence),
        "session": _session(evidence, day),
        "profile": _profile_answer(evidence, profile, lengths),
        "value": _migration(evidence, values, lengths),
        "flow": _flow(evidence, day.bar),
        "range": None if current_range is None else _range(evidence, current_range, day.bar.close),
        **_lists(evidence, lengths),
    }
    answer["reading"] = _reading(evidence, profile, covered, answer)
    _shorten(answer["events"], len(msgspec.json.encode((covered, answer))) - _MAX_BYTES[detail])
    return answer


def _bars(evidence: Evidence) -> dict[str, Any]:
    return {
        "timeframe": evidence.timeframe.value,
        "usable": sum(one.covered >= DEFAULT.usable for one in evidence.covered_bars),
        "of": len(evidence.covered_bars),
    }


def _session(evidence: Evidence, day: Footprint) -> dict[str, Any]:
    bar = day.bar
    return {
        **{name: evidence.price(getattr(bar, name)) for name in ("open", "high", "low")},
        "last": evidence.price(bar.close),
        "vwap": decimal_number(vwap(bar)),
        "deviation": decimal_number(evidence.deviation),
        "volume": evidence.quantity(bar.volume),
        "trade_count": bar.trade_count,
    }


def levels(footprint: Footprint, tick: int, row: int) -> Levels:
    """POC and value area of a footprint with trades."""
    profile = volume_profile(footprint, tick=tick, row=row)
    assert profile is not None
    return Levels(profile.poc, profile.vah, profile.val)


def _profile(evidence: Evidence) -> VolumeProfile | None:
    low, high, row = evidence.footprint.bar.low, evidence.footprint.bar.high, evidence.row
    if low is None or high is None or row is None or row_count(low, high, row) > MAX_ROWS:
        return None
    return volume_profile(evidence.footprint, tick=evidence.tick, row=row)


def _profile_answer(evidence: Evidence, profile: VolumeProfile | None, lengths: _Lengths) -> dict[str, Any]:
    shape = None if profile is None else profile_shape(profile, evidence.footprint.bar)

    def nodes(prominent: Sequence[ProminentNode]) -> list[list[Any]]:
        return [[evidence.price(one.price), _round(one.share, 3)] for one in prominent[: lengths.nodes]]

    listed = {} if shape is None or not lengths.nodes else {"high_nodes": nodes(shape.high_nodes), "low_nodes": nodes(shape.low_nodes)}
    return {
        "row_size": evidence.price(evidence.row),
        **{name: None if profile is None else evidence.price(getattr(profile, name)) for name in ("poc", "vah", "val")},
        "shape": None if shape is None else shape.shape,
        "skew": None if shape is None else _round(shape.skew, 3),
        **listed,
    }


def _value(evidence: Evidence, day: Day) -> SessionValue | None:
    bar = day.bar
    if day.levels is None or evidence.row is None or bar.high is None or bar.low is None or bar.close is None:
        return None
    poc, vah, val = day.levels
    top = poc + evidence.row - evidence.tick
    return SessionValue(day.window.start, poc, top, vah, val, bar.high, bar.low, bar.close, day.complete)


def _migration(evidence: Evidence, values: Sequence[SessionValue | None], lengths: _Lengths) -> dict[str, Any]:
    """The key `value`: the value areas of the sessions compared, and the naked POCs.

    A session without a value area may have traded unseen unless its coverage is complete; the session before it then counts as incomplete,
    so that the POCs up to there get the status `unknown`.
    """
    known: list[SessionValue] = []
    for value, day in zip(values, (*evidence.days, evidence.session), strict=True):
        if value is not None:
            known.append(value)
        elif not day.complete and known:
            known[-1] = known[-1]._replace(complete=False)
    now, before = values[-1], values[-2]
    ratios = {day.window.start: day.ratio for day in evidence.days}
    consecutive: list[SessionValue] = []
    for value in reversed(values):
        if value is None:
            break
        consecutive.insert(0, value)
    rows = [[_date(one.start), *map(evidence.price, (one.poc, one.vah, one.val)), ratios[one.start]] for one in known if one is not now]
    last = known[-1].close if known else 0
    naked = sorted(naked_pocs(known), key=lambda one: abs(one.session.poc - last))
    nearest_first = [[evidence.price(one.session.poc), _date(one.session.start), one.status] for one in naked]
    omitted = {"omitted": len(naked) - lengths.naked} if len(naked) > lengths.naked else {}
    return {
        "relation": relation(now, before) if now is not None and before is not None else None,
        "overlap": _round(overlap(now, before), 3) if now is not None and before is not None else None,
        "poc_shift": evidence.price(now.poc - before.poc) if now is not None and before is not None else None,
        "streak": streak(consecutive) if len(consecutive) > 1 else None,
        "naked_pocs": table(NAKED, nearest_first[: lengths.naked]) | omitted,
        **({"prior": table(PRIOR, rows[-lengths.sessions :])} if lengths.sessions else {}),
    }


def _flow(evidence: Evidence, day: Bar) -> dict[str, Any]:
    high, low = _extremes(evidence)
    hour, scale = evidence.last_hour, evidence.last_hour.scale.quantity
    return {
        "buy_volume": evidence.quantity(day.buy_volume),
        "sell_volume": evidence.quantity(day.sell_volume),
        "delta": evidence.quantity(day.delta),
        "imbalance_ratio": decimal_number(imbalance_ratio(day.buy_volume, day.sell_volume)),
        "cumulative_high": high,
        "cumulative_low": low,
        "last_hour": {"volume": number(hour.volume, scale), "delta": number(hour.delta, scale)},
    }


def _extremes(evidence: Evidence) -> tuple[list[Any] | None, list[Any] | None]:
    """The highest and the lowest cumulative delta of the session's closed bars, each with the start of its bar.

    Extremes inside a bar count where its min and max delta are known. Both are None if a trade of the session's closed bars is missing.
    """
    series, start = evidence.series, evidence.scope.window.start
    first = next((index for index, bar in enumerate(series.bars) if bar.start >= start), len(series))
    if first == len(series) or not series.all_complete(first, len(series) - 1) or series[first].start != start:
        return None, None
    total = 0
    high: tuple[int, int] | None = None
    low: tuple[int, int] | None = None
    for bar in series.bars[first:]:
        up = total + (bar.delta if bar.max_delta is None else bar.max_delta)
        down = total + (bar.delta if bar.min_delta is None else bar.min_delta)
        total += bar.delta
        high = (up, bar.start) if high is None or up > high[0] else high
        low = (down, bar.start) if low is None or down < low[0] else low
    assert high is not None
    assert low is not None
    return [evidence.quantity(high[0]), iso_minute(high[1])], [evidence.quantity(low[0]), iso_minute(low[1])]


def _range(evidence: Evidence, current: TradingRange, last: int | None) -> dict[str, Any]:
    series = evidence.series
    atr = series.atr(len(series))
    return {
        "high": evidence.price(current.high),
        "low": evidence.price(current.low),
        "tests_high": current.tests_high,
        "tests_low": current.tests_low,
        "since": iso_minute(series[current.first_index].start),
        "width_atr": None if atr is None else _round(current.width / atr),
        "position": None if last is None else _round(current.position(last)),
        "drift": _round(trading_range.drift(series, current)),
        "volume_slope": _round(trading_range.volume_slope(series, current), 3),
    }


def _lists(evidence: Evidence, lengths: _Lengths) -> dict[str, Any]:
    found = [*_candidates(evidence), *_inside_bars(evidence), *_large_orders(evidence)]
    found = [event for event in found if lengths.minor or not event.row[2].startswith(_MINOR_EVENTS)]
    found.sort(key=lambda event: event.known_at)
    listed = table(EVENTS, [event.row for event in found], newest=lengths.events)
    kinds = {row[2].split("_")[0] for row in listed["rows"]}
    names = [*_COMMON_PARAMETERS, *(name for kind, own in _DETECTOR_PARAMETERS.items() if kind in kinds for name in own)]
    all_legs = legs(evidence.series, alternating(evidence.pivots))
    newest = all_legs[-lengths.swings :] if lengths.swings else []
    swings = {**table(SWINGS, [_swing(evidence, leg) for leg in newest]), **_wave_ratio(all_legs)} if lengths.swings else None
    effort = table(EFFORT, list(_effort(evidence, lengths.effort))) if lengths.effort else None
    return {
        **({"swings": swings} if swings is not None else {}),
        "events": listed,
        **({"effort": effort} if effort is not None else {}),
        "parameters": {name: value for name, value in DEFAULT._asdict().items() if name in names},
    }


class _Candidate(NamedTuple):
    """The row of an event, and the market time (ms) at which it became known."""

    known_at: int
    row: list[Any]


def _candidates(evidence: Evidence) -> Iterator[_Candidate]:
    for event, outside in zip(evidence.events, evidence.outside, strict=True):
        scores = [_round(event.figures.get(name)) for name in _SCORE_COLUMNS]
        more: dict[str, Any] = {name: _round(value, 3) for name, value in event.figures.items() if name not in _SCORE_COLUMNS}
        if event.edge is not None:
            more["edge"] = evidence.price(event.edge)
        if outside is not None:
            more |= {
                "outside_share": _round(outside.share, 3),
                "outside_delta": evidence.quantity(outside.delta if event.delta is not None else None),
            }
        at = iso_minute(evidence.series[event.bar_index].start)
        row = [
            at,
            event.known_index - event.bar_index,
            event.kind,
            evidence.price(event.price),
            evidence.quantity(event.delta),
            *scores,
            more,
        ]
        yield _Candidate(evidence.series[event.known_index].end, row)


def _inside_bars(evidence: Evidence) -> Iterator[_Candidate]:
    """Stacked imbalances and fading edges of the newest bars that are complete."""
    complete = {one.start for one in evidence.covered_bars if one.complete}
    if evidence.row is None:
        return
    finest = [(start, footprint.at(evidence.scale)) for start, footprint in evidence.inside]
    for index, (start, footprint) in enumerate(finest):
        low, high = footprint.bar.low, footprint.bar.high
        if start not in complete or low is None or high is None or row_count(low, high, evidence.row) > MAX_ROWS:
            continue
        at, end, delta = iso_minute(start), start + evidence.timeframe.ms, evidence.quantity(footprint.bar.delta)
        later = [one.bar for _, one in finest[index + 1 :]]
        for stack in stacks(footprint, tick=evidence.tick, row=evidence.row):
            top = stack.high + evidence.row - evidence.tick
            more = {"to": evidence.price(top), "rows": stack.rows, "touched": any(_reaches(bar, stack.low, top) for bar in later)}
            yield _Candidate(end, [at, 0, f"stacked_{stack.side}", evidence.price(stack.low), delta, None, None, None, more])
        for side in fading_edges(footprint, tick=evidence.tick, row=evidence.row):
            yield _Candidate(end, [at, 0, f"fading_{side}", evidence.price(high if side == "high" else low), delta, None, None, None, {}])


def _reaches(bar: Bar, low: int, high: int) -> bool:
    return bar.low is not None and bar.high is not None and bar.low <= high and bar.high >= low


def _large_orders(evidence: Evidence) -> Iterator[_Candidate]:
    """The three largest orders."""
    for instrument, order in (evidence.large or ())[:3]:
        prices, quantities = order.scale
        bought = order.side is TradeType.BUY
        more = {"notional": number(order.notional, prices + quantities), "fills": order.fills, "exchange": instrument.exchange}
        delta = number(order.quantity if bought else -order.quantity, quantities)
        kind = "large_buy" if bought else "large_sell"
        yield _Candidate(order.timestamp, [iso_ms(order.timestamp), 0, kind, number(order.price, prices), delta, None, None, None, more])


def _shorten(events: dict[str, Any], excess: int) -> None:
    """Removes the oldest events of an answer that is `excess` bytes too long until it fits. The newest two stay."""
    rows = events["rows"]
    while excess > 0 and len(rows) > 2:
        excess -= len(msgspec.json.encode(rows.pop(0)))
        events["omitted"] = events.get("omitted", 0) + 1


def _swing(evidence: Evidence, leg: Leg) -> list[Any]:
    pivot = leg.pivot
    return [
        iso_minute(evidence.series[pivot.bar_index].start),
        pivot.side,
        evidence.price(pivot.price),
        evidence.quantity(evidence.series.cumulative_delta(pivot.bar_index)),
        evidence.quantity(leg.volume),
        evidence.quantity(leg.delta),
    ]


def _wave_ratio(all_legs: Sequence[Leg]) -> dict[str, Any]:
    """Volume of the newest upward legs divided by that of the newest downward legs, null if one of the volumes is not known."""
    up = [leg.volume for leg in all_legs[1:] if leg.pivot.side == "high"][-_COMPARED_LEGS:]
    down = [leg.volume for leg in all_legs[1:] if leg.pivot.side == "low"][-_COMPARED_LEGS:]
    rising, falling = [one for one in up if one is not None], [one for one in down if one is not None]
    enough = len(rising) == len(falling) == _COMPARED_LEGS and sum(falling) > 0
    return {"up_to_down_volume": _round(sum(rising) / sum(falling)) if enough else None}


def _effort(evidence: Evidence, count: int) -> Iterator[list[Any]]:
    series = evidence.series
    for index in range(max(0, len(series) - count), len(series)):
        bar = series[index]
        scores = (series.volume_z(index), series.range_z(index), series.progress_z(index), bar.close_position)
        yield [iso_minute(bar.start), *map(_round, scores), evidence.quantity(bar.delta if bar.complete else None)]


def _reading(evidence: Evidence, profile: VolumeProfile | None, covered: Mapping[str, Any], answer: Mapping[str, Any]) -> str:
    session, events = answer["session"], answer["events"]
    if session["last"] is None:
        return nothing_traded(evidence.scope, covered)
    count = len(events["rows"]) + events.get("omitted", 0)
    relation = answer["value"]["relation"]
    migration = f" ({_RELATION_TEXTS[relation]})" if relation else ""
    where = _against_value(evidence, profile)
    return f"Last {session['last']}, {where}{migration}, {count} event candidates; coverage {covered['ratio']}."


def _against_value(evidence: Evidence, profile: VolumeProfile | None) -> str:
    """The position of the last price relative to the value area, as a part of the reading."""
    last = evidence.footprint.bar.close
    if profile is None or last is None:
        return "no value area"
    where = "above" if last > profile.vah else "below" if last < profile.val else "inside"
    return f"{where} the value area"


def _date(timestamp: int) -> str:
    return iso_minute(timestamp)[:10]


def _round(value: float | None, digits: int = 2) -> float | None:
    rounded = None if value is None else round(value, digits)
    return int(rounded) if rounded is not None and rounded == int(rounded) else rounded
