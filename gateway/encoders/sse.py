"""Server-Sent Events, server side: [P] values in, bytes out.

Source: https://html.spec.whatwg.org/multipage/server-sent-events.html, section 9.2.6. Lines end in LF alone,
and what JSON needs is on one line: `@ag-ui/client` 1.0.0 looks for LF LF and nothing else.
"""

from __future__ import annotations

_LINE_ENDS = ("\r", "\n", "\0")


def event(data: bytes, *, event_id: str | None = None, name: str | None = None) -> bytes:
    """One event.

    Args:
        data: UTF-8; line ends in it become lines of their own, and come out as LF.
        event_id: what the client sends back as ``Last-Event-ID``; without it the client keeps the last one.
        name: the type; without it ``message``.

    Raises:
        ValueError: ``event_id`` or ``name`` has a line end or NUL, which would end the field or void it.
    """
    lines = []
    for field, value in (("event", name), ("id", event_id)):
        if value is None:
            continue
        if any(sign in value for sign in _LINE_ENDS):
            raise ValueError(f"{field} must be one line without NUL")
        lines.append(f"{field}: {value}\n".encode())
    if b"\r" in data:
        data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    return b"%bdata: %b\n\n" % (b"".join(lines), data.replace(b"\n", b"\ndata: "))


def comment(text: str = "") -> bytes:
    """A line that clients skip: it keeps a connection from looking dead.

    Raises:
        ValueError: ``text`` has a line end.
    """
    if any(sign in text for sign in _LINE_ENDS):
        raise ValueError("a comment must be one line")
    return f": {text}\n\n".encode()
