"""Readiness: only while the pod's own probes come back through its subscription."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest

from backplane.errors import RedisRefused, RedisUnavailable
from gateway.health import Health
from tests.unit.gateway.fakes import FakeLink, settle

CHANNEL = "ao:{pods:p}:probe"
INTERVAL_S = 1.0


class Clock:
    """Stands where a test puts it; in place of the modules of which `gateway.health` uses no more."""

    def __init__(self) -> None:
        self.now = 1_000.0
        self.sleeps: asyncio.Queue[asyncio.Future[None]] = asyncio.Queue()

    def monotonic(self) -> float:
        return self.now

    async def sleep(self, delay_s: float) -> None:
        assert delay_s == INTERVAL_S
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.sleeps.put_nowait(woken)
        await woken


class Setup:
    """A pod's health, its links, and a clock."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.feed = FakeLink()
        self.commands = FakeLink()
        self.health = Health(self.feed.as_link(), self.commands.as_link(), CHANNEL, INTERVAL_S)

    @property
    def probes(self) -> list[bytes]:
        return [str(command[2]).encode() for command in self.commands.called]

    async def interval(self, seconds: float = INTERVAL_S) -> None:
        """Let an interval pass, at the end of which there is the next probe."""
        self.clock.now += seconds
        self.clock.sleeps.get_nowait().set_result(None)
        await settle()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    clock = Clock()
    with monkeypatch.context() as patch:
        patch.setattr("gateway.health.time", clock)
        patch.setattr("gateway.health.asyncio", clock)
        yield clock


@pytest.fixture
async def setup(clock: Clock) -> AsyncIterator[Setup]:
    """A pod whose first probe is under way."""
    setup = Setup(clock)
    running = asyncio.create_task(setup.health.run())
    await settle()
    yield setup
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_not_ready_before_the_first_probe(setup: Setup) -> None:
    """Links that are up prove nothing yet."""
    assert setup.commands.called == [("PUBLISH", CHANNEL, "1")]
    assert setup.health.problem() == "the first probe has not come back yet"


async def test_ready_when_the_probe_comes_back(setup: Setup) -> None:
    """A probe that came back is the proof; its time is kept for the report."""
    setup.clock.now += 0.25
    setup.health.heard(b"1")

    assert setup.health.problem() is None
    assert setup.health.round_trip_s == 0.25


async def test_another_probe_is_no_proof(setup: Setup) -> None:
    """What was published by somebody else, or a probe from before, does not make the pod ready."""
    for payload in (b"0", b"2", b"", b"hello", b"01"):
        setup.health.heard(payload)
    assert setup.health.problem() is not None
    await setup.interval()
    setup.health.heard(b"1")

    assert setup.health.problem() is not None


async def test_probes_go_on(setup: Setup) -> None:
    """There is a new probe every interval, each with its own number."""
    for _ in range(3):
        await setup.interval()

    assert setup.probes == [b"1", b"2", b"3", b"4"]


async def test_silence_ends_readiness(setup: Setup) -> None:
    """A subscription that says nothing more is found out, though both links look well."""
    setup.health.heard(b"1")
    for _ in range(3):
        await setup.interval()
    assert setup.health.problem() is None  # two may be missed
    setup.clock.now += 0.1

    assert setup.health.problem() == "probes have not come back through the subscription for 3.1 s"


async def test_ready_again(setup: Setup) -> None:
    """The next probe that comes back ends the trouble."""
    setup.health.heard(b"1")
    await setup.interval(seconds=60)
    assert setup.health.problem() is not None
    setup.health.heard(b"2")

    assert setup.health.problem() is None


@pytest.mark.parametrize("which", ["commands", "feed"])
async def test_a_link_that_is_down(setup: Setup, which: str) -> None:
    """Either link alone makes the pod deaf or dumb; the reason says which, and why."""
    setup.health.heard(b"1")
    link = setup.commands if which == "commands" else setup.feed
    link.up = False
    link.last_error = "connection refused"
    words = "commands" if which == "commands" else "subscriptions"

    assert setup.health.problem() == f"no connection to Redis for {words}: connection refused"


async def test_after_an_outage_a_new_probe_is_needed(setup: Setup) -> None:
    """A probe from before the outage proves nothing about what is after it."""
    setup.health.heard(b"1")
    setup.commands.up = False
    await setup.interval()
    setup.commands.up = True
    assert setup.health.problem() == "the first probe has not come back yet"
    await settle()
    assert setup.probes[-1] == b"3"
    setup.health.heard(b"2")
    assert setup.health.problem() is not None
    setup.health.heard(b"3")

    assert setup.health.problem() is None


async def test_the_connection_is_lost_under_the_probe(setup: Setup) -> None:
    """A probe whose fate is unknown is followed by another as soon as the link is up again."""
    setup.commands.refusal = RedisUnavailable("connection to Redis lost")
    setup.commands.up = False
    await setup.interval()
    setup.commands.refusal = None
    setup.commands.up = True
    await settle()

    assert setup.probes == [b"1", b"2", b"3"]
    assert setup.clock.sleeps.qsize() == 1


async def test_a_refused_probe_is_not_repeated_at_once(setup: Setup) -> None:
    """A Redis that refuses (a user without rights to publish) is asked once per interval, and named."""
    setup.health.heard(b"1")
    setup.commands.refusal = RedisRefused("NOPERM no permissions")
    await setup.interval()
    assert setup.probes == [b"1", b"2"]
    assert "NOPERM" in str(setup.health.problem())
    setup.commands.refusal = None
    await setup.interval()
    setup.health.heard(b"3")

    assert setup.health.problem() is None


async def test_draining(setup: Setup) -> None:
    """A pod that stops says so before everything else, so that it gets no new clients."""
    setup.health.heard(b"1")
    setup.health.draining = True
    setup.commands.up = False

    assert setup.health.problem() == "draining"


async def test_own_channel_is_subscribed_to(setup: Setup) -> None:
    """Without the subscription no probe could come back."""
    setup.health.subscribe()

    assert setup.feed.told == [("SUBSCRIBE", CHANNEL)]
    assert setup.health.channel == CHANNEL.encode()
