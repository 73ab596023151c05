"""The runbook names what there is: metrics in queries, settings, log events, dashboards, sections."""

from __future__ import annotations

import re
from pathlib import Path

from backplane.settings import Settings
from tests.monitoring.promql import problems
from tests.monitoring.rules import RUNBOOK, recorded, rules

TEXT = RUNBOOK.read_text("utf-8")
DOCS = RUNBOOK.parent
NAMED = re.findall(r"`([^`]+)`", TEXT.replace("\n", " "))
FOREIGN = {"OOM", "NOPERM", "WRONGTYPE", "FLUSHALL", "KEYS", "PUBLISH", "URL"}
"""Redis's own words."""


def test_queries() -> None:
    """Each is PromQL of metrics and labels that there are."""
    queries = [text for text in NAMED if re.search(r"\b(orchestrator|process)_\w+", text)]
    assert len(queries) > 25
    made = recorded(rules())
    assert [(query, problem) for query in queries for problem in problems(query, made)] == []


def test_settings() -> None:
    """Each name in capitals is a setting's."""
    known = {name.upper() for name in Settings.__dataclass_fields__} | FOREIGN
    named = {text for text in NAMED if re.fullmatch(r"[A-Z][A-Z_]+", text)}
    assert named - known == set()
    assert len(named) > 15


def test_log_events() -> None:
    """What is said to stand in logs is one of the events."""
    events = set(re.findall(r"^\| `(\w+)` \|", (DOCS / "logs.md").read_text("utf-8"), re.MULTILINE))
    codes = set(re.findall(r"^\| `(\w+)` \|", (DOCS / "clients.md").read_text("utf-8"), re.MULTILINE))
    foreign = {"client_id", "task_id", "tenant_id", "runbook_url", "evicted_keys", "router_error"}
    named = {text for text in NAMED if re.fullmatch(r"[a-z]+(_[a-z]+)+", text)}
    metrics = {text for text in named if text.startswith(("orchestrator_", "process_"))}
    assert named - metrics - events - codes - foreign == set()
    assert named & events


def test_links() -> None:
    """Each leads to a page that is there, and to one of its headings."""
    links = re.findall(r"\]\(([^)#]*)(?:#([^)]*))?\)", TEXT)
    assert len(links) > 12
    for page, anchor in links:
        path: Path = (DOCS / page).resolve() if page else RUNBOOK
        assert path.exists(), page
        if anchor:
            headings = re.findall(r"^#+ (.+)$", path.read_text("utf-8"), re.MULTILINE)
            anchors = {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}
            assert anchor in anchors, (page, anchor)
