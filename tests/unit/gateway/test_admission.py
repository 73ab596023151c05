"""Room for one more socket: counted in, counted out, and never one too many."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backplane.connection_counts import Full, Most, Place
from backplane.errors import RedisUnavailable
from backplane.settings import Settings
from gateway import admission
from gateway.admission import Admission, place_of
from gateway.errors import ClientError
from gateway.identity import ANYONE, Grant, Identity
from gateway.listener import Listener, State
from tests.unit.gateway.fakes import FakeCounts, FakeLimiter, StubConnection, settle

ONE, TWO = "93.184.216.34", "93.184.216.35"
PROXY = "10.0.0.1"


def identity(
    tenant: str = "acme", session: str = "s-1", user: str | None = None, tier: str = "free"
) -> Identity:
    grant = Grant(tenant, tier, user, None, None, frozenset(), None, 0.0, None)
    return Identity(tenant, tier, session, user or "said-to-be", None, grant)


def socket(peer: str | None = ONE) -> Listener:
    """A socket that has just come."""
    return StubConnection(peer).as_connection()


class World:
    """A pod's door."""

    def __init__(self, **settings: Any) -> None:
        self.now = 1_000.0
        self.counts, self.limiter = FakeCounts(), FakeLimiter()
        usual = {"connections_per_address": 0, "handshakes_per_address": 0, "trusted_proxies": PROXY}
        self.admission = Admission(
            Settings(**{**usual, **settings}),
            self.counts.as_counts(),
            self.limiter.as_limiter(),
            lambda: self.now,
        )

    async def knock(self, peer: str | None = ONE, forwarded: str | None = None) -> Listener:
        one = socket(peer)
        await self.admission.knock(one, forwarded)
        return one

    async def refusal(self, peer: str | None = ONE, forwarded: str | None = None) -> ClientError:
        """Of one more; it is counted out, as every socket is in the end."""
        one = socket(peer)
        with pytest.raises(ClientError) as caught:
            await self.admission.knock(one, forwarded)
        self.admission.gone(one)
        return caught.value

    async def join(self, one: Listener, who: Identity | None = None) -> None:
        one.identity = who or identity()
        await self.admission.join(one, one.identity)


# The pod.


async def test_a_full_pod() -> None:
    """One more is sent to another pod; when one has gone there is room again."""
    world = World(connections_max=3)
    sockets = [await world.knock() for _ in range(3)]
    for _ in range(3):
        error = await world.refusal()
        assert (error.status, error.error_code, error.limit) == (503, "pod_full", "pod")
        assert error.retry_after_s == 1
    world.admission.gone(sockets[0])
    await world.knock()

    assert (await world.refusal()).error_code == "pod_full"


async def test_a_pod_that_has_fewer_files() -> None:
    """What the system allows may be less than the setting."""
    world = World(connections_max=3)
    world.admission.most = 1
    await world.knock()

    assert (await world.refusal()).error_code == "pod_full"


async def test_gone_is_counted_once() -> None:
    """However often it is told."""
    world = World(connections_max=2)
    one = await world.knock()
    for _ in range(3):
        world.admission.gone(one)
    world.admission.gone(socket())
    await world.knock()
    await world.knock()

    assert (await world.refusal()).error_code == "pod_full"


# Addresses.


async def test_sockets_of_an_address() -> None:
    """So many, and others are not concerned."""
    world = World(connections_per_address=2)
    first, _second = await world.knock(), await world.knock()
    error = await world.refusal()
    assert (error.status, error.error_code, error.limit) == (429, "too_many_connections", "address")
    assert "2" in error.detail
    await world.knock(TWO)
    world.admission.gone(first)
    await world.knock()

    assert (await world.refusal()).limit == "address"


async def test_addresses_behind_a_load_balancer() -> None:
    """They are those that it says; what it does not say is not limited."""
    world = World(connections_per_address=1)
    await world.knock(PROXY, ONE)
    await world.knock(PROXY, TWO)
    assert (await world.refusal(PROXY, f"{TWO}, {ONE}")).limit == "address"
    assert (await world.refusal(ONE, TWO)).limit == "address"
    for _ in range(3):
        await world.knock(PROXY)
        await world.knock("192.168.1.1")
        await world.knock(None)


async def test_addresses_without_sockets_are_forgotten() -> None:
    """A crawler of addresses leaves nothing behind."""
    world = World(connections_per_address=5)
    for number in range(100):
        world.admission.gone(await world.knock(f"93.184.216.{number}"))

    assert world.admission._by_address == {}


async def test_handshakes_of_an_address() -> None:
    """So many at once, then one each time that the bucket has one; others are not concerned."""
    world = World(handshakes_per_address=60)
    for _ in range(60):
        world.admission.gone(await world.knock())
    error = await world.refusal()
    assert (error.status, error.error_code, error.limit) == (429, "rate_limited", "handshakes")
    assert error.retry_after_s == pytest.approx(1.0)
    await world.knock(TWO)
    world.now += 1
    await world.knock()

    assert (await world.refusal()).limit == "handshakes"


async def test_redis_is_not_asked_for_a_flood() -> None:
    """What the pod refuses by itself costs Redis nothing; the rest is counted there for all pods."""
    world = World(handshakes_per_address=3)
    for _ in range(3):
        await world.knock()
    for _ in range(50):
        await world.refusal()

    assert world.limiter.addresses == [(ONE, 3, 60)] * 3


async def test_sockets_that_are_too_many_are_no_matter_of_redis() -> None:
    """Nor is it asked about an address that is full."""
    world = World(handshakes_per_address=100, connections_per_address=1)
    await world.knock()
    await world.refusal()

    assert len(world.limiter.addresses) == 1


async def test_handshakes_on_other_pods() -> None:
    """They count too."""
    world = World(handshakes_per_address=100)
    world.limiter.address_wait_s = 2.5
    error = await world.refusal()

    assert (error.status, error.limit, error.retry_after_s) == (429, "handshakes", 2.5)


async def test_what_was_refused_is_counted_out() -> None:
    """A socket that Redis refused is counted until it is gone, and not longer."""
    world = World(handshakes_per_address=100, connections_per_address=1, connections_max=1)
    world.limiter.address_wait_s = 2.5
    for _ in range(3):
        assert (await world.refusal()).limit == "handshakes"
    world.limiter.address_wait_s = 0.0

    await world.knock()


@pytest.mark.parametrize("failure", ["closed", "open"])
async def test_handshakes_while_redis_is_away(failure: str) -> None:
    """As is set: nobody is let in, or as many as this pod alone allows."""
    world = World(handshakes_per_address=2, rate_limit_failure=failure)
    world.limiter.address_wait_s = RedisUnavailable("away")
    if failure == "closed":
        with pytest.raises(RedisUnavailable):
            await world.knock()
    else:
        await world.knock()
        await world.knock()
        assert (await world.refusal()).limit == "handshakes"


async def test_nothing_is_limited() -> None:
    """0 is no limit, and asks nobody."""
    world = World()
    for _ in range(2_000):
        await world.knock()

    assert world.limiter.addresses == []


async def test_addresses_that_knocked_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that were silent for longest are forgotten first."""
    monkeypatch.setattr(admission, "_ADDRESSES", 2)
    world = World(handshakes_per_address=1)
    await world.knock("93.184.216.1")
    await world.knock("93.184.216.2")
    await world.refusal("93.184.216.1")
    await world.knock("93.184.216.3")
    await world.refusal("93.184.216.1")

    await world.knock("93.184.216.2")


# Tenants, sessions and users.


async def test_joining() -> None:
    """A socket counts where its token says that it belongs; the limits are its tier's."""
    world = World(connections_per_tenant=(1, 2, 3, 4), connections_per_session=5, connections_per_user=6)
    one, two = await world.knock(), await world.knock()
    await world.join(one, identity("acme", "s-1", "ann", "professional"))
    assert world.counts.most == Most(3, 5, 6)
    await world.join(two, identity("other", "s-2"))
    assert world.counts.most == Most(1, 5, 6)
    assert world.counts.places == [Place("acme", "s-1", "ann"), Place("other", "s-2", None)]
    world.admission.gone(one)

    assert world.counts.places == [Place("other", "s-2", None)]


def test_a_user_is_who_is_proved() -> None:
    """Who only says so fills up nobody else's places."""
    assert place_of(identity(user=None)) == Place("acme", "s-1", None)
    assert place_of(Identity("acme", "free", "s-1", "ann", None, ANYONE)) == Place("acme", "s-1", None)


@pytest.mark.parametrize("what", ["tenant", "session", "user"])
async def test_too_many(what: Any) -> None:
    """Who it is that has too many is told, and how many are allowed; it is not counted."""
    world = World()
    world.counts.full = Full(what, 7)
    one = await world.knock()
    with pytest.raises(ClientError) as caught:
        await world.join(one)

    error = caught.value
    assert (error.status, error.error_code, error.limit) == (429, "too_many_connections", what)
    assert error.retry_after_s == 5
    assert f"the {what} has 7 open sockets" in error.detail
    world.admission.gone(one)
    assert world.counts.places == []


async def test_joining_while_redis_is_away() -> None:
    """Nobody is let in uncounted."""
    world = World()
    world.counts.full = RedisUnavailable("away")
    one = await world.knock()
    with pytest.raises(RedisUnavailable):
        await world.join(one)
    world.admission.gone(one)

    assert not one.counted


async def test_gone_while_it_joins() -> None:
    """What is counted for nobody is counted out as soon as that is known."""
    world = World()
    world.counts.gate.clear()
    one = await world.knock()
    joining = asyncio.create_task(world.join(one))
    await settle()
    one.state = State.CLOSED
    world.admission.gone(one)
    world.counts.gate.set()
    await joining

    assert world.counts.places == []
    world.admission.gone(one)
    await world.admission.rewrite([])
    assert world.counts.places == []


# Setting the counts right.


async def test_counts_are_written_anew() -> None:
    """Those that are open and those that have joined and are about to be, each once, and no others."""
    world = World()
    opened, entering, refused, knocked = [await world.knock() for _ in range(4)]
    await world.join(opened, identity(session="opened"))
    world.admission.entered(opened)
    await world.join(entering, identity(session="entering"))
    world.counts.full = Full("tenant", 2)
    with pytest.raises(ClientError):
        await world.join(refused, identity(session="refused"))
    knocked.identity = identity(session="knocked")
    world.counts.places.clear()
    await world.admission.rewrite([opened])
    assert sorted(place.session_id for place in world.counts.places) == ["entering", "opened"]
    world.admission.gone(entering)
    await world.admission.rewrite([opened, refused])

    assert [place.session_id for place in world.counts.places] == ["opened"]


@given(
    st.lists(
        st.tuples(st.sampled_from(["knock", "join", "gone"]), st.integers(0, 5), st.integers(0, 1)),
        max_size=60,
    )
)
def test_whatever_comes_and_goes(deeds: list[tuple[str, int, int]]) -> None:
    """There are never more than allowed, and what has gone leaves room for as many again."""
    asyncio.run(come_and_go(deeds))


async def come_and_go(deeds: list[tuple[str, int, int]]) -> None:
    world = World(connections_max=4, connections_per_address=2)
    here: dict[int, Listener] = {}
    for deed, number, address in deeds:
        if deed == "knock" and number not in here:
            peer = (ONE, TWO)[address]
            full = len(here) >= 4
            crowded = sum(one.peer == peer for one in here.values()) >= 2
            if full or crowded:
                assert (await world.refusal(peer)).limit == ("pod" if full else "address")
            else:
                here[number] = await world.knock(peer)
        elif deed == "join" and number in here and not here[number].counted:
            await world.join(here[number])
        elif deed == "gone" and number in here:
            world.admission.gone(here.pop(number))
        assert len(world.counts.places) == sum(one.counted for one in here.values())
    for one in here.values():
        world.admission.gone(one)
    for peer in (ONE, ONE, TWO, TWO):
        await world.knock(peer)
    assert world.counts.places == []
