"""The opening handshake against the websockets library's client, against the RFC, and against bad input."""

from __future__ import annotations

import traceback

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.client import ClientProtocol
from websockets.http11 import Response
from websockets.protocol import State
from websockets.typing import Subprotocol
from websockets.uri import parse_uri

from gateway.handshake import HandshakeError, UpgradeRequest, accept_response, parse, refuse_response

KEY = "dGhlIHNhbXBsZSBub25jZQ=="  # the RFC's own example, and what it must be answered with
ACCEPT = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="

HEADERS = {
    "host": "gateway.test",
    "upgrade": "websocket",
    "connection": "keep-alive, Upgrade",
    "sec-websocket-version": "13",
    "sec-websocket-key": KEY,
}


def request(
    target: str = "/ws/s-1",
    *extra: tuple[str, str],
    line: str | None = None,
    **changed: str | None,
) -> bytes:
    """A request head as uvicorn writes it; ``changed`` replaces a header, or leaves it out with None."""
    changes = {name.replace("_", "-"): value for name, value in changed.items()}
    headers = [*(HEADERS | changes).items(), *extra]
    lines = [
        line or f"GET {target} HTTP/1.1",
        *(f"{name}: {value}" for name, value in headers if value is not None),
    ]
    return "\r\n".join((*lines, "", "")).encode("latin-1")


def refusal(data: bytes) -> HandshakeError:
    with pytest.raises(HandshakeError) as caught:
        parse(data)
    return caught.value


def client_hears(client: ClientProtocol, data: bytes) -> Response:
    client.receive_data(data)
    client.receive_eof()
    [response] = client.events_received()
    assert isinstance(response, Response)
    return response


def asking_client() -> tuple[ClientProtocol, UpgradeRequest]:
    """The library's client, and its request as it arrives here."""
    client = ClientProtocol(
        parse_uri("ws://gateway.test/ws/s-1?token=a.b.c"), subprotocols=[Subprotocol("v1"), Subprotocol("v2")]
    )
    client.send_request(client.connect())
    return client, parse(b"".join(client.data_to_send()))


def test_request_is_read() -> None:
    """Everything that the endpoint decides by arrives decoded, under lower-case names."""
    parsed = parse(
        request(
            "/ws/s%2D1%2Fx?tenant_id=acme&user_id=a%2Bb%40c&name=gr%C3%BC%C3%9F+dich&stream&cursor=e:4&&x=?=",
            ("Authorization", "Bearer t"),
            ("X-Forwarded-For", "1.1.1.1"),
            ("x-forwarded-for", " 2.2.2.2\t"),
            ("Sec-WebSocket-Protocol", "orchestrator.v1, ,bearer.a-b_c"),
            ("sec-websocket-protocol", "third"),
        )
    )

    assert parsed.path == "/ws/s-1/x"
    assert parsed.raw_path == "/ws/s%2D1%2Fx"
    assert parsed.query == {
        "tenant_id": "acme",
        "user_id": "a+b@c",
        "name": "grüß dich",
        "stream": "",
        "cursor": "e:4",
        "x": "?=",
    }
    assert parsed.headers["authorization"] == "Bearer t"
    assert parsed.headers["x-forwarded-for"] == "1.1.1.1, 2.2.2.2"
    assert parsed.subprotocols == ("orchestrator.v1", "bearer.a-b_c", "third")
    assert parsed.key == KEY


def test_request_without_extras_is_read() -> None:
    """What is optional may be left out."""
    parsed = parse(request("/"))

    assert (parsed.path, parsed.query, parsed.subprotocols) == ("/", {}, ())
    assert parsed.headers == HEADERS


def test_repr_hides_what_may_be_a_token() -> None:
    """A request that ends in a log line does not take a credential with it."""
    shown = repr(
        parse(
            request(
                "/ws/s?token=SECRET",
                ("authorization", "Bearer SECRET"),
                ("sec-websocket-protocol", "bearer.SECRET"),
            )
        )
    )

    assert "/ws/s" in shown
    assert "SECRET" not in shown


@pytest.mark.parametrize(
    ("data", "says"),
    [
        pytest.param(b"", "head", id="empty"),
        pytest.param(request()[:-2], "head", id="no empty line"),
        pytest.param(request() + b"\x81\x80", "nothing after", id="data before the answer"),
        pytest.param(request(line="GET /"), "request line", id="no version"),
        pytest.param(request(line="GET / HTTP/1.0"), "request line", id="HTTP/1.0"),
        pytest.param(request(line="GET / x HTTP/1.1"), "request line", id="space in the target"),
        pytest.param(request("http://gateway.test/"), "slash", id="absolute form"),
        pytest.param(request("*"), "slash", id="asterisk form"),
        pytest.param(request("/ws#top"), "visible ASCII", id="fragment"),
        pytest.param(request("/wß"), "visible ASCII", id="raw non-ASCII target"),
        pytest.param(request("/w\x00"), "visible ASCII", id="raw control character in the target"),
        pytest.param(request("/w%4"), "the path has a %", id="half an escape in the path"),
        pytest.param(request("/w%zz"), "the path has a %", id="no escape in the path"),
        pytest.param(request("/w%ff"), "the path is not UTF-8", id="path not UTF-8"),
        pytest.param(request("/w%0d%0a"), "the path has a control", id="line break in the path"),
        pytest.param(request("/w%00"), "the path has a control", id="NUL in the path"),
        pytest.param(request("/w%c2%85"), "the path has a control", id="C1 control in the path"),
        pytest.param(request("/?a=%"), "the query has a %", id="half an escape in the query"),
        pytest.param(request("/?a=%C3"), "the query is not UTF-8", id="query not UTF-8"),
        pytest.param(request("/?a%7F=1"), "the query has a control", id="DEL in the query"),
        pytest.param(request("/?a=1&a=1"), "twice", id="parameter twice"),
        pytest.param(request("/?a=1&%61=2"), "twice", id="parameter twice, once escaped"),
        pytest.param(request("/", ("no colon", "x")), "malformed", id="space in a header name"),
        pytest.param(request("/", ("näme", "x")), "malformed", id="non-ASCII header name"),
        pytest.param(request("/", ("", "x")), "malformed", id="empty header name"),
        pytest.param(request("/", ("a", "b\r\n folded")), "malformed", id="folded header"),
        pytest.param(request("/", ("a", "b\nhost: evil")), "malformed", id="bare line feed"),
        pytest.param(request("/", ("a", "b\x00")), "malformed", id="NUL in a header"),
        pytest.param(request("/", ("host", "other")), "host is given twice", id="two hosts"),
        pytest.param(
            request("/", ("Authorization", "a"), ("authorization", "a")),
            "authorization is given twice",
            id="two authorizations",
        ),
        pytest.param(request("/", ("Sec-WebSocket-Key", KEY)), "key is given twice", id="two keys"),
        pytest.param(request(host=None), "host is missing", id="no host"),
        pytest.param(request(upgrade="h2c"), "upgrade must say websocket", id="other upgrade"),
        pytest.param(request(connection="close"), "connection must say upgrade", id="no upgrade"),
        pytest.param(request(sec_websocket_key=None), "16 bytes", id="no key"),
        pytest.param(request(sec_websocket_key="dGhlIHNhbXBsZSBub25jZQ"), "16 bytes", id="unpadded key"),
        pytest.param(request(sec_websocket_key="c2hvcnQ="), "16 bytes", id="short key"),
        pytest.param(request(sec_websocket_key=KEY[:-4] + "ZZZZ"), "16 bytes", id="18-byte key"),
        pytest.param(request(sec_websocket_key="-" + KEY[1:]), "16 bytes", id="key not base64"),
        pytest.param(request("/", ("sec-websocket-protocol", "a b")), "tokens", id="bad subprotocol"),
    ],
)
def test_bad_request(data: bytes, says: str) -> None:
    """What is malformed, or can be read in two ways, is refused with a detail that says what is wrong."""
    error = refusal(data)

    assert (error.status, error.error_code, error.headers) == (400, "bad_request", ())
    assert says in error.detail


@pytest.mark.parametrize("method", ["POST", "HEAD", "get", "OPTIONS"])
def test_other_method(method: str) -> None:
    """A method other than GET is told which one to use."""
    error = refusal(request(line=f"{method} /ws HTTP/1.1"))

    assert (error.status, error.error_code, error.headers) == (405, "method_not_allowed", (("Allow", "GET"),))


@pytest.mark.parametrize("version", [None, "8", "13, 8", "013"])
def test_other_version(version: str | None) -> None:
    """A client of another version of the protocol is told which one is spoken (section 4.4)."""
    error = refusal(request(sec_websocket_version=version))

    assert (error.status, error.error_code) == (426, "unsupported_version")
    assert ("Sec-WebSocket-Version", "13") in error.headers


@pytest.mark.parametrize(
    "data",
    [
        request("/?token=S3CRET&token=S3CRET"),
        request("/?token=S3CRET%"),
        request("/?token=S3CRET%ff"),
        request("/", ("sec-websocket-protocol", "bearer.S3CRET=")),
        request("/", ("authorization", "S3CRET"), ("authorization", "S3CRET")),
    ],
)
def test_refusal_repeats_no_value(data: bytes) -> None:
    """Neither the answer nor a logged traceback shows a token that came in a bad request."""
    error = refusal(data)

    assert "S3CRET" not in error.detail
    assert "S3CRET" not in "".join(traceback.format_exception(error))


@settings(deadline=None)
@given(
    st.one_of(
        st.binary(max_size=200),
        st.binary(max_size=30).map(lambda part: request().replace(b"s-1", part)),
        st.binary(max_size=30).map(lambda part: request().replace(b"gateway.test", part)),
        st.binary(max_size=30).map(lambda part: request().replace(b"host", part)),
    )
)
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    """Nothing but a refusal comes out of bad input, and no control character out of accepted input."""
    try:
        parsed = parse(data)
    except HandshakeError:
        return
    values = [parsed.path, *parsed.query, *parsed.query.values(), *parsed.headers.values()]
    assert not any(set(value) & {"\r", "\n", "\0"} for value in values)


def test_client_accepts_the_upgrade() -> None:
    """A real client takes the 101, its accept key, its subprotocol and the extra headers."""
    client, parsed = asking_client()
    response = client_hears(client, accept_response(parsed, "v2", [("X-Pod", "p1")]))

    assert parsed.query == {"token": "a.b.c"}
    assert parsed.subprotocols == ("v1", "v2")
    assert client.handshake_exc is None
    assert client.state is not State.CONNECTING
    assert client.subprotocol == "v2"
    assert response.headers["X-Pod"] == "p1"


def test_accept_response_is_exactly_the_rfc_example() -> None:
    """The answer has what section 4.2.2 asks for, and no subprotocol when none is chosen."""
    assert accept_response(parse(request()), None) == (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + ACCEPT.encode() + b"\r\n\r\n"
    )


def test_subprotocol_that_was_not_offered() -> None:
    """A client would fail the connection, so the mistake is found on this side."""
    with pytest.raises(ValueError, match="offer"):
        accept_response(parse(request()), "v1")


def test_client_reads_the_refusal() -> None:
    """A client gets status, headers and the whole body, and knows that the connection ends."""
    client, _ = asking_client()
    response = client_hears(client, refuse_response(503, [("Retry-After", "7")], b'{"title": "full"}'))

    assert (response.status_code, response.reason_phrase) == (503, "Service Unavailable")
    assert response.body == b'{"title": "full"}'
    assert dict(response.headers.raw_items()) == {
        "Retry-After": "7",
        "Content-Type": "application/problem+json",
        "Content-Length": "17",
        "Connection": "close",
    }


@pytest.mark.parametrize(
    ("name", "value"),
    [("X-A", "b\r\nSet-Cookie: c"), ("X-A", "b\n"), ("X-A", "\r"), ("X-A", "\x00"), ("X A", "b"), ("", "b")],
)
def test_header_that_cannot_be_sent(name: str, value: str) -> None:
    """No value can smuggle a second header or a body into an answer."""
    with pytest.raises(ValueError, match="cannot be sent"):
        refuse_response(400, [(name, value)], b"")
    with pytest.raises(ValueError, match="cannot be sent"):
        accept_response(parse(request()), None, [(name, value)])


def test_content_type_that_cannot_be_sent() -> None:
    """The content type is a header like the others."""
    with pytest.raises(ValueError, match="cannot be sent"):
        refuse_response(400, [], b"", content_type="text/plain\r\n\r\n")
