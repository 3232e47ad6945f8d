"""The shape of each answer, as `tools/list` publishes it and every answer is checked against before it leaves.

Scalars are typed strictly, rows loosely: a typed row costs a client milliseconds to check. What rows hold is said by their `columns`.
"""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias

from pydantic import BaseModel, Field, StrictFloat, StrictInt, StrictStr, WithJsonSchema

Number: TypeAlias = Annotated[StrictInt | StrictFloat | StrictStr | None, WithJsonSchema({"type": ["number", "string", "null"]})]
"""An exact figure: a JSON number, its text beyond 15 digits, null where it cannot be computed."""
Count: TypeAlias = Annotated[StrictInt | None, WithJsonSchema({"type": ["integer", "null"]})]
Text: TypeAlias = Annotated[StrictStr | None, WithJsonSchema({"type": ["string", "null"]})]
Rows: TypeAlias = Annotated[list[Any], WithJsonSchema({"type": "array"})]
Parts: TypeAlias = Annotated[dict[str, Any], WithJsonSchema({"type": "object"})]


class Table(BaseModel):
    """Rows under named columns."""

    columns: Rows
    rows: Rows


class Span(BaseModel):
    """The window used, [start, end)."""

    start: StrictStr
    end: StrictStr
    closed: bool


class Coverage(BaseModel):
    """How much of the window the tape holds."""

    ratio: Annotated[Number, Field(description="1 = nothing missing")]
    basis: Text
    gaps: Annotated[Rows, Field(description="[start, end, missing_trades, reason]")]
    newest_trade_at: Text
    lag_ms: Count
    broken: Annotated[Rows, Field(description="figures that the gaps make wrong")]
    more_gaps: StrictInt = 0
    importing: Annotated[Parts, Field(description="the past that is being brought in, and seconds left")] = Field(default_factory=dict)
    worst: StrictStr = ""
    parts: Annotated[Parts, Field(description="by exchange")] = Field(default_factory=dict)


class _Answer(BaseModel):
    coverage: Coverage
    instrument: StrictStr
    window: Annotated[Span, WithJsonSchema({"type": "object", "description": "{start, end, closed}"})]


class Markets(BaseModel):
    store: StrictStr
    markets: Table


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
    nodes: Annotated[Table | None, Field(description="null for detail=brief")]


class _Anchored(Coverage):
    anchor: Annotated[Parts, Field(description="since cumulative_delta began")]


class OrderFlow(_Answer):
    coverage: _Anchored  # pyright: ignore[reportIncompatibleVariableOverride]
    timeframe: StrictStr
    bars: Table


class Footprint(_Answer):
    timeframe: StrictStr
    row_size: Number
    bars: Annotated[Rows, Field(description="{timestamp, open, high, low, close, delta, poc, nodes}")]
