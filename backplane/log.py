"""Log events: one JSON object a line on stdout, or readable lines on a terminal."""

from __future__ import annotations

import logging
import sys

import structlog
from structlog.typing import FilteringBoundLogger

Logger = FilteringBoundLogger


def configure(level: str, form: str) -> None:
    """Set up logging for this process.

    Args:
        level: ``debug``, ``info``, ``warning`` or ``error``.
        form: ``json``, ``console`` or ``auto`` (console on a terminal).
    """
    console = form == "console" or (form == "auto" and sys.stdout.isatty())
    # Plain: a traceback with local variables would show tokens.
    console_renderer = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
    renderer = console_renderer if console else structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info if not console else _as_it_is,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stdout),
    )
    # uvicorn's own words about malformed requests and the like; its access log is off.
    logging.basicConfig(level=logging.ERROR, stream=sys.stderr, format="%(levelname)s %(name)s %(message)s")


def _as_it_is(_logger: object, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    return event


def get_logger(**bound: object) -> Logger:
    """A logger with ``bound`` on every event."""
    logger: Logger = structlog.get_logger(**bound)
    return logger
