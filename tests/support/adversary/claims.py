"""Classes of tokens signed rightly and say something wrong: times, audience, issuer, types, scopes."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

from tests.support.adversary import tokens
from tests.support.adversary.doors import DOORS, attempt, attempts
from tests.support.adversary.siege import ALL_SCOPES, Siege
from tests.support.adversary.tally import Attempt
from tests.support.adversary.tokens import Flaw
from tests.support.adversary.wire import Answer, bearer, talk

_LEEWAY_S = 2


async def expired(siege: Siege) -> None:
    """Tokens whose time is over."""
    now, mint = int(time.time()), siege.mint
    ends: list[Any] = [now - _LEEWAY_S - 1, now - 10, now - 3600, now - 10.5, 1, 0, -1, -1e18, True]
    await siege.run(attempts(siege, [mint.wrong(f"exp {end}", exp=end, iat=now - 7200) for end in ends]))


async def not_yet_valid(siege: Siege) -> None:
    """Tokens whose time has not come."""
    now, mint = int(time.time()), siege.mint
    flaws = [mint.wrong(f"nbf in {ahead} s", nbf=now + ahead) for ahead in (30, 60, 3600, 10**9, 10**30)]
    flaws += [mint.wrong(f"iat in {ahead} s", iat=now + ahead) for ahead in (60, 3600)]
    odd: list[Any] = ["later", "", [], {}, [now]]
    flaws += [mint.wrong(f"nbf {one!r}", nbf=one) for one in odd]
    await siege.run(attempts(siege, flaws, 8))


async def wrong_audience(siege: Siege) -> None:
    """Tokens that are for somebody else."""
    right = tokens.AUDIENCE
    others: list[Any] = [
        ..., None, "", "another", f"{right}s", right[:-1], right.upper(), f" {right}", f"{right}\0",
        f"{right},x", [], [""], ["another"], [[right]], {right: right}, 7, True, "*", [None], ".*",
    ]  # fmt: skip
    flaws = [siege.mint.wrong(f"aud {other!r}", aud=other) for other in others]
    await siege.run(attempts(siege, flaws, 8))


async def wrong_issuer(siege: Siege) -> None:
    """Tokens from somebody else."""
    right = tokens.ISSUER
    others: list[Any] = [
        ..., None, "", "https://issuer.test", f"{right}/", right[:-1], right.upper(), f" {right}",
        f"{right}\0", "http" + right[5:], [right], [], {right: right}, 7, True, "*", ".*",
        siege.camp.lure.url,
    ]  # fmt: skip
    flaws = [siege.mint.wrong(f"iss {other!r}", iss=other) for other in others]
    await siege.run(attempts(siege, flaws, 8))


async def missing_expiry(siege: Siege) -> None:
    """Tokens that never end."""
    ends: list[Any] = [
        ..., None, "", "never", "9999999999", [], [9999999999], {}, {"at": 1}, float("inf"), float("nan"),
        "1e10", "0x7fffffff",
    ]  # fmt: skip
    await siege.run(attempts(siege, [siege.mint.wrong(f"exp {end!r}", exp=end) for end in ends], 8))


async def wrong_types(siege: Siege) -> None:
    """Claims that are no text, no list, no id; and payloads that are no claims."""
    mint, blue = siege.mint, siege.blue
    ann, long = siege.ann, "x" * 129
    odd: dict[str, tuple[Any, ...]] = {
        "tenant_id": (
            ..., None, "", 7, 0, True, False, [], [blue], {}, {"id": blue}, f"{blue}\n", f" {blue}", "**",
            "*\0", f"{blue}*", long,
        ),
        "tenant_tier": (..., None, "", "gold", "Enterprise", 7, [], ["enterprise"], {}, True),
        "sub": ("", 7, 0, True, [], [ann], {}, "*", f"{ann}\0", long),
        "session_id": (
            "", 7, True, {}, [7], [None], [[siege.session]], [""], ["**"], "a*b", ["x"] * 257, long,
        ),
        "agents": ("", 7, True, {}, [7], [None], [["a"]], [""], "a*b", ["x"] * 257),
        "scope": (7, True, {}, [7], [None], [["chat"]], {"chat": True}),
    }  # fmt: skip
    flaws = [mint.wrong(f"{name} {value!r:.40}", **{name: value}) for name in odd for value in odd[name]]
    # An operator's token needs no tier, so these stand at the other doors only.
    doors = [door for door in DOORS if door.whose is not Siege.as_operator and door.name != "auth"]
    await siege.run([attempt(siege, doors[n % len(doors)], flaw) for n, flaw in enumerate(flaws * 4)])
    payloads: list[Any] = [[], "", "text", 7, True, None, [{"exp": 1}], b"", b"{", b"\xff"]
    payloads += [b"[" * 5000, b'{"a":' * 1000]
    more = [*(_of(mint, payload) for payload in payloads), mint.wrong("too long", pad="x" * 6_500)]
    await siege.run(attempts(siege, more, 8))


def _of(mint: tokens.Mint, payload: Any) -> Flaw:
    return f"payload {payload!r:.40}", lambda _claims: mint.token(payload)


async def missing_scopes(siege: Siege) -> None:
    """Right tokens of the right people, without the one scope that the door asks for."""
    tries = []
    for door in DOORS:
        scope = door.scope
        rest = [other for other in ALL_SCOPES.split() if other != scope]
        lacking: list[Any] = [
            "",
            " ".join(rest),
            *rest,
            [],
            rest,
            [scope.upper()],
            "*",
            "root",
            scope.upper(),
        ]
        lacking += [f"{scope}s", f"x{scope}", f"{scope},x", f"{scope}\0", f"all:{scope}", f"\u202e{scope}"]
        for pod in siege.pods:
            for scopes in lacking:
                flaw = siege.mint.wrong(f"scope {scopes!r} on {pod.port}", scope=scopes)
                tries.append(attempt(siege, door, flaw, pod))
    await siege.run([*tries, *_by_default(siege), *_on_open_sockets(siege)])


def _by_default(siege: Siege) -> list[Attempt]:
    """A token that says nothing of scopes may listen and chat, and no more."""
    flaw = siege.mint.wrong("no scope claim", scope=...)
    return [attempt(siege, door, flaw) for door in DOORS if door.scope not in ("chat", "listen")]


def _on_open_sockets(siege: Siege) -> list[Attempt]:
    """A socket that may listen only must not speak."""

    async def speak(number: int) -> Answer:
        token = siege.mint.token(siege.as_mallory(scope="listen"))
        socket = await talk(siege.pod().port, f"/ws/quiet-{number}", bearer(token))
        answer = await socket.say({"type": "chat", "message": siege.message(), "agent_id": "agent-1"})
        socket.drop()
        return answer

    return [Attempt(f"chat on a socket that may listen, {n}", partial(speak, n)) for n in range(6)]
