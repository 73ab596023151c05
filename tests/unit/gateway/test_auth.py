"""Who a client is: what a token proves, what a request may add, and what is refused."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backplane.errors import ConfigurationError
from backplane.keys import TIERS
from backplane.settings import Settings
from gateway import auth
from gateway.auth import Authenticator
from gateway.errors import ClientError, redis_unavailable
from gateway.fetch import Answer, Fetcher, FetchError
from gateway.identity import ANYONE, Grant, Identity, Stated
from gateway.signing_keys import ALGORITHMS
from tests.unit.gateway.fakes import FakeLogger, settle
from tests.unit.gateway.signing import (
    OTHER,
    SECRET,
    certificate,
    claims,
    jwk,
    jwk_set,
    part,
    pem,
    private_pem,
    signed,
    token,
)

NAMES = ("X-Tenant-ID", "X-Tenant-Tier", "X-Session-ID", "X-User-ID", "X-Agent-ID")
FIELDS = ("tenant_id", "tenant_tier", "session_id", "user_id", "agent_id")
ACME = {"tenant_id": "acme", "tenant_tier": "free", "session_id": "s-1"}
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
    return Settings(**{"jwt_secret": SECRET, **more})


def stated(**more: str | None) -> Stated:
    """What a request says; nothing unless given."""
    tenant, tier, session, user, agent = map(more.get, FIELDS)
    return Stated(tenant, tier, session, user, agent, NAMES)


async def identify(bearer: str | None, says: Stated | None = None, **more: Any) -> Identity:
    return await Authenticator(settings(**more)).identify(bearer, says or stated())


async def refusal(bearer: str | None, says: Stated | None = None, **more: Any) -> ClientError:
    with pytest.raises(ClientError) as caught:
        await identify(bearer, says, **more)
    assert SECRET not in caught.value.detail
    assert caught.value.detail.isprintable()
    return caught.value


async def refused(authenticator: Authenticator, bearer: str) -> tuple[int, str]:
    """Status and code with which a token is refused."""
    with pytest.raises(ClientError) as caught:
        await authenticator.grant(bearer)
    return caught.value.status, caught.value.error_code


INVALID = (401, "token_invalid")

# Tokens.


async def test_a_token_is_enough() -> None:
    """What the token says need not be said again."""
    identity = await identify(signed(claims(sub="ann@example.org", agents=["sales", "support"])))

    assert identity == Identity("acme", "free", "s-1", "ann@example.org", None, identity.grant)
    assert identity.grant.agents == ("sales", "support")
    assert identity.owner == "ann@example.org"


async def test_what_the_token_leaves_open_is_stated() -> None:
    """A token for any session, user and agent lets the request say which; the user is not proved by that."""
    says = stated(session_id="s-9", user_id="bob+x@y", agent_id="sales")
    identity = await identify(signed(claims(session_id=None)), says)

    assert identity == Identity("acme", "free", "s-9", "bob+x@y", "sales", identity.grant)
    assert identity.grant.user_id is None
    assert identity.owner == ""


async def test_saying_the_same_again_is_fine() -> None:
    """A request that repeats its token contradicts nothing."""
    says = stated(tenant_id="acme", tenant_tier="free", session_id="s-1", user_id="ann")

    assert (await identify(signed(claims(sub="ann")), says)).user_id == "ann"


@pytest.mark.parametrize("bearer", [None, ""])
async def test_no_token(bearer: str | None) -> None:
    """Without a token nobody gets in, whatever they say of themselves."""
    error = await refusal(bearer, stated(**ACME))

    assert (error.status, error.error_code) == (401, "token_missing")


def forged() -> list[Any]:
    good = signed(claims())
    head, body, signature = good.split(".")
    none_head = part(b'{"alg":"none"}').decode()
    other_body = part(json.dumps(claims(tenant_id="evil")).encode()).decode()
    return [
        pytest.param(signed(claims(), OTHER), id="another secret"),
        pytest.param(signed(claims(), ""), id="an empty secret"),
        pytest.param(f"{head}.{other_body}.{signature}", id="other claims"),
        pytest.param(f"{head}.{body}.", id="no signature"),
        pytest.param(f"{head}.{body}", id="two parts"),
        pytest.param(f"{head}.{body}.{signature}.{signature}", id="four parts"),
        pytest.param(f"{none_head}.{body}.", id="alg none"),
        pytest.param(f"{none_head}.{body}.{signature}", id="alg none with a signature"),
        pytest.param(signed(claims(), alg="none"), id="alg none, signed"),
        pytest.param(signed(claims(), alg="None"), id="alg None"),
        pytest.param(signed(claims(), alg="hs256"), id="alg in small letters"),
        pytest.param(signed(claims(), alg="HS512"), id="alg HS512"),
        pytest.param(signed(claims(), alg="RS256"), id="alg RS256"),
        pytest.param(signed(claims(), alg=["HS256"]), id="alg a list"),
        pytest.param(signed(claims(), alg={"HS256": 1}), id="alg an object"),
        pytest.param(signed(claims(), alg=None), id="alg null"),
        pytest.param(jwt.encode(claims(), SECRET * 2, algorithm="HS512"), id="really HS512"),
        pytest.param(token("RS256"), id="really RS256"),
        pytest.param("hello", id="no token at all"),
        pytest.param("..", id="three empty parts"),
        pytest.param("\u00e9.\u00e9.\u00e9", id="not ASCII"),
        pytest.param("\ud800.\ud800.\ud800", id="no Unicode"),
        pytest.param(good + "A", id="longer signature"),
        pytest.param(good[:-2], id="shorter signature"),
        pytest.param(f" {good}", id="a space before"),
        pytest.param(signed(b"[]"), id="claims are no object"),
        pytest.param(signed(b"not json"), id="claims are no JSON"),
        pytest.param(signed(b"\xff"), id="claims are no UTF-8"),
        pytest.param(signed(b"[" * 5_000), id="claims are nested"),
        pytest.param(f"{part(b'[' * 3_000).decode()}.{body}.{signature}", id="a nested header"),
        pytest.param(signed(claims(), kid="k-1"), id="a kid that is not known"),
        pytest.param(signed(claims(), kid=""), id="an empty kid"),
        pytest.param(signed(claims(), kid=5), id="a kid that is a number"),
        pytest.param(signed(claims(), kid=["k-1"]), id="a kid that is a list"),
        pytest.param(signed(claims(), kid="k" * 513), id="a long kid"),
        pytest.param(signed(claims(), crit=["exp"]), id="a header that must be understood"),
        pytest.param(signed(claims(), b64=False), id="claims that are not encoded"),
        pytest.param(signed(claims(note="x" * 8_000)), id="a long token"),
    ]


@pytest.mark.parametrize("bearer", forged())
async def test_forged_tokens(bearer: str) -> None:
    """Nothing but our own signature over exactly these claims is believed."""
    error = await refusal(bearer, stated(session_id="s-1"))

    assert (error.status, error.error_code) == INVALID


async def test_the_forgery_tests_could_pass() -> None:
    """The same token, not forged, is accepted: the refusals above are about the forgery."""
    assert (await identify(signed(claims()))).tenant_id == "acme"


@pytest.mark.parametrize(
    "header",
    [
        {"jwk": {"kty": "oct", "k": part(OTHER.encode()).decode()}},
        {"jku": "http://127.0.0.1:1/keys"},
        {"x5u": "http://127.0.0.1:1/certificate"},
        {"x5c": [base64.b64encode(b"certificate").decode()]},
        {"jwk": {"kty": "oct", "k": part(OTHER.encode()).decode()}, "kid": "k-1"},
    ],
    ids=str,
)
async def test_keys_that_a_token_brings_along(header: dict[str, Any]) -> None:
    """A token does not say by which key it is to be believed (RFC 8725, 3.10)."""
    assert (await refusal(signed(claims(), OTHER, **header))).error_code == "token_invalid"


@pytest.mark.parametrize(
    "times",
    [
        {"exp": -3},
        {"exp": 0, "iat": -100},
        {"nbf": 3600},
        {"iat": 3600},
        {"nbf": 5},
        {"iat": 5},
    ],
    ids=str,
)
async def test_tokens_out_of_their_time(times: dict[str, Any]) -> None:
    """An expired token says so, so that its client gets a new one; so does one that is not valid yet."""
    at = {name: time.time() + offset for name, offset in times.items()}
    error = await refusal(signed(claims(**at)), jwt_leeway_s=0 if "exp" in times else 2)

    assert (error.status, error.error_code) == (401, "token_expired")


@pytest.mark.parametrize("expired", [0, -1, False, True, "12", -(2**70)])
async def test_tokens_of_the_past(expired: Any) -> None:
    """Also one that says so in an unusual way."""
    error = await refusal(signed(claims(exp=expired)))

    assert (error.status, error.error_code) == (401, "token_expired")


async def test_leeway() -> None:
    """Clocks may differ by so much, either way, and by no more."""
    now = time.time()
    for late in ({"exp": now - 6}, {"nbf": now + 6}, {"iat": now + 6}):
        bearer = signed(claims(**late))
        assert (await identify(bearer, jwt_leeway_s=10.0)).tenant_id == "acme"
        assert (await refusal(bearer, jwt_leeway_s=1.0)).error_code == "token_expired"


@pytest.mark.parametrize(
    "wrong",
    [
        {"exp": None},
        {"exp": "soon"},
        {"exp": "99999999999"},
        {"exp": [1]},
        {"exp": {}},
        {"exp": float("inf")},
        {"exp": float("nan")},
        {"nbf": "soon"},
        {"nbf": float("inf")},
        {"iat": []},
        {"jti": 5},
        {"tenant_id": None},
        {"tenant_id": 5},
        {"tenant_id": ["acme"]},
        {"tenant_id": ""},
        {"tenant_tier": None},
        {"tenant_tier": 1},
        {"tenant_tier": "gold"},
        {"session_id": 5},
        {"session_id": [5]},
        {"session_id": False},
        {"session_id": ["s-1", None]},
        {"sub": 5},
        {"sub": {}},
        {"sub": ""},
        {"agents": {"sales": 1}},
        {"agents": [1]},
        {"agents": [None]},
        {"agents": 0},
        {"agents": ["a b"]},
        {"scope": 5},
        {"scope": ["chat", 5]},
    ],
    ids=str,
)
async def test_missing_and_wrong_claims(wrong: dict[str, Any]) -> None:
    """A claim that is needed and missing, or of another type, makes a bad token, never a guess."""
    error = await refusal(signed(claims(**wrong)), stated(**ACME))

    assert (error.status, error.error_code) == INVALID


async def test_a_null_claim_is_one_that_is_left_out() -> None:
    """JSON null says nothing."""
    bearer = signed({**claims(), "session_id": None, "agents": None, "scope": None})
    identity = await identify(bearer, stated(session_id="s-2"))

    assert identity == Identity("acme", "free", "s-2", None, None, identity.grant)
    assert (identity.grant.sessions, identity.grant.agents) == (None, None)


@pytest.mark.parametrize(
    ("audience", "ok"),
    [
        ("gateway", True),
        (["other", "gateway"], True),
        ("other", False),
        ("", False),
        (None, False),
        (5, False),
    ],
)
async def test_audience(audience: Any, ok: bool) -> None:
    """With an audience set, only tokens made for it are believed."""
    bearer = signed(claims(aud=audience))
    if ok:
        assert (await identify(bearer, jwt_audience="gateway")).tenant_id == "acme"
    else:
        assert (await refusal(bearer, jwt_audience="gateway")).error_code == "token_invalid"


@pytest.mark.parametrize(("issuer", "ok"), [("us", True), ("them", False), (None, False), (["us"], False)])
async def test_issuer(issuer: Any, ok: bool) -> None:
    """With an issuer set, only its tokens are believed."""
    bearer = signed(claims(iss=issuer))
    if ok:
        assert (await identify(bearer, jwt_issuer="us")).tenant_id == "acme"
    else:
        assert (await refusal(bearer, jwt_issuer="us")).error_code == "token_invalid"


async def test_audience_and_issuer_that_nobody_asked_for() -> None:
    """Tokens of a larger system, which name both, are taken where no setting asks for them."""
    assert (await identify(signed(claims(aud="anything", iss="anyone")))).tenant_id == "acme"


@given(st.one_of(st.text(max_size=60), st.from_regex(r"[A-Za-z0-9_-]*\.[A-Za-z0-9_-]*\.[A-Za-z0-9_-]*")))
def test_any_text_is_refused(text: str) -> None:
    """No token text raises anything but a refusal."""
    with pytest.raises(ClientError) as caught:
        asyncio.run(identify(text))
    assert caught.value.status == 401


@given(
    st.dictionaries(
        st.sampled_from(["alg", "kid", "typ", "crit", "b64", "jwk"]),
        st.sampled_from(["HS256", "RS256", "none"]) | st.none() | st.integers() | st.text(max_size=8),
    ),
    st.binary(max_size=30),
)
def test_any_header_is_refused(header: dict[str, Any], payload: bytes) -> None:
    """Whatever stands in a header, a token that nobody signed is refused, and nothing else is raised."""
    with pytest.raises(ClientError) as caught:
        asyncio.run(identify(signed(payload, OTHER, **header)))
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
        ({"session_id": "S-1"}, "X-Session-ID"),
        ({"user_id": ""}, "X-User-ID"),
    ],
    ids=str,
)
async def test_contradictions(says: dict[str, str], name: str) -> None:
    """Who says of himself other than his token says is refused, and told where."""
    error = await refusal(signed(claims(sub="ann")), stated(**says))

    assert (error.status, error.error_code) == (403, "forbidden")
    assert name in error.detail


@pytest.mark.parametrize(
    ("agent", "ok"), [("sales", True), ("support", True), ("secret", False), ("", False)]
)
async def test_agents_of_a_token(agent: str, ok: bool) -> None:
    """A token's agents are the only ones that it may speak to, and a socket may not name another either."""
    bearer, says = signed(claims(agents=["sales", "support"])), stated(agent_id=agent)
    if ok:
        assert (await identify(bearer, says)).agent_id == agent
    else:
        assert (await refusal(bearer, says)).status == (403 if agent else 400)


@pytest.mark.parametrize("nasty", NASTY, ids=ascii)
@pytest.mark.parametrize("field", ["tenant_id", "session_id", "user_id", "agent_id"])
@pytest.mark.parametrize("place", ["{}", "{}x", "x{}", "x{}x"])
async def test_nasty_ids(field: str, nasty: str, place: str) -> None:
    """No character that means something in a key, a channel, a log line or a path gets into an id."""
    says = stated(**{**ACME, field: place.format(nasty)})
    error = await refusal(None, says, auth="none")

    assert (error.status, error.error_code) == (400, "invalid_id")
    assert NAMES[FIELDS.index(field)] in error.detail


@pytest.mark.parametrize("nasty", NASTY, ids=ascii)
@pytest.mark.parametrize("claim", ["tenant_id", "session_id", "sub", "agents"])
async def test_nasty_ids_in_tokens(claim: str, nasty: str) -> None:
    """Neither do they out of a token: who signs it may not know what a key is."""
    error = await refusal(signed(claims(**{claim: f"x{nasty}x"})), stated(session_id="s-1"))

    assert (error.status, error.error_code) == INVALID


def test_there_are_enough_nasty_characters() -> None:
    """The list above has not been emptied by accident."""
    assert len(set(NASTY)) >= 33


@pytest.mark.parametrize("field", ["tenant_id", "session_id", "user_id", "agent_id"])
@pytest.mark.parametrize(("length", "ok"), [(0, False), (1, True), (128, True), (129, False)])
async def test_length_of_ids(field: str, length: int, ok: bool) -> None:
    """An id has 1 to 128 characters."""
    says = stated(**{**ACME, field: "x" * length})
    if ok:
        assert getattr(await identify(None, says, auth="none"), field) == "x" * length
    else:
        assert (await refusal(None, says, auth="none")).error_code == "invalid_id"


@pytest.mark.parametrize("missing", ["tenant_id", "session_id"])
async def test_missing_ids(missing: str) -> None:
    """What nobody said is asked for by its own name."""
    error = await refusal(None, stated(**{**ACME, missing: None}), auth="none")

    assert (error.status, error.error_code) == (400, "missing_id")
    assert f"X-{missing.replace('_id', '').title()}-ID" in error.detail


@pytest.mark.parametrize("tier", [None, "", "gold", "FREE", "free ", "free\n"])
async def test_unknown_tiers(tier: str | None) -> None:
    """A tier is one of four words, and the refusal names them."""
    error = await refusal(None, stated(**{**ACME, "tenant_tier": tier}), auth="none")

    assert (error.status, error.error_code) == (400, "unknown_tier")
    assert all(name in error.detail for name in TIERS)


# Without tokens.


async def test_without_authentication_the_request_is_believed() -> None:
    """AUTH=none, for a developer's machine: what is stated stands, and needs no secret."""
    says = stated(tenant_id="acme", tenant_tier="enterprise", session_id="s-1", user_id="a@b", agent_id="x")

    assert await Authenticator(Settings(auth="none")).identify(None, says) == Identity(
        "acme", "enterprise", "s-1", "a@b", "x", ANYONE
    )


async def test_without_authentication_tokens_are_not_looked_at() -> None:
    """AUTH=none ignores a token, also a bad one, and revocations."""
    nobody = Authenticator(settings(auth="none"), lambda _grant: True)

    assert (await nobody.identify("nonsense", stated(**ACME))).tenant_id == "acme"
    nobody.check(ANYONE)
    assert nobody.tasks() == {}
    assert nobody.problem() is None


# Settings.


@pytest.mark.parametrize("secret", ["", "short", "x" * 31])
def test_a_secret_that_is_none(secret: str) -> None:
    """A pod with AUTH=jwt does not start with a key that can be guessed."""
    with pytest.raises(ConfigurationError, match="JWT_SECRET"):
        Authenticator(Settings(jwt_secret=secret))


def test_a_secret_is_measured_in_bytes() -> None:
    """What counts for the signature is bytes, not characters."""
    Authenticator(Settings(jwt_secret="ü" * 16))


@pytest.mark.parametrize("names", ["", " , ", "HS257", "none", "HS256,none", "hs256", "RS256 PS256"])
def test_algorithms_that_are_none(names: str) -> None:
    """A word that is no algorithm stops the start; so does a list without any."""
    with pytest.raises(ConfigurationError, match="JWT_ALGORITHMS"):
        Authenticator(settings(jwt_algorithms=names))


@pytest.mark.parametrize("names", ["RS256", "ES256,EdDSA", "HS384", "HS512"])
def test_algorithms_that_no_key_fits(names: str) -> None:
    """A pod that could verify nothing says so when it starts; 37 bytes are too few for HS384."""
    with pytest.raises(ConfigurationError, match="JWT_ALGORITHMS has no algorithm that fits"):
        Authenticator(settings(jwt_algorithms=names))


@pytest.mark.parametrize(
    ("url", "ok"),
    [
        ("https://login.example.org/keys", True),
        ("http://127.0.0.1:9/keys", True),
        ("http://localhost/keys", True),
        ("http://[::1]:9/keys", True),
        ("http://login.example.org/keys", False),
        ("http://127.0.0.1.evil.test/keys", False),
        ("http://localhost.evil.test/keys", False),
        ("http://10.0.0.1/keys", False),
        ("http://127.0.0.1@evil.test/keys", False),
        ("file:///etc/passwd", False),
        ("ftp://login.example.org/keys", False),
        ("login.example.org", False),
    ],
)
def test_where_keys_may_be_fetched(url: str, ok: bool) -> None:
    """Over plain HTTP whoever is in between could sign tokens, so it is for loopback only."""
    if ok:
        Authenticator(Settings(jwt_jwks_url=url, jwt_algorithms="RS256"))
    else:
        with pytest.raises(ConfigurationError, match="JWT_JWKS_URL"):
            Authenticator(Settings(jwt_jwks_url=url, jwt_algorithms="RS256"))


@pytest.mark.parametrize("names", ["HS256", "HS256,HS512"])
@pytest.mark.parametrize("secret", ["", SECRET])
def test_a_provider_whose_tokens_nobody_would_take(names: str, secret: str) -> None:
    """A provider publishes no secrets: with HMAC alone all of its tokens would be refused."""
    with pytest.raises(ConfigurationError, match="JWT_ALGORITHMS"):
        Authenticator(
            Settings(jwt_jwks_url="https://login.example.org/", jwt_algorithms=names, jwt_secret=secret)
        )


def test_keys_over_plain_http_where_that_is_meant() -> None:
    """In a network that is trusted."""
    Authenticator(Settings(jwt_jwks_url="http://keys.internal/", jwt_algorithms="RS256", allow_insecure=True))


# Keys.


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Keys of several kinds."""
    (tmp_path / "rsa.pem").write_bytes(pem("RS256"))
    (tmp_path / "ec.pem").write_bytes(pem("ES256"))
    (tmp_path / "ed.pem").write_bytes(pem("EdDSA"))
    (tmp_path / "cert.pem").write_bytes(certificate("RS256", 7))
    (tmp_path / "hmac.secret").write_text(OTHER + "\n")
    return tmp_path


def of_folder(folder: Path, **more: Any) -> Authenticator:
    return Authenticator(
        Settings(**{"jwt_keys_dir": str(folder), "jwt_algorithms": ",".join(ALGORITHMS), **more}),
        log=FakeLogger().as_logger(),
    )


@pytest.mark.parametrize(
    "bearer",
    [
        token("RS256", "rsa"),
        token("PS384", "rsa"),
        token("ES256", "ec"),
        token("EdDSA", "ed"),
        token("RS512", "cert", 7),
        token("RS256"),
        token("RS256", number=7),
        token("ES256"),
        signed(claims(), OTHER, kid="hmac"),
        signed(claims(), OTHER),
    ],
)
async def test_keys_of_a_directory(folder: Path, bearer: str) -> None:
    """A token that names its key is verified by that; one that names none, by each that fits."""
    assert (await of_folder(folder).grant(bearer)).tenant_id == "acme"


@pytest.mark.parametrize(
    "bearer",
    [
        pytest.param(token("RS256", "cert"), id="the name of another key of its kind"),
        pytest.param(token("RS256", "ec"), id="the name of a key of another kind"),
        pytest.param(token("RS256", "hmac"), id="the name of a secret"),
        pytest.param(token("RS256", "rsa2"), id="a name that nobody has"),
        pytest.param(token("RS256", "RSA"), id="the name in other letters"),
        pytest.param(token("RS256", "rsa.pem"), id="the name of the file"),
        pytest.param(token("RS256", "../keys/rsa"), id="a path"),
        pytest.param(token("RS256", "rsa' OR '1'='1"), id="a query"),
        pytest.param(token("RS256", "rsa\0"), id="a zero behind it"),
        pytest.param(token("RS256", number=5), id="a key that nobody has"),
        pytest.param(token("RS256", "rsa", number=5), id="another key under the name"),
        pytest.param(signed(claims(), pem("RS256"), kid="rsa"), id="the public key as a secret"),
        pytest.param(signed(claims(), pem("RS256")), id="the public key as a secret, not named"),
        pytest.param(signed(claims(), pem("RS256").strip(), kid="rsa"), id="the same without a line end"),
        pytest.param(signed(claims(), pem("ES256"), kid="ec"), id="a public EC key as a secret"),
        pytest.param(signed(claims(), certificate("RS256", 7), kid="cert"), id="a certificate as a secret"),
        pytest.param(signed(claims(), OTHER, kid="hmac", alg="RS256"), id="a secret under another alg"),
        pytest.param(signed(claims(), OTHER, kid="rsa"), id="a secret under another name"),
    ],
)
async def test_keys_are_for_their_own_kind(folder: Path, bearer: str) -> None:
    """No name and no algorithm of a token makes a key of one kind into one of another (RFC 8725, 3.1)."""
    assert await refused(of_folder(folder), bearer) == INVALID


async def test_an_elliptic_signature_of_zeros(folder: Path) -> None:
    """The one that some libraries took for every message (CVE-2022-21449)."""
    body = token("ES256", "ec").rpartition(".")[0]

    assert await refused(of_folder(folder), f"{body}.{part(bytes(64)).decode()}") == INVALID


@pytest.mark.parametrize("bearer", [token("RS256", "rsa"), token("ES256", "ec"), signed(claims(), OTHER)])
async def test_algorithms_that_were_not_allowed(folder: Path, bearer: str) -> None:
    """A key alone is not enough: the operator says which algorithms are in use."""
    allowed = of_folder(folder, jwt_algorithms="PS256, EdDSA")

    assert await refused(allowed, bearer) == INVALID
    assert (await allowed.grant(token("PS256", "rsa"))).tenant_id == "acme"


async def test_secret_and_directory_together(folder: Path) -> None:
    """JWT_SECRET is for tokens that name no key, and is not tried for those that do."""
    both = of_folder(folder, jwt_secret=SECRET)

    assert (await both.grant(signed(claims()))).tenant_id == "acme"
    assert (await both.grant(token("ES256", "ec"))).tenant_id == "acme"
    assert await refused(both, signed(claims(), kid="hmac")) == INVALID
    assert await refused(both, signed(claims(), OTHER)) == INVALID


@pytest.mark.parametrize("name", ["k.pem", "k.secret"])
def test_a_directory_with_a_bad_key(tmp_path: Path, name: str) -> None:
    """What is no key stops the start, and is named."""
    (tmp_path / name).write_bytes(private_pem("RS256")[:20])

    with pytest.raises(ConfigurationError, match=name):
        of_folder(tmp_path)


def test_an_empty_directory(tmp_path: Path) -> None:
    """Nobody could get in."""
    with pytest.raises(ConfigurationError, match="JWT_KEYS_DIR"):
        of_folder(tmp_path)


def test_what_runs_beside(folder: Path) -> None:
    """Keys that may change are looked after; a secret does not change."""
    assert Authenticator(settings()).tasks() == {}
    both = of_folder(folder, jwt_jwks_url="https://login.example.org/keys").tasks()
    assert sorted(both) == ["jwks", "key_files"]
    for work in both.values():
        work.close()


# What was verified before.


class Clock:
    """The time that the authenticator reads; tokens' own times are checked by another."""

    def __init__(self) -> None:
        self.now = time.time()

    def time(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(auth, "time", clock)
    return clock


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The tokens whose signatures were computed."""
    found: list[str] = []

    def decode(bearer: str, *rest: Any, **more: Any) -> Any:
        found.append(bearer)
        return jwt.decode(bearer, *rest, **more)

    watched = SimpleNamespace(**{**vars(jwt), "decode": decode})
    monkeypatch.setattr(auth, "jwt", watched)
    return found


async def test_a_token_is_verified_once(decoded: list[str]) -> None:
    """A client that sends its token with each request costs one signature."""
    authenticator, bearer = Authenticator(settings()), signed(claims())
    first = await authenticator.grant(bearer)

    assert await authenticator.grant(bearer) is first
    assert decoded == [bearer]
    assert await refused(authenticator, bearer + "A") == INVALID
    assert await refused(authenticator, bearer[:-1]) == INVALID


async def test_refusals_are_not_kept(decoded: list[str]) -> None:
    """Only what is right takes room: whoever makes up tokens pushes nobody's out."""
    authenticator = Authenticator(settings())
    for _ in range(3):
        await refused(authenticator, signed(claims(exp=1)))

    assert len(decoded) == 3


async def test_what_was_verified_expires(clock: Clock) -> None:
    """A token that was right a minute ago is not for that right now; the leeway counts here too."""
    authenticator = Authenticator(settings(jwt_leeway_s=5.0))
    bearer = signed(claims(exp=clock.now + 60))
    grant = await authenticator.grant(bearer)
    clock.now += 64.5
    assert await authenticator.grant(bearer) is grant
    authenticator.check(grant)
    clock.now += 1

    assert await refused(authenticator, bearer) == (401, "token_expired")
    with pytest.raises(ClientError, match="expired"):
        authenticator.check(grant)


async def test_what_was_verified_may_be_revoked() -> None:
    """A revocation is in force with the next request, and its end too."""
    revoked: set[str | None] = set()
    authenticator = Authenticator(settings(), lambda grant: grant.token_id in revoked)
    bearer = signed(claims(jti="t-1"))
    grant = await authenticator.grant(bearer)
    revoked.add("t-1")
    assert await refused(authenticator, bearer) == (401, "token_revoked")
    with pytest.raises(ClientError, match="revoked"):
        authenticator.check(grant)
    assert (await authenticator.grant(signed(claims(jti="t-2")))).token_id == "t-2"
    revoked.clear()

    assert await authenticator.grant(bearer) is grant


async def test_a_token_that_comes_revoked() -> None:
    """Also one that was never seen before."""
    authenticator = Authenticator(settings(), lambda grant: grant.token_id == "t-1")

    assert await refused(authenticator, signed(claims(jti="t-1"))) == (401, "token_revoked")


async def test_revocations_that_are_not_known() -> None:
    """While nobody can tell what is revoked, nobody is let in, and it is not said to be the token's fault."""

    def unknown(_grant: Grant) -> bool:
        raise redis_unavailable()

    authenticator = Authenticator(settings(), unknown)

    assert await refused(authenticator, signed(claims())) == (503, "redis_unavailable")
    assert await refused(authenticator, signed(claims(), OTHER)) == INVALID


async def test_what_was_verified_is_bounded(decoded: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A pod remembers so many tokens; the oldest is verified anew."""
    monkeypatch.setattr(auth, "_MOST_VERIFIED", 3)
    authenticator = Authenticator(settings())
    bearer = [signed(claims(jti=f"t-{number}")) for number in range(4)]
    for one in bearer:
        await authenticator.grant(one)
    for one in reversed(bearer[1:]):
        await authenticator.grant(one)
    assert decoded == bearer
    await authenticator.grant(bearer[0])

    assert decoded == [*bearer, bearer[0]]


# Keys from a provider.


class StubFetcher:
    """Answers what a test says, when it says so."""

    def __init__(self) -> None:
        self.answer: Answer | Exception = Answer(200, jwk_set(jwk("RS256", "k-1")))
        self.gate = asyncio.Event()
        self.gate.set()
        self.asked = 0

    async def ask(self, _fetcher: Fetcher, body: Any = None) -> Answer:
        assert body is None
        self.asked += 1
        await self.gate.wait()
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.fixture
def fetcher(monkeypatch: pytest.MonkeyPatch) -> StubFetcher:
    """The provider; who waits between two questions waits no time."""
    stub = StubFetcher()
    monkeypatch.setattr(Fetcher, "ask", lambda self, body=None: stub.ask(self, body))
    monkeypatch.setattr("gateway.jwks.COOLDOWN_S", 0.0)
    return stub


def of_provider(**more: Any) -> Authenticator:
    return Authenticator(
        Settings(**{"jwt_jwks_url": "https://login.example.org/", "jwt_algorithms": "RS256,HS256", **more}),
        log=FakeLogger().as_logger(),
    )


async def test_keys_of_a_provider(fetcher: StubFetcher) -> None:
    """The first token waits for the keys; the next ones need nobody."""
    provider = of_provider()
    assert "JWT_JWKS_URL" in (provider.problem() or "")
    assert (await provider.grant(token("RS256", "k-1"))).tenant_id == "acme"
    assert provider.problem() is None
    assert (await provider.grant(token("RS256", "k-1", sub="ann"))).user_id == "ann"
    assert (await provider.grant(token("RS256"))).tenant_id == "acme"

    assert fetcher.asked == 1


async def test_a_key_that_the_provider_does_not_have(fetcher: StubFetcher) -> None:
    """It was asked, and so the token is wrong; without a name, every key was tried."""
    provider = of_provider()
    assert await refused(provider, token("RS256", "k-2", 2)) == INVALID
    assert await refused(provider, token("RS256", number=2)) == INVALID
    assert await refused(provider, signed(claims(), kid="k-2")) == INVALID
    assert await refused(provider, token("RS256", "k-1", 2)) == INVALID
    assert fetcher.asked == 1


@pytest.mark.parametrize("answer", [FetchError("no answer"), Answer(500, None), Answer(200, {"keys": []})])
async def test_a_provider_that_is_down(fetcher: StubFetcher, answer: Any) -> None:
    """Its known keys stay in force; who names another one is told to come back, not that he is wrong."""
    provider = of_provider(jwt_secret=SECRET)
    await provider.grant(token("RS256", "k-1"))
    fetcher.answer = answer

    assert (await provider.grant(token("RS256", "k-1", sub="ann"))).user_id == "ann"
    assert await refused(provider, token("RS256", "k-2", 2)) == (503, "keys_unavailable")
    assert await refused(provider, token("RS256", "k-1", 2)) == INVALID
    assert (await provider.grant(signed(claims()))).tenant_id == "acme"
    assert provider.problem() is None


async def test_a_provider_that_was_never_there(fetcher: StubFetcher) -> None:
    """A pod without any key is not ready and says why; what needs no key of the provider's goes on."""
    fetcher.answer = FetchError("no answer within 2 s")
    provider = of_provider()
    for bearer in (token("RS256", "k-1"), token("RS256")):
        with pytest.raises(ClientError) as caught:
            await provider.grant(bearer)
        assert (caught.value.status, caught.value.error_code) == (503, "keys_unavailable")
        assert caught.value.retry_after_s == 2
    assert "no answer within 2 s" in (provider.problem() or "")
    assert await refused(provider, "hello") == INVALID
    with_secret = of_provider(jwt_secret=SECRET)
    assert with_secret.problem() is None
    assert (await with_secret.grant(signed(claims()))).tenant_id == "acme"


async def test_rotation(fetcher: StubFetcher, decoded: list[str]) -> None:
    """A new key refuses nobody; what an old one had signed counts no more once that is gone."""
    provider = of_provider()
    old, new = token("RS256", "k-1"), token("RS256", "k-2", 2)
    await provider.grant(old)
    fetcher.answer = Answer(200, jwk_set(jwk("RS256", "k-1"), jwk("RS256", "k-2", 2)))
    await provider.grant(new)
    await provider.grant(old)
    fetcher.answer = Answer(200, jwk_set(jwk("RS256", "k-2", 2)))
    await refused(provider, token("RS256", "k-3", 3))
    assert decoded == [old, new, old]

    assert await refused(provider, old) == INVALID
    assert (await provider.grant(new)).tenant_id == "acme"


async def test_the_same_keys_again(fetcher: StubFetcher, decoded: list[str]) -> None:
    """A set that has not changed makes nobody verify anything again."""
    provider, bearer = of_provider(), token("RS256", "k-1")
    await provider.grant(bearer)
    await refused(provider, token("RS256", "k-3", 3))
    await provider.grant(bearer)

    assert fetcher.asked == 2
    assert decoded == [bearer]


async def test_known_keys_wait_for_nobody(fetcher: StubFetcher) -> None:
    """A provider that takes its time holds up those who need it, and nobody else."""
    provider = of_provider()
    await provider.grant(token("RS256", "k-1"))
    fetcher.gate.clear()
    waiting = asyncio.create_task(provider.grant(token("RS256", "k-2", 2)))
    await settle()
    assert (await provider.grant(token("RS256", "k-1", sub="ann"))).user_id == "ann"
    assert not waiting.done()
    fetcher.answer = Answer(200, jwk_set(jwk("RS256", "k-2", 2)))
    fetcher.gate.set()

    assert (await waiting).tenant_id == "acme"


@pytest.mark.parametrize(
    "bearer",
    [
        pytest.param("hello", id="no token"),
        pytest.param(token("ES256", "k-2"), id="an algorithm that is not in use"),
        pytest.param(signed(claims(), kid="k-2", alg="none"), id="alg none"),
        pytest.param(signed(claims(), kid="k-2", alg=None), id="no alg"),
        pytest.param(signed(claims(), kid="k" * 513), id="a long kid"),
        pytest.param(signed(claims(), kid=7), id="a kid that is a number"),
        pytest.param(signed(claims(note="x" * 8_000), kid="k-2"), id="a long token"),
    ],
)
async def test_what_is_wrong_anyway_asks_nobody(fetcher: StubFetcher, bearer: str) -> None:
    """A provider is asked for keys that could be, and not for nonsense."""
    assert await refused(of_provider(), bearer) == INVALID
    assert fetcher.asked == 0


def test_the_keys_of_the_tests_differ() -> None:
    """Or the refusals above would be about nothing."""
    assert len({pem("RS256", number) for number in (0, 2, 3, 5, 7)}) == 5
