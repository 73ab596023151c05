"""Spans: what a process did with a message, and when, for whoever collects traces.

A span is recorded once, when it is over; where it belongs (`backplane.trace_context`) is known before, so
that what it caused can name it. Without a collector nothing is recorded, and ``on`` is false.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Literal, NamedTuple

from backplane.errors import ConfigurationError
from backplane.log import Logger
from backplane.settings import Settings
from backplane.trace_context import TraceContext

_STANDARD = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_INSTALL = "pip install 'agent-orchestrator[otel]'"
_NEEDED = ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http")


class Span(NamedTuple):
    """One thing that a process did.

    Attributes:
        name: of few different ones.
        own: where it belongs, and its own id.
        parent: None if the trace begins with it.
        began_ns: ns since 1970.
        ended_ns: likewise.
        attributes: by OpenTelemetry's semantic conventions for messaging; ours begin with ``orchestrator.``.
        events: what happened meanwhile, and when (ns since 1970).
        error: why it failed; empty if it did not.
        tracestate: valid, or empty.
    """

    name: str
    kind: Literal["producer", "consumer"]
    own: TraceContext
    parent: TraceContext | None
    began_ns: int
    ended_ns: int
    attributes: Mapping[str, str | int | bool]
    events: Sequence[tuple[str, int]] = ()
    error: str = ""
    tracestate: str = ""


class Tracer:
    """Takes spans; this one takes none.

    Attributes:
        on: whether it does; nobody need make a span for one that does not.
    """

    on = False

    @property
    def dropped(self) -> int:
        """Spans that it took and could not send, since the process started."""
        return 0

    def record(self, span: Span) -> None:
        """Take a span of a trace that is sampled; returns at once, whatever becomes of it."""

    async def close(self) -> None:
        """Send what is left, within a bound."""


NO_TRACER = Tracer()


def open_tracer(settings: Settings, process: str, instance: str, log: Logger) -> Tracer:
    """The tracer of a process: one that sends spans if a collector is named, else `NO_TRACER`.

    Args:
        process: ``pod``, ``router`` or ``demo-agent``.
        instance: an id that no other process has.

    Raises:
        ConfigurationError: OTLP_ENDPOINT is set, but what it needs is not installed, or it is no address.
    """
    if not is_wanted(settings):
        return NO_TRACER
    if not _installed():
        # The standard variables may be everybody's on this machine; ours is meant for us (see check_tracing).
        log.warning("traces_unavailable", hint=_INSTALL)
        return NO_TRACER
    from backplane.otel_tracer import OtelTracer

    return OtelTracer(settings.otlp_endpoint, process, instance)


def is_wanted(settings: Settings) -> bool:
    """Whether a collector is named.

    Raises:
        ConfigurationError: as `open_tracer`.
    """
    if settings.otlp_endpoint:
        if not settings.otlp_endpoint.startswith(("http://", "https://")):
            raise ConfigurationError("OTLP_ENDPOINT must be like http://collector:4318")
        if not _installed():
            raise ConfigurationError(f"OTLP_ENDPOINT is set, but OpenTelemetry is missing: {_INSTALL}")
        return True
    disabled = os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    return not disabled and any(os.environ.get(name) for name in _STANDARD)


def _installed() -> bool:
    try:
        return all(find_spec(name) is not None for name in _NEEDED)
    except ModuleNotFoundError:  # a package above it
        return False
