"""The documents agree with the code."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

from benchmarks.table import table
from wadm_mcp import __version__
from wadm_mcp.coverage.spans import GapReason
from wadm_mcp.server.questions import QUESTIONS
from wadm_mcp.settings import dotenv_example, settings_table

ROOT = Path(__file__).parents[1]


def text(name: str) -> str:
    return (ROOT / name).read_text()


def test_the_environment_example_holds_every_setting() -> None:
    assert text(".env.example") == dotenv_example()


def test_the_settings_page_holds_every_setting() -> None:
    page = text("docs/settings.md")
    for name, default, meaning in settings_table():
        (row,) = re.findall(rf"^\| `{name}` \| (.*) \| (.*) \|$", page, re.MULTILINE)
        assert row[1] == meaning
        assert not default or row[0] == f"`{default}`"


def test_the_client_example_in_the_documentation_is_the_tested_one() -> None:
    (shown,) = re.findall(r"<!-- docs/client.py -->\n```python\n(.*?)```", text("docs/clients.md"), re.DOTALL)
    assert text("docs/client.py").split('"""\n\n', 1)[1] == shown


def _figures(value: object) -> set[str]:
    """Every figure and word of an answer, as a report writes it."""
    if isinstance(value, dict):
        return set().union(*map(_figures, value.values()))  # pyright: ignore[reportUnknownArgumentType]
    if isinstance(value, list):
        return set().union(*map(_figures, value))  # pyright: ignore[reportUnknownArgumentType]
    return {str(value).split("_")[-1], str(value)}


def test_every_figure_of_the_example_report_is_in_the_answer_of_its_call() -> None:
    calls = {str(one["call"]): one for one in json.loads(text("docs/example-report.json"))}
    report, listed = text("docs/example-report.md").split("## Calls")
    cited = re.findall(r"([^\s(]+) \[(\d)\]", report)
    assert len(cited) > 60
    for figure, call in cited:
        known = _figures(calls[call]["answer"])
        assert figure in known or figure == "known", f"{figure} is not in the answer of call {call}"
    assert len(re.findall(r"^\d\. `(\w+)\(", listed, re.MULTILINE)) == len(calls)
    prose = re.sub(r"\S+ \[\d\]|\d{4}-\d\d-\d\dT\S+", "", report.split("## Facts")[1].split("## Scenarios")[0])
    assert re.findall(r"(?<![\w.])-?\d+\.\d+(?![\w.])", prose) == []


def test_the_page_about_answers_explains_every_gap_reason_as_the_code_does() -> None:
    (section,) = re.findall(r"<!-- gap reasons -->\n(.*)<!-- /gap reasons -->", text("docs/answers.md"), re.DOTALL)
    rows = section.splitlines()[2:]
    assert rows == [f"| `{reason}` | {reason.meaning} |" for reason in GapReason]
    assert all(reason.meaning for reason in GapReason)


def test_the_readme_names_every_tool() -> None:
    for question in QUESTIONS:
        assert f"`{question.name}`" in text("README.md")


def test_the_performance_page_shows_the_last_benchmark_results() -> None:
    measured = table(json.loads(text("benchmarks/results.json")))
    assert f"<!-- costs -->\n{measured}<!-- /costs -->" in text("docs/performance.md")


def test_the_reliability_page_names_every_soak_test_and_no_other() -> None:
    named = set(re.findall(r"\]\(\.\./tests/soak/(test_\w+\.py)\)", text("docs/reliability.md")))
    assert named == {path.name for path in (ROOT / "tests" / "soak").glob("test_*.py")}


def test_the_reliability_page_names_every_attack_and_no_other() -> None:
    named = set(re.findall(r"\]\(\.\./tests/abuse/(test_\w+\.py)\)", text("docs/reliability.md")))
    assert named == {path.name for path in (ROOT / "tests" / "abuse").glob("test_*.py")} - {"test_short_forms.py"}


def test_every_link_between_pages_leads_to_a_file_and_a_heading() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
    links = [(page, link) for page in pages for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()) if "://" not in link]
    assert len(links) > 40
    for page, link in links:
        name, _, anchor = link.partition("#")
        target = (page.parent / name) if name else page
        assert target.exists(), f"{page.name} links to {link}"
        headings = {_anchor(heading) for heading in re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)} if anchor else {anchor}
        assert anchor in headings, f"{page.name} links to {link}"


def _anchor(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_the_newest_release_of_the_changelog_is_the_version_of_the_package() -> None:
    releases = re.findall(r"^## (\S+)(?: - (\d{4}-\d\d-\d\d))?$", text("CHANGELOG.md"), re.MULTILINE)
    assert releases[0] == ("Unreleased", "")
    assert releases[1][0] == __version__
    assert all(date for _, date in releases[1:])


def test_every_dependency_says_why_it_is_here() -> None:
    read = tomllib.loads(text("pyproject.toml"))
    project, groups = read["project"], read["dependency-groups"]
    extras = [*project["optional-dependencies"].values(), groups["build"]]
    entries = [*project["dependencies"], *(entry for extra in extras for entry in extra)]
    names = [re.split(r"[><=\[]", entry)[0] for entry in entries]
    reasons = text("CONTRIBUTING.md").split("## Dependencies", 1)[1]
    assert [name for name in names if not re.search(rf"\b{name}\b", reasons)] == []


def test_every_cited_section_of_the_exchange_reference_exists() -> None:
    page = text("docs/exchanges.md")
    sections = set(re.findall(r"^#{2,3} (\d+(?:\.\d+)?) ", page, re.MULTILINE))
    cited = dict.fromkeys(re.findall(r"\bsection (\d+(?:\.\d+)?)", page), "docs/exchanges.md")
    folders = ("wadm_mcp", "tests", "benchmarks", "docs")
    sources = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in {".py", ".md"}]
    for path in sources:
        # A citation may be broken over two lines; a link beside the page itself has no folder.
        joined = re.sub(r"\n\s*(?:# )?", " ", path.read_text())
        assert re.findall(r"(?<!docs/)(?<!\]\()exchanges\.md", joined) == [], f"{path} cites another page than docs/exchanges.md"
        for numbers in re.findall(r"docs/exchanges\.md((?:(?:,| and|, and)? \d+(?:\.\d+)?\b)+)", joined):
            cited |= dict.fromkeys(re.findall(r"\d+(?:\.\d+)?", numbers), path.name)
    assert len(cited) > 20
    assert {number: where for number, where in cited.items() if number not in sections} == {}


def _pins(name: str) -> dict[str, tuple[str, set[str]]]:
    """Version and hashes of each package of a file of requirements, which has nothing else but comments."""
    lines = [line for line in text(name).replace(" \\\n", "").splitlines() if not line.startswith("#")]
    found: dict[str, tuple[str, set[str]]] = {}
    for line in lines:
        pin = re.fullmatch(r"([a-z0-9-]+)==([^ ;]+)(?: ; [^-]*?)?((?: +--hash=sha256:[0-9a-f]{64})+)", line)
        assert pin, f"{name}: {line}"
        found[pin[1]] = pin[2], set(pin[3].split())
    return found


def test_every_package_is_pinned_by_version_and_hash_and_no_index_is_named() -> None:
    runtime, build, development = (_pins(f"requirements{kind}.txt") for kind in ("", "-build", "-dev"))
    assert len(runtime) > 30
    assert runtime.items() <= development.items()
    assert build.items() <= development.items()


def test_the_requirements_pin_every_dependency_and_the_build_back_end() -> None:
    project = tomllib.loads(text("pyproject.toml"))
    extras = [entry for extra in project["project"]["optional-dependencies"].values() for entry in extra]
    for file, entries in (
        ("requirements.txt", project["project"]["dependencies"]),
        ("requirements-build.txt", project["dependency-groups"]["build"]),
        ("requirements-dev.txt", extras),
    ):
        names = {re.split(r"[><=\[]", entry)[0].replace(".", "-").lower() for entry in entries}
        assert names <= _pins(file).keys()
    (back_end,) = project["build-system"]["requires"]
    assert back_end == f"hatchling=={_pins('requirements-build.txt')['hatchling'][0]}"
    assert back_end in project["dependency-groups"]["build"]


def test_make_soak_runs_every_test_that_has_a_longer_form() -> None:
    (command,) = [line for line in text("Makefile").splitlines() if "WADM_SOAK=1" in line]
    run = [ROOT / word for word in command.split() if word.startswith("tests/")]
    longer = [
        path for path in (ROOT / "tests").rglob("test_*.py") if re.search(r"^SOAK = |import .*\bSOAK\b", path.read_text(), re.MULTILINE)
    ]
    assert longer
    assert [path.name for path in longer if not any(path.is_relative_to(each) for each in run)] == []
