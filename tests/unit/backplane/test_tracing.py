"""Whether spans are sent, and to whom."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from structlog.testing import capture_logs

from backplane import otel_tracer, tracing
from backplane.errors import ConfigurationError
from backplane.log import get_logger
from backplane.settings import Settings
from backplane.trace_context import TraceContext
from backplane.tracing import NO_TRACER, Span, Tracer, open_tracer
from tests.support.otlp import Collector

OWN = TraceContext("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7", sampled=True)
PARENT = OWN.child("a" * 16)
PATIENCE_S = 10.0
VARIABLES = (
    "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_SDK_DISABLED",
    "OTEL_SERVICE_NAME",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def opened(**settings: Any) -> Tracer:
    return open_tracer(Settings(**settings), "pod", "pod-1", get_logger())


def span(**more: Any) -> Span:
    return Span("send", "producer", OWN, None, 1_000, 2_000, {"orchestrator.task_id": "t-1"})._replace(**more)


async def test_without_a_collector_there_is_no_tracer() -> None:
    """And what is not there takes spans and ends, all the same."""
    tracer = opened()
    assert tracer is NO_TRACER
    assert not tracer.on
    tracer.record(span())
    await tracer.close()


@pytest.mark.parametrize("name", VARIABLES[:2])
def test_the_standard_variables_name_a_collector(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Unless OpenTelemetry is turned off as a whole."""
    monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert opened().on
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert opened() is NO_TRACER


@pytest.mark.parametrize("missing", ["opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http"])
def test_without_the_extra(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    """Our own setting is meant for us, so it is refused; the standard one may be everybody's here."""
    monkeypatch.setattr(tracing, "find_spec", lambda name: None if name == missing else object())
    with pytest.raises(ConfigurationError, match=r"pip install 'agent-orchestrator\[otel\]'"):
        opened(otlp_endpoint="http://127.0.0.1:9")
    monkeypatch.setenv(VARIABLES[0], "http://127.0.0.1:9")
    with capture_logs() as logs:
        assert opened() is NO_TRACER
    assert [event["event"] for event in logs] == ["traces_unavailable"]


@pytest.mark.parametrize("address", ["collector:4318", "grpc://collector:4317", "4318"])
def test_an_address_that_is_none(address: str) -> None:
    with pytest.raises(ConfigurationError, match="OTLP_ENDPOINT"):
        opened(otlp_endpoint=address)


async def test_spans_are_sent_as_they_are() -> None:
    """With the ids that they have already, under parents from elsewhere; all when the process ends."""
    with Collector() as collector:
        tracer = opened(otlp_endpoint=f"{collector.endpoint}/")
        tracer.record(span())
        tracer.record(
            span(
                own=PARENT,
                parent=OWN,
                kind="consumer",
                events=[("pushed", 1_500)],
                error="no",
                tracestate="a=1",
            )
        )
        await tracer.close()
    first, second = collector.spans
    assert (first.service, first.instance, first.name) == ("orchestrator-pod", "pod-1", "send")
    assert (first.trace_id, first.span_id, first.parent_id) == (OWN.trace_id, OWN.span_id, "")
    assert (first.began_ns, first.ended_ns, first.failed, first.kind) == (1_000, 2_000, False, 4)
    assert first.attributes == {"orchestrator.task_id": "t-1"}
    assert (second.span_id, second.parent_id, second.tracestate) == (PARENT.span_id, OWN.span_id, "a=1")
    assert (second.events, second.failed, second.kind) == (["pushed"], True, 5)
    assert second.attributes["error.type"] == "no"


async def test_a_service_may_have_another_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "chat")
    with Collector() as collector:
        tracer = opened(otlp_endpoint=collector.endpoint)
        tracer.record(span())
        await tracer.close()
    assert collector.spans[0].service == "chat"


class Held(SpanExporter):
    """Sends nothing before it is let go on."""

    def __init__(self, result: SpanExportResult | None) -> None:
        self.result = result
        self.begun, self.go_on = threading.Event(), threading.Event()
        self.sent = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.begun.set()
        assert self.go_on.wait(PATIENCE_S)
        if self.result is None:
            raise ConnectionError
        self.sent += len(spans)
        return self.result

    def shutdown(self) -> None:
        """Nothing to close."""


@pytest.mark.parametrize("result", [*SpanExportResult, None])
async def test_what_is_dropped_is_counted(
    monkeypatch: pytest.MonkeyPatch, result: SpanExportResult | None
) -> None:
    """What does not fit into the queue is not made, and what the collector does not take counts, too."""
    for name, value in (("MAX_QUEUE_SIZE", 10), ("MAX_EXPORT_BATCH_SIZE", 10), ("SCHEDULE_DELAY", 600_000)):
        monkeypatch.setenv(f"OTEL_BSP_{name}", str(value))
    exporter = Held(result)
    monkeypatch.setattr(otel_tracer, "OTLPSpanExporter", lambda _endpoint: exporter)
    tracer = opened(otlp_endpoint="http://127.0.0.1:9")
    for _ in range(10):
        tracer.record(span())
    assert exporter.begun.wait(PATIENCE_S)
    for _ in range(15):
        tracer.record(span())
    assert tracer.dropped == 5
    exporter.go_on.set()
    await tracer.close()
    assert tracer.dropped == (5 if result is SpanExportResult.SUCCESS else 25)
    assert exporter.sent == (0 if result is None else 20)


@pytest.mark.parametrize(("said", "most"), [("7000", 7000), ("many", 2048)])
def test_the_queues_size(monkeypatch: pytest.MonkeyPatch, said: str, most: int) -> None:
    """Is as the standard variable says, or OpenTelemetry's default."""
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", said)
    assert otel_tracer._queue_size() == most
    monkeypatch.delenv("OTEL_BSP_MAX_QUEUE_SIZE")
    assert otel_tracer._queue_size() == 2048
