"""Log events: one JSON object a line on stdout, or readable lines on a terminal.

What an event of a level that is off costs is the look at the level. The level is the process's and can change
while it runs (`backplane.log_level`), also for loggers that were made before. Lines are written by a thread
of their own (`backplane.log_writer`).
"""

from __future__ import annotations

import atexit
import io
import logging
import os
import sys
import time
from typing import Any

import structlog
from structlog.typing import EventDict

from backplane.log_flood import Floods
from backplane.log_writer import Writer

LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}
_FLUSH_S = 2.0
_LIBRARY_CHARACTERS = 300
_TOLD = "orchestrator_told"
_UNLIMITED = frozenset({"http_request"})


class Level:
    """The least severe level that is printed, of the whole process.

    Attributes:
        debug: whether it is the lowest: for whoever would have to prepare what is logged.
    """

    __slots__ = ("debug", "number")

    def __init__(self) -> None:
        self.set("info")

    def set(self, name: str) -> None:
        """Change it, for all loggers."""
        self.number = LEVELS[name]
        self.debug = self.number <= LEVELS["debug"]

    @property
    def name(self) -> str:
        """Of `LEVELS`."""
        return next(name for name, number in LEVELS.items() if number == self.number)


LEVEL = Level()


class Logger(structlog.BoundLoggerBase):
    """Takes events, each with a name of the list in `docs/logs.md`."""

    def debug(self, event: str, **fields: object) -> None:
        if LEVEL.number <= 10:
            self._proxy_to_logger("debug", event, **fields)

    def info(self, event: str, **fields: object) -> None:
        if LEVEL.number <= 20:
            self._proxy_to_logger("info", event, **fields)

    def warning(self, event: str, **fields: object) -> None:
        if LEVEL.number <= 30:
            self._proxy_to_logger("warning", event, **fields)

    def error(self, event: str, **fields: object) -> None:
        self._proxy_to_logger("error", event, **fields)

    def exception(self, event: str, **fields: object) -> None:
        """An error, with the traceback of the exception that is being handled."""
        self._proxy_to_logger("error", event, **{"exc_info": True, **fields})


class Output:
    """Where the lines of this process go."""

    def __init__(self) -> None:
        self._writer: Writer | None = None
        self.floods = Floods()
        self.make_line: structlog.typing.Processor = structlog.processors.JSONRenderer()

    @property
    def dropped(self) -> int:
        """Lines that were not written, because nobody took them, since the process started."""
        return 0 if self._writer is None else self._writer.dropped

    def open(self) -> None:
        """Write by a thread from now on, to what is stdout now."""
        try:
            if sys.stdout is None:  # closed before the process began: every line is to fail, and be counted
                descriptor = os.open(os.devnull, os.O_RDONLY)
            else:  # its own: nobody is to wait for the thread to be done with it
                descriptor = os.dup(sys.stdout.fileno())
        except (io.UnsupportedOperation, ValueError, OSError):
            return  # it is no file
        self._writer = Writer(descriptor, self._tell_dropped)
        atexit.register(self._writer.flush, _FLUSH_S)

    def msg(self, line: str) -> None:
        """Take a line."""
        if self._writer is None:
            print(line)
        else:
            self._writer.write(line)

    debug = info = warning = error = msg

    def _tell_dropped(self, count: int) -> str:
        event = {"event": "log_lines_dropped", "count": count, "level": "warning"}
        return str(self.make_line(None, "warning", _stamp(None, "", event)))

    def limit(self, _logger: object, method: str, event: EventDict) -> EventDict:
        """structlog's processor that lets no event flood the rest."""
        name = event["event"]
        if method == "debug" or name in _UNLIMITED:
            return event
        admitted, before = self.floods.admit(name, time.monotonic())
        if not admitted:
            raise structlog.DropEvent
        return {**event, "suppressed": before} if before else event


OUTPUT = Output()
_stamp = structlog.processors.TimeStamper(fmt="iso", utc=True)


def configure(level: str, form: str) -> None:
    """Set up logging for this process.

    Args:
        level: ``debug``, ``info``, ``warning`` or ``error``.
        form: ``json``, ``console`` or ``auto`` (console on a terminal).
    """
    terminal = sys.stdout is not None and sys.stdout.isatty()
    console = form == "console" or (form == "auto" and terminal)
    LEVEL.set(level)
    OUTPUT.open()
    # Plain: a traceback with local variables would show tokens.
    console_renderer = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
    OUTPUT.make_line = console_renderer if console else structlog.processors.JSONRenderer()
    processors: list[Any] = [OUTPUT.limit, structlog.processors.add_log_level, _stamp]
    if not console:
        processors.append(structlog.processors.format_exc_info)
    # In place: loggers that were made before have this very list.
    structlog.get_config()["processors"][:] = [*processors, OUTPUT.make_line]
    # What libraries have to say: uvicorn of mistakes in endpoints, asyncio of tasks that nobody asked after.
    logging.basicConfig(level=logging.ERROR, handlers=[_Libraries()], force=True)


def mark_told(error: BaseException) -> None:
    """An event tells of this already: it is not to be told again by a library that it passes through."""
    error.__dict__[_TOLD] = True


def is_told(error: BaseException | None) -> bool:
    """Whether that was said of it."""
    return error is not None and _TOLD in error.__dict__


class _Libraries(logging.Handler):
    """Errors of libraries as log events."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self._log = get_logger()

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and is_told(record.exc_info[1]):
            return
        said = record.getMessage().partition("\n")[0]
        if record.name == "asyncio":  # it shows what was called with which arguments
            said = said.partition("(")[0].partition("<")[0]
        self._log.error(
            "library_error", library=record.name, said=said[:_LIBRARY_CHARACTERS], exc_info=record.exc_info
        )


def get_logger(**bound: object) -> Logger:
    """A logger with ``bound`` on every event."""
    return Logger(OUTPUT, structlog.get_config()["processors"], dict(bound))
