"""Tokens, right and wrong: the keys of a deployment, and whatever somebody without them can make."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import random
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

AUDIENCE, ISSUER = "gateway", "https://issuer.example"
FILE_RSA, FILE_EC, FILE_SECRET = "file-rsa", "file-ec", "file-hmac"
SET_RSA, SET_EC, SET_OCT = "set-rsa", "set-ec", "set-oct"
OCT = b"a key that everybody can read in the published set"
_P256_BYTES = 32
_SHOWN = 12  # characters of a signature that are enough to know it by
_RUN = re.compile(rf"[A-Za-z0-9_-]{{{_SHOWN},}}")

Claims = dict[str, Any]
Sign = Callable[[bytes], bytes]
Spoil = Callable[[str], str]
Flaw = tuple[str, Callable[[Claims], str]]
"""A name, and how to make a token of claims that are right, so that only the flaw stands in the way."""


def part(raw: bytes) -> bytes:
    """One part of a token."""
    return base64.urlsafe_b64encode(raw).rstrip(b"=")


def assembled(header: Any, payload: Any, sign: Sign) -> str:
    """A token of anything at all: libraries refuse to make the bad ones."""
    head = header if isinstance(header, bytes) else json.dumps(header).encode()
    body = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    signed = part(head) + b"." + part(body)
    return (signed + b"." + part(sign(signed))).decode()


def resigned(token: str, change: Callable[[bytes], bytes]) -> str:
    """A token with its signature's bytes changed."""
    signed, _, signature = token.rpartition(".")
    raw = base64.urlsafe_b64decode(signature + "=" * (-len(signature) % 4))
    return f"{signed}.{part(change(raw)).decode()}"


def by_hmac(key: bytes, digest: str = "sha256") -> Sign:
    """HS256 and its relatives."""
    return lambda signed: hmac.new(key, signed, digest).digest()


def by_rsa(key: rsa.RSAPrivateKey) -> Sign:
    """RS256."""
    return lambda signed: key.sign(signed, padding.PKCS1v15(), hashes.SHA256())


def by_pss(key: rsa.RSAPrivateKey) -> Sign:
    """PS256."""
    return lambda signed: key.sign(signed, padding.PSS(padding.MGF1(hashes.SHA256()), 32), hashes.SHA256())


def by_ec(key: ec.EllipticCurvePrivateKey) -> Sign:
    """ES256."""

    def sign(signed: bytes) -> bytes:
        r, s = decode_dss_signature(key.sign(signed, ec.ECDSA(hashes.SHA256())))
        return r.to_bytes(_P256_BYTES, "big") + s.to_bytes(_P256_BYTES, "big")

    return sign


def public_pem(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> bytes:
    """A public key as it is published."""
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_key().public_bytes(serialization.Encoding.PEM, form)


def public_der(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> bytes:
    """The same in bytes."""
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_key().public_bytes(serialization.Encoding.DER, form)


def rsa_jwk(key: rsa.RSAPrivateKey, **more: str) -> dict[str, str]:
    """An RSA key as a key set has it."""
    numbers = key.public_key().public_numbers()
    return {
        "kty": "RSA",
        "n": part(numbers.n.to_bytes(256, "big")).decode(),
        "e": part(numbers.e.to_bytes(3, "big")).decode(),
        **more,
    }


def ec_jwk(key: ec.EllipticCurvePrivateKey, **more: str) -> dict[str, str]:
    """A P-256 key as a key set has it."""
    numbers = key.public_key().public_numbers()
    return {
        "kty": "EC",
        "crv": "P-256",
        "x": part(numbers.x.to_bytes(_P256_BYTES, "big")).decode(),
        "y": part(numbers.y.to_bytes(_P256_BYTES, "big")).decode(),
        **more,
    }


class Mint:
    """The keys of a deployment.

    Args:
        seed: the same secret again; RSA and EC keys are new each time, and nothing depends on which.

    Attributes:
        signatures: beginnings and ends of those of all tokens that were made here, right or wrong.
    """

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self.secret = self._random.randbytes(32).hex()
        self.file_secret = self._random.randbytes(32).hex()
        self.rsa = rsa.generate_private_key(65537, 2048)
        self.ec = ec.generate_private_key(ec.SECP256R1())
        self.set_rsa = rsa.generate_private_key(65537, 2048)
        self.set_ec = ec.generate_private_key(ec.SECP256R1())
        self.stranger_rsa = rsa.generate_private_key(65537, 2048)
        self.stranger_ec = ec.generate_private_key(ec.SECP256R1())
        self.signatures: set[str] = set()

    def write_keys(self, folder: Path) -> None:
        """Fill a ``JWT_KEYS_DIR``."""
        folder.mkdir()
        (folder / f"{FILE_RSA}.pem").write_bytes(public_pem(self.rsa))
        (folder / f"{FILE_EC}.pem").write_bytes(public_pem(self.ec))
        (folder / f"{FILE_SECRET}.secret").write_text(self.file_secret)

    def key_set(self) -> dict[str, Any]:
        """What the identity provider publishes; the ``oct`` key has no place in it."""
        oct_key = {"kty": "oct", "kid": SET_OCT, "alg": "HS256", "k": part(OCT).decode()}
        return {
            "keys": [
                rsa_jwk(self.set_rsa, kid=SET_RSA),
                ec_jwk(self.set_ec, kid=SET_EC, alg="ES256", use="sig"),
                oct_key,
                {"kty": "oct", "k": part(OCT).decode()},
            ]
        }

    def stranger_set(self) -> dict[str, Any]:
        """What the attacker publishes."""
        return {"keys": [rsa_jwk(self.stranger_rsa, kid=FILE_RSA), ec_jwk(self.stranger_ec, kid=FILE_EC)]}

    def claims(self, **more: Any) -> Claims:
        """Good claims, but for those that are given; a value of `...` leaves one out."""
        now = int(time.time())
        usual = {"aud": AUDIENCE, "iss": ISSUER, "iat": now - 5, "exp": now + 600, "jti": self.id()}
        return {name: value for name, value in {**usual, **more}.items() if value is not ...}

    def id(self) -> str:
        """A token's id, of its own."""
        return str(UUID(bytes=self._random.randbytes(16), version=4))

    def token(self, claims: Any, sign: Sign | None = None, **header: Any) -> str:
        """A token, by default a right one signed with the secret; a header of `...` is left out."""
        given = {"alg": "HS256", "typ": "JWT", **header}
        head = {name: value for name, value in given.items() if value is not ...}
        return self.noted(assembled(head, claims, sign or by_hmac(self.secret.encode())))

    def flaw(self, name: str, sign: Sign | None = None, **header: Any) -> Flaw:
        """A token that is wrong by its signature or header."""
        return name, lambda claims: self.token(claims, sign, **header)

    def spoilt(self, name: str, way: str, spoil: Spoil) -> Flaw:
        """A token that was right, of one of the right `ways`, until something was done to it."""
        right = self.ways[way]
        return f"{name}, {way}", lambda claims: self.noted(spoil(right(claims)))

    def wrong(self, name: str, **claims: Any) -> Flaw:
        """A token with a right signature and wrong claims."""
        return name, lambda right: self.token(
            {name: value for name, value in {**right, **claims}.items() if value is not ...}
        )

    def noted(self, token: str) -> str:
        """Remember a token's signature."""
        _, _, signature = f"{token}..".split(".")[:3]
        if len(signature) >= _SHOWN:
            self.signatures.update((signature[:_SHOWN], signature[-_SHOWN:]))
        return token

    def found_in(self, text: str) -> list[str]:
        """What of any token's signature stands in a text: its beginning or its end."""
        windows = (run[at : at + _SHOWN] for run in _RUN.findall(text) for at in range(len(run) - _SHOWN + 1))
        return [window for window in windows if window in self.signatures]

    @property
    def ways(self) -> dict[str, Callable[[Claims], str]]:
        """Every right way to sign, by name."""
        file_secret = by_hmac(self.file_secret.encode())
        flaws = (
            self.flaw("secret"),
            self.flaw("file RSA", by_rsa(self.rsa), alg="RS256", kid=FILE_RSA),
            self.flaw("file EC", by_ec(self.ec), alg="ES256", kid=FILE_EC),
            self.flaw("file secret", file_secret, kid=FILE_SECRET),
            self.flaw("set RSA", by_rsa(self.set_rsa), alg="RS256", kid=SET_RSA),
            self.flaw("set EC", by_ec(self.set_ec), alg="ES256", kid=SET_EC),
        )
        return dict(flaws)


def fingerprint(key: bytes) -> str:
    """A key's thumbprint, as some headers carry it."""
    return part(hashlib.sha256(key).digest()).decode()
