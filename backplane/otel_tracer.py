"""Spans to an OpenTelemetry collector, over OTLP/HTTP: a bounded queue, and a thread that sends batches."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Sequence
from importlib.metadata import version

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    set_span_in_context,
)
from opentelemetry.trace.span import TraceState

from backplane.trace_context import TraceContext
from backplane.tracing import Span, Tracer

_CLOSE_S = 2.0
_QUEUE_SIZE = 2_048  # OpenTelemetry's default
_KINDS = {"producer": SpanKind.PRODUCER, "consumer": SpanKind.CONSUMER}
_NOWHERE = Context()


class _KnownIds(IdGenerator):
    """Gives the span that is being made the ids that it has already."""

    def __init__(self) -> None:
        self.own = TraceContext("0" * 32, "0" * 16, sampled=True)

    def generate_trace_id(self) -> int:
        return int(self.own.trace_id, 16)

    def generate_span_id(self) -> int:
        return int(self.own.span_id, 16)


class _Counted(SpanExporter):
    """An exporter of which is known what became of its spans: the SDK drops without a word.

    Attributes:
        taken: spans that are no longer in the queue.
        lost: those of them that the collector did not take.
    """

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self.taken = 0
        self.lost = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.taken += len(spans)
        result = SpanExportResult.FAILURE
        try:
            result = self._exporter.export(spans)
        finally:
            if result is not SpanExportResult.SUCCESS:
                self.lost += len(spans)
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()


def _queue_size() -> int:
    """As the SDK reads it."""
    try:
        return int(os.environ.get("OTEL_BSP_MAX_QUEUE_SIZE", _QUEUE_SIZE))
    except ValueError:
        return _QUEUE_SIZE


class OtelTracer(Tracer):
    """Sends spans; what the collector does not take in time is dropped.

    Args:
        endpoint: base address of the collector; empty: that of the standard variables.
        process: see `backplane.tracing.open_tracer`.
        instance: likewise.
    """

    on = True

    def __init__(self, endpoint: str, process: str, instance: str) -> None:
        exporter = OTLPSpanExporter(f"{endpoint.rstrip('/')}/v1/traces" if endpoint else None)
        about = {"service.instance.id": instance, "service.version": version("agent-orchestrator")}
        if "OTEL_SERVICE_NAME" not in os.environ:
            about[SERVICE_NAME] = f"orchestrator-{process}"
        self._ids = _KnownIds()
        self._provider = TracerProvider(
            sampler=ALWAYS_ON,  # what is not sampled is not made
            resource=Resource.create(dict(about)),
            id_generator=self._ids,
            shutdown_on_exit=False,  # it would wait for a collector that is away
        )
        self._exporter = _Counted(exporter)
        self._most = _queue_size()
        self._provider.add_span_processor(BatchSpanProcessor(self._exporter, self._most))
        self._tracer = self._provider.get_tracer("agent-orchestrator")
        self._queued = 0
        self._refused = 0

    @property
    def dropped(self) -> int:
        return self._refused + self._exporter.lost

    def record(self, span: Span) -> None:
        if self._queued - self._exporter.taken >= self._most:  # before it costs anything
            self._refused += 1
            return
        self._queued += 1
        self._ids.own = span.own
        made = self._tracer.start_span(
            span.name,
            _NOWHERE if span.parent is None else _under(span.parent, span.tracestate),
            _KINDS[span.kind],
            span.attributes,
            start_time=span.began_ns,
        )
        for name, at_ns in span.events:
            made.add_event(name, timestamp=at_ns)
        if span.error:
            made.set_attribute("error.type", span.error)
            made.set_status(Status(StatusCode.ERROR))
        made.end(span.ended_ns)

    async def close(self) -> None:
        """Send what is left, for at most 2 s."""
        loop, done = asyncio.get_running_loop(), asyncio.Event()

        def send() -> None:
            self._provider.shutdown()
            try:
                loop.call_soon_threadsafe(done.set)
            except RuntimeError:  # that took too long, and the loop is closed
                return

        # Of our own: the loop would wait for one of its executor's.
        threading.Thread(target=send, name="last-spans", daemon=True).start()
        try:
            async with asyncio.timeout(_CLOSE_S):
                await done.wait()
        except TimeoutError:
            return


def _under(parent: TraceContext, tracestate: str) -> Context:
    state = TraceState.from_header([tracestate]) if tracestate else None
    flags = TraceFlags(TraceFlags.SAMPLED)
    trace_id, span_id = int(parent.trace_id, 16), int(parent.span_id, 16)
    context = SpanContext(trace_id, span_id, is_remote=True, trace_flags=flags, trace_state=state)
    return set_span_in_context(NonRecordingSpan(context), _NOWHERE)
