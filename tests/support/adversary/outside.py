"""Classes of those who are let in or kept out by where they come from: web pages, and client addresses."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence

from tests.support.adversary.camp import HANDSHAKES, SOCKETS
from tests.support.adversary.doors import events_of
from tests.support.adversary.siege import Siege
from tests.support.adversary.tally import Act, Attempt
from tests.support.adversary.wire import Answer, Line, ask, bearer, dial, granted, knock, upgrade
from tests.support.processes import Pod

_STRANGER = "127.0.0.2"  # a peer that is no trusted proxy


async def origins(siege: Siege) -> None:
    """Pages that are not listed, with right tokens: no socket, and no leave to read answers."""
    token = siege.mint.token(siege.as_mallory())
    tries = []
    for origin in _strangers(siege):
        for headers in ([("Origin", origin)], [("Origin", origin), ("Sec-Fetch-Site", "cross-site")]):
            tries += [
                Attempt(f"a socket from {origin!r} {len(headers)}", _socket(siege, token, headers)),
                Attempt(f"a page at {origin!r} asks first {len(headers)}", _preflight(siege, headers)),
                Attempt(f"a page at {origin!r} reads {len(headers)}", _reading(siege, token, headers)),
                Attempt(f"a page at {origin!r} listens {len(headers)}", _listening(siege, token, headers)),
            ]
    for two in (
        [("Origin", "https://app.example.com"), ("Origin", "https://evil.example")],
        [("Origin", "https://evil.example"), ("Origin", "https://app.example.com")],
        [("Origin", "https://app.example.com, https://evil.example")],
        [("Sec-WebSocket-Origin", "https://app.example.com"), ("Origin", "https://evil.example")],
        [("Referer", "https://app.example.com/"), ("Origin", "https://evil.example")],
        [("X-Forwarded-Host", "evil.example"), ("Origin", "https://evil.example")],
    ):
        tries.append(Attempt(f"a socket from {two!r}", _socket(siege, token, two)))
    await siege.run(tries)


def _strangers(siege: Siege) -> Iterator[str]:
    yield from (
        "https://evil.example", "null", "http://app.example.com", "https://app.example.com.evil.example", "",
        "https://evilapp.example.com", "https://app.example.com:8443", "https://app.example.com.",
        "https://app.example.co", "https://app.example.com/", "https://app.example.com@evil.example",
        "https://app-example.com", "https://appXexample.com", "https://example.com", "https://example.org",
        "https://.example.org", "https://evilexample.org", "http://a.example.org",
        "https://a.example.org.evil.example", "https://a_b.example.org", "https://a.example.org:1",
        "https://*.example.org", "https://evil.example/.example.org", "https://evil.example#.example.org",
        "https://evil.example?.example.org", "https://evil.example\\.example.org", "file://",
        "chrome-extension://abcdef", "app.example.com", "//app.example.com", "https://", "https://[::1]",
        "http://localhost", "http://127.0.0.1", "http://gateway.test.evil.example", "data:",
        "https://\u0430pp.example.com", "https://app.example.com%00.evil.example", "https://127.0.0.1:1",
    )  # fmt: skip
    yield f"http://127.0.0.1:{siege.pods[0].port}"


def _socket(siege: Siege, token: str, headers: list[tuple[str, str]]) -> Act:
    return lambda: knock(siege.pod().port, "/ws/page", [*bearer(token), *headers])


def _preflight(siege: Siege, headers: list[tuple[str, str]]) -> Act:
    async def act() -> Answer:
        asks = [
            *headers,
            ("Access-Control-Request-Method", "POST"),
            ("Access-Control-Request-Headers", "authorization"),
        ]
        return _by_leave(await ask(siege.pod().port, "OPTIONS", "/api/chat/send", asks))

    return act


def _reading(siege: Siege, token: str, headers: list[tuple[str, str]]) -> Act:
    async def act() -> Answer:
        target = f"/api/chat/sessions/{siege.own}/messages"
        return _by_leave(await ask(siege.pod().port, "GET", target, [*bearer(token), *headers]))

    return act


def _listening(siege: Siege, token: str, headers: list[tuple[str, str]]) -> Act:
    async def act() -> Answer:
        target = f"{events_of(siege.own)}?token={token}"
        return _by_leave(await ask(siege.pod().port, "GET", target, headers))

    return act


def _by_leave(answer: Answer) -> Answer:
    """A browser shows the page an answer only if this header says so."""
    return answer._replace(accepted=b"access-control-allow-origin" in answer.received.lower())


# Client addresses.


async def addresses(siege: Siege) -> None:
    """Behind a load balancer, a client says what it likes of its address, and is counted by its own."""
    await asyncio.gather(*[_opens_fast(siege, pod, number) for number, pod in enumerate(siege.pods)])
    await asyncio.gather(*[_holds_many(siege, pod, number) for number, pod in enumerate(siege.pods)])
    await _accuses(siege)


def _spoofs(siege: Siege) -> Iterator[str]:
    """What a client writes into its own header, to which the load balancer adds the truth."""
    octet = siege.random.randrange
    while True:
        yield from (
            f"198.51.100.{octet(256)}, ", f"10.0.0.{octet(256)},",
            f"198.51.100.{octet(256)}, 198.51.100.{octet(256)}, ", "127.0.0.1, ", "unknown, ",
            "for=1.2.3.4, ", ", ", "\"198.51.100.1\", ", f"[2001:db8::{octet(9999)}]:80, ",
            "127.0.0.1, 127.0.0.1, ", "1.2.3.4\t,", f"2001:db8::{octet(9999)}, ", "x" * 500 + ", ",
            "1.1.1.1, " * 40,
        )  # fmt: skip


async def _opens_fast(siege: Siege, pod: Pod, number: int) -> None:
    """As many sockets as an address may open in a minute, and more: one of IPv4, and one of IPv6."""
    loop = asyncio.get_running_loop()
    four, six = f"203.0.113.{10 + number}", f"2001:db8:{number}::1"
    for real, also in ((four, f"::ffff:{four}"), (six, f"2001:DB8:{number}:0::2")):
        spoofs, began = _spoofs(siege), loop.time()
        for count in range(HANDSHAKES * 2):
            said = next(spoofs) + (real if count % 2 else also)
            answer = await (_knock if count % 3 else _listen)(siege, pod, [said])
            allowed = HANDSHAKES * (1 + (loop.time() - began) / 60)  # it is a bucket that is refilled
            siege.judge(f"handshake {count} of {said[-60:]}", answer, fair=count < allowed)
        siege.judge(f"two headers of {real}", await _knock(siege, pod, ["198.51.100.9", real]))


async def _knock(siege: Siege, pod: Pod, forwarded: Sequence[str], local: str | None = None) -> Answer:
    headers = [
        *bearer(siege.mint.token(siege.as_mallory())),
        *(("X-Forwarded-For", one) for one in forwarded),
    ]
    return await knock(pod.port, "/ws/counted", headers, local=local, quiet_s=0)


async def _listen(siege: Siege, pod: Pod, forwarded: Sequence[str]) -> Answer:
    """An event stream counts as a socket does."""
    headers = [
        *bearer(siege.mint.token(siege.as_mallory())),
        *(("X-Forwarded-For", one) for one in forwarded),
    ]
    return await ask(pod.port, "GET", events_of("counted"), headers)


async def _holds_many(siege: Siege, pod: Pod, number: int) -> None:
    """As many open sockets as an address may have on a pod, and more."""
    spoofs = _spoofs(siege)
    token, real = siege.mint.token(siege.as_mallory()), f"203.0.113.{100 + number}"
    lines: list[Line] = []
    for count in range(SOCKETS * 2):
        line = Line()
        await dial(pod.port, line)
        sent = upgrade("/ws/many", [*bearer(token), ("X-Forwarded-For", next(spoofs) + real)])
        line.write(sent)
        await line.until(lambda came: granted(came) or (b"\r\n\r\n" in came and b" 101 " not in came[:20]))
        siege.judge(
            f"socket {count} of {real}",
            Answer(granted(line.came), sent, bytes(line.came)),
            fair=count < SOCKETS,
        )
        lines.append(line)
    for line in lines:
        line.drop()


async def _accuses(siege: Siege) -> None:
    """A peer that is no load balancer says it is somebody's address: that one's count must not move."""
    pod, victim = siege.pods[0], "203.0.113.200"
    for count in range(HANDSHAKES + 6):
        siege.judge(f"accusation {count}", await _knock(siege, pod, [victim], _STRANGER), fair=True)
    answer = await _knock(siege, pod, [victim])
    siege.judge("the accused is shut out", answer._replace(accepted=not answer.accepted))
