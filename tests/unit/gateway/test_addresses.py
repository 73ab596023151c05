"""Whose a connection is: what is believed of load balancers, and of nobody else."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backplane.errors import ConfigurationError
from gateway.addresses import Proxies

PROXIES = "10.0.0.0/8, 192.0.2.10,2001:db8:1::/48"
NEAR, FAR = "10.1.2.3", "192.0.2.10"  # load balancers
CLIENT, OTHER = "198.51.100.7", "203.0.113.9"  # documentation addresses, of no network
GLOBAL = "93.184.216.34"


def client(peer: str | None, forwarded: str | None = None, proxies: str = PROXIES) -> str | None:
    return Proxies(proxies).client(peer, forwarded)


# Without a load balancer.


@pytest.mark.parametrize("forwarded", [None, "", CLIENT, f"{CLIENT}, {NEAR}", NEAR, "garbage", "127.0.0.1"])
def test_what_others_say_is_not_believed(forwarded: str | None) -> None:
    """A client that connects by itself is its own address, whatever it writes into the header."""
    assert client(GLOBAL, forwarded) == GLOBAL
    assert client(GLOBAL, forwarded, proxies="") == GLOBAL


@pytest.mark.parametrize(
    "peer", ["192.168.1.5", "127.0.0.1", "172.16.0.1", "::1", "fe80::1", "fd00::1", "100.64.0.1"]
)
@pytest.mark.parametrize("forwarded", [None, CLIENT, GLOBAL])
def test_private_peers_that_are_not_listed(peer: str, forwarded: str | None) -> None:
    """It may be a load balancer with everybody behind it: it is not limited, nor is its word taken."""
    assert client(peer, forwarded) is None
    assert client(peer, forwarded, proxies="") is None


@pytest.mark.parametrize("peer", [None, "", "garbage", "/run/pod.sock", "1.2.3", "1.2.3.4:5", "[::1]"])
def test_peers_without_an_address(peer: str | None) -> None:
    """A peer on a Unix socket, for one, is nobody in particular."""
    assert client(peer, CLIENT) is None


# Behind load balancers.


@pytest.mark.parametrize(
    ("forwarded", "found"),
    [
        (CLIENT, CLIENT),
        (f"{OTHER}, {CLIENT}", CLIENT),
        (f"{CLIENT}, {FAR}", CLIENT),
        (f"{OTHER}, {CLIENT}, {FAR}, {NEAR}", CLIENT),
        (f"{NEAR}, {CLIENT}", CLIENT),
        (f"garbage, {CLIENT}", CLIENT),
        (f"{CLIENT}, garbage", None),
        (f"{CLIENT}, garbage, {NEAR}", None),
        (f"{CLIENT},", None),
        (f"{CLIENT}, ,{NEAR}", None),
        (f"  {CLIENT}  ", CLIENT),
        (f"\t{CLIENT}", CLIENT),
        (f"{OTHER},{CLIENT}", CLIENT),
        (f"{CLIENT}:443", None),
        (f'"{CLIENT}"', None),
        ("unknown", None),
        ("_hidden", None),
        (NEAR, None),
        (f"{NEAR}, {FAR}", None),
        ("", None),
        (",", None),
        (None, None),
        ("192.168.7.7", "192.168.7.7"),
        ("127.0.0.1", "127.0.0.1"),
    ],
)
def test_the_last_who_is_no_load_balancer(forwarded: str | None, found: str | None) -> None:
    """What stands before that entry anybody can have written; one that is no address ends the search."""
    assert client(NEAR, forwarded) == found
    assert client(FAR, forwarded) == found


@pytest.mark.parametrize(
    "spoofed", [OTHER, NEAR, f"{OTHER}, {NEAR}", ", ".join([NEAR] * 30), "x" * 5_000, ","]
)
def test_a_client_cannot_be_somebody_else(spoofed: str) -> None:
    """The load balancer puts its address behind whatever the client had sent."""
    assert client(NEAR, f"{spoofed}, {CLIENT}") == CLIENT
    assert client(NEAR, f"{spoofed}, {CLIENT}, {FAR}") == CLIENT


def test_many_hops() -> None:
    """So many load balancers in a row are believed, and not one more."""
    assert client(NEAR, ", ".join([CLIENT] + [FAR] * 15)) == CLIENT
    assert client(NEAR, ", ".join([CLIENT] + [FAR] * 16)) is None


def test_a_long_header_costs_little() -> None:
    """Its end is all that is looked at."""
    assert client(NEAR, "garbage, " * 100_000 + CLIENT) == CLIENT


# IPv6.


@pytest.mark.parametrize(
    ("address", "counted"),
    [
        ("2606:4700::1", "2606:4700::"),
        ("2606:4700:0:0:ffff:ffff:ffff:ffff", "2606:4700::"),
        ("2606:4700:0:1::1", "2606:4700:0:1::"),
        ("2606:4700:1:2:3:4:5:6", "2606:4700:1:2::"),
    ],
)
def test_a_client_has_a_whole_network(address: str, counted: str) -> None:
    """All addresses of its /64 are its own, so they count as one; the next network is another's."""
    assert client(address) == counted
    assert client(NEAR, address) == counted
    assert client(NEAR, address.upper()) == counted


@pytest.mark.parametrize("mapped", ["::ffff:{}", "::FFFF:{}", "0:0:0:0:0:ffff:{}"])
def test_addresses_of_version_4_in_version_6(mapped: str) -> None:
    """On a socket for both, a client is who it is on a socket for one; so is a load balancer."""
    assert client(mapped.format(GLOBAL)) == GLOBAL
    assert client(mapped.format(NEAR), CLIENT) == CLIENT
    assert client(NEAR, f"{CLIENT}, {mapped.format(FAR)}") == CLIENT
    assert client(NEAR, mapped.format(CLIENT)) == CLIENT
    assert client(mapped.format("192.168.1.5")) is None


def test_a_load_balancer_of_version_6() -> None:
    """Its network is listed like others; its neighbours are not in it."""
    assert client("2001:db8:1::5", CLIENT) == CLIENT
    assert client("2001:db8:1:ffff::5", CLIENT) == CLIENT
    assert client("2606:4700::5", CLIENT) == "2606:4700::"


def test_a_zone() -> None:
    """An interface's name is no part of who it is."""
    assert client(NEAR, "fe80::1%eth0") == "fe80::"


# The setting.


@pytest.mark.parametrize(
    ("text", "trusted", "others"),
    [
        ("10.1.2.3", ["10.1.2.3"], ["10.1.2.4", "10.1.2.2"]),
        ("10.1.2.3/24", ["10.1.2.0", "10.1.2.255"], ["10.1.3.0", "10.1.1.255"]),
        ("10.0.0.0/255.0.0.0", ["10.9.9.9"], ["11.0.0.0"]),
        ("0.0.0.0/0", ["10.9.9.9", GLOBAL], ["2606:4700::1"]),
        ("::/0", ["2606:4700::1"], [GLOBAL]),
        (" , 10.1.2.3 ,, 10.1.2.4 ,", ["10.1.2.3", "10.1.2.4"], ["10.1.2.5"]),
        ("", [], ["10.1.2.3"]),
    ],
)
def test_lists(text: str, trusted: list[str], others: list[str]) -> None:
    """Addresses and networks, of either version; a zero in one version is nobody in the other."""
    said = "2606:4700:7::1" if text != "::/0" else CLIENT
    for peer in trusted:
        assert client(peer, said, text) == ("2606:4700:7::" if text != "::/0" else CLIENT)
    for peer in others:
        assert client(peer, said, text) not in ("2606:4700:7::", CLIENT)


@pytest.mark.parametrize(
    "text", ["proxy.internal", "10.0.0.0/33", "10.0.0", "10.0.0.1-10", "*", "::/129", "10.0.0.1 x"]
)
def test_what_is_no_list(text: str) -> None:
    """A word that is no address would be a load balancer that nobody believes; so the pod does not start."""
    with pytest.raises(ConfigurationError, match="TRUSTED_PROXIES"):
        Proxies(f"10.0.0.1, {text}")


PARTS = st.sampled_from(
    [CLIENT, OTHER, NEAR, FAR, GLOBAL, "::ffff:10.0.0.1", "2606:4700::1", "", "x", "10.0.0.1:80"]
)


@given(st.lists(PARTS, max_size=20).map(", ".join), st.sampled_from([NEAR, FAR, GLOBAL, "192.168.1.1", "x"]))
def test_whatever_is_said(forwarded: str, peer: str) -> None:
    """It is the last entry that is no load balancer, an address in one spelling, or nobody."""
    found = client(peer, forwarded)
    if found is None:
        return
    assert str(ip_address(found)) == found
    assert found not in (NEAR, FAR)
    if peer == GLOBAL:
        assert found == GLOBAL
    else:
        entries = [part.strip() for part in forwarded.split(",")]
        while entries[-1] in (NEAR, FAR, "::ffff:10.0.0.1"):
            entries.pop()
        assert found == ("2606:4700::" if ":" in entries[-1] else entries[-1])


@given(st.text(max_size=60), st.text(max_size=20))
def test_any_text(forwarded: str, peer: str) -> None:
    """Nothing that can stand in a header raises anything."""
    client(peer, forwarded)
    client(NEAR, forwarded)
