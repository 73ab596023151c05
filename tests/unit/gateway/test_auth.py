"""Who a client is: what a token proves, what a request may add, and what is refused."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from typing import Any

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backplane.errors import ConfigurationError, InvalidId
from backplane.keys import TIERS
from backplane.settings import Settings
from gateway.auth import Authenticator, Identity, Stated, check_agent, issue_token
from gateway.errors import ClientError

SECRET = "a-secret-of-at-least-thirty-two-bytes"
OTHER = "another-secret-of-at-least-thirty-two"
NAMES = ("X-Tenant-ID", "X-Tenant-Tier", "X-Session-ID", "X-User-ID", "X-Agent-ID")
NASTY = [
    *" :{}*?[]/\\%#&=,;'\"<>|$`^()!",
    "\n",
    "\r",
    "\t",
    "\0",
    "\x7f",
    "\u00e9",
    "\uff41",  # a full-width a
    "\u202e",  # turns the rest of a log line round
]


def settings(**more: Any) -> Settings:
    return Settings(jwt_secret=SECRET, **more)


def stated(**more: str | None) -> Stated:
    """What a request says; nothing unless given."""
    return Stated(
        more.get("tenant_id"),
        more.get("tenant_tier"),
        more.get("session_id"),
        more.get("user_id"),
        more.get("agent_id"),
        NAMES,
    )


def claims(**more: Any) -> dict[str, Any]:
    """A token's claims; those given as None are left out."""
    usual = {"tenant_id": "acme", "tenant_tier": "free", "session_id": "s-1", "exp": time.time() + 60}
    return {name: value for name, value in {**usual, **more}.items() if value is not None}


def signed(payload: Any, secret: str = SECRET, **header: Any) -> str:
    """A token of any claims at all: libraries refuse to make the bad ones."""

    def part(raw: bytes) -> bytes:
        return base64.urlsafe_b64encode(raw).rstrip(b"=")

    head = part(json.dumps({"alg": "HS256", "typ": "JWT", **header}).encode())
    body = head + b"." + part(payload if isinstance(payload, bytes) else json.dumps(payload).encode())
    return (body + b"." + part(hmac.new(secret.encode(), body, hashlib.sha256).digest())).decode()


def identify(token: str | None, says: Stated | None = None, **more: Any) -> Identity:
    return Authenticator(settings(**more)).identify(token, says or stated())


def refusal(token: str | None, says: Stated | None = None, **more: Any) -> ClientError:
    with pytest.raises(ClientError) as caught:
        identify(token, says, **more)
    assert SECRET not in caught.value.detail
    assert caught.value.detail.isprintable()
    return caught.value


# Tokens.


def test_a_token_is_enough() -> None:
    """What the token says need not be said again."""
    token = signed(claims(sub="ann@example.org", agents=["sales", "support"]))

    assert identify(token) == Identity("acme", "free", "s-1", "ann@example.org", None, ("sales", "support"))


def test_what_the_token_leaves_open_is_stated() -> None:
    """A token for any session, user and agent lets the request say which."""
    token = signed(claims(session_id=None))

    assert identify(token, stated(session_id="s-9", user_id="bob+x@y", agent_id="sales")) == Identity(
        "acme", "free", "s-9", "bob+x@y", "sales", None
    )


def test_saying_the_same_again_is_fine() -> None:
    """A request that repeats its token contradicts nothing."""
    says = stated(tenant_id="acme", tenant_tier="free", session_id="s-1", user_id="ann")

    assert identify(signed(claims(sub="ann")), says).user_id == "ann"


@pytest.mark.parametrize("token", [None, ""])
def test_no_token(token: str | None) -> None:
    """Without a token nobody gets in, whatever they say of themselves."""
    error = refusal(token, stated(tenant_id="acme", tenant_tier="free", session_id="s-1"))

    assert (error.status, error.error_code) == (401, "token_missing")


def forged() -> list[Any]:
    good = signed(claims())
    head, body, signature = good.split(".")
    none_head = base64.urlsafe_b64encode(b'{"alg":"none"}').rstrip(b"=").decode()
    other_body = base64.urlsafe_b64encode(json.dumps(claims(tenant_id="evil")).encode()).rstrip(b"=").decode()
    return [
        pytest.param(signed(claims(), OTHER), id="another secret"),
        pytest.param(f"{head}.{other_body}.{signature}", id="other claims"),
        pytest.param(f"{head}.{body}.", id="no signature"),
        pytest.param(f"{head}.{body}", id="two parts"),
        pytest.param(f"{none_head}.{body}.", id="alg none"),
        pytest.param(f"{none_head}.{body}.{signature}", id="alg none with a signature"),
        pytest.param(signed(claims(), alg="none"), id="alg none, signed"),
        pytest.param(signed(claims(), alg="None"), id="alg None"),
        pytest.param(signed(claims(), alg="HS512"), id="alg HS512"),
        pytest.param(signed(claims(), alg="RS256"), id="alg RS256"),
        pytest.param(signed(claims(), alg=["HS256"]), id="alg a list"),
        pytest.param(signed(claims(), alg=None), id="alg null"),
        pytest.param(jwt.encode(claims(), SECRET * 2, algorithm="HS512"), id="really HS512"),
        pytest.param("hello", id="no token at all"),
        pytest.param("..", id="three empty parts"),
        pytest.param("\u00e9.\u00e9.\u00e9", id="not ASCII"),
        pytest.param(good + "A", id="longer signature"),
        pytest.param(signed(b"[]"), id="claims are no object"),
        pytest.param(signed(b"not json"), id="claims are no JSON"),
        pytest.param(signed(b"\xff"), id="claims are no UTF-8"),
    ]


@pytest.mark.parametrize("token", forged())
def test_forged_tokens(token: str) -> None:
    """Nothing but our own signature over exactly these claims is believed."""
    error = refusal(token, stated(session_id="s-1"))

    assert (error.status, error.error_code) == (401, "token_invalid")


def test_the_forgery_tests_could_pass() -> None:
    """The same token, not forged, is accepted: the refusals above are about the forgery."""
    assert identify(signed(claims())).tenant_id == "acme"


@pytest.mark.parametrize(
    "times",
    [
        {"exp": time.time() - 1},
        {"exp": 0},
        {"exp": -1},
        {"exp": "12"},
        {"nbf": time.time() + 3600},
        {"iat": time.time() + 3600},
    ],
    ids=str,
)
def test_tokens_out_of_their_time(times: dict[str, Any]) -> None:
    """An expired token says so, so that its client gets a new one; so does one that is not valid yet."""
    error = refusal(signed(claims(**times)))

    assert (error.status, error.error_code) == (401, "token_expired")


@pytest.mark.parametrize(
    "wrong",
    [
        {"exp": None},
        {"exp": "soon"},
        {"exp": [1]},
        {"exp": {}},
        {"nbf": "soon"},
        {"iat": []},
        {"tenant_id": None},
        {"tenant_id": 5},
        {"tenant_id": ["acme"]},
        {"tenant_tier": None},
        {"tenant_tier": 1},
        {"session_id": 5},
        {"session_id": ["s-1"]},
        {"session_id": False},
        {"sub": 5},
        {"sub": {}},
        {"agents": "sales"},
        {"agents": {"sales": 1}},
        {"agents": [1]},
        {"agents": [None]},
        {"agents": 0},
    ],
    ids=str,
)
def test_missing_and_wrong_claims(wrong: dict[str, Any]) -> None:
    """A claim that is needed and missing, or of another type, makes a bad token, never a guess."""
    error = refusal(signed(claims(**wrong)), stated(tenant_id="acme", tenant_tier="free", session_id="s-1"))

    assert (error.status, error.error_code) == (401, "token_invalid")


def test_a_null_claim_is_one_that_is_left_out() -> None:
    """JSON null says nothing."""
    token = signed({**claims(), "session_id": None, "agents": None})

    assert identify(token, stated(session_id="s-2")) == Identity("acme", "free", "s-2", None, None, None)


@pytest.mark.parametrize(
    ("audience", "ok"),
    [("gateway", True), (["other", "gateway"], True), ("other", False), (None, False), (5, False)],
)
def test_audience(audience: Any, ok: bool) -> None:
    """With an audience set, only tokens made for it are believed."""
    token = signed(claims(aud=audience))
    if ok:
        assert identify(token, jwt_audience="gateway").tenant_id == "acme"
    else:
        assert refusal(token, jwt_audience="gateway").error_code == "token_invalid"


@pytest.mark.parametrize(("issuer", "ok"), [("us", True), ("them", False), (None, False), (["us"], False)])
def test_issuer(issuer: Any, ok: bool) -> None:
    """With an issuer set, only its tokens are believed."""
    token = signed(claims(iss=issuer))
    if ok:
        assert identify(token, jwt_issuer="us").tenant_id == "acme"
    else:
        assert refusal(token, jwt_issuer="us").error_code == "token_invalid"


def test_audience_and_issuer_that_nobody_asked_for() -> None:
    """Tokens of a larger system, which name both, are taken where no setting asks for them."""
    assert identify(signed(claims(aud="anything", iss="anyone"))).tenant_id == "acme"


@given(st.one_of(st.text(max_size=60), st.from_regex(r"[A-Za-z0-9_-]*\.[A-Za-z0-9_-]*\.[A-Za-z0-9_-]*")))
def test_any_text_is_refused(token: str) -> None:
    """No token text raises anything but a refusal."""
    with pytest.raises(ClientError) as caught:
        identify(token)
    assert caught.value.status == 401


# What a request says of itself.


@pytest.mark.parametrize(
    ("says", "name"),
    [
        ({"tenant_id": "evil"}, "X-Tenant-ID"),
        ({"tenant_tier": "enterprise"}, "X-Tenant-Tier"),
        ({"session_id": "s-2"}, "X-Session-ID"),
        ({"user_id": "bob"}, "X-User-ID"),
        ({"tenant_id": ""}, "X-Tenant-ID"),
        ({"tenant_id": "ACME"}, "X-Tenant-ID"),
        ({"session_id": "s-1 "}, "X-Session-ID"),
    ],
    ids=str,
)
def test_contradictions(says: dict[str, str], name: str) -> None:
    """Who says of himself other than his token says is refused, and told where."""
    error = refusal(signed(claims(sub="ann")), stated(**says))

    assert (error.status, error.error_code) == (403, "forbidden")
    assert name in error.detail


@pytest.mark.parametrize(
    ("agent", "ok"), [("sales", True), ("support", True), ("secret", False), ("", False)]
)
def test_agents_of_a_token(agent: str, ok: bool) -> None:
    """A token's agents are the only ones that it may speak to, and a socket may not name another either."""
    token, says = signed(claims(agents=["sales", "support"])), stated(agent_id=agent)
    if ok:
        identity = identify(token, says)
        assert identity.agent_id == agent
        check_agent(identity, agent)
    else:
        assert refusal(token, says).status == (403 if agent else 400)
    with pytest.raises(ClientError) as caught:
        check_agent(identify(token), "secret")
    assert (caught.value.status, caught.value.error_code) == (403, "forbidden")


def test_a_token_without_agents_allows_any() -> None:
    """Leaving the list out means no limit; an empty list means none."""
    check_agent(identify(signed(claims())), "anyone")
    with pytest.raises(ClientError):
        check_agent(identify(signed(claims(agents=[]))), "anyone")


@pytest.mark.parametrize("nasty", NASTY, ids=ascii)
@pytest.mark.parametrize("field", ["tenant_id", "session_id", "user_id", "agent_id"])
@pytest.mark.parametrize("place", ["{}", "{}x", "x{}", "x{}x"])
def test_nasty_ids(field: str, nasty: str, place: str) -> None:
    """No character that means something in a key, a channel, a log line or a path gets into an id."""
    usual = {"tenant_id": "acme", "tenant_tier": "free", "session_id": "s-1"}
    says = stated(**{**usual, field: place.format(nasty)})
    error = refusal(None, says, auth="none")

    assert (error.status, error.error_code) == (400, "invalid_id")
    assert NAMES[("tenant_id", "", "session_id", "user_id", "agent_id").index(field)] in error.detail


@pytest.mark.parametrize("nasty", NASTY, ids=ascii)
@pytest.mark.parametrize("claim", ["tenant_id", "session_id", "sub"])
def test_nasty_ids_in_tokens(claim: str, nasty: str) -> None:
    """Neither do they out of a token: who signs it may not know what a key is."""
    error = refusal(signed(claims(**{claim: f"x{nasty}x"})))

    assert (error.status, error.error_code) == (400, "invalid_id")


def test_there_are_enough_nasty_characters() -> None:
    """The list above has not been emptied by accident."""
    assert len(set(NASTY)) >= 33


@pytest.mark.parametrize("field", ["tenant_id", "session_id", "user_id", "agent_id"])
@pytest.mark.parametrize(("length", "ok"), [(0, False), (1, True), (128, True), (129, False)])
def test_length_of_ids(field: str, length: int, ok: bool) -> None:
    """An id has 1 to 128 characters."""
    usual = {"tenant_id": "acme", "tenant_tier": "free", "session_id": "s-1"}
    says = stated(**{**usual, field: "x" * length})
    if ok:
        assert getattr(identify(None, says, auth="none"), field) == "x" * length
    else:
        assert refusal(None, says, auth="none").error_code == "invalid_id"


@pytest.mark.parametrize("missing", ["tenant_id", "session_id"])
def test_missing_ids(missing: str) -> None:
    """What nobody said is asked for by its own name."""
    usual = {"tenant_id": "acme", "tenant_tier": "free", "session_id": "s-1", missing: None}
    error = refusal(None, stated(**usual), auth="none")

    assert (error.status, error.error_code) == (400, "missing_id")
    assert f"X-{missing.replace('_id', '').title()}-ID" in error.detail


@pytest.mark.parametrize("tier", [None, "", "gold", "FREE", "free ", "free\n"])
def test_unknown_tiers(tier: str | None) -> None:
    """A tier is one of four words, and the refusal names them."""
    error = refusal(None, stated(tenant_id="acme", tenant_tier=tier, session_id="s-1"), auth="none")

    assert (error.status, error.error_code) == (400, "unknown_tier")
    assert all(name in error.detail for name in TIERS)


def test_unknown_tier_in_a_token() -> None:
    """A signed word is no tier either if it is none of the four."""
    assert refusal(signed(claims(tenant_tier="gold"))).error_code == "unknown_tier"


# Without tokens.


def test_without_authentication_the_request_is_believed() -> None:
    """AUTH=none, for a developer's machine: what is stated stands, and needs no secret."""
    says = stated(tenant_id="acme", tenant_tier="enterprise", session_id="s-1", user_id="a@b", agent_id="x")

    assert Authenticator(Settings(auth="none")).identify(None, says) == Identity(
        "acme", "enterprise", "s-1", "a@b", "x", None
    )


def test_without_authentication_tokens_are_not_looked_at() -> None:
    """AUTH=none ignores a token, also a bad one."""
    says = stated(tenant_id="acme", tenant_tier="free", session_id="s-1")

    assert identify("nonsense", says, auth="none").tenant_id == "acme"


@pytest.mark.parametrize("secret", ["", "short", "x" * 31])
def test_a_secret_that_is_none(secret: str) -> None:
    """A pod with AUTH=jwt does not start with a key that can be guessed."""
    with pytest.raises(ConfigurationError, match="JWT_SECRET"):
        Authenticator(Settings(jwt_secret=secret))


def test_a_secret_is_measured_in_bytes() -> None:
    """What counts for the signature is bytes, not characters."""
    Authenticator(Settings(jwt_secret="ü" * 16))


# Issuing.


def test_issued_tokens_are_accepted() -> None:
    """What `orchestrator token` prints lets its bearer in, with everything that was asked for."""
    same = settings(jwt_audience="gateway", jwt_issuer="us")
    token = issue_token(
        same,
        time.time(),
        tenant_id="acme",
        tier="professional",
        session_id="s-1",
        user_id="a@b",
        agents=["x"],
    )

    assert Authenticator(same).identify(token, stated()) == Identity(
        "acme", "professional", "s-1", "a@b", None, ("x",)
    )


def test_issued_tokens_expire() -> None:
    """A token lives as long as it was issued for, and no longer."""
    token = issue_token(settings(), time.time() - 100, tenant_id="acme", tier="free", ttl_s=99)

    assert refusal(token, stated(session_id="s")).error_code == "token_expired"


@pytest.mark.parametrize("bad", [{"tenant_id": "a:b"}, {"session_id": "a/b"}, {"user_id": "a b"}], ids=str)
def test_no_tokens_for_bad_ids(bad: dict[str, str]) -> None:
    """A token that no pod would take is not made."""
    with pytest.raises(InvalidId):
        issue_token(settings(), 0.0, **{"tenant_id": "acme", "tier": "free", **bad})  # type: ignore[arg-type]


@pytest.mark.parametrize("secret", ["", "x" * 31])
def test_no_tokens_without_a_secret(secret: str) -> None:
    """A token that no pod could check is not made."""
    with pytest.raises(ConfigurationError, match="JWT_SECRET"):
        issue_token(Settings(jwt_secret=secret), 0.0, tenant_id="acme", tier="free")
