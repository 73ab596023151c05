"""Keys: of which kind they are, what they may verify, and which of them a token is tried with."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import given
from hypothesis import strategies as st

from backplane.errors import ConfigurationError
from gateway.signing_keys import ALGORITHMS, Key, KeyRing, file_key, jwks_keys, pem_key, secret_key
from tests.unit.gateway.signing import (
    SECRET,
    certificate,
    jwk,
    jwk_set,
    part,
    pem,
    private_key,
    private_pem,
    unusable_pem,
)

RSA = frozenset({"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"})
HMAC = frozenset({"HS256", "HS384", "HS512"})


# Of which kind a key is.


@pytest.mark.parametrize(
    ("length", "algorithms"),
    [
        (32, {"HS256"}),
        (47, {"HS256"}),
        (48, {"HS256", "HS384"}),
        (63, {"HS256", "HS384"}),
        (64, HMAC),
        (500, HMAC),
    ],
)
def test_secrets(length: int, algorithms: set[str]) -> None:
    """A secret is as long as the digest of its algorithm at least (RFC 7518, 3.2)."""
    assert secret_key(b"x" * length, "k", "here") == Key("k", frozenset(algorithms), b"x" * length)


@pytest.mark.parametrize("length", [0, 1, 31])
def test_short_secrets(length: int) -> None:
    """One that can be guessed is refused, and its place is named; it is not."""
    with pytest.raises(ConfigurationError, match="here must have 32 bytes") as caught:
        secret_key(b"q" * length, "k", "here")
    assert "qqq" not in str(caught.value)


@pytest.mark.parametrize(
    ("algorithm", "algorithms"),
    [
        ("RS256", RSA),
        ("ES256", frozenset({"ES256"})),
        ("ES384", frozenset({"ES384"})),
        ("ES512", frozenset({"ES512"})),
        ("EdDSA", frozenset({"EdDSA"})),
    ],
)
def test_public_keys(algorithm: str, algorithms: frozenset[str]) -> None:
    """A public key is for the algorithms of its own kind and curve, and never for an HMAC."""
    key = pem_key(pem(algorithm), "k", "here")
    assert (key.kid, key.algorithms) == ("k", algorithms)
    assert not key.algorithms & HMAC
    [same] = jwks_keys(jwk_set(jwk(algorithm, "k")))

    assert same == key


def test_certificates() -> None:
    """The key is that of the certificate."""
    key = pem_key(certificate("RS256", 7), "k", "here")

    assert key.algorithms == RSA
    assert isinstance(key.material, rsa.RSAPublicKey)
    assert key.material == private_key("RS256", 7).public_key()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (private_pem("RS256"), "private key"),
        (private_pem("ES256"), "private key"),
        (b"-----BEGIN RSA PRIVATE KEY-----\n", "private key"),
        (pem("RS256") + private_pem("RS256"), "private key"),
        (pem("RSA1024"), "2048 bits"),
        (pem("ES256K"), "P-256"),
        (unusable_pem("X25519"), "Ed25519"),
        (unusable_pem("DSA"), "must be RSA"),
        (b"", "no public key"),
        (b"hello", "no public key"),
        (b"-----BEGIN PUBLIC KEY-----\nhello\n-----END PUBLIC KEY-----\n", "no public key"),
        (b"-----BEGIN CERTIFICATE-----\nhello\n-----END CERTIFICATE-----\n", "no public key"),
        (pem("RS256")[:100], "no public key"),
        (b"\xff" * 100, "no public key"),
    ],
)
def test_what_is_no_public_key(content: bytes, says: str) -> None:
    """It is refused with its place, and nothing of it is shown."""
    with pytest.raises(ConfigurationError, match=says) as caught:
        pem_key(content, "k", "here")
    assert str(caught.value).startswith("here ")
    assert "hello" not in str(caught.value)


@given(st.binary(max_size=80))
def test_any_bytes_are_a_key_or_refused(content: bytes) -> None:
    """Nothing else is raised, whatever the library makes of a file."""
    for prefix in (b"", b"-----BEGIN CERTIFICATE-----\n", b"-----BEGIN PUBLIC KEY-----\n"):
        with suppress(ConfigurationError):
            pem_key(prefix + content, "k", "here")


# Files.


@pytest.mark.parametrize(
    ("name", "kid"),
    [
        ("k.pem", "k"),
        ("2026-01.pem", "2026-01"),
        ("a.b.pem", "a.b"),
        ("ü.pem", "ü"),
        ("k" * 200 + ".pem", "k" * 200),
    ],
)
def test_names_of_files(name: str, kid: str) -> None:
    """What stands before the ending is the name by which tokens call it."""
    key = file_key(name, pem("RS256"))

    assert key is not None
    assert key.kid == kid


@pytest.mark.parametrize(
    "name",
    [
        ".pem",
        ".k.pem",
        "..data",
        "..2026.pem",
        "k",
        "k.PEM",
        "k.pem.bak",
        "k.pub",
        "k.pem~",
        "k" * 201 + ".pem",
    ],
)
def test_other_files(name: str) -> None:
    """What has another ending, or is hidden, is none of ours: it may be half written."""
    assert file_key(name, b"hello") is None


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n", b"\n\n"])
def test_secrets_in_files(end: bytes) -> None:
    """The line end that editors write is no part of a secret; a space is."""
    assert file_key("k.secret", b"x" * 32 + end) == secret_key(b"x" * 32, "k", "")
    assert file_key("k.secret", b" " + b"x" * 32 + b" " + end) == secret_key(b" %b " % (b"x" * 32), "k", "")


def test_bad_files_are_named() -> None:
    """An operator with twenty keys is told which one it is."""
    for name in ("k-17.pem", "k-17.secret"):
        with pytest.raises(ConfigurationError, match=f"JWT_KEYS_DIR: {name}"):
            file_key(name, b"hello\n")


# Key sets.


def test_a_key_set() -> None:
    """All that can verify a signature are taken, in their order, also without a name."""
    keys = jwks_keys(
        jwk_set(
            jwk("RS256", "a", use="sig"), jwk("ES256", "b", alg="ES256"), jwk("EdDSA"), jwk("RS256", "a", 7)
        )
    )

    assert [(key.kid, key.algorithms) for key in keys] == [
        ("a", RSA),
        ("b", frozenset({"ES256"})),
        (None, frozenset({"EdDSA"})),
        ("a", RSA),
    ]


@pytest.mark.parametrize("algorithm", sorted(RSA))
def test_a_key_for_one_algorithm(algorithm: str) -> None:
    """A provider that says for what its key is, is believed."""
    [key] = jwks_keys(jwk_set(jwk("RS256", "a", alg=algorithm)))

    assert key.algorithms == {algorithm}


UNUSABLE = [
    pytest.param(jwk("RS256", "k", use="enc"), id="for encryption"),
    pytest.param(jwk("RS256", "k", use=None), id="for nothing"),
    pytest.param(jwk("RS256", "k", d="AQAB"), id="private"),
    pytest.param(jwk("ES256", "k", d="AQAB"), id="private EC"),
    pytest.param(jwk("EdDSA", "k", d=part(b"x" * 32).decode()), id="private Ed25519"),
    pytest.param({"kty": "oct", "kid": "k", "k": part(b"x" * 64).decode()}, id="a secret"),
    pytest.param(
        {"kty": "oct", "kid": "k", "k": part(b"x" * 64).decode(), "alg": "HS256"}, id="a named secret"
    ),
    pytest.param(jwk("RS256", "k", kty="oct", k="AAAA"), id="a public key as a secret"),
    pytest.param(jwk("RSA1024", "k"), id="short"),
    pytest.param(jwk("ES256K", "k"), id="another curve"),
    pytest.param(jwk("RS256", "k", alg="HS256"), id="RSA for HMAC"),
    pytest.param(jwk("RS256", "k", alg="ES256"), id="RSA for EC"),
    pytest.param(jwk("ES256", "k", alg="ES384"), id="a curve for another"),
    pytest.param(jwk("RS256", "k", alg="RSA-OAEP"), id="an algorithm of encryption"),
    pytest.param(jwk("RS256", "k", alg=["RS256"]), id="alg a list"),
    pytest.param(jwk("RS256", "k", alg=[]), id="alg an empty list"),
    pytest.param(jwk("RS256", "k", alg={}), id="alg an empty object"),
    pytest.param(jwk("RS256", "k", alg=""), id="alg empty"),
    pytest.param(jwk("RS256", "k", kty=["RSA"]), id="kty a list"),
    pytest.param(jwk("RS256", "k", n=5), id="n a number"),
    pytest.param(jwk("RS256", "k", n=None), id="n null"),
    pytest.param(jwk("RS256", "k", n="ü"), id="n no base64"),
    pytest.param(jwk("RS256", "k", e=""), id="e empty"),
    pytest.param(jwk("ES256", "k", x="AAAA"), id="a short point"),
    pytest.param(jwk("ES256", "k", y=jwk("ES256")["x"]), id="a point off the curve"),
    pytest.param(jwk("ES256", "k", crv="P-384"), id="of another curve"),
    pytest.param(jwk("ES256", "k", crv={}), id="of no curve"),
    pytest.param(jwk("EdDSA", "k", x="AAAA"), id="a short Ed25519"),
    pytest.param(jwk("EdDSA", "k", crv="X25519"), id="X25519"),
    pytest.param({"kty": "RSA"}, id="no numbers"),
    pytest.param({}, id="empty"),
    pytest.param("RSA", id="a text"),
    pytest.param(None, id="null"),
    pytest.param([], id="a list"),
]


@pytest.mark.parametrize("entry", UNUSABLE)
def test_entries_that_are_left_out(entry: Any) -> None:
    """One key that cannot be used takes no other with it, and is never used for something else."""
    keys = jwks_keys(jwk_set(entry, jwk("ES384", "good"), entry))
    assert [key.kid for key in keys] == ["good"]
    with pytest.raises(ValueError, match="no key that can be used"):
        jwks_keys(jwk_set(entry))


@pytest.mark.parametrize(
    "document",
    [
        None,
        {},
        [],
        "keys",
        5,
        {"keys": None},
        {"keys": {}},
        {"keys": "k"},
        {"keys": []},
        {"Keys": [jwk("RS256")]},
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_is_no_key_set(document: Any) -> None:
    """An answer without keys is a failure, not an order to forget them all."""
    with pytest.raises(ValueError, match=r"no JSON Web Key Set|no key that can be used"):
        jwks_keys(document)


@pytest.mark.parametrize("kid", [5, None, ["k"], {}])
def test_names_that_are_none(kid: Any) -> None:
    """Such a key is there for tokens that name none."""
    [key] = jwks_keys(jwk_set({**jwk("RS256"), "kid": kid}))

    assert key.kid is None


JSON: st.SearchStrategy[Any] = st.sampled_from([None, True, 0, -1, 2**70, 0.5, "", "AQAB", "ü", [], {}])


@given(
    st.sampled_from(["RS256", "ES256", "EdDSA"]),
    st.dictionaries(
        st.sampled_from(["kty", "kid", "use", "n", "e", "crv", "x", "y", "key_ops"]), JSON, max_size=3
    ),
)
def test_any_key_set_is_read_or_refused(algorithm: str, changed: dict[str, Any]) -> None:
    """Nothing that a provider can publish raises anything but that it is no key set."""
    with suppress(ValueError):
        for key in jwks_keys(jwk_set(jwk(algorithm, **changed))):
            assert not key.algorithms & HMAC
            assert key.algorithms


# Which key a token is tried with.


def key(kid: str | None, *algorithms: str) -> Key:
    return Key(kid, frozenset(algorithms), object())


def test_a_named_key_is_that_key() -> None:
    """A name is looked up and used for nothing else; without a hit there is nothing to try."""
    named, other, unnamed = key("a", "RS256"), key("b", "RS256"), key(None, "RS256")
    ring = KeyRing([named, other, unnamed])

    assert ring.find("a", "RS256") == [named]
    assert ring.find("a", "ES256") == []
    assert ring.find("c", "RS256") == []
    assert ring.find("A", "RS256") == []
    assert ring.find("", "RS256") == []


def test_two_keys_of_one_name() -> None:
    """Of different kinds or of two sources: those that fit are tried."""
    one, two, three = key("a", "RS256"), key("a", "ES256"), key("a", "RS256", "RS384")
    ring = KeyRing([one, two, three])

    assert ring.find("a", "RS256") == [one, three]
    assert ring.find("a", "ES256") == [two]


def test_without_a_name() -> None:
    """Keys without names are for tokens without names; if there are none, every key that fits is tried."""
    named, unnamed, other = key("a", "HS256", "RS256"), key(None, "HS256"), key("b", "RS256")
    ring = KeyRing([named, unnamed, other])

    assert ring.find(None, "HS256") == [unnamed]
    assert ring.find(None, "RS256") == [named, other]
    assert ring.find(None, "ES256") == []


def test_not_every_key_is_tried() -> None:
    """A token that names no key costs a few signatures, not a hundred."""
    assert len(KeyRing([key(f"k-{n}", "RS256") for n in range(100)]).find(None, "RS256")) == 8


def test_a_ring_is_its_keys() -> None:
    """However many, in their order."""
    keys = [key("a", "RS256"), key(None, "ES256")]

    assert (list(KeyRing(keys)), len(KeyRing(keys)), len(KeyRing(()))) == (keys, 2, 0)


def test_keys_are_not_shown() -> None:
    """A key in a traceback or a log line is its name, not the key."""
    for one in (secret_key(SECRET.encode(), "k-1", ""), pem_key(pem("RS256"), None, "")):
        assert repr(one) == f"Key({one.kid!a}, {sorted(one.algorithms)})"
    assert SECRET not in f"{[secret_key(SECRET.encode(), None, '')]}"


def test_every_algorithm_has_a_kind() -> None:
    """What may be set is what some key can verify."""
    found = set().union(
        *(pem_key(pem(kind), None, "").algorithms for kind in ("RS256", "ES256", "ES384", "ES512"))
    )

    assert found | HMAC | {"EdDSA"} == set(ALGORITHMS)
