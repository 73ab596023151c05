"""A collector that takes OpenTelemetry spans over OTLP/HTTP, and shows them."""

from __future__ import annotations

import gzip
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, NamedTuple

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)


class Received(NamedTuple):
    """A span, as it came; ids are hex digits, times ns since 1970."""

    service: str
    instance: str
    name: str
    kind: int
    trace_id: str
    span_id: str
    parent_id: str
    began_ns: int
    ended_ns: int
    attributes: dict[str, Any]
    events: list[str]
    failed: bool
    tracestate: str


class Collector:
    """Listens on a port of its own; a context manager.

    Attributes:
        spans: all that came, in that order.
    """

    def __init__(self) -> None:
        self.spans: list[Received] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                refused = self.path != "/v1/traces"
                if not refused:
                    collector.spans += _read(body)
                self.send_response(503 if refused else 200)
                self.send_header("Content-Type", "application/x-protobuf")
                answer = b"" if refused else ExportTraceServiceResponse().SerializeToString()
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    @property
    def endpoint(self) -> str:
        """Its base address."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def of(self, trace_id: str) -> list[Received]:
        """The spans of a trace, by the time at which they began."""
        return sorted(
            (span for span in self.spans if span.trace_id == trace_id), key=lambda one: one.began_ns
        )

    def __enter__(self) -> Collector:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def _read(body: bytes) -> list[Received]:
    found = []
    for group in ExportTraceServiceRequest.FromString(body).resource_spans:
        about = _attributes(group.resource.attributes)
        for scope in group.scope_spans:
            for span in scope.spans:
                found.append(
                    Received(
                        about["service.name"], about["service.instance.id"], span.name, span.kind,
                        span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex(),
                        span.start_time_unix_nano, span.end_time_unix_nano, _attributes(span.attributes),
                        [event.name for event in span.events], span.status.code == 2, span.trace_state,
                    )
                )  # fmt: skip
    return found


def _attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in pairs}
