"""Where a pod may listen, and with whom it shares a port."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from backplane.errors import ConfigurationError
from backplane.settings import Settings
from gateway.app import build_app
from gateway.server import Room, Stopping, _config, check_exposure, listening_socket
from tests.unit.gateway.web import StubPod

LOOPBACK = "127.0.0.1"


@pytest.fixture
def closing() -> Iterator[ExitStack]:
    """Closes what a test opens."""
    with ExitStack() as stack:
        yield stack


def port_of(listening: socket.socket) -> int:
    port: int = listening.getsockname()[1]
    return port


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_without_tokens_on_loopback(host: str) -> None:
    """A developer's own machine needs no tokens."""
    check_exposure(Settings(auth="none", host=host))


@pytest.mark.parametrize(
    "host",
    [
        "0.0.0.0",
        "::",
        "",
        "192.168.1.5",
        "10.0.0.1",
        "fe80::1",
        "example.org",
        "localhost.evil.test",
        "127.0.0.1.evil.test",
    ],
)
def test_without_tokens_on_a_network(host: str) -> None:
    """A service without tokens is not offered to a network, unless that is said to be meant."""
    with pytest.raises(ConfigurationError, match="AUTH=none"):
        check_exposure(Settings(auth="none", host=host))
    check_exposure(Settings(auth="none", host=host, allow_insecure=True))
    check_exposure(Settings(auth="jwt", host=host))


@pytest.mark.parametrize("seconds", [75, 7])
def test_idle_connections_are_kept(seconds: int) -> None:
    """As long as is set, by default longer than load balancers keep theirs; uvicorn's own are 5 s."""
    pod = StubPod(**({} if seconds == 75 else {"keep_alive_s": seconds})).as_pod()
    assert _config(pod, build_app(pod), Room(100, 100)).timeout_keep_alive == seconds


def test_pods_share_a_port(closing: ExitStack) -> None:
    """Several pods of one machine listen on one port, and a client reaches one of them."""
    one = closing.enter_context(listening_socket(LOOPBACK, 0))
    two = closing.enter_context(listening_socket(LOOPBACK, port_of(one)))
    assert port_of(one) == port_of(two)
    assert not one.getblocking()
    closing.enter_context(socket.create_connection((LOOPBACK, port_of(one)), timeout=5))


def test_a_port_that_is_taken(closing: ExitStack) -> None:
    """A port of somebody who does not share it is refused in one line that names it."""
    taken = closing.enter_context(socket.socket())
    taken.bind((LOOPBACK, 0))
    taken.listen()

    with pytest.raises(ConfigurationError, match=f"cannot listen on {LOOPBACK}:{port_of(taken)}: Address"):
        listening_socket(LOOPBACK, port_of(taken))


@pytest.mark.parametrize(
    "host", ["192.0.2.1", "x" * 300, "\u00e9..\u00e9"], ids=["not ours", "too long", "no name"]
)
def test_an_address_that_cannot_be_had(host: str) -> None:
    """An address of another machine, or none at all, stops the start with one line."""
    with pytest.raises(ConfigurationError, match="cannot listen on") as caught:
        listening_socket(host, 0)
    assert "\n" not in str(caught.value)


def test_ipv6(closing: ExitStack) -> None:
    """A colon in the address makes it one of IPv6."""
    try:
        listening = closing.enter_context(listening_socket("::1", 0))
    except ConfigurationError as error:  # a machine without IPv6 says so, in the usual words
        said = str(error)
        assert said.startswith("cannot listen on ::1")  # either way is right
        return
    assert listening.family == socket.AF_INET6


async def test_signals() -> None:
    """The first asks to stop, SIGINT by hand; whatever comes second asks to hurry."""
    for first, by_hand in ((signal.SIGTERM, False), (signal.SIGINT, True)):
        for second in (signal.SIGTERM, signal.SIGINT):
            stopping = Stopping()
            assert not stopping.asked.is_set()
            stopping.on_signal(first)
            assert (stopping.asked.is_set(), stopping.hurry.is_set(), stopping.by_hand) == (
                True,
                False,
                by_hand,
            )
            stopping.on_signal(second)
            assert (stopping.hurry.is_set(), stopping.by_hand) == (True, by_hand)
