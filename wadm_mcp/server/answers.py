"""The schema of each answer. `tools/list` publishes it, and every answer is validated against it before it is sent.

Scalars are typed strictly, rows loosely: typed rows would cost a client milliseconds to validate. `columns` names what a row contains.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, TypeAlias

from pydantic import BaseModel, Field, StrictFloat, StrictInt, StrictStr, WithJsonSchema

Number: TypeAlias = Annotated[StrictInt | StrictFloat | StrictStr | None, WithJsonSchema({"type": ["number", "string", "null"]})]
"""An exact figure: a JSON number, its text beyond 15 digits, null where it cannot be computed."""
Count: TypeAlias = Annotated[StrictInt | None, WithJsonSchema({"type": ["integer", "null"]})]
Text: TypeAlias = Annotated[StrictStr | None, WithJsonSchema({"type": ["string", "null"]})]
Rows: TypeAlias = Annotated[list[Any], WithJsonSchema({"type": "array"})]
Parts: TypeAlias = Annotated[dict[str, Any], WithJsonSchema({"type": "object"})]
Provisional: TypeAlias = Annotated[list[StrictStr], WithJsonSchema({"type": "array"})]
"""Instruments that their exchange has not confirmed yet, so that their tick is unknown; absent for none."""


class _Table(BaseModel):
    """Rows under named columns. `omitted` counts the rows that a limit cut off."""

    columns: list[StrictStr]
    rows: list[Any]
    omitted: StrictInt = 0


class _Span(BaseModel):
    """The window that was used, `[start, end)`."""

    start: StrictStr
    end: StrictStr
    closed: bool


class _Coverage(BaseModel):
    """How much of the window is covered."""

    ratio: Number
    basis: Text
    gaps: Rows
    newest_trade_at: Text
    lag_ms: Count
    broken: list[StrictStr]
    more_gaps: StrictInt = 0
    importing: Parts = Field(default_factory=dict)
    worst: StrictStr = ""
    parts: Parts = Field(default_factory=dict)


class _Anchored(_Coverage):
    anchor: Parts


def _object(words: str = "", *, null: bool = False) -> WithJsonSchema:
    """A schema published as a description alone: the full schema of the shared parts would cost an agent tokens in every tool."""
    return WithJsonSchema({"type": ["object", "null"] if null else "object", **({"description": words} if words else {})})


_READ_FIRST: Final = "read first: below ratio 1 figures in broken are incomplete"
Table: TypeAlias = Annotated[_Table, _object()]
Listed: TypeAlias = Annotated[_Table | None, _object(null=True)]
Span: TypeAlias = Annotated[_Span, _object()]
Coverage: TypeAlias = Annotated[_Coverage, _object(_READ_FIRST)]
Anchored: TypeAlias = Annotated[_Anchored, _object(f"{_READ_FIRST}; anchor since 00:00 UTC")]


class _Answer(BaseModel):
    coverage: Coverage
    instrument: StrictStr
    window: Span
    reading: StrictStr
    provisional: Provisional = Field(default_factory=list)


class Markets(BaseModel):
    store: StrictStr
    markets: Table
    reading: StrictStr
    provisional: Provisional = Field(default_factory=list)


class Tracked(Markets):
    tracked: Rows
    starting: Annotated[Rows, Field(description="not up yet")]


class Untracked(BaseModel):
    untracked: Rows
    kept: StrictStr


class Trades(_Answer):
    trades: Table
    next_cursor: Text


class VolumeProfile(_Answer):
    poc: Number
    vah: Number
    val: Number
    row_size: Number
    method: StrictStr
    volume: Number
    buy_volume: Number
    sell_volume: Number
    delta: Number
    trade_count: Count
    vwap: Number
    nodes: Listed


class OrderFlow(_Answer):
    coverage: Anchored  # pyright: ignore[reportIncompatibleVariableOverride]
    timeframe: StrictStr
    bars: Table


class Footprint(_Answer):
    timeframe: StrictStr
    row_size: Number
    bars: Annotated[Rows, Field(description="{timestamp, open, high, low, close, delta, poc, nodes}")]
    omitted: StrictInt = 0


class _Bars(BaseModel):
    timeframe: StrictStr
    usable: StrictInt
    of: StrictInt


class _Session(BaseModel):
    open: Number
    high: Number
    low: Number
    last: Number
    vwap: Number
    deviation: Number
    volume: Number
    trade_count: StrictInt


class _Shape(BaseModel):
    row_size: Number
    poc: Number
    vah: Number
    val: Number
    shape: Text
    skew: Number
    high_nodes: Rows = Field(default_factory=list)
    low_nodes: Rows = Field(default_factory=list)


class _Value(BaseModel):
    relation: Text
    overlap: Number
    poc_shift: Number
    streak: Count
    naked_pocs: _Table
    prior: _Table | None = None


class _Flow(BaseModel):
    buy_volume: Number
    sell_volume: Number
    delta: Number
    imbalance_ratio: Number
    cumulative_high: list[Any] | None
    cumulative_low: list[Any] | None
    last_hour: Parts


class _Range(BaseModel):
    high: Number
    low: Number
    tests_high: StrictInt
    tests_low: StrictInt
    since: StrictStr
    width_atr: Number
    position: Number
    drift: Number
    volume_slope: Number


class _Swings(_Table):
    up_to_down_volume: Number


class MarketStructure(_Answer):
    bars: Annotated[_Bars, _object("closed bars judged")]
    session: Annotated[_Session, _object("since 00:00 UTC")]
    profile: Annotated[_Shape, _object("of the session")]
    value: Annotated[_Value, _object("against earlier sessions")]
    flow: Annotated[_Flow, _object("of the session")]
    range: Annotated[_Range | None, _object("frozen before the open bar", null=True)]
    swings: Annotated[_Swings | None, _object()] = None
    events: Table
    effort: Annotated[_Table | None, _object()] = None
    parameters: Parts


class Comparison(_Answer):
    timeframe: StrictStr
    venues: Table
    pairs: Listed


class Waited(_Answer):
    condition: StrictStr
    value: Number
    met: bool
    met_at: Text
    waited_s: Number
    price: Number
    timeframe: StrictStr
    bar: Annotated[dict[str, Any] | None, _object("open, high, low, close, volume, delta", null=True)]
