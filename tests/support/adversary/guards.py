"""Each guard of a pod, and how to take it out of a process: for `tests.support.sabotage`."""

from __future__ import annotations

import hmac
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from hashlib import sha1
from typing import Any

import jwt
import msgspec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.support.adversary import event_guards

_NO_SIGNATURE = {"verify_signature": False, "verify_exp": True, "verify_nbf": True, "verify_iat": True}
_decode = jwt.decode


def _everywhere(name: str, instead: Any) -> None:
    """Put something in a function's place, in every module that has imported it."""
    import gateway.server  # noqa: F401  # and with it all of a pod

    for module in [module for known, module in sys.modules.items() if known.startswith("gateway.")]:
        if name in vars(module):
            vars(module)[name] = instead


def _change_decode(**changed: Any) -> None:
    def decode(token: str, key: Any, **given: Any) -> Any:
        options = {**given["options"], **changed.get("options", {})}
        return _decode(token, key, **{**given, **changed, "options": options})

    vars(jwt)["decode"] = decode


def no_signature() -> None:
    """Any signature will do."""
    _change_decode(options={**_NO_SIGNATURE, "verify_iss": True})


class _All(frozenset[str]):
    """Has everything."""

    def __contains__(self, name: object) -> bool:
        return True


def no_algorithms() -> None:
    """A token says itself how it is signed, and may say that it is not."""
    from gateway import auth
    from gateway.signing_keys import KeyRing

    allowed: Callable[[Any], frozenset[str]] = auth._algorithms

    def decode(token: str, key: Any, **given: Any) -> Any:
        named = str(jwt.get_unverified_header(token)["alg"])
        options = {**given["options"], **(_NO_SIGNATURE if named.lower() == "none" else {})}
        return _decode(token, key, **{**given, "options": options})

    vars(auth)["_algorithms"] = lambda settings: _All(allowed(settings))
    KeyRing.find = lambda self, kid, algorithm: list(self)  # type: ignore[method-assign]
    vars(jwt)["decode"] = decode


def no_key_family() -> None:
    """A key is bytes, and good for whatever algorithm a token names."""
    from gateway.signing_keys import KeyRing

    def find(self: KeyRing, kid: str | None, algorithm: str) -> list[Any]:
        return [key for key in self if kid is None or key.kid == kid]

    def decode(token: str, key: Any, **given: Any) -> Any:
        if jwt.get_unverified_header(token)["alg"] != "HS256" or isinstance(key, bytes):
            return _decode(token, key, **given)
        signed, _, signature = token.rpartition(".")
        pem = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        right = hmac.new(pem, signed.encode(), "sha256").digest()
        if jwt.utils.base64url_decode(signature) != right:
            raise jwt.InvalidSignatureError
        return _decode(token, key, **{**given, "options": {**given["options"], **_NO_SIGNATURE}})

    KeyRing.find = find  # type: ignore[method-assign]
    vars(jwt)["decode"] = decode


def no_expiry() -> None:
    """Tokens are good for ever."""
    from gateway.auth import Authenticator
    from gateway.identity import Grant

    check = Authenticator.check

    def check_the_rest(self: Authenticator, grant: Grant) -> None:
        check(self, msgspec.structs.replace(grant, expires_at=None))

    Authenticator.check = check_the_rest  # type: ignore[method-assign]
    _change_decode(options={"verify_exp": False})


def no_audience() -> None:
    """Tokens for anybody are good."""
    _change_decode(audience=None, options={"verify_aud": False})


def no_issuer() -> None:
    """Tokens from anybody are good, if the signature is."""
    _change_decode(issuer=None)


def no_tenant_claim() -> None:
    """What a request says of itself stands, whatever its token says."""
    from gateway import identity

    def agreed(granted: str | None, stated: str | None, _name: str) -> str | None:
        return stated or granted

    vars(identity)["_agreed"] = agreed


def no_session_claim() -> None:
    """A token is good for all sessions of its tenant."""
    _everywhere("allows", lambda _patterns, _value: True)


def no_session_owner() -> None:
    """A session belongs to nobody."""
    from backplane import scripts, session_log
    from backplane.keys import ANY_USER

    guard = "if owner and owner ~= '' and owner ~= user and user ~= '*' then return nil end"
    script = scripts.RESUME
    assert guard in script.text
    text = script.text.replace(guard, "")
    digest = sha1(text.encode(), usedforsecurity=False).hexdigest()
    vars(session_log)["RESUME"] = replace(script, text=text, sha1=digest)
    history = session_log.SessionLog.history

    async def of_anybody(self: Any, session: str, cursor: Any, _user: str) -> Any:
        return await history(self, session, cursor, ANY_USER)

    session_log.SessionLog.history = of_anybody  # type: ignore[assignment, method-assign]


def no_scopes() -> None:
    """A token is good for everything."""
    _everywhere("check_scope", lambda _grant, _scope: None)


def no_renewal() -> None:
    """An open socket takes any good token in place of its own."""
    _everywhere("renewed", lambda identity, grant: msgspec.structs.replace(identity, grant=grant))


def no_revocation() -> None:
    """Nothing is ever revoked."""
    from backplane.revocations import Revocations

    Revocations.hits = lambda self, *_token: False  # type: ignore[method-assign]


def no_ids() -> None:
    """Any text is an id."""
    from backplane import keys

    keys.ID = keys.USER_ID = re.compile(r"[\s\S]*")


def no_origin() -> None:
    """Every page may open sockets."""
    from gateway.websocket_endpoint import WebSocketEndpoint

    WebSocketEndpoint._check_origin = lambda self, request: None  # type: ignore[method-assign]


def no_given_twice() -> None:
    """Of headers, parameters and tokens that are given twice, the first one counts."""
    from gateway import handshake

    def found(request: Any) -> str | None:
        offered: Iterable[str] = request.subprotocols
        shown = [request.headers.get("authorization", "").removeprefix("Bearer ").partition(",")[0]]
        shown += [one.removeprefix("bearer.") for one in offered if one.startswith("bearer.")]
        return next(filter(None, [*shown, request.query.get("token")]), None)

    vars(handshake)["_ONLY_ONCE"] = frozenset()
    _everywhere("header", lambda request, name: request.headers.get(name))
    _everywhere("query", lambda request: dict(reversed(request.query_params.multi_items())))
    _everywhere("_token", found)


def no_admin_tenant() -> None:
    """An administrator governs the tenant that it names."""
    _everywhere("check_tenant", lambda grant, tenant_id: tenant_id or grant.tenant_id)


def no_proxy_trust() -> None:
    """Whatever a request says of its address is believed, whoever sends it."""
    from gateway.addresses import Proxies

    def client(self: Proxies, peer: str | None, forwarded: str | None) -> str | None:
        return forwarded.partition(",")[0].strip() if forwarded else None

    Proxies.client = client  # type: ignore[method-assign]


GUARDS: dict[str, Callable[[], None]] = {
    "signature": no_signature,
    "algorithms": no_algorithms,
    "key_family": no_key_family,
    "expiry": no_expiry,
    "audience": no_audience,
    "issuer": no_issuer,
    "tenant_claim": no_tenant_claim,
    "session_claim": no_session_claim,
    "session_owner": no_session_owner,
    "scopes": no_scopes,
    "renewal": no_renewal,
    "revocation": no_revocation,
    "ids": no_ids,
    "origin": no_origin,
    "given_twice": no_given_twice,
    "admin_tenant": no_admin_tenant,
    "proxy_trust": no_proxy_trust,
    **event_guards.GUARDS,
}
"""By the name that `tests.support.sabotage` knows."""
