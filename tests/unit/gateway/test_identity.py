"""What a grant allows, settled with what a request says, and renewed on an open socket."""

from __future__ import annotations

import string
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backplane.keys import ANY_USER, TIERS
from gateway.errors import ClientError
from gateway.identity import (
    ANYONE,
    OPERATOR,
    SCOPES,
    Grant,
    Identity,
    Stated,
    allows,
    check_agent,
    check_scope,
    check_tenant,
    renewed,
    settle,
)

NAMES = ("X-Tenant-ID", "X-Tenant-Tier", "X-Session-ID", "X-User-ID", "X-Agent-ID")
NOTHING = Stated(None, None, None, None, None, NAMES)
IDS = st.text(string.ascii_letters + string.digits + "._~-", min_size=1, max_size=12)


def grant(**more: Any) -> Grant:
    """Of the tenant acme, for the session s-1, unless said otherwise."""
    usual = {
        "tenant_id": "acme",
        "tenant_tier": "free",
        "user_id": None,
        "sessions": ("s-1",),
        "agents": None,
        "scopes": frozenset({"chat", "listen"}),
        "token_id": None,
        "issued_at": 0.0,
        "expires_at": 2.0**40,
    }
    return Grant(**{**usual, **more})


def identity(**more: Any) -> Identity:
    return settle(grant(**more), NOTHING)


def error_of(call: Any, *arguments: Any) -> tuple[int, str]:
    """Status and code of the refusal that a call ends with."""
    with pytest.raises(ClientError) as caught:
        call(*arguments)
    return caught.value.status, caught.value.error_code


FORBIDDEN = (403, "forbidden")

# Sessions and agents by name and by beginning.


@pytest.mark.parametrize(
    ("patterns", "value", "ok"),
    [
        (None, "anything", True),
        ((), "anything", False),
        (("web-1",), "web-1", True),
        (("web-1",), "web-10", False),
        (("web-1",), "web-", False),
        (("web-1",), "WEB-1", False),
        (("web-",), "web-1", False),
        (("web-*",), "web-1", True),
        (("web-*",), "web-", True),
        (("web-*",), "web", False),
        (("web-*",), "xweb-1", False),
        (("web-*",), "WEB-1", False),
        (("w*b",), "wb", False),
        (("w*b",), "web", False),
        (("*b",), "b", False),
        (("*",), "anything", True),
        (("a", "web-*"), "web-1", True),
        (("a", "web-*"), "b", False),
        (("a.c",), "abc", False),
    ],
)
def test_what_patterns_allow(patterns: tuple[str, ...] | None, value: str, ok: bool) -> None:
    """A name is itself only; a star stands at the end only, and no other sign means anything."""
    assert allows(patterns, value) is ok


@given(st.lists(IDS, max_size=4), IDS)
def test_names_without_a_star_are_names(names: list[str], value: str) -> None:
    """Nothing but the very name is allowed."""
    assert allows(tuple(names), value) is (value in names)
    assert allows([f"{name}*" for name in names], value) is any(map(value.startswith, names))


# A request.


def test_a_token_says_it_all() -> None:
    """With one session there is nothing left to say."""
    one = grant(user_id="ann")

    assert settle(one, NOTHING) == Identity("acme", "free", "s-1", "ann", None, one)


@pytest.mark.parametrize("sessions", [None, (), ("s-1", "s-2"), ("web-*",), ("*",)])
def test_a_session_that_has_to_be_said(sessions: tuple[str, ...] | None) -> None:
    """None is guessed: neither the first of several, nor a beginning as if it were a name."""
    status, code = error_of(settle, grant(sessions=sessions), NOTHING)

    assert (status, code) in ((400, "missing_id"), (400, "invalid_id"))


@pytest.mark.parametrize(
    ("sessions", "session_id", "ok"),
    [
        (None, "anything", True),
        (("s-1", "s-2"), "s-2", True),
        (("s-1", "s-2"), "s-3", False),
        (("web-*",), "web-7", True),
        (("web-*",), "app-7", False),
        ((), "s-1", False),
    ],
)
def test_a_session_that_is_said(sessions: tuple[str, ...] | None, session_id: str, ok: bool) -> None:
    """It has to be one of the token's."""
    says, one = NOTHING._replace(session_id=session_id), grant(sessions=sessions)
    if ok:
        assert settle(one, says).session_id == session_id
    else:
        assert error_of(settle, one, says) == FORBIDDEN


@pytest.mark.parametrize("session_id", ["", "*", "web-*", "web-1*", "web-{}", "web-a b"])
def test_a_pattern_is_no_session(session_id: str) -> None:
    """What begins right is still no session if it is no valid id."""
    says = NOTHING._replace(session_id=session_id)

    assert error_of(settle, grant(sessions=("web-*",)), says) == (400, "invalid_id")


@pytest.mark.parametrize("field", ["tenant_id", "tenant_tier", "user_id"])
def test_contradictions(field: str) -> None:
    """What the token says stands; to say otherwise is refused before it is looked at."""
    for value in ("other", "", "a b", "*"):
        changes: dict[str, Any] = {field: value}
        assert error_of(settle, grant(user_id="ann"), NOTHING._replace(**changes)) == FORBIDDEN


@pytest.mark.parametrize("tenant_id", [None, "acme", OPERATOR])
def test_an_operator_speaks_for_no_tenant(tenant_id: str | None) -> None:
    """A token for all tenants opens no session of any of them, whatever is said with it."""
    says = Stated(tenant_id, "free", "s-1", None, None, NAMES)

    assert error_of(settle, grant(tenant_id=OPERATOR, tenant_tier=None, sessions=None), says) == FORBIDDEN


def test_agents() -> None:
    """An agent that is named when connecting is one of the token's."""
    says = NOTHING._replace(agent_id="sales-eu")
    assert settle(grant(agents=("sales-*",)), says).agent_id == "sales-eu"
    assert error_of(settle, grant(agents=("sales",)), says) == FORBIDDEN
    check_agent(grant(), "anyone")
    assert error_of(check_agent, grant(agents=()), "anyone") == FORBIDDEN


@pytest.mark.parametrize(
    ("one", "owner"),
    [
        (grant(user_id="ann"), "ann"),
        (grant(), ""),
        (grant(scopes=frozenset({"admin"})), ANY_USER),
        (grant(scopes=frozenset(SCOPES)), ANY_USER),
        (grant(scopes=frozenset(SCOPES) - {"admin"}), ""),
        (grant(user_id="ann", scopes=frozenset({"admin"})), "ann"),
    ],
)
def test_as_whom_sessions_are_used(one: Grant, owner: str) -> None:
    """As the user that is proved; all of the tenant's only by its administrators who are no user."""
    says = NOTHING._replace(user_id=one.user_id or "bob")

    assert settle(one, says).owner == owner


def test_without_tokens_nobody_is_proved() -> None:
    """AUTH=none grants all scopes, and yet nobody gets at the sessions of users in that way."""
    says = Stated("acme", "free", "s-1", "ann", None, NAMES)

    assert settle(ANYONE, says).owner == ""


# A new token on an open socket.


def test_renewed() -> None:
    """Tier, agents, scopes and end are the new token's; who it is stays."""
    before = settle(grant(user_id="ann"), NOTHING._replace(agent_id="sales"))
    new = grant(
        user_id="ann",
        tenant_tier="enterprise",
        sessions=("s-*",),
        agents=("support",),
        scopes=frozenset({"listen"}),
        expires_at=7.0,
    )

    assert renewed(before, new) == Identity("acme", "enterprise", "s-1", "ann", "sales", new)


@pytest.mark.parametrize(
    "other",
    [
        {"tenant_id": "evil"},
        {"tenant_id": OPERATOR, "tenant_tier": None},
        {"tenant_id": None},
        {"user_id": "bob"},
        {"user_id": None},
        {"sessions": ("s-2",)},
        {"sessions": ("web-*",)},
        {"sessions": ()},
    ],
    ids=str,
)
def test_a_token_of_somebody_else(other: dict[str, Any]) -> None:
    """A socket stays whose it was: of the same tenant, user and session."""
    before = identity(user_id="ann")

    assert error_of(renewed, before, grant(**{"user_id": "ann", **other})) == FORBIDDEN


def test_a_user_comes_in_with_no_new_token() -> None:
    """A socket that spoke for a tenant does not become a user's, whatever it said when it was opened."""
    before = settle(grant(), NOTHING._replace(user_id="ann"))

    assert error_of(renewed, before, grant(user_id="ann")) == FORBIDDEN


def test_a_token_that_may_not_listen() -> None:
    """It opens no socket, so it keeps none open."""
    assert error_of(renewed, identity(), grant(scopes=frozenset({"chat"}))) == (403, "scope_missing")


def test_an_administrator_who_is_none_any_more() -> None:
    """His socket may be of a session that only an administrator could open."""
    admin = frozenset({"listen", "admin"})
    before = identity(scopes=admin)
    assert before.owner == ANY_USER
    assert renewed(before, grant(scopes=admin)).owner == ANY_USER
    assert error_of(renewed, before, grant()) == FORBIDDEN
    assert renewed(identity(), grant(scopes=admin)).owner == ANY_USER


def test_renewed_without_tokens() -> None:
    """Where nobody needs a token, a new one changes nothing."""
    before = settle(ANYONE, Stated("acme", "free", "s-1", None, None, NAMES))

    assert renewed(before, ANYONE) == before


# Scopes and tenants.


@pytest.mark.parametrize("scope", SCOPES)
def test_scopes(scope: str) -> None:
    """Each is needed by itself; none stands for another."""
    check_scope(grant(scopes=frozenset({scope})), scope)
    check_scope(ANYONE, scope)
    assert error_of(check_scope, grant(scopes=frozenset(SCOPES) - {scope}), scope) == (403, "scope_missing")


@pytest.mark.parametrize(
    ("granted", "asked", "seen"),
    [
        ("acme", None, "acme"),
        ("acme", "acme", "acme"),
        (OPERATOR, None, None),
        (OPERATOR, "acme", "acme"),
        (None, None, None),
        (None, "acme", "acme"),
    ],
)
def test_whose_affairs(granted: str | None, asked: str | None, seen: str | None) -> None:
    """A tenant's administrator sees its own; an operator all, or those that are asked for."""
    assert check_tenant(grant(tenant_id=granted), asked) == seen


@pytest.mark.parametrize("asked", ["evil", "ACME", "acm", "acme2"])
def test_the_affairs_of_others(asked: str) -> None:
    """A tenant's administrator is told that they are not its own, not that they are empty."""
    assert error_of(check_tenant, grant(), asked) == FORBIDDEN


@pytest.mark.parametrize("asked", ["", "a b", "a:b", "{a}", "a/b"])
@pytest.mark.parametrize("granted", ["acme", OPERATOR, None])
def test_affairs_of_no_tenant(granted: str | None, asked: str) -> None:
    """What is no id gets into no key."""
    assert error_of(check_tenant, grant(tenant_id=granted), asked) == (400, "invalid_id")


@given(
    granted=st.sampled_from([None, OPERATOR, "acme", "evil"]),
    tier=st.sampled_from([None, *TIERS, "gold"]),
    said=st.tuples(*[st.sampled_from([None, "acme", "evil", "free", "s-1", "s-2", "ann", "", "*"])] * 5),
    sessions=st.sampled_from([None, (), ("s-1",), ("s-*",), ("*",)]),
    user=st.sampled_from([None, "ann"]),
)
def test_whatever_is_said_the_token_stands(
    granted: str | None, tier: str | None, said: Any, sessions: Any, user: str | None
) -> None:
    """No way of saying it gets anybody what the token does not have."""
    one = grant(tenant_id=granted, tenant_tier=tier, sessions=sessions, user_id=user)
    with suppress(ClientError):
        found = settle(one, Stated._make((*said, NAMES)))
        assert granted != OPERATOR
        assert found.tenant_id == (granted or said[0])
        assert found.tenant_tier == (tier or said[1])
        assert allows(sessions, found.session_id)
        assert "*" not in found.session_id
        assert found.owner == (user or "")
