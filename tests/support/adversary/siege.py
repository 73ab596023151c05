"""One campaign against some pods: who is to be protected, who attacks, and what came of it."""

from __future__ import annotations

import asyncio
import base64
import json
import random
import re
import string
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextvars import ContextVar
from types import TracebackType
from typing import Any, cast
from urllib.parse import unquote

import redis

from backplane.keys import TIERS
from tests.support.adversary.camp import Camp, has_ended
from tests.support.adversary.tally import SILENCE, Attempt, Tally
from tests.support.adversary.tokens import Claims
from tests.support.adversary.victims import Victims
from tests.support.adversary.wire import Answer, Line, Talk, ask, bearer, knock, listen, talk
from tests.support.adversary.work import touched
from tests.support.processes import Pod, Process

ALL_SCOPES = "chat listen broadcast stats admin"
AT_ONCE = 64
_TIER = "enterprise"
_ACTIONS = "nooble4:dev:agent_execution_service:actions:{}"
_ID = re.compile(r"[A-Za-z0-9._~-]{1,128}")
_BY = ContextVar("_BY", default="")
_MISTAKE = "Traceback (most recent call last)"
_PART = re.compile(rb"[A-Za-z0-9_-]{8,}")

Assault = Callable[["Siege"], Awaitable[None]]


class Siege:
    """A context manager: inside, the victims are there, with sockets open and messages under way.

    Blue is the tenant to protect: its user ann, its hidden user, and a session that belongs to all of it. Mal
    is another user of blue. Red is another tenant, with the user mallory and sessions of the same names.

    Args:
        pods: those that are attacked.
        name: makes its tenants others than those of all other sieges.
        most: attempts of a class at most, drawn by lot; None for all.

    Attributes:
        work, desk: sessions of ann's with tasks.
        freed: sessions of blue's in which tasks may be cancelled, as a right way is tried there.
        cursor: of ann's session, before all of its messages.
        token_id, connection_id: of a token and a connection of blue's that are in use.
        secrets: what no attacker may be told.
        announced: what nobody may be told who is not blue's.
        known: names of blue's that the attacker knows, and so may find in answers where it used them.
        refusals: how often an attacker was told what, by error code.
        slowest_revocation_s: until the last use of a token that was revoked.
        spoken: where mallory's sockets are on which she may talk, by port.
    """

    def __init__(self, camp: Camp, pods: Sequence[Pod], name: str, most: int | None = None) -> None:
        self.camp, self.pods, self.mint = camp, list(pods), camp.mint
        self.random = random.Random(f"{camp.seed} {name}")
        self._most = most
        self.red, self.blue = f"red-{self.word()}", f"blue-{self.word()}"
        self.ann, self.mal = f"ann-{self.word()}", f"mal-{self.word()}"
        self.mallory = f"mallory-{self.word()}"
        self.session, self.common = f"s-{self.word()}", f"c-{self.word()}"
        self.work, self.desk = f"w-{self.word()}", f"d-{self.word()}"
        self.freed = {self.desk}
        self.hidden_user, self.hidden_session = f"hid-{self.word()}", f"hid-{self.word()}"
        self.own = f"own-{self.word()}"
        self.known = [self.blue.encode(), self.ann.encode()]
        self.secrets = [self.hidden_user.encode(), self.hidden_session.encode()]
        self.announced: list[bytes] = []
        self.cursor, self.token_id, self.connection_id = "", "", ""
        self.tally = Tally("none")
        self.tallies: dict[str, Tally] = {}
        self.refusals = Counter[str]()
        self.spoken: dict[int, Talk] = {}
        self.slowest_revocation_s = 0.0
        self.turn = 0
        self.victims = Victims(self)
        self._strangers: list[Line] = []
        self._insiders: list[Line] = []
        self._read: dict[str, int] = {}
        self._redis = redis.Redis(port=camp.cluster.redis_port)

    def word(self) -> str:
        """A name that is nobody else's."""
        return "".join(self.random.choices(string.ascii_lowercase + string.digits, k=20))

    def secret(self, among: list[bytes] | None = None) -> str:
        """A word that is to be kept."""
        word = self.word() + self.word()
        (self.secrets if among is None else among).append(word.encode())
        return word

    def pod(self) -> Pod:
        """One after the other."""
        self.turn += 1
        return self.pods[self.turn % len(self.pods)]

    # Who is who.

    def as_ann(self, **more: Any) -> Claims:
        """Blue's user with all rights, in the session that is to be protected."""
        return self._claims(
            self.blue, **{"sub": self.ann, "session_id": self.session, "scope": ALL_SCOPES, **more}
        )

    def as_hidden(self) -> Claims:
        """Blue's user of whom nobody knows."""
        return self._claims(self.blue, sub=self.hidden_user)

    def as_nobody(self) -> Claims:
        """Blue, and none of its users."""
        return self._claims(self.blue)

    def as_broadcaster(self) -> Claims:
        """What blue publishes events with."""
        return self._claims(self.blue, scope="broadcast")

    def as_mal(self, **more: Any) -> Claims:
        """Another user of blue."""
        return self._claims(self.blue, **{"sub": self.mal, **more})

    def as_mallory(self, **more: Any) -> Claims:
        """A user of red."""
        return self._claims(self.red, **{"sub": self.mallory, **more})

    def as_admin_of_red(self, **more: Any) -> Claims:
        """Red's administrator."""
        return self._claims(self.red, **{"scope": ALL_SCOPES, **more})

    def as_operator(self, **more: Any) -> Claims:
        """Who runs the service."""
        return self.mint.claims(**{"tenant_id": "*", "scope": ALL_SCOPES, **more})

    def _claims(self, tenant: str, **more: Any) -> Claims:
        usual = {"tenant_id": tenant, "tenant_tier": _TIER, "scope": "chat listen"}
        return self.mint.claims(**{**usual, **more})

    def message(self, tenant: str | None = None, session: str | None = None, user: str | None = None) -> str:
        """Text of a chat message that says by which attempt it was sent, and where it may arrive.

        Args:
            tenant: and session and user: as whom; no tenant: nowhere.
        """
        return json.dumps({"by": _BY.get(), "tenant": tenant, "session": session, "user": user})

    # Begin and end.

    async def __aenter__(self) -> Siege:
        for name, process in self._watched().items():
            self._read[name] = len(process.output)
        await self.victims.settle_in()
        first = self.victims.logs[self.session].sockets[0].logged[0]["metadata"]
        self.cursor = f"{first['epoch']}:{first['seq'] - 1}"
        for pod in self.pods:
            token = self.mint.token(self.as_mallory())
            self.spoken[pod.port] = await self.sit(pod, self.own, self.as_mallory())
            for session in (self.session, self.common, self.work):
                target = f"/api/chat/sessions/{session}/events"
                self.eavesdrop(
                    await talk(pod.port, f"/ws/{session}?stream=1", bearer(token)),
                    await listen(pod.port, f"{target}?stream=1", bearer(token)),
                    await listen(pod.port, f"{target}?format=ag-ui", bearer(token)),
                )
        self.eavesdrop(*self.spoken.values())
        self.eavesdrop(await self.sit(self.pods[0], self.own, self.as_mal()), insider=True)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for line in (*self._strangers, *self._insiders):
            line.drop()
        self.victims.leave()
        self._redis.close()

    async def sit(self, pod: Pod, session: str, claims: Claims, query: str = "") -> Talk:
        """Open a socket that must be granted."""
        token = self.mint.token(claims)
        if claims["tenant_id"] == self.blue:
            self.secrets.append(token.rpartition(".")[2].encode())
            self.token_id = claims["jti"]
        return await talk(pod.port, f"/ws/{session}{query}", bearer(token))

    def eavesdrop(self, *lines: Line, insider: bool = False) -> None:
        """Keep an attacker's connections open, and look at all that they are told."""
        (self._insiders if insider else self._strangers).extend(lines)

    def push(self, callback: dict[str, Any]) -> None:
        """Say something as blue's agent."""
        self._redis.lpush(f"orchestrator:{self.blue}:callbacks", json.dumps(callback))

    def record(self, key: str) -> dict[bytes, bytes]:
        """A hash of the store."""
        return cast("dict[bytes, bytes]", self._redis.hgetall(key))

    @property
    def is_over(self) -> bool:
        """Whether a process has ended: then nothing more can be shown."""
        return any(map(has_ended, self._watched().values()))

    # Attack.

    async def assault(self, name: str, what: Assault) -> Tally:
        """Run one class of attempts, and count."""
        self.tally = self.tallies[name] = Tally(name)
        await self.victims.whisper()
        await what(self)
        await self.victims.whisper()
        await self.victims.publish()
        self._audit()
        await self._overhear()
        self._look_for_crashes()
        return self.tally

    async def _overhear(self) -> None:
        """Look at what the attackers' open connections were told."""
        lines = [line for line in (*self._strangers, *self._insiders) if isinstance(line, Talk)]
        await asyncio.gather(*[line.say({"type": "ping"}) for line in lines])  # what came before has come
        for among, lines_of in ((self.announced, self._strangers), ([], self._insiders)):
            for line in lines_of:
                self._scan("an attacker's own connection", Answer(False, b"", bytes(line.came)), among)

    def _look_for_crashes(self) -> None:
        for name, process in self._watched().items():
            if has_ended(process):
                self.tally.crashed.add(f"{name} has ended")
            text = process.output
            if _MISTAKE in text[self._read[name] :]:
                self.tally.crashed.add(f"a traceback in the log of {name}")
            self._read[name] = len(text)

    async def run(self, attempts: Iterable[Attempt], at_once: int = AT_ONCE) -> None:
        """Make attempts, many at a time."""
        chosen = list(attempts)
        if self._most is not None and len(chosen) > self._most:
            chosen = self.random.sample(chosen, self._most)
        room = asyncio.Semaphore(at_once)

        async def make(attempt: Attempt) -> None:
            async with room:
                _BY.set(attempt.name)
                self.judge(attempt.name, await attempt.act(), fair=attempt.fair)

        async with asyncio.TaskGroup() as group:
            for attempt in chosen:
                group.create_task(make(attempt))

    def judge(self, name: str, answer: Answer, *, fair: bool = False) -> None:
        """Count one attempt."""
        self.tally.attempts += 1
        if answer.accepted and not fair:
            self.tally.got_in.add(name)
        if not answer.accepted:
            self.refusals.update(answer.codes)
        if answer.mistake:
            self.tally.crashed.add(name)
        if not answer.received and not fair:
            self.tally.crashed.add(f"{name}: {SILENCE}")  # which proves nothing
        self._scan(name, answer)

    def _scan(self, name: str, answer: Answer, also: Iterable[bytes] = ()) -> None:
        for secret in (*self.secrets, *also):
            if secret in answer.received:
                self.tally.leaked.add(name)
        for word in self.known:
            if word in answer.received and answer.sent and word not in _said(answer.sent):
                self.tally.leaked.add(name)

    def _audit(self) -> None:
        """Look at what has reached the agents' queues, blue's tasks and people: nothing of an attacker's."""
        for action in self.take_actions():
            if "message" not in action:
                if action["tenant_id"] == self.blue and action["session_id"] not in self.freed:
                    self.tally.got_in.add(f"{action['action_type']} of {action['task_id']}")
                continue
            note = json.loads(action["message"])
            if not self._is_right(action, note):
                self.tally.got_in.add(note["by"])
        for work in (self.victims.work, self.victims.desk):
            self.tally.got_in.update(touched(self, work))
        self.tally.got_in.update(self.victims.forged())

    def take_actions(self) -> list[dict[str, Any]]:
        """What waits for the agents."""
        taken = []
        for tier in TIERS:
            key = _ACTIONS.format(tier)
            taken += [json.loads(raw) for raw in self._redis.lrange(key, 0, -1)]
            self._redis.delete(key)
        return taken

    @staticmethod
    def _is_right(action: dict[str, Any], note: dict[str, Any]) -> bool:
        context = action["execution_context"]
        return (
            note["tenant"] is not None
            and action["tenant_id"] == context["tenant_id"] == note["tenant"]
            and action["session_id"] == context["session_id"]
            and note["session"] in (action["session_id"], None)
            and _ID.fullmatch(action["session_id"]) is not None
            and action["callback_queue"] == f"orchestrator:{note['tenant']}:callbacks"
            and action["metadata"].get("user_id") in (note["user"], None)
        )

    def names_in_store(self) -> list[str]:
        """All keys of the store."""
        return [key.decode("utf-8", "backslashreplace") for key in self._redis.scan_iter(count=1000)]

    def _watched(self) -> dict[str, Process]:
        pods = {f"pod {number}": pod for number, pod in enumerate(self.pods)}
        routers = {f"router {number}": router for number, router in enumerate(self.camp.cluster.routers)}
        return {**pods, **routers}

    # Short cuts for attempts.

    async def get(self, target: str | bytes, token: str | None = None, *headers: tuple[str, str]) -> Answer:
        """GET from one of the pods."""
        return await ask(self.pod().port, "GET", target, (*bearer(token), *headers))

    async def send(
        self, token: str | None, note: str, *headers: tuple[str | bytes, str | bytes], pod: Pod | None = None
    ) -> Answer:
        """``POST /api/chat/send``."""
        port = (pod or self.pod()).port
        usual = bearer(token)
        if all(name != "X-Agent-ID" for name, _ in headers):
            usual = (*usual, ("X-Agent-ID", "agent-1"))
        body = json.dumps({"message": note}).encode()
        return await ask(port, "POST", "/api/chat/send", (*usual, *headers), body)

    async def enter(self, target: str, token: str | None = None, *headers: tuple[str, str]) -> Answer:
        """Ask one of the pods for a socket."""
        return await knock(self.pod().port, target, (*bearer(token), *headers))


def _said(sent: bytes) -> bytes:
    """What stood in a request, also within its tokens and behind percent signs."""
    plain = unquote(sent.decode("latin-1")).encode("latin-1", "replace")
    return b" ".join((sent, plain, *map(_decoded, _PART.findall(sent))))


def _decoded(part: bytes) -> bytes:
    try:
        return base64.urlsafe_b64decode(part + b"=" * (-len(part) % 4))
    except ValueError:
        return b""
