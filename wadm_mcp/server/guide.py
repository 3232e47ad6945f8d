"""The guide an agent may read as `wadm://guide`: how to read an answer."""

from __future__ import annotations

from typing import Final

GUIDE: Final = """\
# Reading WADM's answers

WADM records public trades of the instruments it follows on Binance and Bybit. Every figure comes from that tape, and every answer
begins with how much of the tape it has seen.

## Coverage first

- `coverage.ratio` is covered time over window time. 1 means that nothing is missing. Below 1, say so before any figure: volumes are
  too low, and POC, value area and cumulative delta may be wrong. 0 means that the tape holds nothing there: its zero volumes are
  no quiet market.
- `coverage.basis`: `exact` is proven by ids the exchange counts without holes (Binance); `observed` rests on an unbroken connection
  (Bybit numbers nothing).
- `coverage.gaps` lists `[start, end, missing_trades, reason]`; `missing_trades` is null where the exchange does not count.
  `not_recorded`: nobody was recording. `expired`: it was held and outlived its life. `store_unreachable`: only the live tape answers
  now. `being_revised`, `missing_ids`: trades are being added, ask again in a moment. `absent`: the exchange itself does not have them.
  `more_gaps` counts older ones that are not listed. `coverage.broken` names the figures of this answer that a gap makes wrong.
- `newest_trade_at` and `lag_ms` say how fresh the tape is. `window.closed` false means that the last bar is still growing.
- A window without trades or without coverage is an answer, not an error.

## Units and times

- Prices are in the quote currency, volumes and quantities in the base asset. Figures are exact: quote them as they stand. A figure of
  more than 15 digits comes as text. null means that it cannot be computed.
- Times are UTC, ISO 8601. Windows are `[start, end)`, widened to whole minutes; `window` in the answer says what was used. Bars are
  named by their start. Sessions begin at 00:00 UTC.
- `trade_type` is the aggressor's side. `delta` = buy volume - sell volume; `cumulative_delta` counts from 00:00 UTC and is only as
  good as `coverage.anchor`, the coverage since then; `imbalance_ratio` = delta / volume, from -1 to 1. `trade_count` counts executions.

## Rows

- A row is a stretch of prices one `row_size` high, anchored at price zero and named by its low price: with `row_size` 10 the row
  64210 holds 64210 up to, not including, 64220.
- `poc` is the row with the most volume. `val` is the low price of the lowest row of the value area, `vah` the top tick of its highest.
- `poc`, `vah` and `val` are computed at `row_size`, whatever `detail` lists. Compare profiles only at the same `row_size`.

## Merged answers

- `exchange=all` (the default) adds the exchanges followed in one market: `all:spot:BTCUSDT`. Coverage is then that of the worst
  exchange, which `coverage.worst` names, and `coverage.parts` has each one's own. Two exchanges trade at slightly different prices;
  for a question about one venue name it.
- Spot and linear (USDT perpetuals) are never merged. Ask for each with `market`.

## Which question

1. `list_markets`: what is followed, how fresh, how complete.
2. `get_volume_profile`: where volume traded. 3. `get_order_flow`: who was aggressive, bar by bar.
4. `get_footprint`: both, inside few bars. 5. `get_trades`: single prints, large ones with `min_notional`.

`as_of` replays: the same question about a covered window gives the same figures later.

## Facts and judgement

WADM states levels and sums. Accumulation, distribution, absorption and intent are readings of them; no pattern in these figures
foretells a price. Keep the two apart in what you write.
"""
