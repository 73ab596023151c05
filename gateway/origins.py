"""Which web pages may use the service: [P] pure.

A browser says of whom it speaks (``Origin``, RFC 6454); other clients say nothing, and are not asked.
"""

from __future__ import annotations

import re
from ipaddress import ip_address
from urllib.parse import urlsplit

from backplane.errors import ConfigurationError

_ORIGIN = re.compile(r"(https?)://(\*\.)?([A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?")


class Origins:
    """The origins of a deployment.

    Args:
        text: with commas between them; ``https://*.example.com`` for all hosts below, ``*`` for all.
        local: the service has no tokens, so a page may be of the same host only if that is this machine by
            its address: a stranger's name can be made to point here (DNS rebinding).

    Attributes:
        pattern: matches the origins that may read answers across origins (CORS); None if there are none.

    Raises:
        ConfigurationError: one of them is none.
    """

    def __init__(self, text: str, *, local: bool = False) -> None:
        self._local = local
        parts = [_pattern(part) for part in filter(None, map(str.strip, text.split(",")))]
        self.pattern = "|".join(parts) or None
        self._matches = re.compile(self.pattern).fullmatch if self.pattern else None

    def allows(self, origin: str | None, host: str | None) -> bool:
        """Whether a page may open a socket.

        Args:
            origin: the request's ``Origin``; None: it is no browser's.
            host: the request's ``Host``: its own pages always may.
        """
        if origin is None:
            return True
        if self._matches is not None and self._matches(origin.lower()):
            return True
        try:
            parts = urlsplit(origin)
            same = bool(host) and parts.netloc.lower() == (host or "").lower()
        except ValueError:
            return False
        return same and not (self._local and _is_name(parts.hostname or ""))

    def allows_request(self, origin: str | None, host: str | None) -> bool:
        """Whether a request may be answered where there are no tokens: as `allows`, and by its own name."""
        if self._local and origin is None and host and _is_name(_host_of(host)):
            return False
        return self.allows(origin, host)


def _host_of(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _is_name(host: str) -> bool:
    """Whether anybody could have made this name point here: it is looked up, and not only on this network."""
    if "." not in host or host.endswith(".localhost"):
        return False
    try:
        ip_address(host)
    except ValueError:
        return True
    return False


def _pattern(part: str) -> str:
    if part == "*":
        return ".*"
    match = _ORIGIN.fullmatch(part)
    if match is None:
        raise ConfigurationError(
            f"ALLOWED_ORIGINS: {part!r} must be like https://app.example.com or https://*.example.com"
        )
    scheme, wildcard, host, port = match.groups()
    below = r"(?:[a-z0-9-]+\.)+" if wildcard else ""
    return f"{scheme}://{below}{re.escape(host.lower())}{port or ''}"
