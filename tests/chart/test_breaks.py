"""Every mistake that we could think of is noticed, by the check that is there for it."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import helm_python
import pytest

from tests.chart.breaks import GUARD, SCHEMA, TEMPLATES, VALUES, Break
from tests.chart.checks import CHECKS
from tests.chart.rendering import CHART, NAMESPACE, RELEASE, render


def _id(broken: Break) -> str:
    return f"{broken.caught_by}-{re.sub(r'[^a-z]+', '-', broken.name.lower())}"


@pytest.mark.parametrize("broken", VALUES, ids=_id)
def test_bad_values_are_refused(broken: Break) -> None:
    """Both by the schema's own judgement and where an installation would render."""
    with helm_python.Chart.load(CHART) as chart:
        if broken.caught_by == SCHEMA:
            with pytest.raises(helm_python.HelmError, match=re.escape(broken.says)):
                chart.validate_schema(broken.values)
        else:
            assert broken.caught_by == GUARD
            chart.validate_schema(broken.values)
        with pytest.raises(helm_python.HelmError, match=re.escape(broken.says)):
            chart.render(broken.values, name=RELEASE, namespace=NAMESPACE)


@pytest.mark.parametrize("broken", TEMPLATES, ids=_id)
def test_bad_templates_are_noticed(broken: Break, tmp_path: Path) -> None:
    """The check is silent on the chart as it is, and speaks with the mistake in it."""
    assert broken.edit is not None
    copy = Path(shutil.copytree(CHART, tmp_path / "helm"))
    file, before, after = broken.edit
    text = (copy / file).read_text("utf-8")
    assert before in text
    (copy / file).write_text(text.replace(before, after), "utf-8")
    check = CHECKS[broken.caught_by]
    assert list(check(render(broken.values))) == []
    found = list(check(render(broken.values, copy)))
    assert any(broken.says in problem for problem in found), found


def test_there_are_enough_of_them() -> None:
    """Each check has a mistake that shows it at work."""
    assert {broken.caught_by for broken in TEMPLATES} == set(CHECKS)
    assert {broken.caught_by for broken in VALUES} == {SCHEMA, GUARD}
    names = [broken.name for broken in (*VALUES, *TEMPLATES)]
    assert len(names) == len(set(names))
    assert len(names) >= 20
