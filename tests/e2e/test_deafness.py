"""Pods and routers that are connected to Redis and hear nothing: they notice, and do what they can."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
from websockets.exceptions import InvalidStatus

from tests.support.accounting import callback
from tests.support.deaf_proxy import DeafProxy
from tests.support.processes import Cluster, Process, free_port, get, wait_for
from tests.support.sabotage import sabotaged
from tests.support.talk import close_code, open_socket, receive, receive_logged

PROBE_S = 0.2
LIMIT_S = 2.0
SETTINGS: Any = {
    "PROBE_INTERVAL_S": str(PROBE_S),
    "DEAF_LIMIT_S": str(LIMIT_S),
    "RECONNECT_JITTER_S": "0.5",
}
LIST = "orchestrator:acme:callbacks"


@contextmanager
def behind_proxy(cluster: Cluster, process: Process) -> Iterator[DeafProxy]:
    """Restart a process of the cluster so that it reaches Redis through a proxy."""
    with DeafProxy(cluster.redis_port) as proxy:
        process.stop()
        process.environ = {**process.environ, "ORCHESTRATOR_REDIS_URL": f"redis://127.0.0.1:{proxy.port}/0"}
        process.start()
        yield proxy
        process.kill()


def test_a_deaf_pod_says_so_and_sends_its_clients_away(tmp_path: Path) -> None:
    """Unready within a few probes, with the reason; after the limit its sockets are asked to come back."""
    with Cluster(tmp_path, **SETTINGS) as cluster, behind_proxy(cluster, cluster.pods[0]) as proxy:
        pod = cluster.pods[0]
        wait_for(pod.ready, "the pod is ready through the proxy")
        with open_socket(pod, "s") as socket:
            receive(socket)
            proxy.deaf = True
            deaf_at = time.monotonic()
            unready_s = wait_for(lambda: not pod.ready(), "the deaf pod is unready")
            assert "come back" in get(f"{pod.url}/readyz")[1]["reason"]
            assert get(f"{pod.url}/livez")[0] == 200
            while (asked := receive(socket))["type"] != "reconnect":
                pass
            asked_s = time.monotonic() - deaf_at
            assert 0 <= asked["data"]["after_ms"] <= 500
            assert close_code(socket) == 1012
        assert unready_s < 5.0
        assert LIMIT_S / 2 <= asked_s < LIMIT_S + 5.0
        assert "probes do not come back" in pod.output  # it tried to mend itself
        with pytest.raises(InvalidStatus) as refused, open_socket(pod, "s"):
            pass
        assert refused.value.response.status_code == 503
        assert "Retry-After" in refused.value.response.headers
        with open_socket(cluster.pods[1], "s") as socket:  # which is not deaf
            assert receive(socket)["type"] == "connection_ack"
        proxy.deaf = False
        ready_s = wait_for(pod.ready, "ready again when it hears")
        with open_socket(pod, "s") as socket, redis.Redis(port=cluster.redis_port) as aes:
            receive(socket)
            aes.lpush(LIST, callback("acme", "s", "t1"))
            receive_logged(socket, 1)
        print(
            f"\ndeaf: unready after {unready_s:.2f} s, clients asked to leave after {asked_s:.2f} s, "
            f"ready {ready_s:.2f} s after it could hear again"
        )


def test_control_without_the_probe_a_deaf_pod_stays_green(tmp_path: Path) -> None:
    """The same pod, believing its open connections: ready for ever, and messages come late or never."""
    with Cluster(tmp_path, **{**SETTINGS, "POSITION_CHECK_S": "30"}) as cluster:
        pod = cluster.pods[0]
        sabotaged(pod, "probe")
        with behind_proxy(cluster, pod) as proxy, redis.Redis(port=cluster.redis_port) as aes:
            wait_for(pod.ready, "ready")
            with open_socket(pod, "s") as socket:
                receive(socket)
                proxy.deaf = True
                aes.lpush(LIST, callback("acme", "s", "t1"))
                with pytest.raises(TimeoutError):
                    receive_logged(socket, 1, timeout_s=LIMIT_S + 2.5)
                assert proxy.swallowed > 0
                assert pod.ready()


def test_a_deaf_router_says_so_and_mends_itself(tmp_path: Path) -> None:
    """A router that no wake-up reaches turns unready, and looks for itself on every new connection."""
    port = free_port()
    settings = {**SETTINGS, "ROUTER_PORT": str(port), "SWEEP_INTERVAL_S": "3600"}
    with Cluster(tmp_path, **settings) as cluster:
        url = f"http://127.0.0.1:{port}/readyz"
        with behind_proxy(cluster, cluster.routers[0]) as proxy, redis.Redis(port=cluster.redis_port) as aes:
            wait_for(lambda: get(url)[0] == 200, "the router is ready through the proxy")
            aes.lpush(LIST, callback("acme", "s", "t0"))
            wait_for(lambda: aes.llen(LIST) == 0, "woken")
            proxy.deaf = True
            unready_s = wait_for(lambda: get(url)[0] == 503, "the deaf router is unready")
            assert "come back" in get(url)[1]["reason"]
            aes.lpush(LIST, callback("acme", "s", "t1"))
            moved_s = wait_for(lambda: aes.llen(LIST) == 0, "moved all the same")
            proxy.deaf = False
            ready_s = wait_for(lambda: get(url)[0] == 200, "ready again")
        assert unready_s < 5.0
        assert moved_s < 5.0
        print(
            f"\ndeaf router: unready after {unready_s:.2f} s, a callback moved after {moved_s:.2f} s, "
            f"ready {ready_s:.2f} s after it could hear again"
        )


@pytest.mark.parametrize("checked", [True, False], ids=["checked", "control: gap check taken out"])
def test_a_tail_lost_with_the_subscription_shows(tmp_path: Path, checked: bool) -> None:
    """What was published while the subscription was cut shows within 1 s, without a next message."""
    with Cluster(tmp_path, pods=1) as cluster, redis.Redis(port=cluster.redis_port) as aes:
        pod = cluster.pods[0]
        if not checked:
            pod.stop()
            sabotaged(pod, "gap_check")
            pod.start()
            wait_for(pod.ready, "ready")
        with open_socket(pod, "s") as socket:
            receive(socket)
            with aes.pipeline(transaction=True) as together:
                for client in aes.client_list():
                    if client["name"] == "orchestrator-pod-feed":
                        together.client_kill_filter(_id=client["id"])
                together.lpush(LIST, callback("acme", "s", "t1"))
                together.execute()
            # The router moves it within a millisecond, the pod subscribes again after ten at least.
            if checked:
                began = time.monotonic()
                assert receive_logged(socket, 1, timeout_s=5)[0]["metadata"]["seq"] == 1
                took_s = time.monotonic() - began
                assert took_s < 1.0
                print(f"\na lost tail showed after {took_s * 1000:.0f} ms")
            else:
                with pytest.raises(TimeoutError):
                    receive_logged(socket, 1, timeout_s=6)
