"""A process's metrics as Prometheus reads them: its text format, or OpenMetrics with exemplars if it asks."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from itertools import accumulate

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar
from prometheus_client.utils import floatToGoString
from starlette.requests import Request
from starlette.responses import Response

from backplane.metrics import Counter, Family, Histogram, Registry, Seen

Point = tuple[str, float] | tuple[str, float, Exemplar]


class Exposition:
    """Answers scrapes.

    Args:
        registry: what is told, beside CPU, memory and files of the process.
    """

    def __init__(self, registry: Registry) -> None:
        self._process = ProcessCollector(registry=None)
        self._told = _Told(registry)
        self._prometheus = CollectorRegistry()
        self._prometheus.register(self._told)

    def look(self) -> None:
        """See what the process uses: a millisecond for each thousand open files, so call it in a thread."""
        self._told.process = list(self._process.collect())

    def answer(self, accept: str) -> tuple[bytes, str]:
        """All metrics, those of the process as of the last `look`, and their media type.

        Args:
            accept: the request's ``Accept``.
        """
        try:
            encode, media_type = choose_encoder(accept)
        except (TypeError, ValueError):  # a version that is none
            encode, media_type = choose_encoder("")
        return encode(self._prometheus), media_type

    async def endpoint(self, request: Request) -> Response:
        """``GET /metrics``."""
        await asyncio.to_thread(self.look)
        body, media_type = self.answer(request.headers.get("accept", ""))
        return Response(body, headers={"content-type": media_type})


class _Told(Collector):
    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self.process: list[Metric] = []

    def describe(self) -> list[Metric]:
        return []  # or prometheus-client would collect everything once, only to see names

    def collect(self) -> Iterator[Metric]:
        for prepare in self._registry.before:
            prepare()
        for family in self._registry.families.values():
            yield _metric(family)
        yield from self.process


def _metric(family: Family[Counter] | Family[Histogram] | Seen) -> Metric:
    about = family.about
    if about.kind == "histogram":
        told = HistogramMetricFamily(about.name, about.meaning, labels=about.labels)
        for labels, histogram in _members(family):
            assert isinstance(histogram, Histogram)
            told.add_metric(labels, _buckets(histogram), histogram.total)
        return told
    make = CounterMetricFamily if about.kind == "counter" else GaugeMetricFamily
    numbers = make(about.name, about.meaning, labels=about.labels)
    for labels, value in _values(family):
        numbers.add_metric(labels, value)
    return numbers


def _members(family: Family[Counter] | Family[Histogram] | Seen) -> Iterator[tuple[tuple[str, ...], object]]:
    assert isinstance(family, Family)
    yield from family.members.items()


def _values(family: Family[Counter] | Family[Histogram] | Seen) -> Iterator[tuple[tuple[str, ...], float]]:
    if isinstance(family, Seen):
        seen = family.read()
        yield from [((), seen)] if isinstance(seen, int | float) else seen.items()
        return
    for labels, counter in _members(family):
        assert isinstance(counter, Counter)
        yield labels, counter.value


def _buckets(histogram: Histogram) -> list[Point]:
    points: list[Point] = []
    bounds = [*map(floatToGoString, histogram.bounds), "+Inf"]
    for place, (bound, count) in enumerate(zip(bounds, accumulate(histogram.counts), strict=True)):
        exemplar = histogram.exemplars.get(place)
        if exemplar is None:
            points.append((bound, float(count)))
        else:
            trace = {"trace_id": exemplar.trace_id}
            points.append((bound, float(count), Exemplar(trace, exemplar.value, exemplar.at)))
    return points
