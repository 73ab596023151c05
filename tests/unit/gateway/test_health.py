"""Readiness: only while the pod's own probes come back through its subscription.

How probes are sent and judged: `tests/unit/backplane/test_probes.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest

from backplane.errors import RedisRefused, RedisUnavailable
from gateway.health import Health
from tests.unit.backplane.test_probes import INTERVAL_S, Clock
from tests.unit.gateway.fakes import FakeStore, settle

CHANNEL = b"channel-0"


class Setup:
    """A pod's health, its stores, and a clock."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.feed = FakeStore()
        self.commands = FakeStore()
        self.health = Health(
            self.feed.as_store(), self.commands.as_store(), lambda number: f"channel-{number}", INTERVAL_S
        )

    @property
    def probes(self) -> list[bytes]:
        return [str(command[2]).encode() for command in self.commands.called]

    def hear(self, payload: bytes) -> None:
        self.health.heard(CHANNEL, payload)

    async def interval(self, seconds: float = INTERVAL_S) -> None:
        """Let an interval pass, at the end of which there is the next probe."""
        self.clock.now += seconds
        self.clock.sleeps.get_nowait().set_result(None)
        await settle()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    clock = Clock()
    with monkeypatch.context() as patch:
        patch.setattr("backplane.probes.time", clock)
        patch.setattr("backplane.probes.asyncio", clock)
        yield clock


@pytest.fixture
async def setup(clock: Clock) -> AsyncIterator[Setup]:
    """A pod whose first probe is under way."""
    setup = Setup(clock)
    running = asyncio.create_task(setup.health.probes.run())
    await settle()
    yield setup
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_not_ready_before_the_first_probe(setup: Setup) -> None:
    """Connections that are up prove nothing yet."""
    assert setup.commands.called == [("PUBLISH", "channel-0", "1")]
    assert setup.health.problem() == "the first probe of redis.test:7000 has not come back yet"


async def test_ready_when_the_probe_comes_back(setup: Setup) -> None:
    """A probe that came back is the proof; its time is kept for the report."""
    setup.clock.now += 0.25
    setup.hear(b"1")

    assert setup.health.problem() is None
    assert setup.health.probes.round_trip_s == 0.25


async def test_another_probe_is_no_proof(setup: Setup) -> None:
    """What was published by somebody else, or a probe from before, does not make the pod ready."""
    for payload in (b"0", b"2", b"", b"hello", b"01"):
        setup.hear(payload)
    setup.health.heard(b"channel-1", b"1")
    assert setup.health.problem() is not None
    await setup.interval()
    setup.hear(b"1")

    assert setup.health.problem() is not None


async def test_probes_go_on(setup: Setup) -> None:
    """There is a new probe every interval, each with its own number."""
    for _ in range(3):
        await setup.interval()

    assert setup.probes == [b"1", b"2", b"3", b"4"]


async def test_silence_ends_readiness(setup: Setup) -> None:
    """A subscription that says nothing more is found out, though both connections look well, and mended."""
    setup.hear(b"1")
    for _ in range(3):
        await setup.interval()
    assert setup.health.problem() is None  # two may be missed
    setup.clock.now += 0.1
    assert setup.health.problem() == "probes have not come back from Redis at redis.test:7000 for 3.1 s"
    assert setup.feed.nodes[0].aborted == []
    await setup.interval()

    assert setup.feed.nodes[0].aborted == ["probes do not come back"]
    assert setup.commands.nodes[0].aborted == []


async def test_ready_again(setup: Setup) -> None:
    """The next probe that comes back ends the trouble."""
    setup.hear(b"1")
    await setup.interval(seconds=60)
    assert setup.health.problem() is not None
    setup.hear(b"2")

    assert setup.health.problem() is None


@pytest.mark.parametrize("which", ["commands", "feed"])
async def test_a_connection_that_is_down(setup: Setup, which: str) -> None:
    """Either one alone makes the pod deaf or dumb; the reason says which, and why."""
    setup.hear(b"1")
    store = setup.commands if which == "commands" else setup.feed
    store.up = False
    store.last_error = "connection refused"
    words = " for commands" if which == "commands" else ""

    assert setup.health.problem() == f"no connection to Redis{words}: connection refused"
    assert setup.health.deafness() == setup.health.problem()


async def test_after_an_outage_a_new_probe_is_needed(setup: Setup) -> None:
    """A probe from before the outage proves nothing about what is after it."""
    setup.hear(b"1")
    setup.commands.up = False
    setup.health.probes.lost()
    await setup.interval()
    setup.commands.up = True
    assert setup.health.problem() == "the first probe of redis.test:7000 has not come back yet"
    await setup.interval()
    assert setup.probes[-1] == b"3"
    setup.hear(b"2")
    assert setup.health.problem() is not None
    setup.hear(b"3")

    assert setup.health.problem() is None


async def test_the_connection_is_lost_under_the_probe(setup: Setup) -> None:
    """A probe whose fate is unknown is followed by another at its time."""
    setup.commands.refusal = RedisUnavailable("connection to Redis lost")
    await setup.interval()
    setup.commands.refusal = None
    await setup.interval()
    setup.hear(b"3")

    assert setup.probes == [b"1", b"2", b"3"]
    assert setup.health.problem() is None


async def test_a_refused_probe_is_not_repeated_at_once(setup: Setup) -> None:
    """A Redis that refuses (a user without rights to publish) is asked once per interval, and named."""
    setup.hear(b"1")
    setup.commands.refusal = RedisRefused("NOPERM no permissions")
    await setup.interval()
    assert setup.probes == [b"1", b"2"]
    assert "NOPERM" in str(setup.health.problem())
    setup.commands.refusal = None
    await setup.interval()
    setup.hear(b"3")

    assert setup.health.problem() is None


async def test_draining(setup: Setup) -> None:
    """A pod that stops says so before everything else, so that it gets no new clients; it is not deaf."""
    setup.hear(b"1")
    setup.health.draining = True
    assert setup.health.deafness() is None
    setup.commands.up = False

    assert setup.health.problem() == "draining"


async def test_own_channel_is_subscribed_to(setup: Setup) -> None:
    """Without the subscription no probe could come back; over a new connection it is wanted again."""
    assert setup.feed.subscribed == ["channel-0"]
    assert setup.health.probes.names() == ["channel-0"]


async def test_a_channel_for_each_server(clock: Clock) -> None:
    """What one server brings says nothing about the others."""
    setup = Setup(clock)
    setup.feed.nodes = FakeStore(servers=3).nodes
    running = asyncio.create_task(setup.health.probes.run())
    await settle()
    assert sorted(setup.feed.subscribed) == ["channel-0", "channel-1", "channel-2"]
    for channel in (b"channel-0", b"channel-1"):
        setup.health.heard(channel, b"1")
    assert setup.health.problem() is not None
    setup.health.heard(b"channel-2", b"1")
    assert setup.health.problem() is None
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_a_session_whose_server_was_given_up(clock: Clock) -> None:
    """It is better off on another pod, until that server is heard again; sessions of others are not."""
    setup = Setup(clock)
    setup.feed.nodes = FakeStore(servers=2).nodes
    running = asyncio.create_task(setup.health.probes.run())
    await settle()
    for channel in (b"channel-0", b"channel-1"):
        setup.health.heard(channel, b"1")
    assert (setup.health.impairment(), setup.health.problem()) == (None, None)
    setup.feed.nodes[1].up = False
    setup.feed.nodes[1].last_error = "connection refused"
    assert setup.health.problem() is None
    assert setup.health.impairment() == "no connection to Redis at redis.test:7001: connection refused"
    assert not setup.health.deaf_to("session-1")  # not given up yet
    setup.health.given_up = {setup.feed.links[1]}
    assert setup.health.deaf_to("session-1")
    assert not setup.health.deaf_to("session-0")
    setup.feed.nodes[1].up = True
    assert not setup.health.deaf_to("session-1")
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
