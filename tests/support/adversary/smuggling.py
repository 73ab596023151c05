"""The class of requests that can be read in two ways: whose they are, and where they end."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial

from tests.support.adversary.siege import Siege
from tests.support.adversary.tally import Attempt
from tests.support.adversary.tokens import by_hmac
from tests.support.adversary.wire import Answer, frame, throw, upgrade

Make = Callable[[], bytes]
Case = tuple[str, Make]

_LINE = b"POST /api/chat/send HTTP/1.1"
_CLOSE = b"Connection: close\r\n"
_CHUNKED = b"Transfer-Encoding: chunked\r\n"
_H2C = (
    b"Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n"
    b"Connection: Upgrade, HTTP2-Settings\r\nContent-Length: 0\r\n"
)


class _Hand:
    """What an attacker of red's holds: a right token, a forged one, and requests made of them."""

    def __init__(self, siege: Siege) -> None:
        self.siege = siege
        mint, claims = siege.mint, siege.as_mallory()
        self.good = mint.token(claims).encode()
        self.bad = mint.token(claims, by_hmac(b"x" * 32)).encode()
        self.other = mint.token(siege.as_mallory()).encode()

    @property
    def auth(self) -> bytes:
        """The header with the right token."""
        return b"Authorization: Bearer " + self.good + b"\r\n"

    @property
    def body(self) -> bytes:
        """A chat message that must not arrive."""
        return json.dumps({"message": self.siege.message()}).encode()

    @property
    def own_body(self) -> bytes:
        """A chat message that may arrive, as red's own."""
        note = self.siege.message(self.siege.red, None, self.siege.mallory)
        return json.dumps({"message": note}).encode()

    def head(self, headers: bytes = b"", line: bytes = _LINE, auth: bytes | None = None) -> bytes:
        """The head of a send, up to its empty line."""
        who = self.auth if auth is None else auth
        return line + b"\r\nHost: h\r\n" + who + b"X-Session-ID: s\r\nX-Agent-ID: a\r\n" + headers + b"\r\n"

    def post(
        self, headers: bytes = b"", line: bytes = _LINE, auth: bytes | None = None, body: bytes | None = None
    ) -> bytes:
        """A send, whole."""
        content = self.body if body is None else body
        return self.head(headers + b"Content-Length: %d\r\n" % len(content), line, auth) + content

    def chunked(self) -> bytes:
        """A body in one chunk."""
        body = self.body
        return b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)

    def coded(self, coding: bytes, line: bytes = _LINE) -> bytes:
        """A send in one chunk, under the headers that say so."""
        return self.head(coding, line) + self.chunked()

    def socket(self, headers: bytes, target: str = "/ws/smuggled") -> bytes:
        """A request for a socket."""
        return upgrade(target)[:-2] + headers + b"\r\n"


async def smuggled(siege: Siege) -> None:
    """Headers given twice, folded, misspelt; odd lengths, chunks, lines and bytes; requests behind others."""
    hand = _Hand(siege)
    identities = (*_twice(hand), *_misspelt(hand), *_folded(hand), *_trailers(hand))
    framings = (*_two_lengths(hand), *_odd_lengths(hand), *_odd_chunks(hand), *_behind(hand))
    heads = (*_odd_lines(hand), *_odd_bytes(hand))
    tries = [_thrown(siege, *case) for case in (*identities, *framings, *heads)]
    tries += [_thrown(siege, *case, fair=True) for case in _fair(hand)]
    await siege.run([attempt for attempt in tries for _pod in siege.pods])


def _thrown(siege: Siege, name: str, make: Make, *, fair: bool = False) -> Attempt:
    async def act() -> Answer:
        return await throw(siege.pod().port, make())

    return Attempt(name, act, fair)


def _twice(hand: _Hand) -> Iterator[Case]:
    """Two answers to the question whose a request is."""
    red, blue = hand.siege.red.encode(), hand.siege.blue.encode()
    good, bad, other = (b"Bearer " + token for token in (hand.good, hand.bad, hand.other))
    for name, first, second in (
        ("right, forged", good, bad),
        ("forged, right", bad, good),
        ("right, another right", good, other),
        ("right twice", good, good),
        ("empty, right", b"", good),
        ("right, empty", good, b""),
        ("Basic, right", b"Basic eDp5", good),
    ):
        two = b"Authorization: %b\r\nauthorization: %b\r\n" % (first, second)
        yield f"two tokens in a send, {name}", partial(hand.post, _CLOSE, auth=two)
        yield f"two tokens for a socket, {name}", partial(hand.socket, two)
    for name, value in (
        ("right, forged", good + b", " + bad),
        ("forged, right", bad + b", " + good),
        ("right forged", good + b" " + hand.bad),
        ("scheme twice", b"Bearer " + good),
        ("after another scheme", b"Basic eDp5, " + good),
    ):
        one = b"Authorization: " + value + b"\r\n"
        yield f"two tokens in one header, {name}", partial(hand.post, _CLOSE, auth=one)
        yield f"two tokens in one header of a socket, {name}", partial(hand.socket, one)
    for header, values in (
        (b"X-Tenant-ID", (red, blue)),
        (b"X-Tenant-ID", (blue, red)),
        (b"X-Tenant-ID", (red, red)),
        (b"X-Tenant-Tier", (b"enterprise", b"free")),
        (b"X-Session-ID", (hand.siege.session.encode(),)),
        (b"X-User-ID", (hand.siege.mallory.encode(), hand.siege.ann.encode())),
        (b"X-User-ID", (hand.siege.ann.encode(), hand.siege.mallory.encode())),
        (b"X-Agent-ID", (b"b",)),
        (b"X-Context-Type", (b"agent", b"workflow")),
        (b"X-Conversation-ID", (b"a", b"b")),
    ):
        lines = b"".join(b"%b: %b\r\n" % (header, value) for value in values)
        yield f"{header.decode()} twice: {lines!r}", partial(hand.post, lines + _CLOSE)
    token, forged = hand.good.decode(), hand.bad.decode()
    offer = b"Sec-WebSocket-Protocol: orchestrator.v1, bearer.%b\r\n"
    yield "token in header and query", lambda: hand.socket(hand.auth, f"/ws/s?token={forged}")
    yield (
        "token in query and header",
        lambda: hand.socket(b"Authorization: " + bad + b"\r\n", f"/ws/s?token={token}"),
    )
    yield "token in header and subprotocol", lambda: hand.socket(hand.auth + offer % hand.bad)
    yield "token in query and subprotocol", lambda: hand.socket(offer % hand.bad, f"/ws/s?token={token}")
    yield "two tokens in subprotocols", lambda: hand.socket(offer % hand.good + offer % hand.bad)
    yield (
        "two tokens in one subprotocol list",
        lambda: hand.socket(offer % (hand.good + b", bearer." + hand.bad)),
    )
    for query in (
        f"token={token}&token={forged}",
        f"token={token}&to%6ben={forged}",
        f"token={token}&tenant_id={hand.siege.red}&tenant_id={hand.siege.blue}",
        f"token={token}&tenant_id={hand.siege.red}&tenant%5fid={hand.siege.blue}",
        f"token={token}&user_id={hand.siege.mallory}&user_id={hand.siege.ann}",
    ):
        yield f"a parameter twice {len(query)}", partial(hand.socket, b"", f"/ws/s?{query}")


def _misspelt(hand: _Hand) -> Iterator[Case]:
    """A right token in a header that is not the one."""
    for name in (
        b"Authorization ", b" Authorization", b"Authorization\t", b"Authorization\0", b"Authorization_",
        b"Authorization\x0b", b"HTTP_AUTHORIZATION", b"X-Authorization", b"Proxy-Authorization",
        b"Authentication", b"X-Forwarded-Authorization", b"Authorization\r\n", b"Author ization",
        b"\xc3\xa4Authorization", b"Authorization[]", b"\"Authorization\"", b"",
    ):  # fmt: skip
        line = name + b": Bearer " + hand.good + b"\r\n"
        yield f"the header {name!r} in a send", partial(hand.post, _CLOSE, auth=line)
        yield f"the header {name!r} for a socket", partial(hand.socket, line)
    for scheme in (b"", b"Bearer", b"Token ", b"Basic ", b"Bearer=", b"Bearer: ", b"Bearer\xa0", b"JWT "):
        line = b"Authorization: " + scheme + hand.good + b"\r\n"
        yield f"the scheme {scheme!r} in a send", partial(hand.post, _CLOSE, auth=line)
        yield f"the scheme {scheme!r} for a socket", partial(hand.socket, line)
    cookie = b"Cookie: Authorization=%b; token=%b; access_token=%b\r\n" % ((hand.good,) * 3)
    yield "a cookie in a send", lambda: hand.post(_CLOSE, auth=cookie)
    yield "a cookie for a socket", lambda: hand.socket(cookie)
    line = b"POST /api/chat/send?token=%b&access_token=%b HTTP/1.1" % (hand.good, hand.good)
    yield "the query of a send", lambda: hand.post(_CLOSE, line, auth=b"")


def _folded(hand: _Hand) -> Iterator[Case]:
    """Header lines that go on in the next one (obsolete since RFC 7230): some readers see two there."""
    token, blue = hand.good, hand.siege.blue.encode()
    for name, line in (
        ("value", b"Authorization:\r\n Bearer " + token),
        ("value, tab", b"Authorization:\r\n\tBearer " + token),
        ("token", b"Authorization: Bearer\r\n " + token),
        ("in the token", b"Authorization: Bearer " + token[:20] + b"\r\n " + token[20:]),
        ("hidden behind another", b"X-A: a\r\n Authorization: Bearer " + token),
        ("hidden behind another, tab", b"X-A: a\r\n\tAuthorization: Bearer " + token),
        ("hidden behind an empty one", b"X-A:\r\n Authorization: Bearer " + token),
    ):
        yield f"folded: {name}, send", partial(hand.post, _CLOSE, auth=line + b"\r\n")
        yield f"folded: {name}, socket", partial(hand.socket, line + b"\r\n")
    for name, line in (
        ("tenant", b"X-Tenant-ID:\r\n " + blue),
        ("tenant hidden", b"X-A: a\r\n X-Tenant-ID: " + blue),
        ("tenant behind its own", b"X-Tenant-ID: " + hand.siege.red.encode() + b"\r\n " + blue),
        ("coding", b"Transfer-Encoding:\r\n chunked"),
        ("length", b"Content-Length:\r\n 3"),
    ):
        yield f"folded: {name}", partial(hand.post, line + b"\r\n" + _CLOSE)


def _two_lengths(hand: _Hand) -> Iterator[Case]:
    """A second request inside of the first one's body, or behind it, as one sees it."""

    def body_and_inner() -> tuple[bytes, bytes]:
        return hand.body, hand.post(_CLOSE)

    def cl_te() -> bytes:
        inner, chunks = hand.post(_CLOSE), hand.chunked()
        return hand.head(b"Content-Length: %d\r\n" % len(chunks + inner) + _CHUNKED) + chunks + inner

    def te_cl() -> bytes:
        inner, chunks = hand.post(_CLOSE), hand.chunked()
        return hand.head(_CHUNKED + b"Content-Length: %d\r\n" % len(chunks)) + chunks + inner

    def empty_te_cl() -> bytes:
        return hand.head(_CHUNKED + b"Content-Length: 5\r\n") + b"0\r\n\r\n" + hand.post(_CLOSE)

    def two_cl(first: int, second: int) -> Make:
        def make() -> bytes:
            body, inner = body_and_inner()
            sizes = (len(body), len(body + inner), 0)
            lengths = b"Content-Length: %d\r\nContent-Length: %d\r\n" % (sizes[first], sizes[second])
            return hand.head(lengths) + body + inner

        return make

    yield "CL.TE", cl_te
    yield "TE.CL", te_cl
    yield "TE.CL, empty", empty_te_cl
    for first in range(3):
        for second in range(3):
            yield f"CL.CL {first} {second}", two_cl(first, second)
    for coding in (
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
        b"Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: chunked\r\ntransfer-encoding: x\r\n",
        b"Transfer-Encoding: identity, chunked\r\n",
        b"Transfer-Encoding: gzip, chunked\r\n",
        b"Transfer-Encoding: chunked, chunked\r\n",
        b"Transfer-Encoding: chunked, identity\r\n",
        b"Transfer-Encoding: chunked, gzip\r\n",
        b"Transfer-Encoding: identity\r\n",
        b"Transfer-Encoding: xchunked\r\n",
        b"Transfer-Encoding: chunkedx\r\n",
        b"Transfer-Encoding: x chunked\r\n",
        b"Transfer-Encoding: \x0bchunked\r\n",
        b"Transfer-Encoding: \x0cchunked\r\n",
        b"Transfer-Encoding: chunked\0\r\n",
        b'Transfer-Encoding: "chunked"\r\n',
        b"Transfer-Encoding: chunked;q=1\r\n",
        b"Transfer-Encoding: ,chunked\r\n",
        b"Transfer-Encoding : chunked\r\n",
        b"Transfer-Encoding\t: chunked\r\n",
        b" Transfer-Encoding: chunked\r\n",
        b"Transfer-Encoding:\x0b chunked\r\n",
        b"X: y\nTransfer-Encoding: chunked\r\n",
        b"X: y\rTransfer-Encoding: chunked\r\n",
    ):
        yield f"{coding!r}", partial(hand.coded, coding)
        yield f"{coding!r} and a length", partial(hand.post, coding + _CLOSE)
    old = b"POST /api/chat/send HTTP/1.0"
    yield "chunked in HTTP/1.0", partial(hand.coded, _CHUNKED, old)
    yield "chunked in HTTP/1.0, kept", partial(hand.coded, _CHUNKED + b"Connection: keep-alive\r\n", old)


def _odd_lengths(hand: _Hand) -> Iterator[Case]:
    """Numbers that are none, or that some read as another."""
    for text in (
        "+{}", "-{}", "0x{:x}", "{}, {}", "{},", ",{}", "{} {}", "{};", "{}.0", "{}e0", "1_0", "\u0661",
        "{}\0", "{}\x0b", "", " ", "18446744073709551616", "99999999999999999999999", "'{}'", '"{}"', "{}a",
        "a{}",
    ):  # fmt: skip

        def make(text: str = text) -> bytes:
            body = hand.body
            return hand.head(f"Content-Length: {text.format(len(body), len(body))}\r\n".encode()) + body

        yield f"Content-Length {text!r}", make


def _odd_chunks(hand: _Hand) -> Iterator[Case]:
    """Chunks whose end some find elsewhere."""
    forms = {
        "size with 0x": b"0x%x\r\n%b\r\n0\r\n\r\n",
        "size with a plus": b"+%x\r\n%b\r\n0\r\n\r\n",
        "size with a minus": b"-%x\r\n%b\r\n0\r\n\r\n",
        "size with a space": b"%x \r\n%b\r\n0\r\n\r\n",
        "size behind a space": b" %x\r\n%b\r\n0\r\n\r\n",
        "size with a tab": b"%x\t\r\n%b\r\n0\r\n\r\n",
        "size too large": b"1000000000000000%x\r\n%b\r\n0\r\n\r\n",
        "size behind LF": b"%x\n%b\r\n0\r\n\r\n",
        "size behind CR": b"%x\r%b\r\n0\r\n\r\n",
        "size, comma": b"%x,0\r\n%b\r\n0\r\n\r\n",
        "extension with LF": b"%x;a\nb\r\n%b\r\n0\r\n\r\n",
        "extension with CR": b"%x;a\rb\r\n%b\r\n0\r\n\r\n",
        "extension with NUL": b"%x;a\0b\r\n%b\r\n0\r\n\r\n",
        "extension open": b'%x;a="b\r\n%b\r\n0\r\n\r\n',
        "no end of line": b"%x\r\n%b0\r\n\r\n",
        "LF behind": b"%x\r\n%b\n0\r\n\r\n",
        "rubbish behind": b"%x\r\n%bxx0\r\n\r\n",
        "last with LF": b"%x\r\n%b\r\n0\n\n",
        "last of rubbish": b"%x\r\n%b\r\ng\r\n\r\n",
    }
    for name, form in forms.items():

        def make(form: bytes = form) -> bytes:
            body = hand.body
            return hand.head(_CHUNKED) + form % (len(body), body)

        yield f"chunk: {name}", make
    yield "chunk: none", lambda: hand.head(_CHUNKED) + b"\r\n"
    yield "chunk: a request in its place", lambda: hand.head(_CHUNKED) + hand.post(_CLOSE)


def _odd_lines(hand: _Hand) -> Iterator[Case]:
    """Request lines by which a rule in front might let pass what it should not."""
    for line in (
        b"POST\t/api/chat/send\tHTTP/1.1", b"post /api/chat/send HTTP/1.1", b"POST /api/chat/send HTTP/1.2",
        b"POST /api/chat/send HTTP/1.1 x", b"POST /api/chat/send http/1.1", b"POST api/chat/send HTTP/1.1",
        b" POST /api/chat/send HTTP/1.1", b"POST /api/chat/send\0 HTTP/1.1",
        b"POST /api/chat/send\r HTTP/1.1", b"POST\x0b/api/chat/send HTTP/1.1",
        b"POST /api/chat/send/ HTTP/1.1", b"POST //api/chat/send HTTP/1.1", b"POST /api//chat/send HTTP/1.1",
        b"POST /./api/chat/send HTTP/1.1", b"POST /x/../api/chat/send HTTP/1.1",
        b"POST /API/chat/send HTTP/1.1", b"POST /api/chat/send;x HTTP/1.1",
        b"POST /api/chat/send%00 HTTP/1.1", b"POST /api/chat/send%20 HTTP/1.1",
        b"POST /api/chat/send%0d%0aX:%20y HTTP/1.1", b"POST \\api\\chat\\send HTTP/1.1",
        b"POST /api%252fchat/send HTTP/1.1", b"POST * HTTP/1.1", b"CONNECT h:80 HTTP/1.1", b"PRI * HTTP/2.0",
        b"GET", b"TRACE /api/chat/send HTTP/1.1", b"PUT /api/chat/send HTTP/1.1", b"\x16\x03\x01\x02",
        b"POST / api/chat/send HTTP/1.1",
    ):  # fmt: skip
        yield f"{line!r}", partial(hand.post, _CLOSE, line)
    # Addresses that the token's scopes do not open, in the words of proxies that rewrite.
    for header in (
        b"X-Original-URL",
        b"X-Rewrite-URL",
        b"X-Forwarded-Path",
        b"X-Original-URI",
        b"X-Forwarded-Prefix",
    ):
        words = header + b": /health\r\nX-HTTP-Method-Override: GET\r\nX-Method-Override: GET\r\n" + _CLOSE
        yield f"{header.decode()}", partial(hand.post, words, b"POST /nowhere HTTP/1.1")
    for path in (
        b"/ws/stats", b"/api%2fadmin/connections", b"/api/%61dmin/connections", b"/ws%2fstats",
        b"/health/detaile%64", b"/api/chat/../admin/connections", b"/api/chat/%2e%2e/admin/connections",
        b"/api/admin/connections#/api/chat/", b"/api/chat/sessions/..%2f..%2fadmin%2fconnections/messages",
        b"http://h/api/admin/connections", b"/ws/stats?x=/livez",
    ):  # fmt: skip
        line = b"GET " + path + b" HTTP/1.1"
        yield f"{line!r} without the scope", partial(hand.head, _CLOSE, line)


def _odd_bytes(hand: _Hand) -> Iterator[Case]:
    """Line ends that are none, and bytes that have no place in a head."""
    blue = hand.siege.blue.encode()
    yield "LF everywhere", lambda: hand.post(_CLOSE).replace(b"\r\n", b"\n")
    yield "CR everywhere", lambda: hand.post(_CLOSE).replace(b"\r\n", b"\r")
    yield "LF CR everywhere", lambda: hand.post(_CLOSE).replace(b"\r\n", b"\n\r")
    for name, line in (
        ("LF in a value", b"X-A: b\nX-Tenant-ID: " + blue + b"\r\n"),
        ("CR in a value", b"X-A: b\rX-Tenant-ID: " + blue + b"\r\n"),
        ("NUL in a value", b"X-A: b\0c\r\n"),
        ("NUL in a name", b"X\0A: b\r\n"),
        ("VT in a name", b"X-Tenant-ID\x0b: " + blue + b"\r\n"),
        ("BEL in a value", b"X-A: \x07\r\n"),
        ("DEL in a name", b"X\x7f: b\r\n"),
        ("no colon", b"Rubbish\r\n"),
        ("no name", b": b\r\n"),
        ("an empty line", b"\r\n"),
        ("two hosts", b"Host: " + blue + b"\r\n"),
    ):
        yield name, partial(hand.post, line + _CLOSE)


def _behind(hand: _Hand) -> Iterator[Case]:
    """Requests and frames behind an upgrade, which ends the HTTP of a connection whatever becomes of it."""
    bad = b"Authorization: Bearer " + hand.bad + b"\r\n"

    def speak() -> bytes:
        return frame(json.dumps({"type": "chat", "ref": 1, "agent_id": "a", "message": hand.siege.message()}))

    yield "a request behind a refused socket", lambda: hand.socket(bad) + hand.post(_CLOSE)
    yield "frames behind a refused socket", lambda: hand.socket(bad) + speak()
    yield (
        "a request inside a refused one",
        lambda: hand.socket(bad + b"Content-Length: 900\r\n") + hand.post(_CLOSE),
    )
    yield (
        "a request behind a version",
        lambda: hand.socket(hand.auth).replace(b"Version: 13", b"Version: 12") + hand.post(_CLOSE),
    )
    yield (
        "a request behind a key",
        lambda: hand.socket(hand.auth).replace(b"AAAA==", b"A==") + hand.post(_CLOSE),
    )
    yield (
        "a request behind a POST",
        lambda: hand.post(b"Upgrade: websocket\r\nConnection: Upgrade\r\n") + hand.post(_CLOSE),
    )
    yield (
        "an upgrade behind a request",
        lambda: hand.head(line=b"GET /ws/stats HTTP/1.1") + hand.socket(hand.auth),
    )
    yield "an upgrade to h2c", partial(hand.head, _H2C)
    yield "a socket of another host", lambda: hand.socket(hand.auth + b"Host: blue\r\n")
    yield "a socket at an absolute address", lambda: hand.socket(hand.auth, "http://h/ws/smuggled")


def _trailers(hand: _Hand) -> Iterator[Case]:
    """Headers behind the body, which nobody may take for headers of the request (RFC 9110, 6.5.1)."""
    body = hand.own_body

    def trailed(trailer: bytes, auth: bytes | None) -> Make:
        return lambda: (
            hand.head(_CHUNKED, auth=auth) + b"%x\r\n%b\r\n0\r\n%b\r\n" % (len(body), body, trailer)
        )

    yield "the token in a trailer", trailed(hand.auth, b"")
    yield (
        "the token in a trailer, behind a forged one",
        trailed(hand.auth, b"Authorization: Bearer " + hand.bad + b"\r\n"),
    )
    empty = (
        hand.head(_CHUNKED, b"GET /api/chat/sessions/s/messages HTTP/1.1", b"")
        + b"0\r\n"
        + hand.auth
        + b"\r\n"
    )
    yield "the token in a trailer of a GET", lambda: empty


def _fair(hand: _Hand) -> Iterator[Case]:
    """What some servers refuse and others take: if it is taken, then as red's own and once."""
    red, blue, body = hand.siege.red.encode(), hand.siege.blue.encode(), hand.own_body
    for line in (
        b"POST http://blue.example/api/chat/send HTTP/1.1",
        b"POST http://" + blue + b"/api/chat/send HTTP/1.1", b"POST /api/chat/%73end HTTP/1.1",
        b"POST  /api/chat/send HTTP/1.1", b"POST /api/chat/send  HTTP/1.1", b"POST /api/chat/send HTTP/2.0",
        b"POST /api/chat/send", b"POST /api/chat/send#/ws HTTP/1.1", b"\r\nPOST /api/chat/send HTTP/1.1",
        b"POST /api/chat/send?X-Tenant-ID=" + blue + b" HTTP/1.1",
    ):  # fmt: skip
        yield f"{line[:60]!r}", partial(hand.post, _CLOSE, line, body=body)
    for headers in (
        b"Transfer_Encoding: chunked\r\n", b"X_Tenant_ID: " + blue + b"\r\n",
        b"X-Tenant_ID: " + blue + b"\r\n", b"HTTP_X_TENANT_ID: " + blue + b"\r\n",
        b"Tenant-ID: " + blue + b"\r\n", b"X-Tenant-Id: " + red + b"\r\n",
        b"Forwarded: for=127.0.0.1;host=blue\r\n", b"X-Forwarded-Host: blue\r\n",
        b"Connection: X-Session-ID\r\n",
    ):  # fmt: skip
        yield f"{headers[:40]!r}", partial(hand.post, headers, body=body)

    def chunks(form: bytes) -> Make:
        return lambda: hand.head(_CHUNKED + _CLOSE) + form % (len(body), body)

    yield "a chunk with an extension", chunks(b'%x;a="b;c"\r\n%b\r\n0\r\n\r\n')
    yield "a chunk with zeros", chunks(b"00000%x\r\n%b\r\n0\r\n\r\n")
    yield "a tenant in a trailer", chunks(b"%x\r\n%b\r\n0\r\nX-Tenant-ID: " + blue + b"\r\n\r\n")
    yield (
        "a user in a trailer",
        chunks(b"%x\r\n%b\r\n0\r\nX-User-ID: " + hand.siege.ann.encode() + b"\r\n\r\n"),
    )
    yield "two sends", lambda: hand.post(body=body) + hand.post(_CLOSE, body=body)
    yield (
        "a send behind an empty one",
        lambda: hand.head(b"Content-Length: 0\r\n") + hand.post(_CLOSE, body=body),
    )
    yield "a body cut short", lambda: hand.head(b"Content-Length: 900\r\n") + b'{"message": '
