"""What the documents say is what the code does."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

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


def test_the_client_that_the_readme_shows_is_the_one_that_is_tested() -> None:
    (shown,) = re.findall(r"<!-- docs/client.py -->\n```python\n(.*?)```", text("README.md"), re.DOTALL)
    assert text("docs/client.py").split('"""\n\n', 1)[1] == shown


def test_the_readme_names_every_tool() -> None:
    for question in QUESTIONS:
        assert f"`{question.name}`" in text("README.md")


def test_every_dependency_says_why_it_is_here() -> None:
    project = tomllib.loads(text("pyproject.toml"))["project"]
    entries = [*project["dependencies"], *(entry for extra in project["optional-dependencies"].values() for entry in extra)]
    names = [re.split(r"[><=\[]", entry)[0] for entry in entries]
    reasons = text("CONTRIBUTING.md").split("## Dependencies", 1)[1]
    assert [name for name in names if not re.search(rf"\b{name}\b", reasons)] == []


def test_every_version_is_pinned_and_no_index_is_named() -> None:
    for name in ("requirements.txt", "requirements-dev.txt"):
        for line in text(name).splitlines():
            assert re.fullmatch(r"#.*|-r requirements\.txt|[A-Za-z0-9_.-]+==[^ ;]+(; .+)?", line), line
