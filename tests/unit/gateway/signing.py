"""Tokens of every kind, also those that no library makes, and keys to sign them with."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

import jwt
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa, x25519
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

SECRET = "a-secret-of-at-least-thirty-two-bytes"
OTHER = "another-secret-of-at-least-thirty-two"

Private = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey
CURVES: dict[str, ec.EllipticCurve] = {
    "ES256": ec.SECP256R1(),
    "ES384": ec.SECP384R1(),
    "ES512": ec.SECP521R1(),
    "ES256K": ec.SECP256K1(),
}


@cache
def private_key(algorithm: str, number: int) -> Private:
    """A key that fits an algorithm; another one for each number."""
    if algorithm in CURVES:
        return ec.generate_private_key(CURVES[algorithm])
    if algorithm == "EdDSA":
        return ed25519.Ed25519PrivateKey.generate()
    if algorithm == "Ed448":
        return ed448.Ed448PrivateKey.generate()
    return rsa.generate_private_key(65_537, 1_024 if algorithm == "RSA1024" else 2_048)


def pem(algorithm: str, number: int = 0) -> bytes:
    """The public half, as it is put into a file."""
    return _public(private_key(algorithm, number).public_key())


def private_pem(algorithm: str, number: int = 0) -> bytes:
    """The private half, which has no place on a pod."""
    return private_key(algorithm, number).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


@cache
def unusable_pem(kind: str) -> bytes:
    """A public key that signs no tokens."""
    if kind == "DSA":
        return _public(dsa.generate_private_key(2_048).public_key())
    return _public(x25519.X25519PrivateKey.generate().public_key())


def _public(key: PublicKeyTypes) -> bytes:
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def certificate(algorithm: str = "RS256", number: int = 0) -> bytes:
    """The public half in a certificate that the private one has signed."""
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "issuer.test")])
    key = private_key(algorithm, number)
    assert isinstance(key, rsa.RSAPrivateKey)
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(now).not_valid_after(now + timedelta(days=1))
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)


def jwk(algorithm: str, kid: str | None = None, number: int = 0, **more: Any) -> dict[str, Any]:
    """The public half as an entry of a key set."""
    public = private_key(algorithm, number).public_key()
    entry: dict[str, Any]
    if isinstance(public, rsa.RSAPublicKey):
        entry = RSAAlgorithm.to_jwk(public, as_dict=True)
    elif isinstance(public, ec.EllipticCurvePublicKey):
        entry = ECAlgorithm.to_jwk(public, as_dict=True)
    else:
        entry = OKPAlgorithm.to_jwk(public, as_dict=True)
    entry.pop("key_ops", None)
    return {**entry, **({} if kid is None else {"kid": kid}), **more}


def jwk_set(*entries: Any) -> dict[str, Any]:
    """What a provider publishes."""
    return {"keys": list(entries)}


def claims(**more: Any) -> dict[str, Any]:
    """A token's claims; those given as None are left out."""
    usual = {"tenant_id": "acme", "tenant_tier": "free", "session_id": "s-1", "exp": time.time() + 3_600}
    return {name: value for name, value in {**usual, **more}.items() if value is not None}


def part(raw: bytes) -> bytes:
    """One part of a token."""
    return base64.urlsafe_b64encode(raw).rstrip(b"=")


def signed(payload: Any, secret: str | bytes = SECRET, **header: Any) -> str:
    """A token of any claims at all: libraries refuse to make the bad ones."""
    key = secret.encode() if isinstance(secret, str) else secret
    head = part(json.dumps({"alg": "HS256", "typ": "JWT", **header}).encode())
    body = head + b"." + part(payload if isinstance(payload, bytes) else json.dumps(payload).encode())
    return (body + b"." + part(hmac.new(key, body, hashlib.sha256).digest())).decode()


def token(algorithm: str, kid: str | None = None, number: int = 0, **said: Any) -> str:
    """A token that a private key has signed; the algorithm may be one that a key of another name has."""
    head = {} if kid is None else {"kid": kid}
    key = private_key("RS256" if algorithm[0] in "RP" else algorithm, number)
    return jwt.encode(claims(**said), key, algorithm=algorithm, headers=head)
