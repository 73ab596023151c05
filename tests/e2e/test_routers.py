"""Several routers: each list has one, a dead one's are taken over, a paused one does no harm."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis

from tests.support.accounting import callback
from tests.support.processes import Cluster, Process, free_port, get, wait_for
from tests.support.sabotage import MARKER, sabotaged
from tests.support.talk import open_socket, receive, receive_ends, receive_logged, receive_other, silent

TENANTS = [f"tenant-{n}" for n in range(60)]


@contextmanager
def connected(cluster: Cluster) -> Iterator[redis.Redis]:
    """Redis as the AES sees it."""
    with redis.Redis(port=cluster.redis_port, decode_responses=True) as aes:
        yield aes


def push(aes: redis.Redis, tenant_id: str, number: int, session_id: str = "s", note: str = "") -> None:
    """One callback."""
    task_id = f"{tenant_id}.{number}"
    aes.lpush(f"orchestrator:{tenant_id}:callbacks", callback(tenant_id, session_id, task_id + note))


def log_of(aes: redis.Redis, tenant_id: str, session_id: str = "s") -> list[str]:
    """The task ids in a session's log."""
    entries = aes.lrange(f"ao:{{orchestrator:{tenant_id}:callbacks}}:s:{session_id}:log", 0, -1)
    return [json.loads(f'{entry!s}"":0}}}}')["task_id"] for entry in entries]


def lists_served(cluster: Cluster) -> dict[str, int]:
    """How many lists each router says it serves."""
    routers = get(f"{cluster.pods[0].url}/api/chat/stats")[1]["routers"]
    return {router["router_id"]: router["lists"] for router in routers}


def pid_of(router_id: str) -> int:
    """The process that a router id names."""
    return int(router_id.split("-")[-2])


def everything_moved(aes: redis.Redis, count: int) -> bool:
    """Whether each tenant's log has so many messages."""
    with aes.pipeline(transaction=False) as pipeline:
        for tenant_id in TENANTS:
            pipeline.llen(f"ao:{{orchestrator:{tenant_id}:callbacks}}:s:s:log")
        return all(length == count for length in pipeline.execute())


def test_routers_share_the_lists_and_take_over(tmp_path: Path) -> None:
    """Each list has one router; a killed one's lists are served within 3 s, a leaving one's at once."""
    with (
        Cluster(tmp_path, pods=1, routers=3, PRESENCE_INTERVAL_S="0.3") as cluster,
        connected(cluster) as aes,
    ):
        for tenant_id in TENANTS:
            push(aes, tenant_id, 0)
        wait_for(lambda: everything_moved(aes, 1), "first callbacks moved")
        wait_for(lambda: sum(lists_served(cluster).values()) == len(TENANTS), "lists divided")
        shares = lists_served(cluster)
        assert len(shares) == 3
        assert min(shares.values()) >= 8, shares  # 20 each, by chance
        conflicts = sum(
            router["conflicts"] for router in get(f"{cluster.pods[0].url}/api/chat/stats")[1]["routers"]
        )

        victim = max(shares, key=lambda router_id: shares[router_id])
        process = next(router for router in cluster.routers if router.pid == pid_of(victim))
        process.kill()
        for tenant_id in TENANTS:
            push(aes, tenant_id, 1)
        killed_s = wait_for(lambda: everything_moved(aes, 2), "a dead router's lists taken over")
        assert killed_s < 3.0

        process.start()
        wait_for(lambda: len(lists_served(cluster)) == 3, "three routers again")
        wait_for(lambda: sum(lists_served(cluster).values()) == len(TENANTS), "lists divided again")
        assert process.stop() == 0
        for tenant_id in TENANTS:
            push(aes, tenant_id, 2)
        left_s = wait_for(lambda: everything_moved(aes, 3), "lists of the one that left taken over")
        assert left_s < 1.0
        for tenant_id in TENANTS:
            assert log_of(aes, tenant_id) == [f"{tenant_id}.{n}" for n in range(3)]
        print(
            f"\nlists by router {sorted(shares.values())}, transfers refused by a fence {conflicts}; "
            f"after kill -9 all moved in {killed_s:.2f} s, after SIGTERM in {left_s:.2f} s"
        )


@pytest.mark.parametrize("fenced", [True, False], ids=["fenced", "control: fence taken out"])
def test_what_a_paused_router_still_does_is_refused(tmp_path: Path, fenced: bool) -> None:
    """A router stops between reading callbacks and moving them, others go on, and it wakes up.

    Without the fence it would trim callbacks that it has never read.
    """
    with (
        Cluster(tmp_path, pods=1, routers=1, PRESENCE_INTERVAL_S="0.3") as cluster,
        connected(cluster) as aes,
    ):
        sleeper = cluster.routers[0]
        sleeper.stop()
        sabotaged(sleeper, "pausing", *(() if fenced else ("fence",)))
        sleeper.start()
        push(aes, "acme", 0)
        wait_for(lambda: log_of(aes, "acme") == ["acme.0"], "the first callback moved")

        push(aes, "acme", 1, note=MARKER.decode())
        wait_for(lambda: _state(sleeper.pid) == "T", "the router stopped itself")
        # Another takes the list over and moves what the sleeper has read; then that one is stopped as well.
        command = [sys.executable, "-m", "gateway", "router"]
        other = Process(command, sleeper.environ, tmp_path / "other.log")
        other.start()
        try:
            taken_s = wait_for(lambda: len(log_of(aes, "acme")) == 2, "the other has taken over")
            assert taken_s < 3.0 + 2.0  # and it had to start first
            other.signal(signal.SIGSTOP)
            for number in range(2, 5):
                push(aes, "acme", number)
            sleeper.signal(signal.SIGCONT)
            wanted = ["acme.0", f"acme.1{MARKER.decode()}", "acme.2", "acme.3", "acme.4"]
            if fenced:
                wait_for(lambda: log_of(aes, "acme") == wanted, "everything moved, in order, once")
                assert aes.llen("orchestrator:acme:callbacks") == 0
            else:
                wait_for(lambda: aes.llen("orchestrator:acme:callbacks") == 0, "the list is empty")
                assert log_of(aes, "acme") != wanted
                assert "acme.2" not in log_of(aes, "acme"), "trimmed unread"
        finally:
            other.signal(signal.SIGCONT)
            other.kill()


def _state(pid: int) -> str:
    """A process's state as the kernel tells it; T is stopped."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_a_router_tells_its_health(tmp_path: Path) -> None:
    """Ready while it is woken and serves its lists; alive whatever becomes of Redis."""
    port = free_port()
    with Cluster(
        tmp_path, pods=1, routers=1, appendfsync="always", ROUTER_PORT=str(port), PROBE_INTERVAL_S="0.2"
    ) as cluster:
        url = f"http://127.0.0.1:{port}"
        wait_for(lambda: get(f"{url}/readyz")[0] == 200, "the router is ready")
        assert get(f"{url}/health/detailed")[1]["lookout"] is True
        cluster.valkey.kill()
        wait_for(lambda: get(f"{url}/readyz")[0] == 503, "not ready without Redis")
        assert "Redis" in get(f"{url}/readyz")[1]["reason"]
        assert get(f"{url}/livez")[0] == 200
        cluster.valkey.start()
        wait_for(lambda: get(f"{url}/readyz")[0] == 200, "ready again")


def test_a_hot_tenant_is_spread_over_several_lists(tmp_path: Path) -> None:
    """Each session has one list, of which the AES is told; what comes on another is sent on, in order."""
    with (
        Cluster(tmp_path, pods=1, routers=2, unlimited=True, CALLBACK_LISTS="hot=4") as cluster,
        connected(cluster) as aes,
    ):
        told: dict[str, str] = {}
        for number in range(12):
            session_id = f"s{number}"
            with open_socket(cluster.pods[0], session_id, tenant_id="hot") as socket:
                receive(socket)
                socket.send(json.dumps({"type": "chat", "ref": 1, "message": "hello"}))
                assert receive_other(socket)["type"] == "ack"
                action = json.loads(str(aes.rpop("nooble4:dev:agent_execution_service:actions:free")))
                told[session_id] = action["callback_queue"]
                for n in range(3):  # as told, and as an AES that knows one list only
                    aes.lpush(action["callback_queue"], callback("hot", session_id, f"told.{n}"))
                assert [m["task_id"] for m in receive_ends(socket, 3)] == ["told.0", "told.1", "told.2"]
                for n in range(20):
                    aes.lpush("orchestrator:hot:callbacks", callback("hot", session_id, f"plain.{n}"))
                plain = [m["task_id"] for m in receive_ends(socket, 20)]
                assert plain == [f"plain.{n}" for n in range(20)]
                assert silent(socket)
        names = {"orchestrator:hot:callbacks", *(f"orchestrator:hot:callbacks:{n}" for n in range(1, 4))}
        assert set(told.values()) == names
        print(f"\n12 sessions on {len(set(told.values()))} lists, 276 callbacks, each once and in order")


def test_spreading_a_tenant_keeps_the_sessions_that_it_has(tmp_path: Path) -> None:
    """Sessions from before go on with their log and their list, new ones are spread."""
    with Cluster(tmp_path, pods=1, routers=1) as cluster, connected(cluster) as aes:
        for number in range(6):
            push(aes, "hot", number, session_id=f"old{number}")
        wait_for(lambda: all(log_of(aes, "hot", f"old{n}") for n in range(6)), "moved")
        for process in (*cluster.pods, *cluster.routers):
            process.stop()
            process.environ["ORCHESTRATOR_CALLBACK_LISTS"] = "hot=4"
            process.start()
        wait_for(cluster.pods[0].ready, "ready")
        for number in range(6):
            push(aes, "hot", 100 + number, session_id=f"old{number}")
            with open_socket(cluster.pods[0], f"old{number}", tenant_id="hot") as socket:
                assert receive(socket)["data"]["resume"]["status"] == "replayed"
                got = [message["task_id"] for message in receive_logged(socket, 2)]
                assert got == [f"hot.{number}", f"hot.{100 + number}"]


def test_lists_that_appear_while_routers_join(tmp_path: Path) -> None:
    """Tenants whose first callback comes while the routers' views differ wait for no sweep."""
    tenants = [f"new-{n}" for n in range(600)]
    with (
        Cluster(tmp_path, pods=1, routers=3, SWEEP_INTERVAL_S="3600", PRESENCE_INTERVAL_S="0.3") as cluster,
        connected(cluster) as aes,
    ):
        for router in cluster.routers[1:]:
            router.stop()
        for n, tenant_id in enumerate(tenants):
            if n in {100, 300}:
                cluster.routers[1 if n == 100 else 2].start()
            push(aes, tenant_id, 0)
            time.sleep(0.005)  # a pace: they come in the seconds in which the routers join
        lists = {f"orchestrator:{tenant_id}:callbacks" for tenant_id in tenants}
        first_s = wait_for(lambda: not aes.exists(*lists), "the first ones moved", timeout_s=6.0)
        wait_for(lambda: sum(lists_served(cluster).values()) == len(tenants), "each list is somebody's")
        for tenant_id in tenants:
            push(aes, tenant_id, 1)
        second_s = wait_for(lambda: not aes.exists(*lists), "the second ones moved", timeout_s=6.0)
        print(
            f"\n600 new tenants while two routers joined: their first callbacks moved {first_s:.2f} s "
            f"after the last was pushed, their second {second_s:.2f} s"
        )
