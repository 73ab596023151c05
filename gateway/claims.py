"""From a verified token's claims to what it grants, by the names that the settings give: [P] pure."""

from __future__ import annotations

from typing import Any, NamedTuple

from backplane.errors import ConfigurationError, InvalidId
from backplane.keys import TIERS, check_id, check_user_id
from backplane.settings import Settings
from gateway.errors import ClientError
from gateway.identity import OPERATOR, SCOPES, TOPIC, Grant

_MOST_NAMES = 256  # sessions or agents in one token
_LATEST = 2**40  # a date that is past all others, and that a float and a timer can hold


class ClaimNames(NamedTuple):
    """Which claim says what; an empty name: none does.

    A name is looked up as it stands, and if there is none such, as a path (``realm_access.roles``).
    """

    tenant: str
    tier: str
    user: str
    sessions: str
    agents: str
    topics: str
    scopes: str
    default_scopes: frozenset[str]


def claim_names(settings: Settings) -> ClaimNames:
    """The names of a deployment.

    Raises:
        ConfigurationError: an unknown scope.
    """
    return ClaimNames(
        settings.jwt_claim_tenant,
        settings.jwt_claim_tier,
        settings.jwt_claim_user,
        settings.jwt_claim_sessions,
        settings.jwt_claim_agents,
        settings.jwt_claim_topics,
        settings.jwt_claim_scopes,
        _default_scopes(settings),
    )


def _default_scopes(settings: Settings) -> frozenset[str]:
    scopes = frozenset(settings.jwt_default_scopes.split())
    if not scopes <= frozenset(SCOPES):
        shown = ", ".join(sorted(scopes - frozenset(SCOPES)))
        raise ConfigurationError(f"JWT_DEFAULT_SCOPES: {shown} is none of {' '.join(SCOPES)}")
    return scopes


def read_claims(names: ClaimNames, claims: dict[str, Any]) -> Grant:
    """What a token grants.

    Args:
        claims: of a token whose signature and times were found right; ``exp`` is there.

    Raises:
        ClientError: 401, a claim is missing or has a wrong type or value.
    """
    tenant_id = _text(claims, names.tenant)
    tier = _text(claims, names.tier)
    if tenant_id is None:
        raise _invalid(f"the token lacks {names.tenant}")
    if tenant_id != OPERATOR:
        _check_ids((tenant_id,), names.tenant)
        if tier is None:
            raise _invalid(f"the token lacks {names.tier}")
        if tier not in TIERS:
            raise _invalid(f"the token's {names.tier} is no tier; tiers are {', '.join(TIERS)}")
    user_id = _text(claims, names.user)
    if user_id is not None:
        _check_user(user_id, names.user)
    token_id, expires_at = claims.get("jti"), claims.get("exp")
    if not isinstance(expires_at, int | float):
        raise _invalid("the token's exp is not a number")
    return Grant(
        tenant_id,
        tier,
        user_id,
        _patterns(claims, names.sessions),
        _patterns(claims, names.agents),
        _scopes(claims, names),
        token_id if isinstance(token_id, str) else None,
        _number(claims.get("iat")),
        _number(expires_at),
        _topics(claims, names.topics),
    )


def _find(claims: dict[str, Any], name: str) -> Any:
    if not name:
        return None
    if name in claims:
        return claims[name]
    found: Any = claims
    for part in name.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    return found


def _text(claims: dict[str, Any], name: str) -> str | None:
    value = _find(claims, name)
    if value is not None and not isinstance(value, str):
        raise _invalid(f"the token's {name} is not text")
    return value


def _texts(claims: dict[str, Any], name: str) -> list[str] | None:
    value = _find(claims, name)
    if value is None:
        return None
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not all(isinstance(one, str) for one in values):
        raise _invalid(f"the token's {name} is not a list of texts")
    if len(values) > _MOST_NAMES:
        raise _invalid(f"the token's {name} has more than {_MOST_NAMES} entries")
    return values


def _patterns(claims: dict[str, Any], name: str) -> tuple[str, ...] | None:
    values = _texts(claims, name)
    if values is None:
        return None
    _check_ids((value.removesuffix("*") for value in values if value != "*"), name)
    return tuple(values)


def _topics(claims: dict[str, Any], name: str) -> tuple[str, ...] | None:
    """Like `_patterns`, of names that may have more characters than ids."""
    values = _texts(claims, name)
    for value in values or ():
        if value != "*" and not TOPIC.fullmatch(value.removesuffix("*")):
            raise _invalid(f"the token's {name} has one that is no topic: {ascii(value)[:60]}")
    return None if values is None else tuple(values)


def _scopes(claims: dict[str, Any], names: ClaimNames) -> frozenset[str]:
    """RFC 8693, 4.2: ``scope`` is text, with spaces between; many providers send a list."""
    values = _texts(claims, names.scopes)
    if values is None:
        return names.default_scopes
    return frozenset(" ".join(values).split()) & frozenset(SCOPES)


def _check_ids(values: Any, name: str) -> None:
    for value in values:
        try:
            check_id(value, f"the token's {name}")
        except InvalidId as error:
            raise _invalid(str(error)) from None


def _check_user(value: str, name: str) -> None:
    try:
        check_user_id(value, f"the token's {name}")
    except InvalidId as error:
        raise _invalid(str(error)) from None


def _number(value: Any) -> float:
    return float(min(max(value, 0), _LATEST)) if isinstance(value, int | float) else 0.0


def _invalid(detail: str) -> ClientError:
    return ClientError(401, "token_invalid", detail)
