"""What the documents list is what the code has."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from gateway.close_codes import CloseCode
from gateway.errors import ERROR_CODES

ROOT = Path(__file__).parents[2]


def test_error_codes_are_documented() -> None:
    """The clients' page lists the closed list of error codes, with its meanings."""
    page = (ROOT / "docs/clients.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", page.partition("## Error codes")[2], re.MULTILINE))
    assert rows == ERROR_CODES


def test_close_codes_are_documented() -> None:
    """The clients' page says of every close code whether to come back."""
    table = (ROOT / "docs/clients.md").read_text().partition("## Close codes")[2].partition("## Error")[0]
    assert {int(code) for code in re.findall(r"\b[14]\d{3}\b", table)} >= {code.value for code in CloseCode}


def test_dependencies_are_documented_and_bounded() -> None:
    """Every dependency has an upper bound, and a line that says why it is there."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    page = (ROOT / "docs/dependencies.md").read_text()
    extras = project["optional-dependencies"]
    for requirement in (*project["dependencies"], *extras["dev"], *extras["otel"], *extras["test"]):
        name = re.split(r"[\[>=<]", requirement)[0]
        if name != project["name"]:
            assert "<" in requirement, requirement
            assert re.search(rf"\b{name}\b", page, re.IGNORECASE), name


def test_files_that_the_readme_names_exist() -> None:
    """The path of a message, in file names that are there."""
    readme = (ROOT / "README.md").read_text()
    named = re.findall(r"`((?:gateway|backplane)/[\w/.]+)`", readme) + re.findall(r"\]\(([\w/.]+)\)", readme)
    missing = [name for name in named if not (ROOT / name).exists()]
    assert not missing
    assert len(named) > 20
