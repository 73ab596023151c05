"""What clients are told of rate limits, as a parser of structured fields reads it (RFC 9651)."""

from __future__ import annotations

import re
from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backplane.rate_limiter import Charged, Standing
from gateway.http import problem_response
from gateway.rate_headers import over_the_limit, rate_headers

MINUTE = Standing("minute", 10, 60, 7, 18.0)
DAY = Standing("day", 100, 86_400, 93, 6_048.0)
SESSION = Standing("session", 50, 3_600, 49, 72.0)

# RFC 9651, 3.1 to 3.3: a list of strings, each with parameters that are integers of up to 15 digits.
ITEM = re.compile(
    r'"(?P<name>[\x20-\x21\x23-\x5b\x5d-\x7e]*)"(?P<parameters>(;[a-z*][a-z0-9_.*-]*=-?[0-9]{1,15})*)'
)


def parse(value: str) -> dict[str, dict[str, int]]:
    """A list of strings with parameters; anything else fails."""
    found = {}
    assert value.isascii()
    for part in value.split(", "):
        match = ITEM.fullmatch(part)
        assert match is not None, part
        pairs = [pair.split("=") for pair in match["parameters"].split(";")[1:]]
        assert len({name for name, _number in pairs}) == len(pairs)
        assert match["name"] not in found
        found[match["name"]] = {name: int(number) for name, number in pairs}
    return found


def charged(
    *violated: str, wait_s: float = 0.0, standings: tuple[Standing, ...] = (MINUTE, DAY, SESSION)
) -> Charged:
    return Charged(not violated, wait_s, violated, standings)


def test_the_headers() -> None:
    """How much is allowed in how many seconds, how much is left, and when all of it is there again."""
    headers = dict(rate_headers((MINUTE, DAY, SESSION)))

    assert parse(headers["RateLimit-Policy"]) == {
        "minute": {"q": 10, "w": 60},
        "day": {"q": 100, "w": 86_400},
        "session": {"q": 50, "w": 3_600},
    }
    assert parse(headers["RateLimit"]) == {
        "minute": {"r": 7, "t": 18},
        "day": {"r": 93, "t": 6_048},
        "session": {"r": 49, "t": 72},
    }


def test_nothing_is_limited() -> None:
    """Then there is nothing to tell, rather than an empty header."""
    assert rate_headers(()) == ()


@pytest.mark.parametrize(("reset_s", "told"), [(0.0, 0), (0.01, 1), (1.0, 1), (1.001, 2), (86_399.2, 86_400)])
def test_whole_seconds(reset_s: float, told: int) -> None:
    """A client that waits as told is never too early."""
    headers = dict(rate_headers((Standing("minute", 10, 60, 0, reset_s),)))

    assert parse(headers["RateLimit"])["minute"]["t"] == told


STANDINGS = st.lists(
    st.builds(
        Standing,
        st.sampled_from(["minute", "day", "session"]),
        st.integers(1, 10**9),
        st.integers(1, 8_640_000),
        st.integers(0, 10**9),
        st.floats(0, 8_640_000),
    ),
    min_size=1,
    max_size=3,
    unique_by=lambda standing: standing.name,
)


@given(STANDINGS)
def test_any_standings(standings: list[Standing]) -> None:
    """Every parser of the standard reads them."""
    headers = rate_headers(standings)
    assert [name for name, _value in headers] == ["RateLimit-Policy", "RateLimit"]
    policy, left = (parse(value) for _name, value in headers)

    assert policy == {one.name: {"q": one.most, "w": one.window_s} for one in standings}
    assert left == {one.name: {"r": one.remaining, "t": ceil(one.reset_s)} for one in standings}


# A send that is one too many.


@pytest.mark.parametrize(
    ("violated", "limit", "says"),
    [
        (("minute",), "minute", "10 sends a minute"),
        (("day",), "day", "100 sends a day"),
        (("session",), "session", "50 sends an hour in one session"),
        (("minute", "session"), "session", "50 sends an hour"),
        (("minute", "day", "session"), "day", "100 sends a day"),
    ],
)
def test_which_limit_it_is(violated: tuple[str, ...], limit: str, says: str) -> None:
    """The one that lets the next send through last: who waits for another one would wait in vain."""
    error = over_the_limit(charged(*violated, wait_s=12.5))

    assert (error.status, error.error_code, error.limit) == (429, "rate_limited", limit)
    assert error.retry_after_s == 12.5
    assert says in error.detail
    assert error.close_code == 4029


def test_a_limit_of_one() -> None:
    """In words that can be read."""
    error = over_the_limit(charged("minute", wait_s=3.0, standings=(Standing("minute", 1, 60, 0, 3.0),)))

    assert "1 send a minute" in error.detail
    assert "3 s" in error.detail


def test_it_is_told_in_headers_too() -> None:
    """All quotas, not the violated one only; and when to come back."""
    response = problem_response(over_the_limit(charged("minute", wait_s=5.2)))

    assert response.headers["retry-after"] == "6"
    assert parse(response.headers["ratelimit"]).keys() == {"minute", "day", "session"}
    assert parse(response.headers["ratelimit-policy"]).keys() == {"minute", "day", "session"}


def test_the_parser_is_strict() -> None:
    """Or the tests above would show nothing."""
    assert parse('"a";q=1;w=2, "b";q=3') == {"a": {"q": 1, "w": 2}, "b": {"q": 3}}
    for bad in (
        "a;q=1",
        '"a";q=1.5e3',
        '"a";q=',
        '"a";Q=1',
        '"a";q=1;q=2',
        '"a", "a"',
        '"a" ;q=1',
        '"a";q=1,"b"',
        "",
    ):
        with pytest.raises(AssertionError):
            parse(bad)
