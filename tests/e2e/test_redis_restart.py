"""Redis goes away and comes back: sockets stay, nothing is lost, health is honest."""

from __future__ import annotations

import threading
import time

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.support.accounting import callback
from tests.support.processes import Cluster, get, wait_for
from tests.support.talk import open_socket, receive, receive_logged, silent

LIST = "orchestrator:acme:callbacks"


def test_redis_restarted_in_mid_run(own_cluster: Cluster) -> None:
    """Restarted with its append-only file: sockets up, nothing lost, on within 1 s, 503 meanwhile."""
    cluster, pod = own_cluster, own_cluster.pods[0]
    with open_socket(pod, "s") as socket:
        receive(socket)
        pushed = _push_in_background(cluster, 0, 300)
        first = receive_logged(socket, 50)
        cluster.valkey.kill()
        gone = time.monotonic()
        unready_s = wait_for(lambda: get(f"{pod.url}/readyz")[0] == 503, "readyz 503")
        assert get(f"{pod.url}/livez")[0] == 200
        status, problem = get(f"{pod.url}/ws/stats")
        assert (status, problem["error_code"]) == (503, "redis_unavailable")
        socket.send('{"type": "chat", "ref": 1, "message": "now?"}')
        answers = [receive(socket)]
        while answers[-1]["type"] != "error":
            answers.append(receive(socket))
        assert answers[-1]["data"]["error_code"] == "redis_unavailable"
        assert answers[-1]["data"]["retry_after_ms"] > 0
        time.sleep(max(0.0, 1.0 - (time.monotonic() - gone)))  # an outage of a second at least
        cluster.valkey.start()
        cluster.wait_valkey()
        back = time.monotonic()
        before = [m for m in answers if "seq" in m["metadata"]]
        next_ = receive_logged(socket, 1)
        resumed_s = time.monotonic() - back
        pushed.join()
        messages = first + before + next_
        messages += receive_logged(socket, 300 - len(messages))
        assert silent(socket)
    assert [m["metadata"]["seq"] for m in messages] == list(range(1, 301))
    assert len({m["task_id"] for m in messages}) == 300
    assert resumed_s < 1.0
    wait_for(pod.ready, "ready again")
    print(
        f"\nsent=300 delivered={len(messages)}; unready after {unready_s:.2f} s, "
        f"delivery on {resumed_s:.2f} s after Redis was back"
    )


def _push_in_background(cluster: Cluster, first: int, count: int) -> threading.Thread:
    """The AES, which tries a failed push again."""

    def work() -> None:
        # Without redis-py's own pauses between tries, which would be measured as ours.
        with redis.Redis(port=cluster.redis_port, retry=Retry(NoBackoff(), 0)) as client:
            for number in range(first, first + count):
                while True:
                    try:
                        client.lpush(LIST, callback("acme", "s", f"t{number}"))
                        break
                    except redis.RedisError:
                        time.sleep(0.01)
                time.sleep(0.003)

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_pods_and_router_start_before_redis(own_cluster: Cluster) -> None:
    """A pod that starts while Redis is away serves as soon as it is there, and never ends because of it."""
    pod, router = own_cluster.pods[0], own_cluster.routers[0]
    own_cluster.valkey.kill()
    for process in (pod, router):
        process.kill()
        process.start()
    wait_for(lambda: get(f"{pod.url}/livez")[0] == 200, "alive without Redis")
    assert get(f"{pod.url}/readyz")[0] == 503
    own_cluster.valkey.start()
    wait_for(pod.ready, "ready once Redis is there")
    assert router.popen is not None
    assert router.popen.poll() is None
