"""The texts of the prompts, in English and in Spanish. `{about}`, `{stretch}`, `{structure}`, `{compared}` are arguments of calls."""

from __future__ import annotations

from typing import Final

_RULES: Final = {
    "en": """\
Rules:
- Read coverage before any figure, and state it first: ratio, basis, gaps, age of the newest trade. Below ratio 1 name the figures in
  coverage.broken and build nothing on them; where a ratio is 0 say that there is nothing to report on, and stop.
- Every claim cites a figure from an answer, with the call it came from. Quote figures as they stand: round nothing, add nothing up
  yourself. null is "not known", never 0.
- Where coverage is missing nothing is invented: no bar, no level, no event.
- For every reading give what speaks against it, and the level or figure that would prove it wrong.
- Event candidates are measurements, not verdicts. No pattern foretells a price; give no advice to trade.
""",
    "es": """\
Reglas:
- Lee la cobertura (coverage) antes que cualquier cifra y declárala primero: ratio, basis, gaps, edad de la última operación. Por debajo
  de ratio 1 nombra las cifras de coverage.broken y no te apoyes en ellas; si un ratio es 0 di que no hay nada que informar y detente.
- Cada afirmación cita una cifra de una respuesta, con la llamada de la que procede. Cita las cifras tal como están: no redondees ni
  sumes por tu cuenta. null es «no se sabe», nunca 0.
- Donde falta cobertura no se inventa nada: ni barras, ni niveles, ni eventos.
- De cada lectura da lo que habla en contra y el nivel o la cifra que la invalidaría.
- Los candidatos a evento son mediciones, no veredictos. Ningún patrón predice un precio; no des consejos de inversión.
""",
}

WAICKOFF_REPORT: Final = {
    "en": """\
Write a waickoff (Wyckoff-style) report in English on {symbol} for the window {window}, from WADM's recorded trades alone.

Ask, in this order:
1. list_markets(detail="brief"): is {symbol} followed, where, how fresh, how complete were the last 24 hours?
2. get_market_structure({about}): session, value, flow, range, swings, event candidates on 15m bars.
3. get_market_structure({about}, timeframe="1h", detail="brief"): the same from further away.
4. get_volume_profile({stretch}, detail="brief"): POC, value area and VWAP of the window.
5. get_order_flow({stretch}, timeframe=..., detail="brief"): choose a timeframe that gives 30 to 100 bars.
6. compare_exchanges({compared}): which venue traded, which was aggressive, the basis.
7. For the one or two events your reading rests on: get_footprint({about}, start=..., end=...) of their bars.

"""
    + _RULES["en"]
    + """
Then write:
1. Coverage: how much of each window was covered, and what the gaps make uncertain.
2. Facts: levels, value migration, delta, range, swings and events, each with its figure and window.
3. Judgement, marked as yours: trend or trading range, possible phase, effort against result, supply and demand; for each the facts it
   rests on, the contrary evidence, and how sure you are.
4. Scenarios: at least two that exclude each other, each with its trigger, its invalidation and what to watch next.
""",
    "es": """\
Escribe en español un informe waickoff (al estilo de Wyckoff) sobre {symbol} para la ventana {window}, solo con las operaciones que
WADM ha registrado.

Pregunta, en este orden:
1. list_markets(detail="brief"): ¿se sigue {symbol}, dónde, con qué frescura, cuán completas fueron las últimas 24 horas?
2. get_market_structure({about}): sesión, valor, flujo, rango, oscilaciones y candidatos a evento en barras de 15m.
3. get_market_structure({about}, timeframe="1h", detail="brief"): lo mismo desde más lejos.
4. get_volume_profile({stretch}, detail="brief"): POC, área de valor y VWAP de la ventana.
5. get_order_flow({stretch}, timeframe=..., detail="brief"): elige un timeframe que dé de 30 a 100 barras.
6. compare_exchanges({compared}): qué mercado negoció, cuál fue agresivo, la base.
7. De los uno o dos eventos en que se apoya tu lectura: get_footprint({about}, start=..., end=...) de sus barras.

"""
    + _RULES["es"]
    + """
Después escribe:
1. Cobertura: cuánto de cada ventana quedó cubierto y qué queda incierto por los huecos.
2. Hechos: niveles, migración del valor, delta, rango, oscilaciones y eventos, cada uno con su cifra y su ventana.
3. Juicio, marcado como tuyo: tendencia o rango, fase posible, esfuerzo frente a resultado, oferta y demanda; de cada uno los hechos en
   que se apoya, la evidencia contraria y cuán seguro estás.
4. Escenarios: al menos dos que se excluyan, cada uno con su detonante, su invalidación y qué vigilar después.
""",
}

SESSION_REVIEW: Final = {
    "en": """\
Review in English the session ({session}, from 00:00 UTC) of {symbol}, from WADM's recorded trades alone.

Ask, in this order:
1. list_markets(detail="brief"): is {symbol} followed, and since when?
2. get_market_structure({structure}, detail="full"): the session, value against the sessions before it, events and swings.
3. get_order_flow({stretch}, timeframe="30m"): the course of the session, bar by bar.
4. get_volume_profile({stretch}): where it traded.
5. For the bar that decided the session: get_footprint({about}, start=..., end=...).

"""
    + _RULES["en"]
    + """
Then write: coverage; how value moved against the session before (relation, overlap, POC); who was aggressive and what came of it (delta
and its extremes against price); which events came, when each was known, and what followed within the session; what stayed open (naked
POCs, edges of the range, untouched zones); what speaks against your reading, and what in the next session would prove it wrong.
""",
    "es": """\
Repasa en español la sesión ({session}, desde las 00:00 UTC) de {symbol}, solo con las operaciones que WADM ha registrado.

Pregunta, en este orden:
1. list_markets(detail="brief"): ¿se sigue {symbol} y desde cuándo?
2. get_market_structure({structure}, detail="full"): la sesión, el valor frente a las anteriores, eventos y oscilaciones.
3. get_order_flow({stretch}, timeframe="30m"): el curso de la sesión, barra a barra.
4. get_volume_profile({stretch}): dónde se negoció.
5. De la barra que decidió la sesión: get_footprint({about}, start=..., end=...).

"""
    + _RULES["es"]
    + """
Después escribe: cobertura; cómo se movió el valor frente a la sesión anterior (relation, overlap, POC); quién fue agresivo y qué
consiguió (delta y sus extremos frente al precio); qué eventos hubo, cuándo se supo cada uno y qué siguió dentro de la sesión; qué quedó
abierto (POC sin tocar, bordes del rango, zonas intactas); qué habla en contra de tu lectura y qué la invalidaría en la próxima sesión.
""",
}

COMPARE_VENUES: Final = {
    "en": """\
Compare in English where {symbol} trades, over the window {window}, from WADM's recorded trades alone.

Ask, in this order:
1. list_markets(detail="brief"): on which exchanges and markets is {symbol} followed, and how complete is each?
2. compare_exchanges({compared}): volume share, delta, basis, lead and lag of flow on 1m bars.
3. get_order_flow({stretch}, exchange=..., market=..., timeframe="15m", detail="brief") for the two venues that differ most.
4. get_volume_profile({stretch}, exchange=..., market=..., row_size=..., detail="brief") for the same two, at one row_size.

"""
    + _RULES["en"]
    + """
- Trade counts are not comparable between exchanges; volumes and deltas are. A correlation smaller than noise says nothing, and a lead of
  one bar on 1m bars may be seconds.

Then write: coverage of each venue; shares of volume; whose takers bought and sold; spot against perpetuals and the basis; who moved
first, if the figures show it; what the venues disagree on, what speaks against your reading, and which figure would prove it wrong.
""",
    "es": """\
Compara en español dónde se negocia {symbol}, en la ventana {window}, solo con las operaciones que WADM ha registrado.

Pregunta, en este orden:
1. list_markets(detail="brief"): ¿en qué exchanges y mercados se sigue {symbol} y cuán completo está cada uno?
2. compare_exchanges({compared}): cuota de volumen, delta, base, adelanto y retraso del flujo en barras de 1m.
3. get_order_flow({stretch}, exchange=..., market=..., timeframe="15m", detail="brief") de los dos mercados que más difieren.
4. get_volume_profile({stretch}, exchange=..., market=..., row_size=..., detail="brief") de los mismos dos, con un mismo row_size.

"""
    + _RULES["es"]
    + """
- El número de operaciones no es comparable entre exchanges; los volúmenes y los deltas sí. Una correlación menor que noise no dice nada,
  y un adelanto de una barra de 1m pueden ser segundos.

Después escribe: cobertura de cada mercado; cuotas de volumen; dónde compraron y vendieron los agresores; contado frente a perpetuos y la
base; quién se movió primero, si puede saberse; en qué discrepan los mercados, qué habla en contra de tu lectura y qué cifra la invalidaría.
""",
}
