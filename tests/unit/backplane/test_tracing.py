"""Whether spans are sent, and to whom."""

from __future__ import annotations

from typing import Any

import pytest
from structlog.testing import capture_logs

from backplane import tracing
from backplane.errors import ConfigurationError
from backplane.log import get_logger
from backplane.settings import Settings
from backplane.trace_context import TraceContext
from backplane.tracing import NO_TRACER, Span, Tracer, open_tracer
from tests.support.otlp import Collector

OWN = TraceContext("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7", sampled=True)
PARENT = OWN.child("a" * 16)
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
