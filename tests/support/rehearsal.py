"""Rehearsed failures: each breaks something real, waits for its alert, mends it, and waits for its end.

    python -m tests.support.rehearsal [--times 60]

A real Prometheus scrapes two pods and a router under load, with the chart's rules in a hurry: their windows
and waits (``for``) are ``--times`` as short, their thresholds as they are. Prints a line for each alert.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import redis

from tests.monitoring.rules import RULES, alerts
from tests.support.chatter import Chatter
from tests.support.deaf_proxy import DeafProxy
from tests.support.processes import Cluster, Process, free_port, wait_for
from tests.support.prometheus import Prometheus, hurried_rules, seconds

TIMES = 60.0
_PATIENCE_S = 60.0
_WARM = 40
_LIST, _OTHER_LIST = "orchestrator:acme:callbacks", "orchestrator:stuck:callbacks"


class Rehearsed(NamedTuple):
    """What came of one failure.

    Attributes:
        waits_s: how long the rule waits as it is shipped (``for``).
        fired_s: from the failure to the alert, with the hurried rule.
        cleared_s: from the mend to its end.
        beside: other alerts that fired meanwhile.
        says: the alert's description.
    """

    alert: str
    failure: str
    waits_s: int
    fired_s: float
    cleared_s: float
    beside: tuple[str, ...]
    says: str


@dataclass(frozen=True, slots=True)
class Stage:
    """All that runs."""

    cluster: Cluster
    proxy: DeafProxy
    prometheus: Prometheus
    chatter: Chatter
    agents: redis.Redis
    router_url: str

    @property
    def urls(self) -> list[str]:
        """Where each process tells its metrics."""
        return [*(pod.url for pod in self.cluster.pods), self.router_url]

    def rehearse(self) -> Iterator[Rehearsed]:
        """Break and mend one thing after the other."""
        yield self._one("OrchestratorPodDeaf", "a proxy swallows what Redis pushes to a pod", self._deaf())
        yield self._one("OrchestratorDeadLetters", "an agent pushes what is no JSON", self._garbage())
        yield self._one("OrchestratorCallbacksWaiting", "Redis refuses a router one list", self._refused())
        yield self._one("OrchestratorNoRouter", "the router is killed (kill -9)", self._killed())

    def _one(self, alert: str, failure: str, broken: Any) -> Rehearsed:
        beside: set[str] = set()
        says = ""

        def fires() -> bool:
            nonlocal says
            firing = self.prometheus.firing()
            beside.update(firing.keys() - {alert})
            if alert in firing:
                says = firing[alert]["annotations"]["description"]
            return alert in firing

        wait_for(lambda: not fires(), f"{alert} does not fire before", _PATIENCE_S)
        with broken:
            fired_s = wait_for(fires, f"{alert} fires", _PATIENCE_S)
        cleared_s = wait_for(lambda: not fires(), f"{alert} clears", _PATIENCE_S)
        waits_s = next(seconds(rule.wait) for rule in alerts() if rule.alert == alert)
        return Rehearsed(alert, failure, waits_s, fired_s, cleared_s, tuple(sorted(beside)), says)

    @contextmanager
    def _deaf(self) -> Iterator[None]:
        self.proxy.deaf = True
        try:
            yield
        finally:
            self.proxy.deaf = False

    @contextmanager
    def _garbage(self) -> Iterator[None]:
        self.agents.lpush(_LIST, "{")
        yield
        drop_dead_letters(self.cluster)

    @contextmanager
    def _refused(self) -> Iterator[None]:
        """Its user loses the right to the list of one tenant, on which something waits."""
        rights = ("~ao:*", "~nooble4:*", "~orchestrator:acme:*", "~orchestrator:small:*")
        self._rights("resetkeys", *rights)
        self.agents.lpush(_OTHER_LIST, '{"session_id": "s", "task_id": "t", "status": "completed"}')
        yield
        self._rights("allkeys")

    def _rights(self, *words: str) -> None:
        """Change those of pods and routers."""
        self.agents.execute_command("ACL", "SETUSER", "default", *words)  # type: ignore[no-untyped-call]

    @contextmanager
    def _killed(self) -> Iterator[None]:
        self.cluster.routers[0].kill()
        yield
        self.cluster.routers[0].start()


def drop_dead_letters(cluster: Cluster) -> None:
    """All that there are, with the project's own command."""
    listed = _command(cluster, "list")
    _command(cluster, "drop", *[line.split()[0] for line in listed.splitlines()[:-1]])


def _command(cluster: Cluster, *words: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "gateway", "dead-letters", *words]
        process = Process(command, cluster.pods[0].environ, Path(folder) / "output")
        process.start()
        assert process.popen is not None
        if process.popen.wait(15):
            raise RuntimeError(process.output)
        return process.output


@contextmanager
def stage(folder: Path, times: float = TIMES) -> Iterator[Stage]:
    """Start everything, and wait until answers come.

    Args:
        times: how much the rules hurry.
    """
    router_port = free_port()
    with ExitStack() as everything:
        cluster = Cluster(
            folder,
            pods=2,
            routers=1,
            ROUTER_PORT=str(router_port),
            HEARTBEAT_S="5",
            SENDS_PER_SESSION_HOUR="50,100,300,0",  # nobody who chats is stopped
        )
        proxy = everything.enter_context(DeafProxy(cluster.redis_port))
        pod, environ = cluster.pods[0], cluster.pods[1].environ
        pod.environ = {**environ, "ORCHESTRATOR_REDIS_URL": f"redis://127.0.0.1:{proxy.port}/0"}
        everything.enter_context(cluster)
        agents = everything.enter_context(_agents(cluster.redis_port))
        command = [sys.executable, "-m", "gateway", "demo-agent", "--think-s", "0.05"]
        agent = Process(command, environ, folder / "agent.log")
        agent.start()
        everything.callback(agent.kill)
        targets = [*(each.port for each in cluster.pods), router_port]
        chatter = everything.enter_context(Chatter(cluster.pods))
        prometheus = everything.enter_context(Prometheus(folder, targets, hurried_rules(RULES, times)))
        wait_for(lambda: chatter.answers >= _WARM, "answers come")
        prometheus.wait()
        yield Stage(cluster, proxy, prometheus, chatter, agents, f"http://127.0.0.1:{router_port}")


@contextmanager
def _agents(port: int) -> Iterator[redis.Redis]:
    """A connection of a user of its own, as agents should have."""
    with redis.Redis(port=port) as first:
        first.execute_command("ACL", "SETUSER", "agents", "on", "nopass", "~*", "&*", "+@all")
    with redis.Redis(port=port, username="agents", password="none") as agents:
        yield agents


def table(rehearsed: list[Rehearsed], times: float) -> Iterator[str]:
    """The report, in lines."""
    waited = f"for/{times:g}"
    yield f"{'alert':30} {'to fire':>8} {waited:>7} {'as shipped':>11} {'to clear':>9}  failure"
    for each in rehearsed:
        waited_s = max(1, round(each.waits_s / times))
        shipped_s = each.fired_s - waited_s + each.waits_s
        figures = f"{each.fired_s:6.1f} s {waited_s:5d} s {shipped_s:9.0f} s {each.cleared_s:7.1f} s"
        yield f"{each.alert:30} {figures}  {each.failure}"
        yield f"  {each.says}"
        if each.beside:
            yield f"  beside it: {', '.join(each.beside)}"


def main() -> int:
    """Rehearse everything; returns the exit status."""
    parser = argparse.ArgumentParser(description="Rehearsed failures and their alerts.")
    parser.add_argument("--times", type=float, default=TIMES, help="how much the rules hurry")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, stage(Path(folder), arguments.times) as running:
        rehearsed = list(running.rehearse())
    print(*table(rehearsed, arguments.times), sep="\n")
    print(f"{time.monotonic() - began:.0f} s in all")
    return 0


if __name__ == "__main__":
    sys.exit(main())
