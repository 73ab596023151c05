"""Which pages may use the service: those that are listed, and not those that are called almost so."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backplane.errors import ConfigurationError
from gateway.origins import Origins

LISTED = "https://app.example.com, https://*.example.org,http://localhost:3000, https://[2001:db8::1]:8443"


def allows(origin: str | None, listed: str = LISTED, host: str | None = "pod.internal:8080") -> bool:
    return Origins(listed).allows(origin, host)


@pytest.mark.parametrize(
    "origin",
    [
        "https://app.example.com",
        "https://APP.Example.COM",
        "https://a.example.org",
        "https://a.b-c.example.org",
        "http://localhost:3000",
        "https://[2001:db8::1]:8443",
    ],
)
def test_listed(origin: str) -> None:
    """By name, or by the domain that they are below."""
    assert allows(origin)


@pytest.mark.parametrize(
    "origin",
    [
        "https://app.example.com.evil.test",
        "https://app.example.comevil.test",
        "https://evil-app.example.com",
        "https://evilapp.example.com",
        "https://x.app.example.com",
        "https://example.com",
        "https://appXexample.com",
        "https://app.exampleXcom",
        "https://app.example.com:8443",
        "https://app.example.com:443",
        "https://app.example.com.",
        "http://app.example.com",
        "wss://app.example.com",
        "https://app.example.com/",
        "https://app.example.com/https://app.example.com",
        "https://app.example.com@evil.test",
        "https://app.example.com#evil.test",
        "https://app.example.com evil.test",
        "https://app.example.com\nhttps://evil.test",
        "https://evil.test/https://app.example.com",
        "https://evil.test#https://app.example.com",
        "https://evil.test?https://app.example.com",
        "xhttps://app.example.com",
        "app.example.com",
        "//app.example.com",
        "https://",
        "",
        "null",
        "file://",
        "https://example.org",
        "https://evilexample.org",
        "https://.example.org",
        "https://a..example.org",
        "https://evil.test/.example.org",
        "https://evil.test:80.example.org",
        "https://evil.test?.example.org",
        "https://evil.test@a.example.org",
        "https://a.example.org.evil.test",
        "https://a.example.org:444",
        "http://a.example.org",
        "https://a_b.example.org",
        "http://localhost",
        "http://localhost:30001",
        "http://localhost:300",
        "http://localhost:3000.evil.test",
        "https://[2001:db8::1]",
        "https://[2001:db8::2]:8443",
    ],
)
def test_almost_listed(origin: str) -> None:
    """Neither a longer name, nor another scheme or port, nor a listed one inside of another."""
    assert not allows(origin)


def test_other_clients() -> None:
    """Who is no browser says nothing of a page, and needs no list."""
    assert allows(None)
    assert allows(None, "")
    assert allows(None, "", None)


@pytest.mark.parametrize("origin", ["https://anything.test", "http://a", "null", "app://obsidian.md", ""])
def test_all(origin: str) -> None:
    """A star stands for every page."""
    assert allows(origin, "*")
    assert allows(origin, "https://app.example.com, *")
    assert not allows(origin, "https://app.example.com")


# Pages of the same host.


@pytest.mark.parametrize("listed", ["", LISTED])
@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("http://pod.test", "pod.test"),
        ("https://pod.test", "pod.test"),
        ("http://pod.test:8080", "pod.test:8080"),
        ("http://POD.test", "pod.TEST"),
        ("http://127.0.0.1:8080", "127.0.0.1:8080"),
        ("http://[::1]:8080", "[::1]:8080"),
    ],
)
def test_the_same_host(origin: str, host: str, listed: str) -> None:
    """What the pod itself, or a proxy before it, serves."""
    assert allows(origin, listed, host)


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("http://pod.test", "pod.test:8080"),
        ("http://pod.test:8081", "pod.test:8080"),
        ("http://pod.test.evil.test", "pod.test"),
        ("http://evil.test/pod.test", "pod.test"),
        ("http://evil.test@pod.test", "pod.test"),
        ("http://pod.test@evil.test", "pod.test"),
        ("http://pod.test.", "pod.test"),
        ("null", "pod.test"),
        ("null", "null"),
        ("null", ""),
        ("null", None),
        ("", ""),
        ("", None),
        ("file://", ""),
        ("pod.test", "pod.test"),
        ("http://[::1", "[::1"),
    ],
)
def test_another_host(origin: str, host: str | None) -> None:
    """Also where one of them says nothing, or what cannot be read."""
    assert not allows(origin, "", host)


@pytest.mark.parametrize(
    ("host", "ok"),
    [
        ("localhost", True),
        ("localhost:8080", True),
        ("LOCALHOST:8080", True),
        ("127.0.0.1:8080", True),
        ("[::1]:8080", True),
        ("192.168.1.5", True),
        ("evil.test:8080", False),
        ("pod.test", False),
        ("localhost.evil.test", False),
        ("127.0.0.1.evil.test", False),
        ("gateway:8080", True),
        ("pod.localhost", True),
        ("127.1", False),
    ],
)
def test_names_that_point_here(host: str, ok: bool) -> None:
    """A page of the same host is one of this machine or network, not of a name that anybody can have."""
    assert Origins("", local=True).allows(f"http://{host}", host) is ok
    assert Origins("").allows(f"http://{host}", host)
    assert not Origins("", local=True).allows(f"http://{host}", "127.0.0.1:9")


def test_names_that_are_listed() -> None:
    """A page that is listed may be of any host."""
    listed = Origins("https://app.example.com", local=True)
    assert listed.allows("https://app.example.com", "app.example.com")
    assert listed.allows("https://app.example.com", "127.0.0.1:8080")
    assert listed.allows(None, "evil.test")


# The setting.


@pytest.mark.parametrize("listed", ["", " ", ",", " , "])
def test_nobody_is_listed(listed: str) -> None:
    """Then there is no pattern, and no page of another host gets in."""
    assert Origins(listed).pattern is None
    assert not allows("https://app.example.com", listed)


@pytest.mark.parametrize(
    "listed",
    [
        "app.example.com",
        "https://app.example.com/",
        "https://app.example.com/path",
        "https://*",
        "https://*example.com",
        "https://a.*.example.com",
        "https://*.*.example.com",
        "*.example.com",
        "https://app.example.com:*",
        "https://app.example.com:123456",
        "https://app.example.com:",
        "https://user@app.example.com",
        "https://app.example.com https://other.example.com",
        "wss://app.example.com",
        "HTTPS://app.example.com",
        "null",
        "https://",
        "https://.*",
        "https://(a|b).example.com",
        "**",
    ],
)
def test_what_cannot_be_listed(listed: str) -> None:
    """What would never match, or match more than it seems to, stops the start and is shown."""
    with pytest.raises(ConfigurationError, match=re.escape(repr(listed))):
        Origins(f"https://app.example.com, {listed}")


@given(st.text(max_size=30), st.text(max_size=20))
def test_any_text(origin: str, host: str) -> None:
    """Nothing that a client sends raises anything; by chance nobody gets in but to its own host."""
    assert not allows(origin, LISTED, None)
    if allows(origin, LISTED, host):
        assert host.lower() in origin.lower()
    Origins("", local=True).allows(origin, host)
    Origins("", local=True).allows(f"http://{host}", host)
    Origins("", local=True).allows_request(origin, host)


NAMES = st.from_regex(r"[a-z0-9-]{1,8}(\.[a-z0-9-]{1,8}){0,3}", fullmatch=True)


@given(NAMES, NAMES)
def test_below_a_domain(domain: str, name: str) -> None:
    """Exactly the names that end in it, with a dot between."""
    listed = Origins(f"https://*.{domain}")
    assert listed.allows(f"https://{name}.{domain}", None)
    assert not listed.allows(f"https://{name}{domain}", None) or f"{name}{domain}".endswith(f".{domain}")
    assert listed.allows(f"https://{name}", None) is name.endswith(f".{domain}")


def test_the_pattern_is_cors_too() -> None:
    """Who may open a socket may read answers: one list, and whole origins in both."""
    pattern = Origins(LISTED).pattern
    assert pattern is not None
    matches = re.compile(pattern).fullmatch
    assert matches("https://app.example.com")
    assert matches("https://a.example.org")
    assert not matches("https://app.example.com.evil.test")
    assert not matches("xhttps://app.example.com")
