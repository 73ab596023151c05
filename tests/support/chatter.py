"""Clients that chat: on sockets, over HTTP, coming back with their cursors, and one beyond its limit."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from websockets.exceptions import WebSocketException
from websockets.sync.client import ClientConnection

from tests.support.processes import Pod, post
from tests.support.talk import open_socket, receive

_PAUSE_S = 0.05
_ANSWER_S = 5.0
_ANSWERS_A_SOCKET = 8
_TERMINAL = ("agent_response", "error")
STRANGE = "00000000:1"
"""A cursor of an epoch that no session has had."""


class Chatter:
    """A context manager; chats in threads.

    Args:
        pods: which it uses in turn.
        sessions: how many, each with one socket at a time.

    Attributes:
        answers: that came on sockets.
    """

    def __init__(self, pods: Sequence[Pod], sessions: int = 4) -> None:
        self._pods = pods
        self._stop = threading.Event()
        self.answers = 0
        chats = [threading.Thread(target=self._again, args=(self._chat, n)) for n in range(sessions)]
        self._threads = [*chats, threading.Thread(target=self._again, args=(self._post, 0))]
        self._cursors = [""] * sessions

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _again(self, work: Callable[[int, int], None], number: int) -> None:
        turn = 0
        while not self._stop.wait(_PAUSE_S):
            turn += 1
            try:
                work(number, turn)
            except (OSError, WebSocketException):  # the pod is away, or sends its clients to another one
                continue

    def _chat(self, number: int, turn: int) -> None:
        """Ask a few times on one socket."""
        pod = self._pods[(number + turn) % len(self._pods)]
        cursor = STRANGE if turn == 5 else self._cursors[number] or None
        with open_socket(
            pod, f"chat-{number}", cursor=cursor, tenant_tier="enterprise", stream="1"
        ) as socket:
            for question in range(_ANSWERS_A_SOCKET):
                if self._stop.is_set():
                    return
                message = "fail" if question == 0 and turn % 4 == 0 else "hello"
                sent = {"type": "chat", "ref": question, "message": message, "agent_id": "agent-1"}
                socket.send(json.dumps(sent))
                self._hear(socket, number, question)

    def _hear(self, socket: ClientConnection, number: int, question: int) -> None:
        """Read until the question is answered, whatever comes before."""
        asked, ended = "", set[str]()
        while not asked or asked not in ended:
            message = receive(socket, _ANSWER_S)
            told = message["metadata"]
            if message["type"] == "error" and message["data"].get("ref") == question:
                raise OSError(message["data"]["error_code"])  # there will be no answer
            if "seq" in told:
                self._cursors[number] = f"{told['epoch']}:{told['seq']}"
                socket.send(json.dumps({"type": "ack", "seq": told["seq"]}))
            if message["type"] == "ack" and message["data"].get("ref") == question:
                asked = message["data"]["task_id"]
            elif message["type"] in _TERMINAL:
                ended.add(message["task_id"])
        self.answers += 1

    def _post(self, _number: int, turn: int) -> None:
        """A tenant that is soon over its limit."""
        pod = self._pods[turn % len(self._pods)]
        names = {
            "X-Tenant-ID": "small",
            "X-Agent-ID": "agent-1",
            "X-Tenant-Tier": "free",
            "X-Session-ID": "post",
        }
        post(f"{pod.url}/api/chat/send", {"message": "hello"}, headers=names)
        self._stop.wait(0.2)
