"""Tokens that the service signs itself: what it makes, its pods take."""

from __future__ import annotations

import time
from typing import Any

import jwt
import pytest

from backplane.errors import ConfigurationError, InvalidId
from backplane.keys import ANY_USER
from backplane.settings import Settings
from gateway.auth import Authenticator
from gateway.errors import ClientError
from gateway.identity import OPERATOR, SCOPES, Identity, Stated
from gateway.tokens import issue_token
from tests.unit.gateway.signing import SECRET

NOTHING = Stated(None, None, None, None, None, ("tenant", "tier", "session", "user", "agent"))


def settings(**more: Any) -> Settings:
    return Settings(**{"jwt_secret": SECRET, **more})


def issue(same: Settings, **more: Any) -> str:
    return issue_token(same, time.time(), **{"tenant_id": "acme", "tier": "free", **more})


async def test_issued_tokens_are_accepted() -> None:
    """What `orchestrator token` prints lets its bearer in, with everything that was asked for."""
    same = settings(jwt_audience="gateway", jwt_issuer="us")
    token = issue(same, tier="professional", sessions=["s-1"], user_id="a@b", agents=["x", "y-*"])
    identity = await Authenticator(same).identify(token, NOTHING)

    assert identity == Identity("acme", "professional", "s-1", "a@b", None, identity.grant)
    assert identity.grant.agents == ("x", "y-*")
    assert identity.grant.scopes == {"chat", "listen"}


async def test_what_is_left_out() -> None:
    """Is for its bearer to say."""
    grant = await Authenticator(settings()).grant(issue(settings()))

    assert (grant.user_id, grant.sessions, grant.agents) == (None, None, None)


@pytest.mark.parametrize("scope", SCOPES)
async def test_scopes(scope: str) -> None:
    """Those that were asked for, in place of the usual ones."""
    assert (await Authenticator(settings()).grant(issue(settings(), scopes=[scope]))).scopes == {scope}


async def test_an_operators_token() -> None:
    """It is of no tenant."""
    grant = await Authenticator(settings()).grant(issue(settings(), tenant_id=OPERATOR, scopes=["admin"]))

    assert grant.tenant_id == OPERATOR


async def test_an_administrators_token() -> None:
    """Without a user, all sessions of its tenant are its own."""
    token = issue(settings(), sessions=["s-1"], scopes=["admin", "listen"])

    assert (await Authenticator(settings()).identify(token, NOTHING)).owner == ANY_USER


async def test_claims_under_other_names() -> None:
    """They are written where the same settings read them."""
    same = settings(
        jwt_claim_tenant="org.id",
        jwt_claim_tier="plan",
        jwt_claim_user="who",
        jwt_claim_sessions="rooms",
        jwt_claim_agents="bots",
        jwt_claim_scopes="may",
    )
    token = issue(same, sessions=["s-1"], user_id="ann", agents=["x"], scopes=["listen"])
    identity = await Authenticator(same).identify(token, NOTHING)

    assert (identity.tenant_id, identity.session_id, identity.user_id) == ("acme", "s-1", "ann")
    assert identity.grant.agents == ("x",)
    assert identity.grant.scopes == {"listen"}


async def test_issued_tokens_expire() -> None:
    """A token lives as long as it was issued for, and no longer."""
    long_ago = time.time() - 100
    token = issue_token(settings(), long_ago, tenant_id="acme", tier="free", ttl_s=90)
    with pytest.raises(ClientError, match="expired"):
        await Authenticator(settings()).grant(token)
    token = issue_token(settings(), long_ago, tenant_id="acme", tier="free", ttl_s=200)

    grant = await Authenticator(settings()).grant(token)
    assert (grant.issued_at, grant.expires_at) == (int(long_ago), int(long_ago) + 200)


async def test_every_token_can_be_revoked_alone() -> None:
    """No two have one id."""
    grants = [await Authenticator(settings()).grant(issue(settings())) for _ in range(3)]

    assert len({grant.token_id for grant in grants}) == 3
    assert all(grant.token_id for grant in grants)


@pytest.mark.parametrize(
    ("algorithms", "secret", "chosen"),
    [
        ("HS256", SECRET, "HS256"),
        ("RS256, HS256", SECRET, "HS256"),
        ("HS512,HS256", SECRET * 2, "HS512"),
        (" HS384 ", SECRET * 2, "HS384"),
    ],
)
async def test_algorithms(algorithms: str, secret: str, chosen: str) -> None:
    """The first that the secret is for; others are for keys that are not here."""
    same = settings(jwt_algorithms=algorithms, jwt_secret=secret)
    token = issue(same)

    assert jwt.get_unverified_header(token)["alg"] == chosen
    assert (await Authenticator(same).grant(token)).tenant_id == "acme"


@pytest.mark.parametrize(
    "bad",
    [
        {"tenant_id": "a:b"},
        {"tenant_id": ""},
        {"tenant_id": "**"},
        {"sessions": ["a/b"]},
        {"sessions": ["s-1", ""]},
        {"sessions": ["*web"]},
        {"agents": ["a b"]},
        {"user_id": "a b"},
        {"user_id": "*"},
    ],
    ids=str,
)
def test_no_tokens_for_bad_ids(bad: dict[str, Any]) -> None:
    """A token that no pod would take is not made."""
    with pytest.raises(InvalidId):
        issue(settings(), **bad)


@pytest.mark.parametrize("scopes", [["root"], ["chat", "CHAT"], ["chat listen"]])
def test_no_tokens_for_scopes_that_are_none(scopes: list[str]) -> None:
    """Nor one that would grant less than was asked for."""
    with pytest.raises(ConfigurationError, match="is no scope"):
        issue(settings(), scopes=scopes)


@pytest.mark.parametrize(("algorithms", "length"), [("HS512", 63), ("HS384", 47), ("HS512,RS256", 32)])
def test_no_tokens_with_a_secret_that_is_too_short_for_them(algorithms: str, length: int) -> None:
    """No pod of these settings starts, so none would take them."""
    same = settings(jwt_algorithms=algorithms, jwt_secret="x" * length)
    with pytest.raises(ConfigurationError):
        Authenticator(same)
    with pytest.raises(ConfigurationError, match="JWT_ALGORITHMS"):
        issue(same)


def test_no_tokens_for_users_where_none_are_named() -> None:
    """Or its bearer would speak for the whole tenant."""
    with pytest.raises(ConfigurationError, match="JWT_CLAIM_USER"):
        issue(settings(jwt_claim_user=""), user_id="ann")


@pytest.mark.parametrize("secret", ["", "x" * 31])
def test_no_tokens_without_a_secret(secret: str) -> None:
    """A token that no pod could check is not made."""
    with pytest.raises(ConfigurationError, match="JWT_SECRET"):
        issue(Settings(jwt_secret=secret))


@pytest.mark.parametrize("algorithms", ["RS256", "ES256,EdDSA", ""])
def test_no_tokens_where_only_providers_sign(algorithms: str) -> None:
    """Where no HMAC is allowed, none is used."""
    with pytest.raises(ConfigurationError, match="JWT_ALGORITHMS"):
        issue(settings(jwt_algorithms=algorithms))
