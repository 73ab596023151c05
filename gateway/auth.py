"""Who a client is: a token's claims, and what the client says beside them.

What the token says stands. A header or query value may leave it out, and is refused where it contradicts it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jwt
import msgspec

from backplane.errors import ConfigurationError, InvalidId
from backplane.keys import TIERS, check_id, check_user_id
from backplane.settings import Settings
from gateway.errors import ClientError

ALGORITHM = "HS256"
_MIN_SECRET_BYTES = 32


class Stated(NamedTuple):
    """What a request says of itself; ``names`` are the client's words for the fields, for error texts."""

    tenant_id: str | None
    tenant_tier: str | None
    session_id: str | None
    user_id: str | None
    agent_id: str | None
    names: tuple[str, str, str, str, str]


class Identity(msgspec.Struct, frozen=True):
    """Who a request or socket speaks for; every id is valid.

    Attributes:
        agents: the agents that it may speak to; None for any.
    """

    tenant_id: str
    tenant_tier: str
    session_id: str
    user_id: str | None
    agent_id: str | None
    agents: tuple[str, ...] | None


class Authenticator:
    """Checks tokens and what requests say of themselves.

    Raises:
        ConfigurationError: AUTH=jwt without a usable key.
    """

    def __init__(self, settings: Settings) -> None:
        self._none = settings.auth == "none"
        self._secret = settings.jwt_secret if self._none else _usable_secret(settings)
        self._audience = settings.jwt_audience or None
        self._issuer = settings.jwt_issuer or None

    def identify(self, token: str | None, stated: Stated) -> Identity:
        """The identity of a request.

        Raises:
            ClientError: 401 for the token, 403 for a contradiction, 400 for ids and tiers.
        """
        claims = {} if self._none else self._verify(token)
        identity = Identity(
            tenant_id=_id(_settle(claims, "tenant_id", stated.tenant_id, stated.names[0]), stated.names[0]),
            tenant_tier=_tier(
                _settle(claims, "tenant_tier", stated.tenant_tier, stated.names[1]), stated.names[1]
            ),
            session_id=_id(
                _settle(claims, "session_id", stated.session_id, stated.names[2]), stated.names[2]
            ),
            user_id=_user(_settle(claims, "sub", stated.user_id, stated.names[3]), stated.names[3]),
            agent_id=None if stated.agent_id is None else _id(stated.agent_id, stated.names[4]),
            agents=_agents(claims),
        )
        if identity.agent_id is not None:
            check_agent(identity, identity.agent_id)
        return identity

    def _verify(self, token: str | None) -> dict[str, Any]:
        if not token:
            raise ClientError(401, "token_missing", "a token is needed: Authorization: Bearer <token>")
        try:
            claims: dict[str, Any] = jwt.decode(
                token,
                self._secret,
                algorithms=[ALGORITHM],
                audience=self._audience,
                issuer=self._issuer,
                options={"require": ["exp"], "verify_aud": self._audience is not None},
            )
        except (jwt.ExpiredSignatureError, jwt.ImmatureSignatureError):
            raise ClientError(401, "token_expired", "the token has expired or is not valid yet") from None
        except jwt.InvalidTokenError as error:
            raise ClientError(401, "token_invalid", f"the token is not valid: {error}") from None
        if not isinstance(claims.get("tenant_id"), str) or not isinstance(claims.get("tenant_tier"), str):
            raise ClientError(401, "token_invalid", "the token lacks tenant_id or tenant_tier")
        return claims


def check_agent(identity: Identity, agent_id: str) -> None:
    """Refuse an agent that the token does not allow.

    Raises:
        ClientError: 403.
    """
    if identity.agents is not None and agent_id not in identity.agents:
        raise ClientError(403, "forbidden", f"the token does not allow the agent {agent_id}")


def _settle(claims: dict[str, Any], claim: str, stated: str | None, name: str) -> str | None:
    claimed = claims.get(claim)
    if claimed is None:
        return stated
    if not isinstance(claimed, str):
        raise ClientError(401, "token_invalid", f"the token's {claim} is not text")
    if stated is not None and stated != claimed:
        raise ClientError(403, "forbidden", f"{name} contradicts the token; leave it out or use the token's")
    return claimed


def _id(value: str | None, name: str) -> str:
    if value is None:
        raise ClientError(400, "missing_id", f"{name} is needed")
    try:
        return check_id(value, name)
    except InvalidId as error:
        raise ClientError(400, "invalid_id", str(error)) from None


def _user(value: str | None, name: str) -> str | None:
    if value is None:
        return None
    try:
        return check_user_id(value, name)
    except InvalidId as error:
        raise ClientError(400, "invalid_id", str(error)) from None


def _tier(value: str | None, name: str) -> str:
    if value not in TIERS:
        shown = "is needed" if value is None else f"is {ascii(value)[:60]}, which is no tier"
        raise ClientError(400, "unknown_tier", f"{name} {shown}; tiers are {', '.join(TIERS)}")
    return value


def _agents(claims: dict[str, Any]) -> tuple[str, ...] | None:
    agents = claims.get("agents")
    if agents is None:
        return None
    if not isinstance(agents, list) or not all(isinstance(agent, str) for agent in agents):
        raise ClientError(401, "token_invalid", "the token's agents is not a list of texts")
    return tuple(agents)


def issue_token(
    settings: Settings,
    now: float,
    *,
    tenant_id: str,
    tier: str,
    session_id: str | None = None,
    user_id: str | None = None,
    agents: list[str] | None = None,
    ttl_s: int = 86_400,
) -> str:
    """A token that the pods of the same settings accept.

    Raises:
        ConfigurationError: there is no usable JWT_SECRET.
        InvalidId: an id is not valid.
    """
    secret = _usable_secret(settings)
    claims: dict[str, Any] = {
        "tenant_id": check_id(tenant_id, "tenant"),
        "tenant_tier": tier,
        "iat": int(now),
        "exp": int(now) + ttl_s,
    }
    if session_id is not None:
        claims["session_id"] = check_id(session_id, "session")
    if user_id is not None:
        claims["sub"] = check_user_id(user_id, "user")
    if agents is not None:
        claims["agents"] = agents
    if settings.jwt_audience:
        claims["aud"] = settings.jwt_audience
    if settings.jwt_issuer:
        claims["iss"] = settings.jwt_issuer
    return jwt.encode(claims, secret, algorithm=ALGORITHM)


def _usable_secret(settings: Settings) -> str:
    if len(settings.jwt_secret.encode()) < _MIN_SECRET_BYTES:
        raise ConfigurationError(
            f"tokens need ORCHESTRATOR_JWT_SECRET with {_MIN_SECRET_BYTES} bytes or more"
        )
    return settings.jwt_secret
