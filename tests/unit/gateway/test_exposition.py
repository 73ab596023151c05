"""What Prometheus reads, read back by the parsers of prometheus-client."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics
from prometheus_client.parser import text_string_to_metric_families as read_text
from prometheus_client.samples import Sample

from backplane.metrics import Registry
from gateway.exposition import Exposition
from gateway.metrics_reference import reference, registries

OPEN = "application/openmetrics-text; version=1.0.0"


def registry() -> Registry:
    """One of each kind."""
    made = Registry()
    made.counter("orchestrator_sends_total", "Sends.", "tier").of("free").value += 3
    histogram = made.histogram("orchestrator_wait_seconds", "Waits.", bounds=(0.5, 1.0)).of()
    histogram.observe(0.1)
    histogram.observe_traced(0.7, "4bf92f3577b34da6a3ce929d0e0e4736", at=1_800_000_000.0)
    histogram.observe(7.0)
    made.gauge("orchestrator_open", "Open.", lambda: 2.0)
    made.counted("orchestrator_closed_total", "Closed.", lambda: {("1000",): 4.0, ('"\\\n',): 1.0}, "code")
    return made


def families(body: bytes, accept: str) -> list[Metric]:
    read: Any = read_openmetrics if accept else read_text
    return list(read(body.decode()))


def told(accept: str) -> dict[str, Sample]:
    exposition = Exposition(registry())
    exposition.look()
    body, media_type = exposition.answer(accept)
    assert media_type.startswith(accept.partition(";")[0] or "text/plain")
    samples = [sample for family in families(body, accept) for sample in family.samples]
    return {
        sample.name + "".join(f" {value}" for value in sample.labels.values()): sample for sample in samples
    }


@pytest.mark.parametrize("accept", ["", OPEN])
def test_values_come_through(accept: str) -> None:
    """In both formats, with labels that hold anything."""
    samples = told(accept)
    values = {name: sample.value for name, sample in samples.items() if name.startswith("orchestrator")}

    assert values == {
        "orchestrator_sends_total free": 3,
        "orchestrator_wait_seconds_bucket 0.5": 1,
        "orchestrator_wait_seconds_bucket 1.0": 2,
        "orchestrator_wait_seconds_bucket +Inf": 3,
        "orchestrator_wait_seconds_count": 3,
        "orchestrator_wait_seconds_sum": pytest.approx(7.8),
        "orchestrator_open": 2,
        "orchestrator_closed_total 1000": 4,
        'orchestrator_closed_total "\\\n': 1,
    }
    assert samples["process_resident_memory_bytes"].value > 1_000_000


def test_traces_are_told_to_whoever_asks_for_them() -> None:
    """OpenMetrics has exemplars; the older format knows none."""
    exemplar = told(OPEN)["orchestrator_wait_seconds_bucket 1.0"].exemplar
    assert exemplar is not None
    assert exemplar.labels == {"trace_id": "4bf92f3577b34da6a3ce929d0e0e4736"}
    assert told("")["orchestrator_wait_seconds_bucket 1.0"].exemplar is None


def test_nothing_is_read_before_somebody_asks() -> None:
    """Reading walks over all connections; and what is done before runs each time."""
    made, reads = Registry(), list[str]()

    def read() -> float:
        reads.append("read")
        return 1.0

    made.gauge("orchestrator_open", "Open.", read)
    made.before.append(lambda: reads.append("before"))
    exposition = Exposition(made)
    assert reads == []
    exposition.answer("")
    assert reads == ["before", "read"]


@pytest.mark.parametrize(
    "accept",
    ["application/openmetrics-text; version=abc", "text/plain;version=x", ",;,", "*/*", "text/plain;q"],
)
def test_whatever_is_accepted(accept: str) -> None:
    """A version that is none gets the plain format, not a mistake of ours."""
    body, media_type = Exposition(registry()).answer(accept)
    assert media_type.startswith("text/plain")
    assert families(body, "")


async def test_the_reference_page_is_that_of_the_code() -> None:
    """``python -m gateway.metrics_reference > docs/metrics.md`` was run."""
    page = Path(__file__).parents[3] / "docs" / "metrics.md"
    assert page.read_text() == reference(await registries())


async def test_processes_that_have_done_nothing_can_be_read() -> None:
    """The first scrape may come before anything else."""
    for told in (await registries()).values():
        body, _ = Exposition(told).answer(OPEN)
        names = {family.name for family in families(body, OPEN)}
        assert {name.removesuffix("_total") for name in told.families} <= names


async def test_labels_agree_where_a_name_is_used_twice() -> None:
    """What pods and routers tell alike can be added up."""
    pods, routers = (await registries()).values()
    for name in pods.families.keys() & routers.families.keys():
        assert pods.families[name].about == routers.families[name].about
