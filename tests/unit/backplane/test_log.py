"""Log events: what a level lets through, what a flood costs, and who waits for whom."""

from __future__ import annotations

import asyncio
import fcntl
import json
import logging
import os
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, cast

import pytest
import structlog
from structlog.testing import capture_logs

from backplane.log import LEVEL, LEVELS, OUTPUT, Level, Logger, configure, get_logger
from backplane.log_flood import MOST_A_WINDOW, WINDOW_S, Floods
from backplane.log_level import LevelSwitch
from backplane.log_writer import Writer

PATIENCE_S = 10.0


@pytest.fixture(autouse=True)
def _own_level() -> Iterator[None]:
    """No test's level or handlers are another one's."""
    before = LEVEL.name, list(logging.root.handlers), logging.root.level
    yield
    LEVEL.set(before[0])
    logging.root.handlers[:], logging.root.level = before[1:]
    structlog.reset_defaults()


# Levels.


@pytest.mark.parametrize("level", LEVELS)
def test_what_a_level_lets_through(level: str) -> None:
    """Its own events and those that are more severe, also of loggers that were made before it was set."""
    log = get_logger(process="pod").bind(task_id="t-1")
    LEVEL.set(level)
    with capture_logs() as logs:
        log.debug("one", n=1)
        log.info("two")
        log.warning("three")
        log.error("four")
        log.exception("five")
    names = ["one", "two", "three", "four", "five"]
    assert [event["event"] for event in logs] == names[list(LEVELS).index(level) :]
    assert all(event["process"] == "pod" and event["task_id"] == "t-1" for event in logs)
    assert (level == "debug") is LEVEL.debug


def test_a_new_process_is_at_info() -> None:
    """Before anything is read."""
    assert (Level().name, Level().debug) == ("info", False)


class Changes:
    """A logger that is told of changes, and has them awaited."""

    def __init__(self) -> None:
        self.told: asyncio.Queue[tuple[str, str]] = asyncio.Queue()

    def warning(self, event: str, to: str, **_more: Any) -> None:
        self.told.put_nowait((event, to))

    async def next(self) -> str:
        """The level after the next change."""
        async with asyncio.timeout(PATIENCE_S):
            event, to = await self.told.get()
        await asyncio.sleep(0)
        assert (event, LEVEL.name) == ("log_level_changed", to)
        return to


def goes_back(switch: LevelSwitch) -> bool:
    return switch.left_s is not None


async def test_a_level_for_a_while() -> None:
    """It goes back by itself; the newest word counts."""
    changes = Changes()
    switch = LevelSwitch("warning", cast("Logger", changes))
    switch.change("debug", 600)
    assert await changes.next() == "debug"
    assert switch.left_s is not None
    assert 590 < switch.left_s <= 600
    switch.change("error")
    assert await changes.next() == "error"
    assert not goes_back(switch)
    loop = asyncio.get_running_loop()
    switch.change("debug", 0.001)
    switch.change("info", 0.05)  # so the time before counts no more
    began = loop.time()
    assert [(await changes.told.get())[1] for _ in range(2)] == ["debug", "info"]
    assert await changes.next() == "warning"
    assert loop.time() - began > 0.04
    assert not goes_back(switch)


@pytest.mark.parametrize(("before", "to"), [("info", "error"), ("error", "debug"), ("warning", "warning")])
async def test_a_change_is_always_told(before: str, to: str) -> None:
    """If either of the levels lets it through."""
    LEVEL.set(before)
    with capture_logs() as logs:
        LevelSwitch("info", get_logger()).change(to)
    assert [event["event"] for event in logs] == ["log_level_changed"]


async def test_signals_change_the_level() -> None:
    """One for debug, for a while; the other for what is configured."""
    loop, changes = asyncio.get_running_loop(), Changes()
    switch = LevelSwitch("info", cast("Logger", changes))
    switch.listen()
    try:
        os.kill(os.getpid(), signal.SIGUSR1)
        assert await changes.next() == "debug"
        assert goes_back(switch)
        os.kill(os.getpid(), signal.SIGUSR2)
        assert await changes.next() == "info"
        assert not goes_back(switch)
    finally:
        for number in (signal.SIGUSR1, signal.SIGUSR2):
            loop.remove_signal_handler(number)


# Lines.


@pytest.fixture
def lines(capfd: pytest.CaptureFixture[str]) -> Iterator[Any]:
    """What a configured process prints, as it is written at its end."""

    def written() -> list[dict[str, Any]]:
        assert OUTPUT._writer is not None
        assert OUTPUT._writer.flush(PATIENCE_S)
        return [json.loads(line) for line in capfd.readouterr().out.splitlines()]

    before = OUTPUT._writer, OUTPUT.floods
    OUTPUT.floods = Floods()
    yield written
    OUTPUT._writer, OUTPUT.floods = before


def test_a_line_is_json(lines: Any) -> None:
    """One object, with level, time and what is bound; a traceback is text in it, without values."""
    log = get_logger(process="pod")
    configure("info", "json")
    secret = "s3cret"
    try:
        raise ValueError("a mistake" if secret else "")
    except ValueError:
        log.exception("task_died", text="a\nb \ud800 é")
    [event] = lines()
    assert (event["event"], event["level"], event["process"]) == ("task_died", "error", "pod")
    assert event["timestamp"].endswith("Z")
    assert "ValueError: a mistake" in event["exception"]
    assert "s3cret" not in json.dumps(event)


def test_a_flood_is_told_not_written(lines: Any) -> None:
    """Other events still get through, debug is not limited, nor is the access log."""
    configure("debug", "json")
    log = get_logger()
    for _ in range(500):
        log.error("redis_lost")
        log.info("http_request")
        log.debug("message_accepted")
    log.error("task_died")
    names = [event["event"] for event in lines()]
    assert names.count("redis_lost") == MOST_A_WINDOW
    assert (names.count("http_request"), names.count("message_accepted")) == (500, 500)
    assert names[-1] == "task_died"
    assert OUTPUT.floods.suppressed == 500 - MOST_A_WINDOW


def test_errors_of_libraries_are_events(lines: Any) -> None:
    """In the same form; asyncio's without the arguments, which may be anything."""
    configure("info", "json")
    logging.getLogger("uvicorn.error").error("it %s", "failed")
    logging.getLogger("asyncio").error("Exception in callback f(b'token')\nhandle: <Handle f(b'token')>")
    logging.getLogger("other").warning("no error")
    said = [(event["event"], event["library"], event["said"]) for event in lines()]
    assert said == [
        ("library_error", "uvicorn.error", "it failed"),
        ("library_error", "asyncio", "Exception in callback f"),
    ]


def test_what_was_suppressed_is_told_once() -> None:
    """By the first that is let through again."""
    floods = Floods()
    admitted = [floods.admit("x", 100.0) for _ in range(MOST_A_WINDOW + 5)]
    assert admitted == [(True, 0)] * MOST_A_WINDOW + [(False, 0)] * 5
    assert floods.admit("y", 100.0) == (True, 0)
    assert floods.admit("x", 100.0 + WINDOW_S - 0.1) == (False, 0)
    assert floods.admit("x", 100.0 + WINDOW_S) == (True, 6)
    assert floods.admit("x", 100.0 + 2 * WINDOW_S) == (True, 0)
    assert floods.suppressed == 6


# The writer.


class Pipe:
    """A pipe with a writer at its end, and a test that reads when it likes."""

    def __init__(self, most_bytes: int = 100_000) -> None:
        self.out, self.into = os.pipe()
        self.writer = Writer(self.into, lambda count: f"dropped {count}", most_bytes)

    @property
    def full(self) -> bool:
        """Whether nothing more goes in: what is in it does not grow any more."""
        size = fcntl.fcntl(self.into, fcntl.F_GETPIPE_SZ)
        return size - self.held < 4096

    @property
    def held(self) -> int:
        """Bytes in the pipe."""
        told = bytearray(4)
        fcntl.ioctl(self.out, termios.FIONREAD, told)
        return int.from_bytes(told, sys.byteorder)

    def wait_full(self) -> None:
        until = time.monotonic() + PATIENCE_S
        while not self.full:
            assert time.monotonic() < until, self.held
            time.sleep(0.001)

    def read_until(self, last: str) -> list[str]:
        """All lines up to one."""
        data = b""
        while not data.endswith(f"{last}\n".encode()):
            data += os.read(self.out, 65_536)
        return data.decode().splitlines()

    def close(self) -> None:
        for end in (self.out, self.into):
            try:
                os.close(end)
            except OSError:
                continue


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    with ExitStack() as stack:
        made = Pipe()
        stack.callback(made.close)
        yield made


def test_lines_keep_their_order(pipe: Pipe) -> None:
    for n in range(1000):
        pipe.writer.write(str(n))
    assert pipe.read_until("999") == [str(n) for n in range(1000)]
    assert pipe.writer.flush(PATIENCE_S)
    assert pipe.writer.dropped == 0


@pytest.mark.parametrize("blocking", [True, False])
def test_a_pipe_that_nobody_reads(pipe: Pipe, blocking: bool) -> None:
    """Whoever logs goes on at once, what waits is bounded, what is lost is counted, and told in its place."""
    os.set_blocking(pipe.into, blocking)
    line = "x" * 999
    pipe.writer.write(line)
    while not pipe.full:
        pipe.writer.write(line)
        time.sleep(0.0005)
    began, written = time.monotonic(), 5_000
    for _ in range(written):
        pipe.writer.write(line)
    assert time.monotonic() - began < 1.0
    dropped = pipe.writer.dropped
    assert dropped >= written - 150
    assert not pipe.writer.flush(0.01)
    got = pipe.read_until(f"dropped {dropped}")
    assert set(got[:-1]) == {line}
    pipe.writer.write("again")
    assert pipe.read_until("again") == ["again"]
    assert pipe.writer.dropped == dropped


def test_a_pipe_that_is_closed(pipe: Pipe) -> None:
    """Nothing fails; what would have been written is counted."""
    os.close(pipe.out)
    pipe.writer.write("lost")
    assert pipe.writer.flush(PATIENCE_S)
    assert pipe.writer.dropped == 1
    pipe.writer.write("lost too")
    assert pipe.writer.flush(PATIENCE_S)
    assert pipe.writer.dropped == 2


CRASH = """
from backplane.log import configure, get_logger
configure("info", "json")
log = get_logger()
for n in range(20): log.info("pod_started", n=n)
raise SystemExit(3) if {clean} else ZeroDivisionError("the end")
"""


@pytest.mark.parametrize("clean", [True, False])
def test_nothing_is_lost_at_the_end(clean: bool) -> None:
    """What was logged before a process ends is written, also before a crash, and its traceback."""
    done = subprocess.run(
        [sys.executable, "-c", CRASH.format(clean=clean)], capture_output=True, text=True, check=False
    )
    assert [json.loads(line)["n"] for line in done.stdout.splitlines()] == list(range(20))
    crashed = "ZeroDivisionError: the end" in done.stderr
    assert (done.returncode, crashed) == ((3, False) if clean else (1, True))


STUCK = """
from backplane.log import configure, get_logger
configure("debug", "json")
log = get_logger()
for n in range(5000): log.debug("message_accepted", text="x" * 1000)
"""


def test_a_stuck_pipe_does_not_keep_a_process() -> None:
    """It ends a little later, with what it could not write."""
    began = time.monotonic()
    with subprocess.Popen([sys.executable, "-c", STUCK], stdout=subprocess.PIPE) as process:
        assert process.wait(30) == 0
        assert time.monotonic() - began > 1.5  # else nothing was stuck


CLOSED = """
from backplane.log import OUTPUT, configure, get_logger
configure("info", "auto")
log = get_logger()
for n in range(5): log.info("pod_started", n=n)
OUTPUT._writer.flush(10)
raise SystemExit(OUTPUT.dropped)
"""


def test_a_process_without_stdout() -> None:
    """It runs; what it would have written is counted as dropped."""
    command = ["/bin/sh", "-c", 'exec "$0" "$@" >&-', sys.executable, "-c", CLOSED]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (5, "")
