"""Those who are to be protected: what they are told, and whether they notice anything of an attack."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from tests.support.accounting import callback
from tests.support.adversary.wire import Talk, ask, bearer
from tests.support.adversary.work import AGENT, Work, begin

if TYPE_CHECKING:
    from tests.support.adversary.siege import Siege

FREE_TOPIC = "orders/7"

Entry = tuple[str, str]
"""A message's type, and the text that tells it from others."""


def entry(message: dict[str, Any]) -> Entry:
    """What of a message is compared."""
    data = message["data"]
    texts = (data.get(name) for name in ("response", "message", "prompt", "payload"))
    return message["type"], next((text for text in texts if isinstance(text, str)), "")


class Log:
    """What has to stand in one of blue's sessions, and who hears it."""

    def __init__(self) -> None:
        self.expected: list[Entry] = []
        self.sockets: list[Talk] = []

    async def arrive(self) -> None:
        """Wait until all sockets have been told of everything, or are no more."""
        for socket in self.sockets:
            await socket.until(lambda _came, socket=socket: not self._missing(socket))  # type: ignore[misc]

    def _missing(self, socket: Talk) -> Counter[Entry]:
        return Counter(self.expected) - Counter(map(entry, socket.logged))

    def faults(self) -> Iterator[str]:
        """What any of the sockets lacks, has too much, or in a wrong order."""
        for socket in self.sockets:
            heard = [entry(message) for message in socket.logged]
            seqs = [message["metadata"]["seq"] for message in socket.logged]
            if seqs != list(range(1, len(self.expected) + 1)):
                yield f"a victim got {seqs} in place of 1 to {len(self.expected)}"
            if self._missing(socket):
                yield f"a victim lacks {list(self._missing(socket))}"
            if more := Counter(heard) - Counter(self.expected):
                yield f"a victim was told {list(more)}"
            # Questions are appended a moment after they were accepted; the agent's answers have an order.
            answers, wanted = (
                [one for one in told if one[0] == "agent_response"] for told in (heard, self.expected)
            )
            if answers != wanted:
                yield f"a victim got the answers in the order {answers}"


class Victims:
    """Blue's people, in their sessions.

    Attributes:
        logs: by session.
        work: ann's tasks, which nobody else may touch or see.
        desk: other tasks of ann's, on which the right ways are tried.
    """

    def __init__(self, siege: Siege) -> None:
        self._siege = siege
        sessions = (siege.session, siege.hidden_session, siege.common, siege.work, siege.desk)
        self.logs = {session: Log() for session in sessions}
        self.work = self.desk = Work(siege.work)
        self._published: list[str] = []
        self._subscribers: list[Talk] = []
        self._broadcaster = siege.mint.token(siege.as_broadcaster())
        self._everybody: list[Talk] = []

    async def settle_in(self) -> None:
        """Have them open their sockets, and begin their tasks."""
        siege = self._siege
        first, last = siege.pods[0], siege.pods[-1]
        for pod, session, claims in (
            (first, siege.session, siege.as_ann()),
            (first, siege.hidden_session, siege.as_hidden()),
            (last, siege.common, siege.as_nobody()),
            (last, siege.session, siege.as_ann()),
            (first, siege.work, siege.as_ann(session_id=siege.work)),
            (last, siege.work, siege.as_ann(session_id=siege.work)),
        ):
            socket = await siege.sit(pod, session, claims, "?stream=1" if session == siege.work else "")
            siege.connection_id = socket.opened_as["connection_id"]
            siege.secrets.append(siege.connection_id.encode())
            self.logs[session].sockets.append(socket)
            self._everybody.append(socket)
        self.work = await begin(siege, siege.work)
        self.logs[siege.work].expected += self.work.told
        await self.logs[siege.work].arrive()
        self.desk = await begin(siege, siege.desk)
        self._subscribers = self.logs[siege.work].sockets
        for socket in self._subscribers:
            assert (await socket.say({"type": "subscribe", "topics": self.topics})).accepted
        self.tell(siege.hidden_session)
        self.tell(siege.common)
        await self.whisper()
        await self.whisper()
        await self.publish()

    @property
    def topics(self) -> list[str]:
        """What ann's sockets in the session of her tasks have subscribed to."""
        of_tasks = [f"task:{task_id}" for task_id in self.work.tasks.values()]
        return [*of_tasks, f"agent:{AGENT}", "type:invoice", "tenant:announcements", FREE_TOPIC]

    def tell(self, session: str) -> None:
        """Have the agent answer in one of blue's sessions; what it says is secret."""
        siege = self._siege
        secret, task = siege.secret(), f"task-{siege.word()}"
        siege.secrets.append(task.encode())
        answer = json.loads(callback(siege.blue, session, task))
        answer["result"]["response"] = secret
        siege.push(answer)
        self.logs[session].expected.append(("agent_response", secret))

    async def whisper(self) -> None:
        """Have the agent say something to ann, and wait until she has it on all her sockets."""
        self.tell(self._siege.session)
        await self.logs[self._siege.session].arrive()

    async def publish(self) -> None:
        """Tell blue's subscribers of events, in every way that there is, and wait until ann has them all."""
        siege = self._siege
        for topic in self.topics:
            data = {"topic": topic, "payload": self._payload(topic)}
            siege.push({"action_type": "execution.event", "tenant_id": siege.blue, "data": data})
        ways: list[tuple[dict[str, Any], str]] = [({"topic": topic}, topic) for topic in self.topics]
        ways += [
            ({"agent_id": AGENT}, f"agent:{AGENT}"),
            ({"tenant": True}, ""),
            ({"tier": "enterprise"}, ""),
        ]
        await asyncio.gather(*[self._broadcast(to, self._payload(topic)) for to, topic in ways])
        secret = siege.secret()
        await self._broadcast({"session_id": siege.work}, secret)
        self.logs[siege.work].expected.append(("event", secret))
        await self.logs[siege.work].arrive()
        for socket in self._subscribers:
            await socket.until(lambda _came, socket=socket: not self._unheard(socket))  # type: ignore[misc]
            if self._unheard(socket):
                siege.tally.got_in.add("ann was not told of an event")

    def _payload(self, topic: str) -> str:
        """A word that is secret: of a task for all but ann, else for other tenants."""
        siege = self._siege
        word = siege.secret() if topic.startswith("task:") else siege.secret(siege.announced)
        self._published.append(word)
        return word

    async def _broadcast(self, to: dict[str, Any], payload: str) -> None:
        content = json.dumps({"to": to, "payload": payload}).encode()
        port = self._siege.pod().port
        answer = await ask(port, "POST", "/api/broadcast", bearer(self._broadcaster), content)
        assert answer.accepted, answer.received

    def _unheard(self, socket: Talk) -> Counter[str]:
        return Counter(self._published) - Counter(self._heard(socket))

    @staticmethod
    def _heard(socket: Talk) -> list[str]:
        """The events that it got by topic, tenant or tier."""
        events = (message for message in socket.messages if message["type"] == "event")
        return [str(event["data"]["payload"]) for event in events if "seq" not in event["metadata"]]

    def forged(self) -> Iterator[str]:
        """The events that a victim got and blue has not sent."""
        for socket in self._everybody:
            for message in socket.messages:
                if message["type"] == "event":
                    payload = message["data"]["payload"]
                    if isinstance(payload, dict):
                        yield f"a victim was told of the event {payload.get('by')}"

    def faults(self) -> list[str]:
        """What the victims have noticed of it all; nothing, if it is well."""
        found = [fault for log in self.logs.values() for fault in log.faults()]
        found += self.forged()
        for socket in self._everybody:
            if socket.ended or socket.close_code is not None:
                found.append(f"a victim's socket was closed ({socket.close_code})")
            errors = (message["data"] for message in socket.messages if message["type"] == "error")
            found += [f"a victim was told {error}" for error in errors]
        for socket in self._subscribers:
            if Counter(self._heard(socket)) != Counter(self._published):
                found.append("a victim got events that were not sent, or twice, or not at all")
        return found

    def leave(self) -> None:
        """Cut their connections."""
        for socket in self._everybody:
            socket.drop()
