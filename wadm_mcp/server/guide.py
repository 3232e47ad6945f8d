"""The guide an agent may read as `wadm://guide`: how to read an answer."""

from __future__ import annotations

from typing import Final

GUIDE: Final = """\
# Reading WADM's answers

Every figure comes from recorded public trades. Every answer begins with `coverage`: how much of the requested time was recorded.

## Coverage first

- `coverage.ratio`: covered time over window time; 1 means that nothing is missing. Below 1 say so before any figure: volumes are too low,
  levels and cumulative delta may be wrong; `broken` names them. 0: nothing was recorded there; its zero volumes do not mean a quiet market.
- `basis`: `exact` is proven by the exchange's ids (Binance); `observed` rests on an unbroken connection (Bybit).
- `gaps`: `[start, end, missing_trades, reason]`, the newest; `more_gaps` counts the rest. `not_recorded`, `start`: no process
  was recording. `expired`: older than the retention. `store_unreachable`: only data in memory is available. `importing`, `being_revised`,
  `missing_ids`: trades are being added, ask again. `absent`, `unreadable`: the exchange does not have them, or not in readable form.
  `silence`: open connections delivered nothing for suspiciously long.
- `lag_ms`: age of the newest trade. `window.closed` false: the last bar still grows.

## Units

- Prices in quote currency, volumes in the base asset, exact: quote them as they stand. null cannot be computed. Times are UTC; bars are
  named by their start; sessions begin at 00:00 UTC.
- `trade_type` is the aggressor's side. `delta` = buy - sell volume; `cumulative_delta` counts from 00:00 UTC and is complete if
  `coverage.anchor` has ratio 1. `imbalance_ratio` = delta / volume.
- `symbol` may name its place: `binance:linear:BTCUSDT`, `BTC/USDT:USDT` and `BTCUSDT.P` (linear), `BTCUSDT:spot`.
- Rows are `row_size` high and named by their low price; `vah` is a row's top tick. Compare profiles at one `row_size`.
- `exchange=all` (default) merges the exchanges of one market; coverage is then the worst one's (`worst`), `parts` has each. Spot and
  linear are never merged: compare_exchanges sets them side by side.

## Market structure

- `value`: `relation` of today's value area to yesterday's, `overlap` of the narrower one, `poc_shift`, `streak` of POCs moving one way.
  `naked_pocs`: not traded at since; `unknown` where a gap may hide a touch.
- `profile.shape`: P, b, D: POC in the upper, lower, middle third; B: two high nodes. `skew`: distance from the middle of the range to
  VWAP, divided by high - low.
- `range`: medians of the newest 5 pivots on each side, frozen before the open bar; null without two tests (within 0.1 widths) of each
  edge. `position`: 0 at the low edge, 1 at the high. `width_atr`, `drift` (in widths), `volume_slope` (log per bar).
- `swings`: pivots higher (lower) than 5 bars on each side, with volume and delta of the leg to them.
- `events`: candidates, oldest first. `known_after`: number of bars after its own bar until it was known. `volume_z`, `range_z`: robust
  deviations from the 96 bars before; `close_position`: 0 at the low, 1 at the high; `more`: other figures; `parameters`: thresholds.
  climax_down/up: extreme volume and range at a new extreme. spring/upthrust: beyond the edge, closed inside again; `penetration_atr`,
  `bars` outside, `outside_share` of volume. break_up/down: closed beyond the edge with volume and delta. retest_climax/break: back with
  `volume_ratio`. absorbed_buying/selling: large delta, no progress. exhaustion_high/low: new extreme, weaker leg (`delta_ratio`).
  delta_divergence_high/low: new extreme, delta against it. stacked_buy/sell: imbalanced rows from
  price `to`. large_buy/sell: orders above the 99.9th percentile. Only detail=full lists effort_without_result, ease_of_movement and
  fading_high/low (aggressors thin out at the extreme).
- A bar covered below 95 % is not usable and produces no event. A missing event means that none happened only if `bars.usable` equals
  `bars.of`.

## Comparing

`basis_bps`: how far the second close is above the first, in basis points. `lead_bars` above 0: the first one's delta leads. Ignore
correlations below `noise`.

## Which tool

list_markets, then get_market_structure; get_volume_profile (levels), get_order_flow (bars), get_footprint (inside few bars), get_trades
(prints) to look closer; wait_for to wait. `detail` and `limit` keep answers short; `as_of` shows the market at a past time: the
same call about a covered window gives the same figures later.

WADM states facts. Accumulation, distribution and intent are interpretations; no pattern predicts a price.
"""
