"""Classes of tokens that nobody issued: forged, unsigned, of confused keys, with made-up key names."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator

from cryptography.hazmat.primitives import serialization

from tests.support.adversary import tokens
from tests.support.adversary.doors import DOORS, SEND, attempt, attempts
from tests.support.adversary.siege import Siege
from tests.support.adversary.tokens import (
    FILE_EC,
    FILE_RSA,
    FILE_SECRET,
    SET_EC,
    SET_OCT,
    SET_RSA,
    Claims,
    Flaw,
    Spoil,
    by_ec,
    by_hmac,
    by_pss,
    by_rsa,
    resigned,
)

_P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
_SIGNATURE_BYTES = {
    "secret": 32,
    "file secret": 32,
    "file EC": 64,
    "set EC": 64,
    "file RSA": 256,
    "set RSA": 256,
}


ALL_AT_ONCE = 1000
"""For an unknown key the set is fetched again, after a wait that all share who come at the same time."""


async def forged(siege: Siege) -> None:
    """Other secrets and keys, signatures cut and with flipped bits, other claims under a right signature."""
    mint = siege.mint
    secrets = {
        "another secret": siege.word().encode() * 2,
        "an empty secret": b"",
        "the word secret": b"secret",
        "the issuer": tokens.ISSUER.encode(),
        "half of the secret": mint.secret[:32].encode(),
        "the secret's bytes": bytes.fromhex(mint.secret),
        "the file's secret": mint.file_secret.encode(),
    }
    flaws = [mint.flaw(f"by {name}", by_hmac(secret)) for name, secret in secrets.items()]
    rsa, ec = by_rsa(mint.stranger_rsa), by_ec(mint.stranger_ec)
    for kid in (FILE_RSA, SET_RSA, ...):
        flaws.append(mint.flaw(f"a strange RSA key as {kid}", rsa, alg="RS256", kid=kid))
    for kid in (FILE_EC, SET_EC, ...):
        flaws.append(mint.flaw(f"a strange EC key as {kid}", ec, alg="ES256", kid=kid))
    for way, size in _SIGNATURE_BYTES.items():
        flaws += [
            mint.spoilt(name, way, spoil) for name, spoil in _changed(siege, size, every=way == "secret")
        ]
    for way in ("secret", "file EC"):
        flaws += [mint.spoilt(name, way, spoil) for name, spoil in _broken()]
    await siege.run(attempts(siege, flaws, 4))


def _changed(siege: Siege, size: int, *, every: bool) -> Iterator[tuple[str, Spoil]]:
    """Signatures with one bit flipped, and shorter ones; at every place, or at some."""
    for at in range(size) if every else siege.random.sample(range(size), 6):
        yield f"a bit of byte {at} flipped", _flipped(at, 1 << siege.random.randrange(8))
    for left in range(0, size, 2) if every else (0, 1, size // 2, size - 1):
        yield f"cut to {left} bytes", _cut(left)


def _flipped(at: int, bit: int) -> Spoil:
    return lambda token: resigned(token, lambda raw: raw[:at] + bytes((raw[at] ^ bit,)) + raw[at + 1 :])


def _cut(left: int) -> Spoil:
    return lambda token: resigned(token, lambda raw: raw[:left])


def _broken() -> Iterator[tuple[str, Spoil]]:
    """Tokens put together from other parts."""
    yield "a byte longer", lambda token: resigned(token, lambda raw: raw + b"\0")
    yield "doubled", lambda token: resigned(token, lambda raw: raw * 2)
    yield "reversed", lambda token: resigned(token, lambda raw: raw[::-1])
    yield "of zeros", lambda token: resigned(token, lambda raw: bytes(len(raw)))
    yield "two parts", lambda token: token.rpartition(".")[0]
    yield "four parts", lambda token: f"{token}.{token.rpartition('.')[2]}"
    yield "five parts", lambda token: f"{token}.e30.e30"
    yield "an empty header", lambda token: "." + token.partition(".")[2]
    yield "an empty payload", lambda token: f"{token.split('.')[0]}..{token.split('.')[2]}"
    yield "another payload", lambda token: _with_payload(token, {"scope": "listen chat admin", "sub": "root"})
    yield "a longer life", lambda token: _with_payload(token, {"exp": 4_000_000_000})
    yield "another tenant", lambda token: _with_payload(token, {"tenant_id": "another"})
    yield "another header", lambda token: ".".join((_part({"alg": "HS256"}), *token.split(".")[1:]))


def _with_payload(token: str, more: Claims) -> str:
    head, payload, signature = token.split(".")
    claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    return f"{head}.{_part({**claims, **more})}.{signature}"


def _part(content: Claims) -> str:
    return tokens.part(json.dumps(content).encode()).decode()


async def alg_none(siege: Siege) -> None:
    """No signature asked for, in all spellings, and algorithms that are not among those allowed."""
    mint = siege.mint
    names: list[object] = [
        "none", "None", "NONE", "nOnE", "NoNe", "none ", " none", "none\0", "n\u043ene",
        "\uff4e\uff4f\uff4e\uff45", "", "null", None, ..., False, 0, [], ["none"], ["HS256"], {"alg": "none"},
        "hs256", "Hs256", "HS256 ", "HS256\0", "HS1", "HS256,none", "RSA", "EdDSA", "dir", "A256KW",
    ]  # fmt: skip
    signs = {
        "unsigned": lambda _signed: b"",
        "rubbish": lambda _signed: b"rubbish",
        "signed": by_hmac(mint.secret.encode()),
    }
    flaws = [
        mint.flaw(f"alg {name!r} {what}", sign, alg=name) for name in names for what, sign in signs.items()
    ]
    head = b'{"alg":"HS256","alg":"none"}'
    flaws += [
        mint.flaw("HS384", by_hmac(mint.secret.encode(), "sha384"), alg="HS384"),
        mint.flaw("HS512", by_hmac(mint.secret.encode(), "sha512"), alg="HS512"),
        mint.flaw("PS256", by_pss(mint.rsa), alg="PS256", kid=FILE_RSA),
        mint.flaw("none in crit", signs["unsigned"], alg="none", crit=["alg"]),
        ("alg twice", lambda claims: mint.noted(tokens.assembled(head, claims, signs["unsigned"]))),
    ]
    await siege.run(attempts(siege, flaws, 6))


async def confusion(siege: Siege) -> None:
    """An HMAC with what everybody knows of the other keys as its secret, and keys of one kind for another."""
    mint = siege.mint
    flaws = [
        mint.flaw(f"HS256 by {name} as {said}", by_hmac(secret), kid=said)
        for name, kid, secret in _public(siege)
        for said in (kid, ...)
    ]
    own = by_hmac(mint.secret.encode())
    flaws += [
        mint.flaw("RS256 by the secret", own, alg="RS256"),
        mint.flaw("RS256 by the secret as a key", own, alg="RS256", kid=FILE_RSA),
        mint.flaw("ES256 by the secret", own, alg="ES256"),
        mint.flaw("ES256 by RSA", by_rsa(mint.rsa), alg="ES256", kid=FILE_RSA),
        mint.flaw("RS256 by EC", by_ec(mint.ec), alg="RS256", kid=FILE_EC),
        mint.flaw("HS256 by RSA", by_rsa(mint.rsa), alg="HS256", kid=FILE_RSA),
        mint.flaw("RS256 as the secret's file", by_rsa(mint.rsa), alg="RS256", kid=FILE_SECRET),
        mint.flaw("the set's RSA as the file's", by_rsa(mint.set_rsa), alg="RS256", kid=FILE_RSA),
        mint.flaw("the file's EC as the set's", by_ec(mint.ec), alg="ES256", kid=SET_EC),
    ]
    await siege.run(attempts(siege, flaws, 6), ALL_AT_ONCE)


def _public(siege: Siege) -> Iterator[tuple[str, str, bytes]]:
    """What everybody may know of the keys: a name, the key's, and bytes that could be taken for a secret."""
    mint = siege.mint
    for kid, key in (
        (FILE_RSA, mint.rsa),
        (FILE_EC, mint.ec),
        (SET_RSA, mint.set_rsa),
        (SET_EC, mint.set_ec),
    ):
        pem = tokens.public_pem(key)
        yield "PEM", kid, pem
        yield "PEM without its end", kid, pem.rstrip(b"\n")
        yield "PEM with CRLF", kid, pem.replace(b"\n", b"\r\n")
        yield "PEM in one line", kid, b"".join(pem.splitlines()[1:-1])
        yield "DER", kid, tokens.public_der(key)
    pkcs1 = serialization.PublicFormat.PKCS1
    for encoding in (serialization.Encoding.PEM, serialization.Encoding.DER):
        yield f"PKCS1 {encoding}", FILE_RSA, mint.rsa.public_key().public_bytes(encoding, pkcs1)
    jwk = tokens.rsa_jwk(mint.set_rsa, kid=SET_RSA)
    yield "JWK", SET_RSA, json.dumps(jwk).encode()
    yield "modulus", SET_RSA, jwk["n"].encode()


async def key_names(siege: Siege) -> None:
    """Names of keys that are paths, addresses and queries, and headers that say where a key is to be had."""
    mint, lure = siege.mint, siege.camp.lure
    strange = by_rsa(mint.stranger_rsa)
    ways = (
        ("HS256", by_hmac(b""), "an empty secret"),
        ("RS256", strange, "a strange key"),
        ("HS256", by_hmac(mint.file_secret.encode()), "the file's secret"),
    )
    flaws: list[Flaw] = []
    for number, kid in enumerate(_kids(lure.url)):
        alg, sign, what = ways[number % len(ways)]
        flaws.append(mint.flaw(f"kid {str(kid)[:40]!r}, {what}", sign, alg=alg, kid=kid))
        # The right secret does not help: a token that names a key is verified by that one.
        flaws.append(mint.flaw(f"kid {str(kid)[:40]!r}, the right secret", kid=kid))
    der = tokens.public_der(mint.stranger_rsa)
    jwk = tokens.rsa_jwk(mint.stranger_rsa)
    pointers: list[Claims] = [
        {"jku": lure.url},
        {"x5u": lure.url},
        {"url": lure.url},
        {"jku": [lure.url]},
        {"jwk": jwk},
        {"jwk": jwk, "x5t#S256": tokens.fingerprint(der)},
        {"x5c": [base64.b64encode(der).decode()]},
        {"jku": lure.url, "x5u": lure.url, "jwk": jwk},
    ]
    for pointer in pointers:
        for kid in (..., FILE_RSA, "unknown"):
            flaws.append(mint.flaw(f"{' '.join(pointer)} as {kid}", strange, alg="RS256", kid=kid, **pointer))
    before = len(lure.requests)
    await siege.run([attempt(siege, SEND, flaw, pod) for flaw in flaws for pod in siege.pods], ALL_AT_ONCE)
    await siege.run(attempts(siege, flaws, 4))
    if len(lure.requests) > before:
        siege.tally.got_in.add("the attacker's server was asked for keys")


def _kids(url: str) -> list[object]:
    return [
        "unknown", "../../../../dev/null", "..%2f..%2fdev%2fnull", "/dev/null", "/etc/passwd",
        "file:///dev/null", "keys/../file-rsa", "file-rsa.pem", "file-hmac.secret", "FILE-RSA", "file-rsa\0",
        "file-rsa\0.pem", " file-rsa", "' OR '1'='1", "x' UNION SELECT 'key';--", "$(id)", "`id`", "|id", "*",
        "?", "{}", "null", "0", ".", "..", url, "http://169.254.169.254/", "\u202efile-rsa", "\n", "k" * 512,
        "k" * 513, "k" * 5000, "", None, [], [FILE_RSA], {}, {"kid": FILE_RSA}, 0, 7, 1.5, True, False,
    ]  # fmt: skip


async def bad_ecdsa(siege: Siege) -> None:
    """ES256 with numbers that are none, or in another form."""
    flaws = [
        siege.mint.spoilt(name, way, _reshaped(shape))
        for way in ("file EC", "set EC")
        for name, shape in _SHAPES.items()
    ]
    await siege.run(attempts(siege, flaws, 8))


def _reshaped(shape: Callable[[bytes], bytes]) -> Spoil:
    return lambda token: resigned(token, shape)


_ORDER, _ZERO, _ONE = _P256_ORDER.to_bytes(32, "big"), bytes(32), bytes(31) + b"\1"
_SHAPES: dict[str, Callable[[bytes], bytes]] = {
    "zeros": lambda _raw: _ZERO + _ZERO,
    "r zero": lambda raw: _ZERO + raw[32:],
    "s zero": lambda raw: raw[:32] + _ZERO,
    "ones": lambda _raw: _ONE + _ONE,
    "r the order": lambda raw: _ORDER + raw[32:],
    "s the order": lambda raw: raw[:32] + _ORDER,
    "both the order": lambda _raw: _ORDER + _ORDER,
    "all bits": lambda _raw: b"\xff" * 64,
    "DER": lambda raw: b"\x30\x46\x02\x21\0" + raw[:32] + b"\x02\x21\0" + raw[32:],
    "swapped": lambda raw: raw[32:] + raw[:32],
    "63 bytes": lambda raw: raw[:63],
    "65 bytes": lambda raw: b"\0" + raw,
    "66 bytes": lambda raw: b"\0" + raw[:32] + b"\0" + raw[32:],
    "96 bytes": lambda raw: bytes(16) + raw[:32] + bytes(16) + raw[32:],
    "32 bytes": lambda raw: raw[:32],
    "nothing": lambda _raw: b"",
}


async def published_secret(siege: Siege) -> None:
    """Signed with a secret that stands in the published key set, where secrets have no place."""
    mint = siege.mint
    flaws = [
        mint.flaw("by its name", by_hmac(tokens.OCT), kid=SET_OCT),
        mint.flaw("without a name", by_hmac(tokens.OCT)),
        mint.flaw("by its text", by_hmac(tokens.part(tokens.OCT)), kid=SET_OCT),
        mint.flaw("by another's name", by_hmac(tokens.OCT), kid=SET_RSA),
    ]
    tries = [attempt(siege, door, flaw, pod) for door in DOORS for flaw in flaws for pod in siege.pods]
    await siege.run(tries, ALL_AT_ONCE)
