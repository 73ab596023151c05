"""From a token to what it grants: its signature, its times, its claims, and whether it was revoked.

The algorithms are those of the settings, the key is for algorithms of its own kind, and nothing in a token's
header (``kid``, ``jku``, ``x5u``, ``jwk``) is ever used to find a key elsewhere (RFC 8725).
"""

from __future__ import annotations

import time
from base64 import urlsafe_b64decode
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from hashlib import blake2b
from pathlib import Path
from typing import Any

import jwt
import msgspec
from jwt.exceptions import PyJWTError

from backplane.errors import ConfigurationError
from backplane.log import Logger, get_logger
from backplane.settings import Settings
from gateway.claims import claim_names, read_claims
from gateway.errors import ClientError
from gateway.fetch import Fetcher
from gateway.identity import ANYONE, Grant, Identity, Stated, settle
from gateway.jwks import Jwks
from gateway.key_files import KeyFiles
from gateway.signing_keys import ALGORITHMS, Key, KeyRing, secret_key

_MOST_VERIFIED = 10_000
_MOST_TOKEN_CHARS = 8_192
_MOST_KID_CHARS = 512
_FETCH_S = 2.5  # with the wait before it, within the time that a handshake has
_LOOPBACK = ("localhost", "127.0.0.1", "::1")

Revoked = Callable[[Grant], bool]


class _Header(msgspec.Struct):
    """What is needed to find a token's key; PyJWT reads the header again, and all of it."""

    alg: Any = None
    kid: Any = None


_decode_header = msgspec.json.Decoder(_Header).decode


class Authenticator:
    """Checks tokens and what requests say of themselves.

    Args:
        settings: where the keys are and what tokens must be.
        revoked: whether a grant counts no more; may raise `ClientError` while that is not known.
        log: for operators.

    Raises:
        ConfigurationError: AUTH=jwt without a usable key.
    """

    def __init__(
        self, settings: Settings, revoked: Revoked = lambda _grant: False, log: Logger | None = None
    ) -> None:
        self._none = settings.auth == "none"
        self._revoked = revoked
        self._names = claim_names(settings)
        self._audience = settings.jwt_audience or None
        self._issuer = settings.jwt_issuer or None
        self._leeway_s = settings.jwt_leeway_s
        self._allowed = _algorithms(settings)
        self._verified: OrderedDict[bytes, Grant] = OrderedDict()
        self._fixed: list[Key] = []
        self._ring = KeyRing(())
        self._files: KeyFiles | None = None
        self._jwks: Jwks | None = None
        if not self._none:
            self._find_keys(settings, log or get_logger(process="pod"))

    def _find_keys(self, settings: Settings, log: Logger) -> None:
        if settings.jwt_secret:
            self._fixed = [secret_key(settings.jwt_secret.encode(), None, "ORCHESTRATOR_JWT_SECRET")]
        if settings.jwt_keys_dir:
            self._files = KeyFiles(Path(settings.jwt_keys_dir), self._renew_ring, log)
        if settings.jwt_jwks_url:
            fetcher = Fetcher(settings.jwt_jwks_url, "JWT_JWKS_URL", _FETCH_S)
            if fetcher.scheme != "https" and fetcher.host not in _LOOPBACK and not settings.allow_insecure:
                raise ConfigurationError(
                    "JWT_JWKS_URL must begin with https://, or who is in between can sign tokens"
                )
            self._jwks = Jwks(fetcher, settings.jwt_jwks_refresh_s, self._renew_ring, log)
        self._renew_ring()
        if not len(self._ring) and self._jwks is None:
            raise ConfigurationError(
                "AUTH=jwt needs ORCHESTRATOR_JWT_SECRET (32 bytes or more), JWT_KEYS_DIR or JWT_JWKS_URL"
            )
        if self._jwks is not None and all(name.startswith("HS") for name in self._allowed):
            raise ConfigurationError(
                "JWT_JWKS_URL needs RS256, ES256, EdDSA or the like among the JWT_ALGORITHMS"
            )
        if self._jwks is None and not any(key.algorithms & self._allowed for key in self._ring):
            raise ConfigurationError("JWT_ALGORITHMS has no algorithm that fits any of the keys")

    def _renew_ring(self) -> None:
        """Other keys: what was verified with those that have gone has to be verified anew."""
        files = () if self._files is None else self._files.keys
        fetched = () if self._jwks is None else self._jwks.keys or ()
        self._ring = KeyRing((*self._fixed, *files, *fetched))
        self._verified.clear()

    def tasks(self) -> dict[str, Coroutine[Any, Any, None]]:
        """What has to run beside, by name."""
        named = {"jwks": self._jwks, "key_files": self._files}
        return {name: source.run() for name, source in named.items() if source is not None}

    def problem(self) -> str | None:
        """Why no token can be verified; None if some can."""
        if self._jwks is None or self._jwks.keys is not None or len(self._ring):
            return None
        return f"no keys for tokens: JWT_JWKS_URL: {self._jwks.problem}"

    async def identify(self, token: str | None, stated: Stated) -> Identity:
        """The identity of a request.

        Raises:
            ClientError: 401 for the token, 403 for a contradiction, 400 for ids and tiers, 503 while keys or
                revocations cannot be read.
        """
        return settle(await self.grant(token), stated)

    async def grant(self, token: str | None) -> Grant:
        """What a token allows.

        Raises:
            ClientError: as `identify`.
        """
        if self._none:
            return ANYONE
        if not token:
            raise ClientError(401, "token_missing", "a token is needed: Authorization: Bearer <token>")
        digest = blake2b(token.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        grant = self._verified.get(digest)
        if grant is None:
            grant = await self._verify(token)
            self._keep(digest, grant)
        self.check(grant)
        return grant

    def check(self, grant: Grant) -> None:
        """Whether a grant that was verified before still stands.

        Raises:
            ClientError: 401 it has expired or was revoked, 503 that cannot be told.
        """
        if grant.expires_at is not None and grant.expires_at <= time.time() - self._leeway_s:
            raise _expired()
        if grant is not ANYONE and self._revoked(grant):
            raise ClientError(401, "token_revoked", "the token was revoked; get a new one")

    def _keep(self, digest: bytes, grant: Grant) -> None:
        self._verified[digest] = grant
        if len(self._verified) > _MOST_VERIFIED:
            self._verified.popitem(last=False)

    async def _verify(self, token: str) -> Grant:
        kid, algorithm = self._header(token)
        keys = self._ring.find(kid, algorithm)
        if not keys and self._jwks is not None:
            known = await self._look_for(self._jwks, kid)
            keys = self._ring.find(kid, algorithm)
            if not keys and not known:
                detail = "the token's key cannot be looked up now; try again shortly"
                raise ClientError(503, "keys_unavailable", detail, retry_after_s=2)
        if not keys:
            raise _invalid("it is signed with a key that is not known here")
        return read_claims(self._names, self._decode(token, keys))

    async def _look_for(self, jwks: Jwks, kid: str | None) -> bool:
        if kid is None and jwks.keys is not None:
            return True  # every set has been tried; there is no name to ask for
        return await jwks.look_for(kid or "")

    def _header(self, token: str) -> tuple[str | None, str]:
        if len(token) > _MOST_TOKEN_CHARS:
            raise _invalid(f"it is longer than {_MOST_TOKEN_CHARS} characters")
        try:
            header = _decode_header(urlsafe_b64decode(f"{token.partition('.')[0]}=="))
        except (msgspec.MsgspecError, ValueError, RecursionError):
            raise _invalid("it is no JSON Web Token") from None
        kid, algorithm = header.kid, header.alg
        if not isinstance(algorithm, str) or algorithm not in self._allowed:
            raise _invalid(f"its algorithm is none of {', '.join(sorted(self._allowed))}")
        if kid is not None and (not isinstance(kid, str) or not 0 < len(kid) <= _MOST_KID_CHARS):
            raise _invalid("its kid is not the name of a key")
        return kid, algorithm

    def _decode(self, token: str, keys: list[Key]) -> dict[str, Any]:
        refused: ClientError | None = None
        for key in keys:
            try:
                return jwt.decode(
                    token,
                    key.material,
                    algorithms=sorted(key.algorithms & self._allowed),
                    audience=self._audience,
                    issuer=self._issuer,
                    leeway=self._leeway_s,
                    options={"require": ["exp"], "verify_aud": self._audience is not None},
                )
            except jwt.InvalidSignatureError:
                refused = _invalid("its signature is not right")
            except (PyJWTError, ValueError, TypeError, RecursionError) as error:
                raise _said(error) from None
        assert refused is not None
        raise refused


def _algorithms(settings: Settings) -> frozenset[str]:
    names = [name.strip() for name in settings.jwt_algorithms.split(",") if name.strip()]
    unknown = [name for name in names if name not in ALGORITHMS]
    if unknown or not names:
        shown = repr(unknown[0]) if unknown else "nothing"
        raise ConfigurationError(f"JWT_ALGORITHMS: {shown} is none of {', '.join(ALGORITHMS)}")
    return frozenset(names)


def _said(error: Exception) -> ClientError:
    """A closed list of texts: the library's own may repeat what stands in the token."""
    if isinstance(error, jwt.ExpiredSignatureError | jwt.ImmatureSignatureError):
        return _expired()
    if isinstance(error, jwt.MissingRequiredClaimError):
        return _invalid(f"it lacks {error.claim}")
    if isinstance(error, jwt.InvalidAudienceError):
        return _invalid("it is for another audience")
    if isinstance(error, jwt.InvalidIssuerError):
        return _invalid("it is from another issuer")
    return _invalid("its claims cannot be read")


def _expired() -> ClientError:
    return ClientError(401, "token_expired", "the token has expired or is not valid yet; get a new one")


def _invalid(reason: str) -> ClientError:
    return ClientError(401, "token_invalid", f"the token is not valid: {reason}")
