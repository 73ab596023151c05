"""A real pod and hundreds of clients that break RFC 6455: each gets its close code, nobody else suffers.

The inputs are a table's rows, varied at random from a fixed seed: what was said before, masks, payloads, what
follows, and where the bytes are cut.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import redis
import uvloop
from websockets.sync.client import ClientConnection

from backplane.settings import Settings
from tests.support.accounting import callback
from tests.support.processes import Cluster, Pod, get, wait_for
from tests.support.rfc6455 import (
    BINARY,
    CLOSE,
    CONTINUATION,
    FIN,
    PING,
    PONG,
    TEXT,
    Outcome,
    close,
    connect,
    fragments,
    frame,
    read_all,
    read_bytes,
    request,
    send,
    server_frames,
    upgrade,
)
from tests.support.talk import open_socket, receive, receive_logged

SEED = 6455
EACH = 20
AT_ONCE = 16
LIMITS = Settings()  # the defaults, which the pod has as well
NO_CLOSE = None
"""The connection ends without the server's Close: nobody is there to read it."""

INVALID_UTF8 = (b"\xff", b"\x80", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe2\x82", b"ok\xce")
NOT_CODES = (0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65535)
STRANGERS = (
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
    b"SSH-2.0-OpenSSH_9.6\r\n",
    b"*1\r\n$4\r\nPING\r\n",
    b'{"type": "ping"}\n',
    bytes(64),
    b"\xff" * 64,
)

Random = random.Random


@dataclass(frozen=True, slots=True)
class Bad:
    """What a client sends once its socket is open.

    Attributes:
        sent: its bytes.
        codes: the codes with which the server may close; `NO_CLOSE` stands for none.
        hangs_up: at the end the client ends its side of the connection.
    """

    sent: bytes
    codes: tuple[int | None, ...] = (1002,)
    hangs_up: bool = False


def _bytes(rng: Random, most: int = 60) -> bytes:
    return rng.randbytes(rng.randint(1, most))


def _frame(
    rng: Random, opcode: int, payload: bytes = b"", *, rsv: int = 0, fin: bool = True, form: int | None = None
) -> bytes:
    return frame(opcode, payload, rsv=rsv, fin=fin, form=form, mask=rng.randbytes(4))


def lone_continuation(rng: Random) -> Bad:
    """Nothing is there to be continued."""
    return Bad(_frame(rng, CONTINUATION, _bytes(rng), fin=rng.random() < 0.5))


def not_masked(rng: Random) -> Bad:
    """A frame like a server's."""
    opcode = rng.choice((TEXT, BINARY, CLOSE, PING, PONG))
    return Bad(frame(opcode, b"\x03\xe8", mask=None))


def reserved_bits(rng: Random) -> Bad:
    """As with an extension that was not agreed."""
    opcode = rng.choice((TEXT, BINARY, CLOSE, PING, PONG, CONTINUATION))
    return Bad(_frame(rng, opcode, b"\x03\xe8", rsv=rng.randint(1, 7)))


def reserved_opcode(rng: Random) -> Bad:
    """3 to 7 and 11 to 15."""
    return Bad(_frame(rng, rng.choice((3, 4, 5, 6, 7, 11, 12, 13, 14, 15)), _bytes(rng)))


def control_too_long(rng: Random) -> Bad:
    """126 bytes or more, or a length that says so."""
    payload = b"\x03\xe8" + bytes(rng.choice((124, 125, 998, 65534)))
    return Bad(_frame(rng, rng.choice((CLOSE, PING, PONG)), payload))


def control_in_fragments(rng: Random) -> Bad:
    """By itself or amid a message."""
    amid = rng.choice((b"", _frame(rng, TEXT, b"a", fin=False)))
    control = _frame(rng, rng.choice((CLOSE, PING, PONG)), b"\x03\xe8", fin=False)
    return Bad(amid + control + _frame(rng, CONTINUATION, b"rest"))


def interleaved(rng: Random) -> Bad:
    """A message begins in another."""
    first, second = rng.choices((TEXT, BINARY), k=2)
    fin = rng.random() < 0.5
    return Bad(_frame(rng, first, b"a", fin=False) + _frame(rng, second, b"b", fin=fin))


def invalid_utf8(rng: Random) -> Bad:
    """A text, a text in fragments, or a Close's reason."""
    bad = rng.choice(INVALID_UTF8)
    sent = rng.choice(
        (
            _frame(rng, TEXT, bad),
            b"".join(fragments(TEXT, [b"ok", *(bytes((byte,)) for byte in bad)])),
            close(1000, bad),
        )
    )
    return Bad(sent, (1007,))


def top_bit(rng: Random) -> Bad:
    """A length that no implementation could have."""
    length = 1 << 63 | rng.getrandbits(rng.choice((0, 8, 63)))
    return Bad(frame(rng.choice((TEXT, BINARY)), _bytes(rng), announced=length))


def long_form(rng: Random) -> Bad:
    """A length in more bytes than it needs."""
    form, size = rng.choice(((2, 0), (2, 125), (8, 0), (8, 125), (8, 126), (8, 65535)))
    return Bad(_frame(rng, rng.choice((TEXT, BINARY)), bytes(size), form=form))


def beyond_limits(rng: Random) -> Bad:
    """A message too large even to be skipped."""
    opcode, size = rng.choice((TEXT, BINARY)), rng.choice((LIMITS.skip_max_bytes + 1, 1 << 32, (1 << 63) - 1))
    amid = rng.choice((b"", _frame(rng, opcode, b"a", fin=False)))
    return Bad(amid + frame(CONTINUATION if amid else opcode, _bytes(rng), announced=size), (4505,))


def too_many_binary(rng: Random) -> Bad:
    """A client that does not listen to what it is told."""
    many = [_frame(rng, BINARY, _bytes(rng)) for _ in range(LIMITS.bad_frames_max)]
    answer = rng.choice((b"", close(1000)))  # without it the server waits five seconds for one
    return Bad(b"".join(many) + answer, (4505,))


def wrong_close(rng: Random) -> Bad:
    """A code that must not be sent, or half a code."""
    reason = rng.choice((b"", b"why"))
    return Bad(rng.choice((frame(CLOSE, b"\x03"), close(rng.choice(NOT_CODES), reason))))


def garbage(rng: Random) -> Bad:
    """Another protocol, or random bytes that cannot begin a frame."""
    first = bytes((rng.choice((0x00, 0x08, 0x10, 0x47, 0x7F, 0x83, 0x90, 0xC1, 0xFF)),))
    return Bad(rng.choice((*STRANGERS, first + b"\x80" + rng.randbytes(300))))


def noise(rng: Random) -> Bad:
    """Random bytes, which may begin a frame; then the client hangs up."""
    return Bad(rng.randbytes(rng.randint(1, 300)), (1002, 1007, 4505, NO_CLOSE), hangs_up=True)


def half_a_frame(rng: Random) -> Bad:
    """The client hangs up amid a frame or amid a message."""
    opcode, payload = rng.choice((TEXT, BINARY, CLOSE, PING)), b"\x03\xe8" + b"x" * rng.choice((0, 60, 120))
    whole = _frame(rng, opcode, payload)
    part = whole[: rng.randint(1, len(whole) - 1)]
    begun = _frame(rng, TEXT, payload[2:], fin=False)
    return Bad(rng.choice((part, part, begun)), (NO_CLOSE,), hangs_up=True)


KINDS: tuple[Callable[[Random], Bad], ...] = (
    *(lone_continuation, not_masked, reserved_bits, reserved_opcode, control_too_long, control_in_fragments),
    *(interleaved, invalid_utf8, top_bit, long_form, beyond_limits, too_many_binary, wrong_close),
    *(garbage, noise, half_a_frame),
)


def _cut(rng: Random, data: bytes) -> Iterator[bytes]:
    """Cut bytes at up to four places."""
    ends = sorted(rng.randint(0, len(data)) for _ in range(rng.randint(0, 4)))
    for start, end in zip([0, *ends], [*ends, len(data)], strict=True):
        if start < end:
            yield data[start:end]


async def misbehave(port: int, path: str, bad: Bad, rng: Random) -> str | None:
    """Open a socket, be good, be bad, and read to the end; returns what was wrong with the answers."""
    token = rng.randbytes(8)
    good = rng.choice((b"", _frame(rng, PONG, token), _frame(rng, TEXT, b"{}"))) + _frame(rng, PING, token)
    after = b"" if bad.hangs_up else rng.choice((b"", _frame(rng, PING, b"too late"), _bytes(rng)))
    with await connect(port) as plain:
        reading = asyncio.create_task(read_all(plain, await upgrade(plain, path)))
        await send(plain, _cut(rng, good + bad.sent + after))
        if bad.hangs_up:
            with contextlib.suppress(OSError):  # the server has reset it
                plain.shutdown(socket.SHUT_WR)
        outcome = await reading
    return _fault(outcome, bad, token)


def _fault(outcome: Outcome, bad: Bad, token: bytes) -> str | None:
    if outcome.end not in ("eof", "reset"):
        return outcome.end
    if outcome.close_code not in bad.codes:
        return f"closed with {outcome.close_code}, not {bad.codes}; sent {bad.sent[:40]!r}"
    if (FIN | PONG, token) not in outcome.frames:
        return "what was right before the mistake was not answered"
    if (FIN | PONG, b"too late") in outcome.frames:
        return "what came after the mistake was answered"
    return None


async def try_all(kind: Callable[[Random], Bad], port: int) -> list[str]:
    """Have many clients make one kind of mistake; returns the faults."""
    turns = asyncio.Semaphore(AT_ONCE)

    async def one(number: int) -> str | None:
        rng = Random(f"{SEED}:{kind.__name__}:{number}")
        path = f"/ws/{kind.__name__}-{number}?tenant_id=acme&tenant_tier=free"
        async with turns:
            fault = await misbehave(port, path, kind(rng), rng)
        return fault and f"{kind.__name__} {number}: {fault}"

    return list(filter(None, await asyncio.gather(*map(one, range(EACH)))))


async def speak_early(number: int, port: int) -> str:
    """Send a ping before the answer to the upgrade, which a client must await (RFC 6455, 4.1).

    Returns:
        What came of it: the answer's status, and the close code if the socket was opened all the same.
    """
    head, early = request(f"/ws/early-{number}?tenant_id=acme&tenant_tier=free"), frame(PING, b"early")
    pieces = ([head + early], [head + early[:3], early[3:]], [head, early], [early + head])[number % 4]
    with await connect(port) as plain:
        reading = asyncio.create_task(read_bytes(plain))
        await send(plain, pieces)
        await asyncio.sleep(0.1)
        await send(plain, [close(1000)])
        came, end = await reading
    if end not in ("eof", "reset"):
        return end
    answer, _, rest = came.partition(b"\r\n\r\n")
    status = answer[9:12].decode() or "none"
    return f"{status}, {Outcome([*server_frames(rest)], end).close_code}" if status == "101" else status


def check_well_behaved(well_behaved: ClientConnection, ref: str) -> None:
    """A socket from before gets its ping frame and its ping message answered."""
    assert well_behaved.ping().wait(5)
    well_behaved.send(json.dumps({"type": "ping", "ref": ref}))
    while (message := receive(well_behaved))["type"] != "pong":
        assert message["type"] == "ping"
    assert message["data"]["ref"] == ref


def check_unharmed(pod: Pod, pid: int) -> None:
    """The process is the same, its log tells of no mistake of its own, and the bad sockets are gone."""
    assert pod.popen is not None
    assert pod.popen.poll() is None
    assert pod.pid == pid
    assert "Traceback" not in pod.output
    assert {json.loads(line)["level"] for line in pod.output.splitlines()} <= {"info", "warning"}
    wait_for(lambda: get(f"{pod.url}/ws/stats")[1]["connections"] == 1, "only the good socket is left")


def test_each_malformed_input_ends_its_own_socket_only(cluster: Cluster, aes: redis.Redis) -> None:
    """Sixteen kinds of mistakes, twenty clients each: the right close code, and the others do not notice."""
    pod = cluster.pods[0]
    pid, tried, faults = pod.pid, Counter[str](), []
    with open_socket(pod, "well-behaved") as well_behaved:
        receive(well_behaved)
        for kind in KINDS:
            faults += uvloop.run(try_all(kind, pod.port))
            tried[kind.__name__] += EACH
            check_well_behaved(well_behaved, kind.__name__)
        aes.lpush("orchestrator:acme:callbacks", callback("acme", "well-behaved", "after-all"))
        assert receive_logged(well_behaved, 1)[0]["task_id"] == "after-all"
        of = tried.total()
        print(f"\n{dict(tried)}\npassed={of - len(faults)} of={of}")
        check_unharmed(pod, pid)
    assert not faults, "\n".join(faults)
    assert of >= 200


def test_frames_before_the_answer_harm_nobody(cluster: Cluster) -> None:
    """What is sent before the answer ends the connection, or comes after it; never is half of it lost."""
    pod = cluster.pods[0]
    pid = pod.pid

    async def all_at_once() -> list[str]:
        return await asyncio.gather(*(speak_early(number, pod.port) for number in range(EACH)))

    with open_socket(pod, "well-behaved") as well_behaved:
        receive(well_behaved)
        came = Counter(uvloop.run(all_at_once()))
        check_well_behaved(well_behaved, "early")
        check_unharmed(pod, pid)
    print(f"\n{dict(came)} of={EACH}")
    assert came.keys() <= {"none", "400", "101, 1000"}
    assert came["400"] >= EACH // 2
