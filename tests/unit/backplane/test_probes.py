"""Probes: that what is written comes back is proved over and over, for every server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from backplane.errors import RedisRefused, RedisUnavailable
from backplane.link import Link
from backplane.probes import Probes
from tests.unit.gateway.fakes import FakeLink, FakeStore, settle

INTERVAL_S = 1.0


class Clock:
    """Stands where a test puts it; in place of the modules of which `backplane.probes` uses no more."""

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
    """Probes of a store of two servers, at 7000 and 7001, and a clock."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.store = FakeStore(servers=2)
        self.sent: list[tuple[int, str, str]] = []
        self.used: list[str] = []
        self.given_back: list[str] = []
        self.refusals: dict[int, Exception] = {}
        self.probes = Probes(
            self.store.as_store(),
            lambda number: f"name-{number}",
            INTERVAL_S,
            self._send,
            self.used.append,
            self.given_back.append,
        )

    def _send(self, link: Link, name: str, text: str) -> asyncio.Future[Any]:
        port = link.address.port
        self.sent.append((port, name, text))
        refusal = self.refusals.get(port)
        if refusal is not None and not isinstance(refusal, RedisRefused):
            raise refusal
        done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        if refusal is None:
            done.set_result(1)
        else:
            done.set_exception(refusal)
        return done

    def hear(self, *ports: int) -> None:
        """The last probes come back."""
        for port, name, text in self.sent[-len(self.probes.names()) :]:
            if port in ports:
                assert self.probes.heard(name.encode(), text.encode())

    async def interval(self, seconds: float = INTERVAL_S) -> None:
        """Let an interval pass, at the end of which there are the next probes."""
        self.sent.clear()
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
    """Probes that have been sent for the first time."""
    setup = Setup(clock)
    running = asyncio.create_task(setup.probes.run())
    await settle()
    yield setup
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_each_server_has_its_own(setup: Setup) -> None:
    """Names are tried until there is one on each, and are used from the first probe on."""
    assert setup.sent == [(7000, "name-0", "1"), (7001, "name-1", "1")]
    assert setup.used == setup.probes.names() == ["name-0", "name-1"]
    await setup.interval()
    assert setup.sent == [(7000, "name-0", "2"), (7001, "name-1", "2")]
    assert setup.used == ["name-0", "name-1"]


async def test_all_have_to_come_back(setup: Setup) -> None:
    """One server that says nothing is enough to be in trouble; all that do are named."""
    silent = [f"the first probe of redis.test:{port} has not come back yet" for port in (7000, 7001)]
    assert setup.probes.problem() == "; ".join(silent)
    setup.hear(7000)
    assert setup.probes.problem() == silent[1]
    assert setup.probes.troubles() == {setup.store.links[1]: silent[1]}
    setup.clock.now += 0.25
    setup.hear(7001)

    assert setup.probes.problem() is None
    assert setup.probes.round_trip_s == 0.25


async def test_nothing_is_known_before_the_first(clock: Clock) -> None:
    """A store that looks well proves nothing by that."""
    probes = Setup(clock).probes
    assert str(probes.problem()).count("has not come back yet") == 2
    assert probes.impairment() == probes.problem()


async def test_all_is_well(setup: Setup) -> None:
    """Nothing is in trouble, and nothing is impaired."""
    setup.hear(7000, 7001)
    assert (setup.probes.problem(), setup.probes.impairment(), setup.probes.troubles()) == (None, None, {})


async def test_a_server_that_cannot_be_reached_is_an_impairment(setup: Setup) -> None:
    """Most likely nobody reaches it: the process goes on with the others, and says which one it lacks."""
    setup.hear(7000, 7001)
    down = setup.store.nodes[1]
    down.up = False
    down.last_error = "connection refused"
    told = "no connection to Redis at redis.test:7001: connection refused"
    assert setup.probes.problem() is None
    assert setup.probes.impairment() == told
    assert list(setup.probes.troubles().values()) == [told]
    setup.store.nodes[0].up = False
    setup.store.last_error = "all are away"

    assert setup.probes.problem() == "no connection to Redis: all are away"


async def test_slots_that_nobody_serves_are_an_impairment(setup: Setup) -> None:
    """All that is there is well, and something is missing."""
    setup.hear(7000, 7001)
    setup.store.whole = False
    setup.store.last_error = "100 slots are served by no node"
    assert setup.probes.problem() is None
    assert setup.probes.impairment() == "100 slots are served by no node"


async def test_what_comes_back_has_to_be_the_last(setup: Setup) -> None:
    """One from before is no proof of now; where Redis tells no text, its word is."""
    await setup.interval()
    for text in (b"1", b"3", b"", b"x"):
        assert setup.probes.heard(b"name-0", text)
        assert setup.probes.heard(b"name-1", text)
    assert setup.probes.problem() is not None
    assert setup.probes.heard(b"name-0")
    assert setup.probes.heard(b"name-1")

    assert setup.probes.problem() is None


async def test_names_of_others_are_told_apart(setup: Setup) -> None:
    """Whoever asks knows whether a push was a probe's."""
    assert not setup.probes.heard(b"name-2")
    assert not setup.probes.heard(b"another", b"1")


async def test_silence_of_one_server(setup: Setup) -> None:
    """Two may be missed; then it is told, and that connection alone is made anew."""
    setup.hear(7000, 7001)
    for _ in range(3):
        await setup.interval()
        setup.hear(7000)
    assert setup.probes.problem() is None
    await setup.interval()
    setup.hear(7000)

    assert setup.probes.problem() == "probes have not come back from Redis at redis.test:7001 for 4.0 s"
    assert [link.aborted for link in setup.store.nodes] == [[], ["probes do not come back"]]


async def test_a_new_connection_has_its_time(setup: Setup) -> None:
    """Dropping it at every probe would never let it prove anything."""
    setup.hear(7000, 7001)
    for _ in range(12):
        await setup.interval()
        setup.hear(7000)
    assert len(setup.store.nodes[1].aborted) == 3  # after 4, 8 and 12 s
    setup.hear(7001)

    assert setup.probes.problem() is None


async def test_a_connection_that_never_brought_any(setup: Setup) -> None:
    """Also where the first probe is the one that is missing."""
    for _ in range(4):
        await setup.interval()
        setup.hear(7001)

    assert [link.aborted for link in setup.store.nodes] == [["probes do not come back"], []]


async def test_what_is_down_is_left_alone(setup: Setup) -> None:
    """It is being made anew already; once it is up, its time begins."""
    setup.hear(7000, 7001)
    setup.store.nodes[1].up = False
    setup.probes.lost()
    for _ in range(9):
        await setup.interval()
        setup.hear(7000)
    assert setup.probes.problem() is None
    setup.store.nodes[1].up = True
    for _ in range(3):
        await setup.interval()
        setup.hear(7000)
    assert setup.store.nodes[1].aborted == []
    assert setup.probes.problem() == "the first probe of redis.test:7001 has not come back yet"
    setup.hear(7001)

    assert setup.probes.problem() is None


async def test_a_lost_connection_ends_every_proof(setup: Setup) -> None:
    """What came back before the loss says nothing about what is after it."""
    setup.hear(7000, 7001)
    setup.probes.lost()
    assert str(setup.probes.problem()).count("has not come back yet") == 2
    await setup.interval()
    setup.hear(7000, 7001)

    assert setup.probes.problem() is None


@pytest.mark.parametrize("error", [RedisRefused("NOPERM no permissions"), RedisUnavailable("not connected")])
async def test_a_probe_that_cannot_be_sent(setup: Setup, error: RedisUnavailable) -> None:
    """It is tried again at the next interval and no sooner; a refusal is told in Redis's words."""
    setup.hear(7000, 7001)
    setup.refusals[7001] = error
    await setup.interval()
    assert [port for port, _, _ in setup.sent] == [7000, 7001]
    if isinstance(error, RedisRefused):
        assert setup.probes.problem() == "Redis at redis.test:7001 refuses the probe: NOPERM no permissions"
    setup.refusals.clear()
    await setup.interval()
    setup.hear(7000, 7001)

    assert setup.probes.problem() is None


async def test_a_server_that_goes_and_one_that_comes(setup: Setup) -> None:
    """Names follow the servers: what is served elsewhere is given back, and a newcomer gets one."""
    setup.hear(7000, 7001)
    setup.store.nodes[1] = FakeLink(7002)
    await setup.interval()
    assert setup.given_back == ["name-1"]
    assert setup.used == ["name-0", "name-1", "name-1"]
    assert setup.sent == [(7000, "name-0", "2"), (7002, "name-1", "1")]
    assert setup.probes.problem() == "the first probe of redis.test:7002 has not come back yet"
    setup.hear(7002)

    assert setup.probes.problem() is None


async def test_a_name_whose_slot_has_moved(setup: Setup) -> None:
    """It proves nothing about the server that it was for; another one does."""
    setup.hear(7000, 7001)
    setup.store.nodes.reverse()
    await setup.interval()

    assert sorted(setup.given_back) == ["name-0", "name-1"]
    assert sorted(setup.sent) == [(7000, "name-1", "1"), (7001, "name-0", "1")]


async def test_a_server_with_next_to_no_slots(setup: Setup) -> None:
    """No name may be found there, as when a cluster grows slot by slot: it is no trouble for that."""
    setup.hear(7000, 7001)
    spare = FakeLink(7009)

    class Growing(FakeStore):
        @property
        def links(self) -> list[Link]:
            return [*super().links, spare.as_link()]

    setup.store.__class__ = Growing
    await setup.interval()
    setup.hear(7000, 7001)

    assert setup.probes.names() == ["name-0", "name-1"]
    assert setup.probes.problem() is None
