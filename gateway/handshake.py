"""The opening handshake, server side (RFC 6455, section 4): [P] bytes in, a request or a refusal out.

The request is the one that uvicorn puts together again for its WebSocket protocol class: the line and the
headers of an HTTP/1.1 request, parsed once already. What only a caller can know is left to it: whether
the path exists, whether the Origin is allowed, which subprotocol to choose.

Where two readers could take a request in two ways (a header or a parameter given twice, an escape that is
none, a control character), it is refused: the token and the tenant stand in these very places. No detail
of a refusal repeats a value, because the value may be a token.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from urllib.parse import unquote_to_bytes

_GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_ONLY_ONCE = frozenset(("authorization", "host", "sec-websocket-key"))

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_KEY = re.compile(r"[A-Za-z0-9+/]{22}==")  # 16 bytes in base64
_TARGET = re.compile(r"/[\x21\x22\x24-\x7e]*")  # visible ASCII without "#"
_NOT_AN_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_NOT_IN_A_VALUE = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")  # a tab is allowed (RFC 9110, section 5.5)

Headers = Iterable[tuple[str, str]]


class HandshakeError(Exception):
    """The request cannot become a WebSocket.

    Attributes:
        status: HTTP status to answer with.
        error_code: ``bad_request``, ``method_not_allowed`` or ``unsupported_version``.
        detail: for a person; never a value that the client sent.
        headers: what the answer needs besides its body.
        request: the request if only its path or query is wrong; then a socket can be accepted to say so.
    """

    request: UpgradeRequest | None = None

    def __init__(
        self, status: int, error_code: str, detail: str, headers: tuple[tuple[str, str], ...] = ()
    ) -> None:
        self.status = status
        self.error_code = error_code
        self.detail = detail
        self.headers = headers
        super().__init__(f"{status} {error_code}: {detail}")


@dataclass(frozen=True, slots=True)
class UpgradeRequest:
    """A request that may become a WebSocket; its ``repr`` shows nothing that can hold a token.

    Attributes:
        path: percent-decoded; a ``/`` in it may have been ``%2F``, so route by ``raw_path`` if that matters.
        raw_path: as sent, without the query.
        query: decoded parameters.
        headers: by lower-case name, Latin-1; repeated ones joined with ``, ``.
        subprotocols: as offered, in the client's order.
        key: the ``Sec-WebSocket-Key``.
    """

    path: str
    raw_path: str
    query: dict[str, str] = field(repr=False)
    headers: dict[str, str] = field(repr=False)
    subprotocols: tuple[str, ...] = field(repr=False)
    key: str = field(repr=False)


def parse(data: bytes) -> UpgradeRequest:
    """Read a whole request head, up to and with its empty line.

    Raises:
        HandshakeError: it is not one, or does not ask for version 13 of the protocol.
    """
    head, end, rest = data.partition(b"\r\n\r\n")
    if not end or rest:
        raise _bad("the request must be a head and nothing after it")
    request_line, *lines = head.decode("latin-1").split("\r\n")
    target = _parse_request_line(request_line)
    headers = _parse_headers(lines)
    _check_upgrade(headers)
    raw_path, _, query = target.partition("?")
    request = UpgradeRequest(
        path=raw_path,
        raw_path=raw_path,
        query={},
        headers=headers,
        subprotocols=_parse_subprotocols(headers.get("sec-websocket-protocol", "")),
        key=_parse_key(headers),
    )
    try:
        return replace(request, path=_unquote(raw_path, "the path"), query=_parse_query(query))
    except HandshakeError as error:
        error.request = request  # the upgrade itself is right, so this can be told over the socket
        raise


def accept_response(request: UpgradeRequest, subprotocol: str | None, extra: Headers = ()) -> bytes:
    """The 101 that makes the connection a WebSocket (section 4.2.2).

    Raises:
        ValueError: the client did not offer ``subprotocol``, or a header cannot be sent.
    """
    headers = [
        ("Upgrade", "websocket"),
        ("Connection", "Upgrade"),
        ("Sec-WebSocket-Accept", _accept(request.key)),
    ]
    if subprotocol is not None:
        if subprotocol not in request.subprotocols:
            raise ValueError("the client did not offer this subprotocol")
        headers.append(("Sec-WebSocket-Protocol", subprotocol))
    return _response(101, [*headers, *extra])


def refuse_response(
    status: int,
    headers: Sequence[tuple[str, str]],
    body: bytes,
    content_type: str = "application/problem+json",
) -> bytes:
    """A whole answer to a request that does not become a WebSocket; the connection ends after it.

    Raises:
        ValueError: a header cannot be sent, or HTTP has no such status.
    """
    framing = [("Content-Type", content_type), ("Content-Length", str(len(body))), ("Connection", "close")]
    return _response(status, [*headers, *framing]) + body


def _accept(key: str) -> str:
    # SHA-1 as the RFC wants it, to show that the handshake was understood: nothing is secured by it.
    digest = hashlib.sha1((key + _GUID).encode(), usedforsecurity=False).digest()
    return base64.b64encode(digest).decode()


def _response(status: int, headers: Headers) -> bytes:
    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}"]
    for name, value in headers:
        if _TOKEN.fullmatch(name) is None or _NOT_IN_A_VALUE.search(value):
            raise ValueError(f"header {name!a} cannot be sent: a bad name, or a control character")
        lines.append(f"{name}: {value}")
    return "\r\n".join((*lines, "", "")).encode("latin-1")


def _bad(detail: str) -> HandshakeError:
    return HandshakeError(400, "bad_request", detail)


def _parse_request_line(line: str) -> str:
    """The target, in origin form: the absolute form is for proxies, and would name a second host."""
    method, _, rest = line.partition(" ")
    target, _, version = rest.partition(" ")
    if version != "HTTP/1.1":
        raise _bad("the request line must be: GET, a target, HTTP/1.1")
    if method != "GET":
        detail = "a WebSocket is opened with GET"
        raise HandshakeError(405, "method_not_allowed", detail, (("Allow", "GET"),))
    if _TARGET.fullmatch(target) is None:
        raise _bad("the target must be a slash and then visible ASCII, the rest percent-encoded")
    return target


def _parse_headers(lines: list[str]) -> dict[str, str]:
    headers: dict[str, list[str]] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or _TOKEN.fullmatch(name) is None or _NOT_IN_A_VALUE.search(value):
            raise _bad("a header line is malformed")
        values = headers.setdefault(name.lower(), [])
        values.append(value.strip(" \t"))
        if len(values) > 1 and name.lower() in _ONLY_ONCE:
            raise _bad(f"the header {name.lower()} is given twice")
    return {name: ", ".join(values) for name, values in headers.items()}


def _check_upgrade(headers: dict[str, str]) -> None:
    """What section 4.2.1 wants of the headers, but for the key."""
    if not headers.get("host"):
        raise _bad("the header host is missing")
    for name, token in (("upgrade", "websocket"), ("connection", "upgrade")):
        if token not in map(str.lower, _split(headers.get(name, ""))):
            raise _bad(f"the header {name} must say {token}")
    if headers.get("sec-websocket-version") != "13":
        wanted = (("Sec-WebSocket-Version", "13"), ("Upgrade", "websocket"))
        raise HandshakeError(426, "unsupported_version", "the WebSocket version must be 13", wanted)


def _parse_key(headers: dict[str, str]) -> str:
    key = headers.get("sec-websocket-key", "")
    if _KEY.fullmatch(key) is None:
        raise _bad("the header sec-websocket-key must be 16 bytes in base64")
    return key


def _parse_subprotocols(value: str) -> tuple[str, ...]:
    names = tuple(_split(value))
    if any(_TOKEN.fullmatch(name) is None for name in names):
        raise _bad("the header sec-websocket-protocol must be a list of tokens")
    return names


def _split(value: str) -> list[str]:
    """The elements of a list header; empty ones do not count (RFC 9110, section 5.6.1)."""
    return [element for part in value.split(",") if (element := part.strip(" \t"))]


def _parse_query(query: str) -> dict[str, str]:
    """Parameters as a browser writes them: ``+`` is a space."""
    parameters: dict[str, str] = {}
    for part in filter(None, query.split("&")):
        raw_name, _, raw_value = part.replace("+", " ").partition("=")
        name, value = _unquote(raw_name, "the query"), _unquote(raw_value, "the query")
        if name in parameters:
            raise _bad("a query parameter is given twice")
        parameters[name] = value
    return parameters


def _unquote(text: str, where: str) -> str:
    """Percent-decode strictly: `urllib.parse.unquote` lets through what it cannot decode."""
    if _NOT_AN_ESCAPE.search(text):
        raise _bad(f"{where} has a % that is not an escape")
    try:
        decoded = unquote_to_bytes(text).decode()
    except UnicodeDecodeError:
        raise _bad(f"{where} is not UTF-8") from None
    if _CONTROL.search(decoded):
        raise _bad(f"{where} has a control character")
    return decoded
