"""Writes `example-report.md`: a waickoff report on the demo market, made only of what the calls of the prompt return.

No language model is used: fixed rules choose the sentences, so that the example shows what a report must contain, not how well one can be
written. Every figure is followed by the number of its call; `example-report.json` contains the calls and their answers.
"""

import json
import re
import sys
import tempfile
from datetime import datetime, timedelta
from pathlib import Path

import anyio
from mcp import Client, StdioServerParameters

HERE = Path(__file__).parent
COMMAND = str(Path(sys.executable).with_name("wadm-mcp"))
ASKED = {"symbol": "BTCUSDT", "exchange": "binance", "market": "spot"}
CALL = re.compile(r"^\d+\. .*?\b([a-z_]+)\((.*?)\)", re.MULTILINE)
IMPORT_SECONDS = 120
"""Longest time that the demo may take to import its history."""


async def main() -> None:
    with tempfile.TemporaryDirectory() as data:
        server = StdioServerParameters(command=COMMAND, args=["--demo"], env={"WADM_DATA_DIR": data, "WADM_MARKETS": "spot,linear"})
        async with Client(server) as client:
            await wait_for_history(client)
            prompt = await client.get_prompt("waickoff_report", ASKED)
            calls = await make_calls(client, prompt.messages[0].content.text)
    (HERE / "example-report.json").write_text(json.dumps(calls, separators=(",", ":")) + "\n")
    (HERE / "example-report.md").write_text(Report(calls).text())


async def wait_for_history(client: Client) -> None:
    """Waits until the demo's history is imported and its figures are derived."""
    with anyio.fail_after(IMPORT_SECONDS):
        while True:
            result = await client.call_tool("compare_exchanges", {"symbol": "BTCUSDT", "window": "24h", "detail": "brief"})
            if not result.is_error and settled(result.structured_content):
                return
            await anyio.sleep(1)


def settled(venues: dict) -> bool:
    """Is Binance's last day complete, and is nothing being imported or revised any more?"""
    parts = venues["coverage"]["parts"]
    reasons = {gap[3] for part in parts.values() for gap in part["gaps"]}
    whole = all(part["ratio"] == 1 for name, part in parts.items() if name.startswith("binance"))
    return len(parts) == 4 and whole and not reasons & {"importing", "being_revised"}


async def make_calls(client: Client, prompt: str) -> list[dict]:
    """Makes the calls that the prompt names, in its order. Arguments that the prompt leaves open are chosen here."""
    calls: list[dict] = []
    for name, given in CALL.findall(prompt):
        arguments = {key: value.strip('"') for key, value in re.findall(r'(\w+)=("[^"]*"|\.\.\.)', given)}
        if name == "get_order_flow":
            arguments["timeframe"] = "15m"
        if name == "get_footprint":
            start = of_interest(calls)
            end = datetime.fromisoformat(start) + timedelta(minutes=15)
            arguments |= {"start": start, "end": end.strftime("%Y-%m-%dT%H:%MZ"), "timeframe": "15m"}
        answer = (await client.call_tool(name, arguments)).structured_content
        calls.append({"call": len(calls) + 1, "tool": name, "arguments": arguments, "answer": answer})
    return calls


def of_interest(calls: list[dict]) -> str:
    """The bar of the newest event, or the one with the largest delta."""
    events = [row for row in calls[1]["answer"]["events"]["rows"] if not row[2].startswith("large")]
    return events[-1][0] if events else max(calls[4]["answer"]["bars"]["rows"], key=lambda row: abs(row[3]))[0]


class Report:
    """The report on seven answers: markets, structure on 15m and on 1h, profile, order flow, comparison, footprint."""

    def __init__(self, calls: list[dict]) -> None:
        self.calls = calls

    def answer(self, call: int) -> dict:
        return self.calls[call - 1]["answer"]

    def cite(self, call: int, *path: str | int) -> str:
        """A figure of an answer and the number of its call. null is written as `not known`."""
        value = self.answer(call)
        for step in path:
            value = value[step]
        return f"{'not known' if value is None else str(value).replace('_', ' ')} [{call}]"

    def row(self, call: int, row: list, columns: dict[str, int]) -> str:
        """Named cells of a row that are not null."""
        return ", ".join(f"{name} {row[place]} [{call}]" for name, place in columns.items() if row[place] is not None)

    def text(self) -> str:
        near = self.answer(2)
        parts = {
            "Coverage": self.coverage(),
            "Facts": [*self.levels(), *self.flow(), *self.venues(), *self.ranges(), *self.events()],
            "Judgement (the writer's, not WADM's)": self.judgement(),
            "Scenarios": self.scenarios(),
        }
        lines = [
            f"# waickoff report: {near['instrument']}, {near['window']['end']}",
            "",
            "An example, written by `make report` from the calls that the prompt `waickoff_report` names, on the demo's simulated market.",
            "A number in brackets is the call a figure came from; [example-report.json](example-report.json) has each with its answer.",
        ]
        for title, said in parts.items():
            lines += ["", f"## {title}", "", *(f"- {line}" for line in said)]
        lines += ["", "No pattern predicts a price, and nothing here is trading advice.", "", "## Calls", ""]
        for one in self.calls:
            given = ", ".join(f'{key}="{value}"' for key, value in one["arguments"].items())
            lines.append(f"{one['call']}. `{one['tool']}({given})`")
        return "\n".join(lines) + "\n"

    def coverage(self) -> list[str]:
        lines = [
            f"{title}: ratio {self.cite(call, 'coverage', 'ratio')}, basis {self.cite(call, 'coverage', 'basis')}; "
            + ("; ".join(f"gap {gap[0]} to {gap[1]}, {gap[3]} [{call}]" for gap in self.answer(call)["coverage"]["gaps"]) or "no gap")
            for call, title in ((2, "Session"), (4, "Last 24 h"), (6, "Least covered venue"))
        ]
        return [
            *lines,
            f"Usable 15m bars: {self.cite(2, 'bars', 'usable')} of {self.cite(2, 'bars', 'of')}.",
            f"Newest trade {self.cite(4, 'coverage', 'newest_trade_at')}, {self.cite(4, 'coverage', 'lag_ms')} ms before the answer.",
        ]

    def levels(self) -> list[str]:
        session, profile, value = ("session",), ("profile",), ("value",)
        naked = self.answer(2)["value"]["naked_pocs"]["rows"]
        return [
            f"Session: open {self.cite(2, *session, 'open')}, high {self.cite(2, *session, 'high')}, low {self.cite(2, *session, 'low')}, "
            f"last {self.cite(2, *session, 'last')}; VWAP {self.cite(2, *session, 'vwap')}.",
            f"Session profile in rows of {self.cite(2, *profile, 'row_size')}: POC {self.cite(2, *profile, 'poc')}, value area "
            f"{self.cite(2, *profile, 'val')} to {self.cite(2, *profile, 'vah')}, shape {self.cite(2, *profile, 'shape')}.",
            f"Last 24 h in rows of {self.cite(4, 'row_size')}: POC {self.cite(4, 'poc')}, value area {self.cite(4, 'val')} to "
            f"{self.cite(4, 'vah')}, VWAP {self.cite(4, 'vwap')}.",
            f"Value against the session before: {self.cite(2, *value, 'relation')}, overlap {self.cite(2, *value, 'overlap')}, "
            f"POC moved by {self.cite(2, *value, 'poc_shift')}.",
            *(f"POC of {row[1]} [2] at {row[0]} [2]: {row[2]} [2]." for row in naked),
        ]

    def flow(self) -> list[str]:
        return [
            f"Delta of the session {self.cite(2, 'flow', 'delta')} of volume {self.cite(2, 'session', 'volume')}, imbalance "
            f"{self.cite(2, 'flow', 'imbalance_ratio')}; highest cumulative {self.cite(2, 'flow', 'cumulative_high', 0)}, lowest "
            f"{self.cite(2, 'flow', 'cumulative_low', 0)}."
            if self.answer(2)["flow"]["cumulative_high"]
            else f"Delta of the session {self.cite(2, 'flow', 'delta')}; its extremes are not known [2].",
            f"Last hour: delta {self.cite(2, 'flow', 'last_hour', 'delta')} of {self.cite(2, 'flow', 'last_hour', 'volume')}.",
            f"Newest 15m bar: close {self.cite(5, 'bars', 'rows', -1, 1)}, cumulative delta {self.cite(5, 'bars', 'rows', -1, 4)}.",
        ]

    def venues(self) -> list[str]:
        answer = self.answer(6)
        cells = {"share of volume": 3, "delta": 4, "coverage": 1}
        pairs = {"basis in bps": 2, "flow correlation": 4, "noise": 7}
        own = [row for row in answer["pairs"]["rows"] if row[0] == ":".join(ASKED[name] for name in ("exchange", "market", "symbol"))]
        return [
            *(f"{row[0]} [6]: {self.row(6, row, cells)}." for row in answer["venues"]["rows"]),
            *(f"{row[1]} [6] against {row[0]} [6]: {self.row(6, row, pairs)}." for row in own),
        ]

    def ranges(self) -> list[str]:
        lines: list[str] = []
        for call, bars in ((2, "15m"), (3, "1h")):
            known = self.answer(call)["range"]
            edges = (
                "no range with two tests of each edge is known"
                if known is None
                else ", ".join(f"{name} {known[name]} [{call}]" for name in known)
            )
            lines.append(f"Trading range on {bars} bars: {edges} [{call}].")
        swings = self.answer(2)["swings"]["rows"]
        return [*lines, *(f"Swing {row[1]} of {row[0]} [2]: {self.row(2, row, {'price': 2, 'leg delta': 5})}." for row in swings)]

    def events(self) -> list[str]:
        lines: list[str] = []
        for row in self.answer(2)["events"]["rows"]:
            more = "".join(f", {name} {value} [2]" for name, value in row[8].items())
            lines.append(f"{row[2]} of {row[0]} [2]: {self.row(2, row, {'price': 3, 'delta': 4, 'volume_z': 5, 'range_z': 6})}{more}.")
        bar = f"delta {self.cite(7, 'bars', 0, 'delta')}, POC {self.cite(7, 'bars', 0, 'poc')}"
        return [*lines, f"Inside the bar of {self.cite(7, 'bars', 0, 'timestamp')}: {bar}."]

    def judgement(self) -> list[str]:
        """The conclusions that fixed rules draw from the facts, each with the facts against it."""
        near = self.answer(2)
        if near["coverage"]["broken"]:
            return [f"None: coverage of the session is only {self.cite(2, 'coverage', 'ratio')}, so the figures to judge are incomplete."]
        session, profile, delta = near["session"], near["profile"], near["flow"]["delta"]
        inside = profile["val"] <= session["last"] <= profile["vah"]
        agrees = (session["last"] - session["open"]) * delta > 0
        value = f"{self.cite(2, 'profile', 'val')} to {self.cite(2, 'profile', 'vah')}"
        return [
            f"{'Balance' if inside else 'Imbalance'}: price {self.cite(2, 'session', 'last')} is {'inside' if inside else 'outside'} value "
            f"({value}). Against it: value is {self.cite(2, 'value', 'relation')} against the session before, with an overlap of "
            f"{self.cite(2, 'value', 'overlap')}. This reading is wrong if the POC moves away from {self.cite(2, 'profile', 'poc')}.",
            f"Effort and result {'agree' if agrees else 'disagree'}: delta {self.cite(2, 'flow', 'delta')} while price went from "
            f"{self.cite(2, 'session', 'open')} to {self.cite(2, 'session', 'last')}. Against it: the imbalance is only "
            f"{self.cite(2, 'flow', 'imbalance_ratio')} of volume. This reading is wrong if cumulative delta makes a new extreme and price "
            f"does not.",
            "Confidence: low. The market is simulated, and one session's figures do not identify a phase.",
        ]

    def scenarios(self) -> list[str]:
        vah, val, poc = (self.cite(2, "profile", name) for name in ("vah", "val", "poc"))
        return [
            f"Acceptance above value. Trigger: 15m closes above {vah} on delta above 0. Invalidation: a close below {poc}. Watch the POC.",
            f"Acceptance below value. Trigger: 15m closes below {val} on delta below 0. Invalidation: a close above {poc}. Watch the POC.",
            "Neither holds if coverage of the bars that trigger it is below 1.",
        ]


if __name__ == "__main__":
    anyio.run(main)
