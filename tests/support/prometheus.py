"""A real Prometheus, with the chart's rules in a hurry."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlencode

import yaml

from tests.support.processes import Process, free_port, get, wait_for

JOB = "orchestrator"
_SHORTEST_S = 3
_SCRAPES = 12
"""After which there is something to draw."""
_UNITS_S = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
_DURATION = re.compile(r"(?<=\[)(\d+)([smhd])(?=\])|(?<=offset )(\d+)([smhd])")


def seconds(duration: str) -> int:
    """Of a duration as Prometheus writes it."""
    return int(duration[:-1]) * _UNITS_S[duration[-1]]


def hurried(query: str, times: float) -> str:
    """A query that looks back less far.

    Args:
        times: as often is a window as short; it never is too short for a rate.
    """
    return _DURATION.sub(lambda found: f"{max(_SHORTEST_S, round(seconds(found[0]) / times))}s", query)


def hurried_rules(rules: Path, times: float) -> str:
    """The text of rules that look back less far and wait less long; for rehearsals only."""
    document: dict[str, Any] = yaml.load(rules.read_text("utf-8"), yaml.CSafeLoader)
    for rule in (rule for group in document["groups"] for rule in group["rules"]):
        rule["expr"] = hurried(rule["expr"], times)
        if "for" in rule:
            rule["for"] = f"{max(1, round(seconds(rule['for']) / times))}s"
    text: str = yaml.safe_dump(document, width=1_000)
    return text


class Prometheus:
    """A context manager; scrapes and evaluates every second.

    Args:
        folder: for its data, configuration and log.
        targets: ports on this machine.
        rules: text of its file of rules.
    """

    def __init__(self, folder: Path, targets: Sequence[int], rules: str) -> None:
        port = free_port()
        self._url = f"http://127.0.0.1:{port}"
        (folder / "rules.yaml").write_text(rules, "utf-8")
        config = {
            "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(folder / "rules.yaml")],
            "scrape_configs": [
                {
                    "job_name": JOB,
                    "static_configs": [{"targets": [f"127.0.0.1:{target}" for target in targets]}],
                }
            ],
        }
        (folder / "prometheus.yaml").write_text(yaml.safe_dump(config), "utf-8")
        command = [
            "prometheus",
            f"--config.file={folder / 'prometheus.yaml'}",
            f"--storage.tsdb.path={folder / 'prometheus'}",
            f"--web.listen-address=127.0.0.1:{port}",
        ]
        self._process = Process(command, {}, folder / "prometheus.log")

    def __enter__(self) -> Self:
        self._process.start()
        try:
            wait_for(self._scrapes, "Prometheus scrapes all targets")
        except BaseException:
            self._process.kill()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()

    def _scrapes(self) -> bool:
        try:
            status, told = get(f"{self._url}/api/v1/targets?state=active")
        except ValueError:  # it says in plain text that it is not ready
            return False
        return status == 200 and {each["health"] for each in told["data"]["activeTargets"]} == {"up"}

    def wait(self) -> None:
        """Until it has scraped all targets a few times."""
        query = "min(sum_over_time(up[1m]))"
        wait_for(lambda: self.values(query) >= [_SCRAPES], "Prometheus has scraped for a while")

    def values(self, query: str) -> list[float]:
        """What a query yields now, without what is no number.

        Raises:
            ValueError: Prometheus cannot evaluate it.
        """
        status, told = get(f"{self._url}/api/v1/query?{urlencode({'query': query})}", 10.0)
        if status != 200:
            raise ValueError(f"{query}: {json.dumps(told)}")
        numbers = [float(each["value"][1]) for each in told["data"]["result"]]
        return [number for number in numbers if not math.isnan(number)]

    def firing(self) -> dict[str, dict[str, Any]]:
        """The alerts that fire now, by name."""
        status, told = get(f"{self._url}/api/v1/alerts")
        if status != 200:
            return {}
        return {
            each["labels"]["alertname"]: each for each in told["data"]["alerts"] if each["state"] == "firing"
        }
