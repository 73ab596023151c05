"""Redis comes back without its last writes: nobody is left with a silent gap, and who lacks nothing stays."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection

from tests.support.accounting import callback
from tests.support.processes import Cluster, Pod, wait_for
from tests.support.talk import Message, close_code, open_socket, receive, receive_logged, silent

LIST = "orchestrator:acme:callbacks"
FILES = "appendonlydir"


@pytest.fixture
def own_cluster(tmp_path: Path) -> Iterator[Cluster]:
    """Valkey writes every command to disk before it answers; pods compare positions if there is a reason."""
    with Cluster(
        tmp_path,
        appendfsync="always",
        PRESENCE_INTERVAL_S="1",
        POSITION_CHECK_S="30",
        RECONNECT_JITTER_S="0",
    ) as running:
        yield running


def push(cluster: Cluster, session_id: str, *numbers: int) -> None:
    """The AES answers."""
    with redis.Redis(port=cluster.redis_port) as aes:
        for number in numbers:
            aes.lpush(LIST, callback("acme", session_id, f"{session_id}-{number}"))


def come_back_as_it_was(cluster: Cluster, folder: Path, copy: Path) -> None:
    """``kill -9``, and a start with the files of before: as after a power cut."""
    cluster.valkey.kill()
    shutil.rmtree(folder / FILES)
    shutil.copytree(copy, folder / FILES)
    cluster.valkey.start()
    cluster.wait_valkey()


def cursor(message: Message) -> str:
    return f"{message['metadata']['epoch']}:{message['metadata']['seq']}"


def told(messages: list[Message]) -> list[tuple[int, str]]:
    """Seqs and tasks."""
    return [(message["metadata"]["seq"], message["task_id"]) for message in messages]


def resumed(socket: ClientConnection) -> dict[str, Any]:
    """How a connection was resumed."""
    greeting = receive(socket)
    assert greeting["type"] == "connection_ack"
    resume: dict[str, Any] = greeting["data"]["resume"]
    return resume


def farewell(socket: ClientConnection) -> tuple[list[Message], int]:
    """All that comes until the server closes, and its code."""
    messages: list[Message] = []
    try:
        while True:
            messages.append(receive(socket))
    except ConnectionClosed:
        return messages, close_code(socket)


def test_redis_loses_its_last_writes(own_cluster: Cluster, tmp_path: Path) -> None:
    """Who is ahead is asked to come back, whose cursor is ahead is reset; everybody else just goes on."""
    one, two = own_cluster.pods
    with open_socket(one, "a") as ahead, open_socket(two, "a") as twin, open_socket(one, "b") as level:
        for socket in (ahead, twin, level):
            receive(socket)
        push(own_cluster, "a", 1, 2, 3)
        push(own_cluster, "b", 1, 2)
        earlier = cursor(receive_logged(ahead, 3)[-1])
        receive_logged(twin, 3)
        receive_logged(level, 2)
        copy = tmp_path / "copy"
        shutil.copytree(tmp_path / FILES, copy)
        push(own_cluster, "a", 4, 5)
        later = cursor(receive_logged(ahead, 2)[-1])
        receive_logged(twin, 2)
        assert (earlier.rpartition(":")[2], later.rpartition(":")[2]) == ("3", "5")

        come_back_as_it_was(own_cluster, tmp_path, copy)
        back = time.monotonic()
        for socket in (ahead, twin):  # nothing was pushed since: they are found out all the same
            messages, code = farewell(socket)
            assert [message["type"] for message in messages][-1:] == ["reconnect"]
            assert not [message for message in messages if "seq" in message["metadata"]]
            assert code == 1012
        assert time.monotonic() - back < 1.5
        for pod in (one, two):
            wait_for(pod.ready, "ready again")

        check_cursors(one, later, earlier, [1, 2, 3])
        push(own_cluster, "a", 6)
        push(own_cluster, "b", 3)
        [message] = receive_logged(level, 1)
        assert told([message]) == [(3, "b-3")]
        assert silent(level)  # and it was never closed
        check_cursors(two, later, earlier, [1, 2, 3, 6])


def check_cursors(pod: Pod, ahead: str, within: str, tasks: list[int]) -> None:
    """A cursor beyond what Redis has got is reset and gets all there is; one within it gets what follows."""
    log = [(seq, f"a-{task}") for seq, task in enumerate(tasks, 1)]
    with open_socket(pod, "a", cursor=ahead) as socket:
        resume = resumed(socket)
        assert (resume["status"], resume["oldest"], resume["to"]) == ("reset", 1, len(log))
        assert told(receive_logged(socket, len(log))) == log
        assert silent(socket)
    with open_socket(pod, "a", cursor=within) as socket:
        seq = int(within.rpartition(":")[2])
        resume = resumed(socket)
        assert (resume["status"], resume["from"], resume["to"]) == ("replayed", seq, len(log))
        assert told(receive_logged(socket, len(log) - seq)) == log[seq:]
        assert silent(socket)


def test_what_redis_lost_comes_again(own_cluster: Cluster, tmp_path: Path) -> None:
    """An AES that pushes again what it was not sure of: it is in the log once, under the epoch of now."""
    pod = own_cluster.pods[0]
    with open_socket(pod, "a") as socket:
        receive(socket)
        push(own_cluster, "a", 1, 2)
        first = receive_logged(socket, 2)[-1]
        copy = tmp_path / "copy"
        shutil.copytree(tmp_path / FILES, copy)
        push(own_cluster, "a", 3, 4)
        lost = receive_logged(socket, 2)[-1]
        come_back_as_it_was(own_cluster, tmp_path, copy)
        push(own_cluster, "a", 2, 3, 4, 3)
        assert farewell(socket)[1] == 1012
    with open_socket(pod, "a", cursor=cursor(first)) as socket:
        assert resumed(socket)["status"] == "replayed"
        again = receive_logged(socket, 2)
        assert told(again) == [(3, "a-3"), (4, "a-4")]
        assert silent(socket)
    assert again[-1]["metadata"]["epoch"] != lost["metadata"]["epoch"]
    with open_socket(pod, "a", cursor=cursor(lost)) as socket:  # the same seq of another log
        assert resumed(socket)["status"] == "reset"
