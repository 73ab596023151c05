"""Prometheus's own tool: tests of rules, written down as it wants them."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from tests.monitoring.case import Case
from tests.monitoring.worlds import Series

STEPS_S = {"15s": 15, "5m": 300}
BUDGETS = ("orchestrator-service-levels", "orchestrator-budgets")
_FIRING = 'group by (alertname, severity, namespace, job) (ALERTS{alertstate="firing"})'


def promtool(*arguments: str | Path, told: bytes = b"", timeout_s: float = 100.0) -> tuple[int, str]:
    """Run it: status, and all that it printed.

    Args:
        told: its input.
    """
    done = subprocess.run(
        ["promtool", *map(str, arguments)],
        input=told,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=timeout_s,
        check=False,
    )
    return done.returncode, done.stdout.decode()


def trial(rules: Path, cases: Iterable[Case], folder: Path) -> str:
    """Try rules on cases; returns what is not as it should be, or nothing.

    Budgets look back for days, which takes long to work out, so only their own cases try them.
    """
    alone = folder / "rules-without-budgets.yaml"
    document = yaml.load(rules.read_text("utf-8"), yaml.CSafeLoader)
    document["groups"] = [group for group in document["groups"] if group["name"] not in BUDGETS]
    alone.write_text(yaml.dump(document, Dumper=yaml.CSafeDumper), "utf-8")
    files: dict[tuple[Path, str], list[Case]] = {}
    for case in cases:
        files.setdefault((rules if case.about.endswith("Budget") else alone, case.step), []).append(case)
    written: list[Path] = []
    for number, ((tried, step), some) in enumerate(files.items()):
        every = "30s" if tried is alone else "1m" if step == "15s" else step
        tests = [_written(case) for case in some]
        document = {"rule_files": [str(tried)], "evaluation_interval": every, "tests": tests}
        written.append(folder / f"cases-{number}.yaml")
        written[-1].write_text(yaml.dump(document, Dumper=yaml.CSafeDumper, width=1_000), "utf-8")
    status, output = promtool("test", "rules", *written)
    return "" if status == 0 else output


def _written(case: Case) -> dict[str, Any]:
    series: Series = {}
    for place in case.places:
        series |= place.well()
    needed = case.at * 60 // STEPS_S[case.step] + 1  # samples that come after are only work
    told = {name: _short(values, needed) for name, values in (series | case.changed).items()}
    expected = [(case.about, severity) for severity in case.firing] + list(case.beside)
    return {
        "name": f"{case.about}: {case.what}",
        "interval": case.step,
        "input_series": [{"series": name, "values": values} for name, values in told.items()],
        "promql_expr_test": [
            {
                "expr": _FIRING,
                "eval_time": f"{case.at}m",
                "exp_samples": [_sample(case, *each) for each in expected],
            }
        ],
    }


def _short(values: str, samples: int) -> str:
    return re.sub(r"x(\d+)", lambda times: f"x{min(int(times[1]), samples)}", values)


def _sample(case: Case, alert: str, severity: str) -> dict[str, Any]:
    labels = {"alertname": alert, "severity": severity, "job": case.broken.job}
    if case.broken.namespace:
        labels["namespace"] = case.broken.namespace
    return {"labels": "{" + ",".join(f'{key}="{value}"' for key, value in labels.items()) + "}", "value": 1}
