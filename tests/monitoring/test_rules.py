"""The chart's rules: what they ask for is there, and they fire at what they should."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.monitoring.cases import CASES
from tests.monitoring.promtool import promtool, trial
from tests.monitoring.rules import RULES, RUNBOOK, alerts, problems, rules


def test_prometheus_takes_the_rules() -> None:
    """`promtool check rules` has nothing to say, lint included."""
    status, output = promtool("check", "rules", "--lint-fatal", RULES)
    assert status == 0, output


def test_queries_labels_and_runbook() -> None:
    """Metrics and labels exist, annotations name labels that there are, each alert has its section."""
    assert list(problems(rules(), RUNBOOK.read_text("utf-8"))) == []


@pytest.mark.timeout(300)
def test_alerts_fire_and_stay_quiet(tmp_path: Path) -> None:
    """Prometheus's own test of rules, on every case; each says all that fires in its world."""
    assert trial(RULES, CASES, tmp_path) == ""


def test_every_alert_is_tried_both_ways() -> None:
    """Each severity of each alert has a case in which it fires, and one in which it does not."""
    for alert in alerts():
        of_it = [case for case in CASES if case.about == alert.alert]
        fires = [alert.labels["severity"] in case.firing for case in of_it]
        assert True in fires, alert.name
        assert False in fires, alert.name
    assert {case.about for case in CASES} - {alert.alert for alert in alerts()} == {"rolling update"}
