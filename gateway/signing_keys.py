"""The keys by which tokens are verified, whatever they come from: [P] pure.

A key is for the algorithms of its own kind and no others, whatever a token says: an RSA key never becomes the
secret of an HMAC (RFC 8725, 3.1). Where a token names its key (``kid``), that name is looked up among those
that are known and used for nothing else: it is no path, no address and no query.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from cryptography.x509 import load_pem_x509_certificate
from jwt import PyJWK
from jwt.exceptions import PyJWTError

from backplane.errors import ConfigurationError

ALGORITHMS = (
    "HS256", "HS384", "HS512",
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512",
    "ES256", "ES384", "ES512", "EdDSA",
)  # fmt: skip
LEAST_SECRET_BYTES = 32
_LEAST_RSA_BITS = 2048
_TRIED = 8  # keys at most, for a token that does not name its own
_HMAC = {"HS256": 32, "HS384": 48, "HS512": 64}  # least bytes (RFC 7518, 3.2)
_RSA = frozenset(("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"))
_CURVES = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}
_ENTRY = re.compile(r"(?P<kid>[^/\0]{1,200})\.(?P<kind>pem|secret)")


class Key(NamedTuple):
    """One key; its ``repr`` does not show it.

    Attributes:
        kid: its name in tokens; None: it is for those that name none.
        algorithms: it is for these.
        material: as PyJWT wants it.
    """

    kid: str | None
    algorithms: frozenset[str]
    material: Any

    def __repr__(self) -> str:
        return f"Key({self.kid!a}, {sorted(self.algorithms)})"


class KeyRing:
    """Keys, to be found by what a token says."""

    def __init__(self, keys: Iterable[Key]) -> None:
        self._keys = list(keys)
        self._by_kid: dict[str, list[Key]] = {}
        for key in self._keys:
            if key.kid is not None:
                self._by_kid.setdefault(key.kid, []).append(key)

    def __len__(self) -> int:
        return len(self._keys)

    def __iter__(self) -> Iterator[Key]:
        return iter(self._keys)

    def find(self, kid: str | None, algorithm: str) -> list[Key]:
        """The keys that may have signed a token with this header; empty if none is known."""
        if kid is not None:
            return [key for key in self._by_kid.get(kid, ()) if algorithm in key.algorithms]
        fitting = [key for key in self._keys if algorithm in key.algorithms]
        unnamed = [key for key in fitting if key.kid is None]
        return (unnamed or fitting)[:_TRIED]


def secret_key(secret: bytes, kid: str | None, where: str) -> Key:
    """An HMAC key.

    Raises:
        ConfigurationError: it is too short.
    """
    if len(secret) < LEAST_SECRET_BYTES:
        raise ConfigurationError(f"{where} must have {LEAST_SECRET_BYTES} bytes or more")
    return Key(kid, frozenset(name for name, least in _HMAC.items() if len(secret) >= least), secret)


def pem_key(pem: bytes, kid: str | None, where: str) -> Key:
    """A public key, or that of a certificate.

    Raises:
        ConfigurationError: it is none, or one of a kind that no algorithm here uses.
    """
    if b"PRIVATE KEY" in pem:
        raise ConfigurationError(f"{where} holds a private key; a pod needs the public one only")
    try:
        if b"BEGIN CERTIFICATE" in pem:
            public: Any = load_pem_x509_certificate(pem).public_key()
        else:
            public = load_pem_public_key(pem)
    except Exception as error:  # noqa: BLE001  # the library raises many kinds, and none of them says more
        raise ConfigurationError(f"{where} is no public key in PEM: {type(error).__name__}") from None
    algorithms = _algorithms_of(public)
    if not algorithms:
        raise ConfigurationError(f"{where} must be RSA (2048 bits or more), P-256, P-384, P-521 or Ed25519")
    return Key(kid, algorithms, public)


def file_key(name: str, content: bytes) -> Key | None:
    """The key in a file of ``JWT_KEYS_DIR`` (``<kid>.pem``, ``<kid>.secret``); None if it is named otherwise.

    Raises:
        ConfigurationError: it holds no usable key.
    """
    match = _ENTRY.fullmatch(name)
    if match is None or name.startswith("."):
        return None
    where = f"JWT_KEYS_DIR: {name}"
    if match["kind"] == "pem":
        return pem_key(content, match["kid"], where)
    return secret_key(content.rstrip(b"\r\n"), match["kid"], where)


def jwks_keys(document: Any) -> list[Key]:
    """The keys of a JSON Web Key Set (RFC 7517); those that are not for signatures or not known are left out.

    Raises:
        ValueError: it is no key set, or has no usable key.
    """
    entries = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(entries, list):
        raise ValueError("it is no JSON Web Key Set")
    keys = [key for entry in entries if isinstance(entry, dict) and (key := _jwk(entry)) is not None]
    if not keys:
        raise ValueError("it has no key that can be used")
    return keys


def _jwk(entry: dict[str, Any]) -> Key | None:
    # A secret has no place in a set that is published, so "oct" keys are not taken (RFC 8725, 3.1).
    if entry.get("kty") not in ("RSA", "EC", "OKP") or entry.get("use", "sig") != "sig" or "d" in entry:
        return None
    kid, algorithm = entry.get("kid"), entry.get("alg")
    try:
        public = PyJWK(entry).key
    except (PyJWTError, ValueError, TypeError, KeyError):
        return None
    algorithms = _algorithms_of(public)
    if algorithm is not None:
        algorithms = frozenset(one for one in algorithms if one == algorithm)
    return Key(kid if isinstance(kid, str) else None, algorithms, public) if algorithms else None


def _algorithms_of(public: Any) -> frozenset[str]:
    if isinstance(public, rsa.RSAPublicKey):
        return _RSA if public.key_size >= _LEAST_RSA_BITS else frozenset()
    if isinstance(public, ec.EllipticCurvePublicKey):
        return frozenset(_CURVES[name] for name in (public.curve.name,) if name in _CURVES)
    if isinstance(public, ed25519.Ed25519PublicKey | ed448.Ed448PublicKey):
        return frozenset(("EdDSA",))
    return frozenset()
