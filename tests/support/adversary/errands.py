"""Classes of those who reach for another's tasks: by their ids, by the names of their messages, by topics."""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

from tests.support.adversary.siege import ALL_SCOPES, Siege
from tests.support.adversary.tally import Attempt
from tests.support.adversary.tokens import Claims
from tests.support.adversary.wire import Answer, Talk, ask, bearer, talk
from tests.support.adversary.work import KINDS, Work, begin

_CHANGES = re.compile(rb'(?im)^date: .*$|"timestamp":"[^"]*"|"ref":\d+')
"""What differs between two answers that say the same."""


Run = Callable[[str, Work, Talk], Awaitable[Answer]]
Said = Callable[[Work], dict[str, Any]]


class Errand(NamedTuple):
    """Something that is asked about a task.

    Attributes:
        run: asks it, with a token and of a piece of work; on the socket, where it is asked there.
    """

    name: str
    run: Run


def _errands(siege: Siege) -> Iterator[Errand]:
    """Everything that can be asked about a task, in an order in which its owner may ask all of it."""
    for kind in KINDS:
        yield Errand(f"show {kind}", _over_http(siege, kind, "", None))
        yield Errand(f"subscribe {kind}", _on_socket("subscribe", partial(_topic, kind=kind)))
    yield Errand("answer", _over_http(siege, "asking", "/input", _value))
    yield Errand(
        "answer on a socket", _on_socket("input", lambda work: {**_id(work, "asking"), **_value(work)})
    )
    yield Errand("cancel", _over_http(siege, "waiting", "/cancel", lambda _work: {"reason": "why"}))
    for kind in KINDS:
        yield Errand(f"cancel {kind} on a socket", _on_socket("cancel", partial(_id, kind=kind)))
        yield Errand(f"cancel {kind} by its message", _on_socket("cancel", partial(_name, kind=kind)))
        for how, said in (("its message", _name), ("its id", _id)):
            yield Errand(f"cancel {kind} by {how} in a body", _cancel_in(siege, partial(said, kind=kind)))


def _id(work: Work, kind: str) -> dict[str, Any]:
    return {"task_id": work.tasks[kind], "reason": "because"}


def _name(work: Work, kind: str) -> dict[str, Any]:
    return {"client_message_id": work.names[kind]}


def _value(work: Work) -> dict[str, Any]:
    return {"input_id": work.input_id, "value": {"yes": [1]}}


def _topic(work: Work, kind: str) -> dict[str, Any]:
    return {"topics": [f"task:{work.tasks[kind]}"]}


def _over_http(siege: Siege, kind: str, what: str, body: Said | None) -> Run:
    async def run(token: str, work: Work, _socket: Talk) -> Answer:
        target = f"/api/chat/tasks/{work.tasks[kind]}{what}"
        if body is None:
            return await siege.get(target, token)
        return await _post(siege, target, token, body(work))

    return run


def _cancel_in(siege: Siege, body: Said) -> Run:
    """``POST /api/chat/cancel``, which is told the session too."""

    async def run(token: str, work: Work, _socket: Talk) -> Answer:
        return await _post(siege, "/api/chat/cancel", token, body(work), ("X-Session-ID", work.session))

    return run


def _on_socket(message: str, body: Said) -> Run:
    async def run(_token: str, work: Work, socket: Talk) -> Answer:
        return await socket.say({"type": message, **body(work)})

    return run


async def others_tasks(siege: Siege) -> None:
    """Red and blue's tasks: whatever is asked, there is none, exactly as if there were none."""
    await _right_way(siege)
    people = {
        "mallory": siege.as_mallory(),
        "mallory with all scopes": siege.as_mallory(scope=ALL_SCOPES),
        "red's administrator": siege.as_admin_of_red(),
        "somebody called ann": siege.as_mallory(sub=siege.ann),
    }
    for name, claims in people.items():
        await _ask_all(siege, name, claims, f"own-{siege.word()}", "unknown_task")
    # Red has a session of the same name, and in it no messages of the names that ann has given hers.
    for name in ("mallory", "red's administrator"):
        await _ask_all(siege, f"{name} in the same session", people[name], siege.work, "unknown_task")
    await siege.run([*_odd_tasks(siege), *_as_blue(siege)])


async def colleagues_tasks(siege: Siege) -> None:
    """Blue's other users, and ann where her token ends: they may know that there is a task, and no more."""
    await _right_way(siege)
    mine = f"mine-{siege.word()}"
    people = {
        "mal": siege.as_mal(),
        "mal with all scopes": siege.as_mal(scope=ALL_SCOPES),
        "mal for all sessions": siege.as_mal(session_id=[mine, siege.work]),
        "ann in capitals": siege.as_mal(sub=siege.ann.upper()),
        "almost ann": siege.as_mal(sub=siege.ann[:-1]),
        "nobody": siege.as_nobody(),
        "ann for another session": siege.as_ann(session_id=f"ann-{siege.word()}"),
    }
    for name, claims in people.items():
        own = claims.get("session_id", mine if claims.get("sub") == siege.mal else f"mine-{siege.word()}")
        await _ask_all(siege, name, claims, own[0] if isinstance(own, list) else own, "")
    await siege.run(_insiders(siege))


async def _right_way(siege: Siege) -> None:
    """Ann herself, with tasks that are for this only: each errand is granted."""
    session = f"right-{siege.word()}"
    siege.freed.add(session)
    claims, work = siege.as_ann(session_id=session), await begin(siege, session)
    token, socket = siege.mint.token(claims), await siege.sit(siege.pod(), session, claims)
    for errand in _errands(siege):
        answer = await errand.run(token, work, socket)
        if not answer.accepted:
            siege.tally.crashed.add(f"{errand.name} is refused to ann: {answer.codes}")
    socket.drop()


async def _ask_all(siege: Siege, name: str, claims: Claims, session: str, code: str) -> None:
    """Somebody asks all of ann's tasks, and of some that there are not.

    Args:
        code: as which it has to be refused, without any difference between the two; empty: any.
    """
    token, none = siege.mint.token(claims), _none(siege)
    for pod in siege.pods:
        socket = await talk(pod.port, f"/ws/{session}", bearer(token))

        tries = {f"{errand.name} as {name} on {pod.port}": errand for errand in _errands(siege)}
        await siege.run(
            [
                Attempt(said, partial(_compared, siege, said, errand, token, socket, none, code))
                for said, errand in tries.items()
            ],
            at_once=8,
        )
        siege.judge(f"what {name} hears on {pod.port}", await socket.say({"type": "ping"}), fair=True)
        socket.drop()


async def _compared(
    siege: Siege, name: str, errand: Errand, token: str, socket: Talk, none: Work, code: str
) -> Answer:
    work = siege.victims.work
    real, other = await errand.run(token, work, socket), await errand.run(token, none, socket)
    if code and real.codes != [code]:
        siege.tally.leaked.add(f"{name}: told {real.codes} in place of {code}")
    if code and _plain(real, work) != _plain(other, none):
        siege.tally.leaked.add(f"{name}: told another thing of a task that is there")
    if other.accepted:
        siege.tally.got_in.add(f"{name}, of no task")
    return real


def _plain(answer: Answer, work: Work) -> bytes:
    """An answer without ids and times."""
    text = answer.received
    for one in work.ids:
        text = text.replace(one.encode(), b"ID")
    return _CHANGES.sub(b"", text)


def _none(siege: Siege) -> Work:
    """Tasks of the same form that nobody has."""
    tasks = {kind: siege.mint.id() for kind in KINDS}
    names = {kind: f"message-{siege.word()}" for kind in KINDS}
    return Work(siege.work, tasks, names, f"input-{siege.word()}")


def _odd_tasks(siege: Siege) -> Iterator[Attempt]:
    """Ids that some reader might take for those of blue's tasks."""
    token, task = siege.mint.token(siege.as_mallory(scope=ALL_SCOPES)), siege.victims.work.tasks["going"]
    key = f"{{orchestrator:{siege.blue}:callbacks}}:t:{task}"
    for odd in (
        f"{task}.", task[:-1], task.upper(), f"{task}%00", f"{task}%0A", f"%20{task}", "*", f"{task[:8]}*",
        f"{siege.blue}:{task}", f"{siege.blue}%2F{task}", f"..%2F{siege.blue}%2F{task}", key,
        f"{task}:stream",
        f"{task};{task}", f"{task},{task}", f"{{{task}}}", f"%7B{task}%7D", f"{task}?tenant_id={siege.blue}",
        f"{task}#", f"./{task}", f"{task}/", f"{task}/cancel/", f"{task}/cancel/cancel", ".", "..", "",
        "x" * 129,
    ):  # fmt: skip
        target = f"/api/chat/tasks/{odd}"
        yield Attempt(f"show {odd[:60]}", partial(siege.get, target, token))
        for what, body in (("cancel", {}), ("input", _value(siege.victims.work))):
            yield Attempt(f"{what} {odd[:60]}", partial(_post, siege, f"{target}/{what}", token, body))
        for kind in ("cancel", "input"):
            said = {"type": kind, "task_id": odd, **_value(siege.victims.work)}
            yield Attempt(f"{kind} {odd[:60]} on a socket", partial(_say, siege, said))


def _as_blue(siege: Siege) -> Iterator[Attempt]:
    """Requests that say they are blue's, or for its session."""
    work, token = siege.victims.work, siege.mint.token(siege.as_mallory(scope=ALL_SCOPES))
    said = {"tenant_id": siege.blue, "session_id": work.session, "user_id": siege.ann}
    for headers in (
        (("X-Tenant-ID", siege.blue),),
        (("X-Tenant-ID", siege.blue), ("X-Session-ID", work.session), ("X-User-ID", siege.ann)),
        (("X-Session-ID", work.session),),
        (("X-Tenant-ID", f"{siege.red},{siege.blue}"),),
        (("X-Tenant-ID", siege.red), ("X-Tenant-ID", siege.blue)),
    ):
        for kind in KINDS:
            target = f"/api/chat/tasks/{work.tasks[kind]}"
            query = f"tenant_id={siege.blue}&session_id={work.session}"
            yield Attempt(f"show {kind} with {headers}", partial(siege.get, target, token, *headers))
            yield Attempt(f"show {kind}, {query}", partial(siege.get, f"{target}?{query}", token, *headers))
            for what, body in (("cancel", said), ("input", {**_value(work), **said})):
                act = partial(_post, siege, f"{target}/{what}", token, body, *headers)
                yield Attempt(f"{what} {kind} with {headers}", act)
    for kind in KINDS:
        for body in ({"task_id": work.tasks[kind]}, {"client_message_id": work.names[kind]}):
            yield Attempt(
                f"cancel {kind} as blue's on a socket",
                partial(_say, siege, {"type": "cancel", **body, **said}),
            )
        answer = {"type": "input", "task_id": work.tasks[kind], **_value(work), **said}
        yield Attempt(f"answer {kind} as blue's on a socket", partial(_say, siege, answer))


def _insiders(siege: Siege) -> Iterator[Attempt]:
    """Mal says that he asks for ann, or in her session."""
    work, token = siege.victims.work, siege.mint.token(siege.as_mal())
    for headers in (
        (("X-Session-ID", work.session),),
        (("X-User-ID", siege.ann),),
        (("X-Session-ID", work.session), ("X-User-ID", siege.ann)),
        (("X-Session-ID", siege.own),),
        (("X-Tenant-Tier", "free"),),
    ):
        for kind in KINDS:
            target = f"/api/chat/tasks/{work.tasks[kind]}"
            yield Attempt(f"show {kind} with {headers}", partial(siege.get, target, token, *headers))
            for what, body in (("cancel", {}), ("input", _value(work))):
                act = partial(_post, siege, f"{target}/{what}", token, body, *headers)
                yield Attempt(f"{what} {kind} with {headers}", act)


async def _post(
    siege: Siege, target: str, token: str, body: dict[str, Any], *headers: tuple[str, str]
) -> Answer:
    content = json.dumps(body).encode()
    return await ask(siege.pod().port, "POST", target, (*bearer(token), *headers), content)


async def _say(siege: Siege, message: dict[str, Any]) -> Answer:
    return await siege.spoken[siege.pod().port].say(message)
