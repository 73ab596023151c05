"""From the claims of a verified token to its grant, under the names that a deployment has."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backplane.errors import ConfigurationError
from backplane.keys import TIERS
from backplane.settings import Settings
from gateway.claims import claim_names, read_claims
from gateway.errors import ClientError
from gateway.identity import OPERATOR, SCOPES, Grant

LATEST = 2.0**40


def read(settings: Settings | None = None, **claims: Any) -> Grant:
    """The grant of a usual token with other claims; None leaves one out."""
    usual = {"tenant_id": "acme", "tenant_tier": "free", "exp": 1_000}
    said = {name: value for name, value in {**usual, **claims}.items() if value is not None}
    return read_claims(claim_names(settings or Settings()), said)


def refusal(settings: Settings | None = None, **claims: Any) -> ClientError:
    with pytest.raises(ClientError) as caught:
        read(settings, **claims)
    assert (caught.value.status, caught.value.error_code) == (401, "token_invalid")
    assert caught.value.detail.isprintable()
    return caught.value


def test_as_little_as_a_token_says() -> None:
    """It is for no user, for any session and any agent, and may chat and listen."""
    assert read() == Grant(
        "acme", "free", None, None, None, frozenset({"chat", "listen"}), None, 0.0, 1_000.0
    )


def test_as_much_as_a_token_says() -> None:
    """Everything has its place."""
    grant = read(
        sub="ann@example.org",
        session_id=["s-1", "web-*"],
        agents="sales",
        scope="chat admin",
        jti="t-1",
        iat=900,
        later="of no meaning here",
    )

    assert grant == Grant(
        "acme",
        "free",
        "ann@example.org",
        ("s-1", "web-*"),
        ("sales",),
        frozenset({"chat", "admin"}),
        "t-1",
        900.0,
        1_000.0,
    )


# Names and paths.


def test_names_of_a_deployment() -> None:
    """A provider that calls everything otherwise, and puts it deep down."""
    settings = Settings(
        jwt_claim_tenant="org",
        jwt_claim_tier="plan.name",
        jwt_claim_user="https://example.org/user",
        jwt_claim_sessions="chat.allowed.sessions",
        jwt_claim_agents="chat.agents",
        jwt_claim_scopes="realm_access.roles",
    )
    grant = read(
        settings,
        tenant_id="evil",
        tenant_tier="enterprise",
        sub="eve",
        org="acme",
        plan={"name": "advance"},
        **{"https://example.org/user": "ann"},
        chat={"allowed": {"sessions": ["s-1"]}, "agents": ["sales"]},
        realm_access={"roles": ["listen", "offline_access"]},
    )

    assert grant == Grant(
        "acme", "advance", "ann", ("s-1",), ("sales",), frozenset({"listen"}), None, 0.0, 1_000.0
    )


def test_a_name_with_a_dot_comes_before_the_path() -> None:
    """A claim that is called so is it, and the path is not looked at."""
    settings = Settings(jwt_claim_user="a.b")

    assert read(settings, **{"a.b": "ann", "a": {"b": "eve"}}).user_id == "ann"
    assert read(settings, a={"b": "ann"}).user_id == "ann"


@pytest.mark.parametrize(
    "claims", [{}, {"a": 5}, {"a": None}, {"a": "b"}, {"a": ["b"]}, {"a": {"c": 1}}], ids=str
)
def test_a_path_that_ends_early(claims: dict[str, Any]) -> None:
    """It leads to nothing, and to no mistake."""
    assert read(Settings(jwt_claim_user="a.b"), **claims).user_id is None


def test_a_claim_that_nobody_has() -> None:
    """An empty name stands for no claim, also where a token has one of that name."""
    settings = Settings(jwt_claim_user="", jwt_claim_sessions="", jwt_claim_agents="", jwt_claim_scopes="")
    grant = read(settings, sub="ann", session_id="s-1", agents=["x"], scope="admin", **{"": "eve"})

    assert (grant.user_id, grant.sessions, grant.agents) == (None, None, None)
    assert grant.scopes == {"chat", "listen"}


# Tenants and tiers.


@pytest.mark.parametrize("tier", [None, "", "gold", "FREE", 1, ["free"]])
def test_tiers(tier: Any) -> None:
    """A tenant's token has one of the four."""
    assert "tenant_tier" in refusal(tenant_tier=tier).detail


@pytest.mark.parametrize("tenant", [None, "", "a b", "a:b", "**", "a*", 5, True, ["acme"], {"acme": 1}])
def test_tenants(tenant: Any) -> None:
    """It is an id; a star in or behind it is none of an operator."""
    assert "tenant_id" in refusal(tenant_id=tenant).detail


@pytest.mark.parametrize("tier", [None, "free", "gold"])
def test_operators(tier: str | None) -> None:
    """They are of no tenant, and so of no tier."""
    assert read(tenant_id=OPERATOR, tenant_tier=tier).tenant_id == OPERATOR


@pytest.mark.parametrize("user", ["", "*", "a b", "a/b", "x" * 129, 5, ["ann"]])
def test_users(user: Any) -> None:
    """A user who would be everybody is none."""
    assert "sub" in refusal(sub=user).detail


# Sessions and agents.


@pytest.mark.parametrize("name", ["session_id", "agents"])
@pytest.mark.parametrize(
    ("said", "patterns"),
    [
        ("s-1", ("s-1",)),
        (["s-1"], ("s-1",)),
        ([], ()),
        ("web-*", ("web-*",)),
        ("*", ("*",)),
        (["*", "s-1"], ("*", "s-1")),
    ],
)
def test_patterns(name: str, said: Any, patterns: tuple[str, ...]) -> None:
    """One or several, by name or beginning; an empty list is none, not any."""
    grant = read(**{name: said})

    assert (grant.sessions if name == "session_id" else grant.agents) == patterns


@pytest.mark.parametrize("said", ["orders/7", "orders/*", "a:b@c+d", "*", ["orders/*", "x"], []])
def test_topics(said: Any) -> None:
    """Whatever a topic may be called, a token can name."""
    assert read(topics=said).topics == ((said,) if isinstance(said, str) else tuple(said))


@pytest.mark.parametrize("said", ["", "a b", "a*b", "**", ["a", "\n"], "x" * 129, "\u0660"])
def test_bad_topics(said: Any) -> None:
    """And nothing else."""
    assert "topics" in refusal(topics=said).detail


@pytest.mark.parametrize("name", ["session_id", "agents"])
@pytest.mark.parametrize(
    "said",
    [
        "",
        "**",
        "a**",
        "*a",
        "a*b",
        "a b",
        "a b*",
        [""],
        ["s-1", ""],
        ["s-1", 5],
        [["s-1"]],
        {"s-1": 1},
        0,
        False,
    ],
    ids=str,
)
def test_patterns_that_are_none(name: str, said: Any) -> None:
    """One that is wrong makes the token wrong, and is not passed over."""
    assert name in refusal(**{name: said}).detail


def test_many_patterns() -> None:
    """There is an end to what one token can name, or each message would take its time."""
    assert len(read(agents=["a"] * 256).agents or ()) == 256
    assert "256" in refusal(agents=["a"] * 257).detail


# Scopes.


@pytest.mark.parametrize(
    ("said", "scopes"),
    [
        ("chat", {"chat"}),
        ("chat  listen", {"chat", "listen"}),
        (["chat", "listen"], {"chat", "listen"}),
        (["chat listen"], {"chat", "listen"}),
        ("", set()),
        ([], set()),
        ("openid profile", set()),
        ("CHAT admins", set()),
        (" ".join(SCOPES), set(SCOPES)),
        ("chat,listen", set()),
    ],
)
def test_scopes(said: Any, scopes: set[str]) -> None:
    """Those that are ours, of a text with spaces or a list; a token that names others only has none."""
    assert read(scope=said).scopes == scopes


@pytest.mark.parametrize("said", [5, True, {"chat": True}, ["chat", None]])
def test_scopes_that_are_none(said: Any) -> None:
    """A wrong type is no absence, or the default would be granted."""
    assert "scope" in refusal(scope=said).detail


@pytest.mark.parametrize(
    ("default", "scopes"),
    [("chat listen", {"chat", "listen"}), ("chat  stats", {"chat", "stats"}), ("", set())],
)
def test_default_scopes(default: str, scopes: set[str]) -> None:
    """Of a token that says nothing of them, and of no other."""
    settings = Settings(jwt_default_scopes=default)

    assert read(settings).scopes == scopes
    assert read(settings, scope="").scopes == set()


@pytest.mark.parametrize("default", ["root", "chat,listen", "chat root"])
def test_default_scopes_that_are_none(default: str) -> None:
    """They stop the start: or tokens would be worth less than it seems."""
    with pytest.raises(ConfigurationError, match="JWT_DEFAULT_SCOPES"):
        read(Settings(jwt_default_scopes=default))


# Times and ids.


@pytest.mark.parametrize(
    ("issued", "at"),
    [(None, 0.0), (5, 5.0), (5.5, 5.5), (-5, 0.0), (10**400, LATEST), (float("inf"), LATEST), ("900", 0.0)],
)
def test_when_it_was_issued(issued: Any, at: float) -> None:
    """Where that cannot be told it is long ago, so that any revocation hits it."""
    assert read(iat=issued).issued_at == at


@pytest.mark.parametrize(
    ("ends", "at"), [(1, 1.0), (1.5, 1.5), (-5, 0.0), (10**400, LATEST), (float("inf"), LATEST)]
)
def test_when_it_ends(ends: Any, at: float) -> None:
    """As a number that a timer can hold, also where somebody means for ever."""
    assert read(exp=ends).expires_at == at


@pytest.mark.parametrize("ends", [None, "1000", [1], {}])
def test_when_it_does_not_say(ends: Any) -> None:
    """A token that does not end is none."""
    assert "exp" in refusal(exp=ends).detail


@pytest.mark.parametrize(("said", "token_id"), [(None, None), ("t-1", "t-1"), ("", ""), (5, None)])
def test_its_id(said: Any, token_id: str | None) -> None:
    """Any text may be the one by which it is revoked."""
    assert read(jti=said).token_id == token_id


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
CLAIMS = ["tenant_id", "tenant_tier", "sub", "session_id", "agents", "scope", "jti", "iat", "exp"]


@given(st.dictionaries(st.sampled_from(CLAIMS), JSON | st.sampled_from(["acme", *TIERS, "*"])))
def test_any_claims_are_read_or_refused(claims: dict[str, Any]) -> None:
    """Nothing that a provider can say raises anything but a refusal, or grants what is not said."""
    with suppress(ClientError):
        check_sane(read(**claims), claims)


def check_sane(grant: Grant, claims: dict[str, Any]) -> None:
    assert grant.scopes <= set(SCOPES)
    assert grant.expires_at is not None
    assert 0 <= grant.expires_at <= LATEST
    assert 0 <= grant.issued_at <= LATEST
    if claims.get("session_id") is not None:
        assert grant.sessions is not None
