"""Reads /metrics as Prometheus does."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterable, Mapping

from prometheus_client.parser import text_string_to_metric_families

Series = tuple[str, frozenset[tuple[str, str]]]


class Scrape:
    """All time series of one moment.

    Attributes:
        samples: by name and labels.
    """

    def __init__(self, samples: Mapping[Series, float]) -> None:
        self.samples = dict(samples)

    def __len__(self) -> int:
        return len(self.samples)

    def total(self, name: str, **labels: str) -> float:
        """The sum of all series of a name that have these labels."""
        wanted = set(labels.items())
        return sum(value for (one, has), value in self.samples.items() if one == name and wanted <= has)

    def values(self, name: str, label: str) -> set[str]:
        """What a label says, over all series of a name."""
        return {dict(has)[label] for one, has in self.samples if one == name and label in dict(has)}


def scrape(url: str, accept: str = "text/plain", headers: Mapping[str, str] | None = None) -> Scrape:
    """What a process tells now.

    Args:
        url: its address, without /metrics.
    """
    request = urllib.request.Request(f"{url}/metrics", headers={"Accept": accept, **(headers or {})})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return parse(answer.read().decode())


def parse(text: str) -> Scrape:
    """A page in Prometheus's text format."""
    return Scrape(
        {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }
    )


def together(scrapes: Iterable[Scrape]) -> Scrape:
    """Several processes' series, added up."""
    total: dict[Series, float] = {}
    for one in scrapes:
        for series, value in one.samples.items():
            total[series] = total.get(series, 0.0) + value
    return Scrape(total)
