"""Each mistake is found: the tests of the rules bite."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.monitoring.breaks import SEEN, TRIED, Break
from tests.monitoring.cases import CASES
from tests.monitoring.cases_traffic import LONG
from tests.monitoring.promtool import trial
from tests.monitoring.rules import problems, read


@pytest.mark.parametrize("mistake", SEEN, ids=lambda mistake: mistake.what)
def test_seen(mistake: Break) -> None:
    """By looking at rules and runbook."""
    rules, runbook = mistake.made()
    assert list(problems(read(rules), runbook)) != []


@pytest.mark.parametrize("mistake", TRIED, ids=lambda mistake: mistake.what)
def test_tried(mistake: Break, tmp_path: Path) -> None:
    """By a case of every alert that it touches, without those that last for hours."""
    rules = tmp_path / "rules.yaml"
    rules.write_text(mistake.made()[0], "utf-8")
    for alert in mistake.found_by:
        output = trial(rules, [case for case in CASES if case.about == alert and case.at < LONG], tmp_path)
        assert "FAILED" in output
        assert "got:" in output, output  # Prometheus took the rules
