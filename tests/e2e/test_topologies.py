"""Real pods and routers over a cluster, over Sentinel, and over TLS with a user of few rights.

A cluster and a Sentinel set serve the tests of both kinds; before each they are whole again.
"""

from __future__ import annotations

import asyncio
import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection

from backplane.settings import Settings
from tests.support.accounting import callback
from tests.support.processes import Pod, Process, free_port, get, wait_for
from tests.support.pusher import Wire
from tests.support.sabotage import sabotaged
from tests.support.talk import Message, close_code, open_socket, receive, receive_logged
from tests.support.topology import HOST, SentinelSet, Server, TlsValkey, ValkeyCluster, tls_files

KEYS = Settings().keys()
PACE_S = 0.02
ROUTERS = 2
_serial = count()


class Gateway:
    """Pods and routers; a context manager.

    Args:
        folder: for logs.
        url: of Redis.
    """

    def __init__(self, folder: Path, url: str, *, pods: int = 2, routers: int = ROUTERS) -> None:
        environ = {
            "ORCHESTRATOR_AUTH": "none",
            "ORCHESTRATOR_REDIS_URL": url,
            "ORCHESTRATOR_LOG_FORMAT": "json",
            "ORCHESTRATOR_DRAIN_READINESS_S": "0",
            "ORCHESTRATOR_DRAIN_TIMEOUT_S": "1",
            "ORCHESTRATOR_RECONNECT_JITTER_S": "0",
        }
        command = [sys.executable, "-m", "gateway", "router"]
        self.environ = environ
        self.pods = [Pod(environ, folder / f"pod-{n}.log") for n in range(pods)]
        self.routers = [Process(command, environ, folder / f"router-{n}.log") for n in range(routers)]

    def __enter__(self) -> Gateway:
        for process in (*self.routers, *self.pods):
            process.start()
        try:
            self.wait_ready()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_error: object) -> None:
        for process in (*self.pods, *self.routers):
            process.kill()

    def wait_ready(self) -> None:
        """Wait until all pods are, and all routers have a lease."""
        for pod in self.pods:
            wait_for(pod.ready, f"pod on {pod.port} ready")
        wait_for(self._routers_known, "routers known")

    def _routers_known(self) -> bool:
        status, stats = get(f"{self.pods[0].url}/api/chat/stats")
        return status == 200 and len(stats["routers"]) == len(self.routers)

    def command(self, *words: str) -> str:
        """What a console command prints."""
        done = subprocess.run(
            [sys.executable, "-m", "gateway", *words],
            env={**self.pods[0].environ},
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@dataclass
class Deployed:
    """A gateway over Redis servers that can be killed; also a `tests.support.pusher.Place`."""

    servers: ValkeyCluster | SentinelSet
    gateway: Gateway
    replicas: int = 0

    @property
    def everything(self) -> list[Server]:
        if isinstance(self.servers, ValkeyCluster):
            return [*self.servers.nodes]
        return [*self.servers.servers, *self.servers.sentinels]

    def primary_of(self, name: str) -> Server:
        return (
            self.servers.node_of(name) if isinstance(self.servers, ValkeyCluster) else self.servers.primary()
        )

    def replicas_of(self, primary: Server) -> list[Server]:
        """Those that live."""
        if isinstance(self.servers, SentinelSet):
            return self.servers.replicas()
        return [node for node in self.servers.living() if follows(node, primary)]

    async def locate(self, key: str) -> tuple[str, int]:
        try:
            return HOST, (await asyncio.to_thread(self.primary_of, key)).port
        except LookupError as error:
            raise OSError(str(error)) from None

    @property
    def of_sentinel(self) -> bool:
        return isinstance(self.servers, SentinelSet)

    def wait_failed_over(self, old: Server) -> float:
        return self.servers.wait_failed_over(old)  # type: ignore[arg-type]  # each with servers of its own kind

    def cut_off(self, primary: Server) -> list[Server]:
        """Let nothing that is written from now on reach the primary's replicas; returns those, frozen.

        A replica that is only frozen finds all that was sent to it in its socket's buffer when it wakes. So
        its connection is closed, by the primary, which stops sending then and there; and a process that is
        frozen makes no new one. It must not wake before the primary is dead.
        """
        replicas = self.replicas_of(primary)
        wait_for(lambda: all(offset(replica) == offset(primary) for replica in replicas), "replicas level")
        for replica in replicas:
            replica.freeze()
        primary.ask("CLIENT", "KILL", "TYPE", "replica")
        wait_for(lambda: primary.info("replication")["connected_slaves"] == 0, "replicas cut off")
        return replicas

    def heal(self) -> None:
        """Have everything run and be well."""
        for server in self.everything:
            server.launch()
            server.thaw()
            server.wait_answers()
        for sentinel in self.servers.sentinels if isinstance(self.servers, SentinelSet) else ():
            sentinel.ask("SENTINEL", "DEBUG", "PUBLISH-PERIOD", 100, "INFO-PERIOD", 500)
        self.servers.wait_healthy()
        for sentinel in self.servers.sentinels if isinstance(self.servers, SentinelSet) else ():
            sentinel.ask("SENTINEL", "DEBUG", "PUBLISH-PERIOD", 2000, "INFO-PERIOD", 10_000)
        self.gateway.wait_ready()
        self.replicas = len(self.replicas_of(self.primary_of("x")))

    def tenants(self) -> list[str]:
        """Three new ones; on a cluster each on a primary of its own, the first where the leases are."""
        first = self.primary_of(KEYS.leases)
        found: dict[Server | int, str] = {}
        while len(found) < 3:
            number = next(_serial)
            tenant = f"t-{number}"
            where = self.primary_of(KEYS.callbacks(tenant))
            if not isinstance(self.servers, ValkeyCluster):
                found[number] = tenant
            elif where is first or first in found:
                found.setdefault(where, tenant)
        return list(found.values())


def offset(server: Server) -> int:
    """How much of the replication stream it has."""
    info = server.info("replication")
    return int(info["master_repl_offset"] if info["role"] == "master" else info["slave_repl_offset"])


def follows(node: Server, primary: Server) -> bool:
    """Whether a node is a replica of a primary."""
    info = node.info("replication")
    return info["role"] == "slave" and int(info["master_port"]) == primary.port


@pytest.fixture(scope="module", params=["cluster", "sentinel"])
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    """Started once for all tests of a kind."""
    folder = tmp_path_factory.mktemp(request.param)
    with ExitStack() as stack:
        servers: ValkeyCluster | SentinelSet
        if request.param == "cluster":
            servers = ValkeyCluster(folder, config=["cluster-require-full-coverage no"])
        else:
            servers = SentinelSet(folder)
        stack.enter_context(servers)
        yield Deployed(servers, stack.enter_context(Gateway(folder, servers.url)))


@pytest.fixture
def deployed(running: Deployed) -> Deployed:
    """Whole, whatever the test before did to it."""
    running.heal()
    return running


on_cluster_only = pytest.mark.parametrize("running", ["cluster"], indirect=True)


# Under load.


@dataclass
class Listener:
    """A client that keeps its socket as long as it is let.

    Attributes:
        got: when each message of the log came, and the message.
        closed: the code with which the socket was closed.
        asked: why it was asked to reconnect.
    """

    pod: Pod
    tenant: str
    session: str
    got: list[tuple[float, Message]] = field(default_factory=list)
    asked: str = ""
    closed: int | None = None

    def __post_init__(self) -> None:
        self._open = ExitStack()
        self._socket = self._open.enter_context(open_socket(self.pod, self.session, tenant_id=self.tenant))
        assert receive(self._socket)["type"] == "connection_ack"
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()

    def _listen(self) -> None:
        with suppress(TimeoutError):
            try:
                while True:
                    message = receive(self._socket, 30)
                    if "seq" in message["metadata"]:
                        self.got.append((time.monotonic(), message))
                    elif message["type"] == "reconnect":
                        self.asked = message["data"]["reason"]
            except ConnectionClosed as closed:
                self.closed = 1006 if closed.rcvd is None else closed.rcvd.code

    def end(self) -> None:
        self._open.close()
        self._thread.join()

    def pause(self, after: float) -> float:
        """The longest time without a message since then."""
        times = [at for at, _ in self.got if at > after]
        return max(later - sooner for sooner, later in pairwise([after, *times]))


class Load:
    """A session of each tenant with a socket on each pod, and an agent that pushes for each all the time.

    A callback counts as pushed when all replicas have it: what is lost otherwise is not the gateway's doing.
    """

    def __init__(self, deployed: Deployed, tenants: list[str]) -> None:
        self._deployed = deployed
        self.session = f"s-{next(_serial)}"
        self.pushed = dict.fromkeys(tenants, 0)
        self.listeners = [
            Listener(pod, tenant, self.session) for tenant in tenants for pod in deployed.gateway.pods
        ]
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._push_all()))

    def __enter__(self) -> Load:
        self._thread.start()
        time.sleep(0.5)
        return self

    def __exit__(self, *_error: object) -> None:
        self._stop.set()
        self._thread.join()
        with suppress(TimeoutError):
            wait_for(self._all_there, "everything delivered", 10)
        for listener in self.listeners:
            listener.end()

    async def _push_all(self) -> None:
        await asyncio.gather(*map(self._push, self.pushed))

    async def _push(self, tenant: str) -> None:
        wire = Wire(self._deployed)
        while not self._stop.is_set():
            task = f"{self.session}.{self.pushed[tenant]}"
            await wire.push_until_taken(KEYS.callbacks(tenant), callback(tenant, self.session, task))
            self.pushed[tenant] += 1
            await asyncio.sleep(PACE_S)
        await wire.close()

    def _all_there(self) -> bool:
        return all(
            listener.asked or len(listener.got) >= self.pushed[listener.tenant] for listener in self.listeners
        )

    def of(self, tenant: str) -> list[Listener]:
        return [listener for listener in self.listeners if listener.tenant == tenant]

    def check(self) -> None:
        """Every socket is the one of the beginning, and got everything once and in order.

        But one that was sent what its server took with it into death has to be sent away, for that reason.
        """
        lost = doubled = disordered = 0
        for listener in self.listeners:
            if listener.asked:
                self._check_sent_away(listener)
                continue
            wanted = [f"{self.session}.{n}" for n in range(self.pushed[listener.tenant])]
            got = [message["task_id"] for _, message in listener.got]
            lost += len(set(wanted) - set(got))
            doubled += len(got) - len(set(got))
            disordered += list(dict.fromkeys(got)) != [task for task in wanted if task in set(got)]
            assert [message["metadata"]["seq"] for _, message in listener.got] == list(range(1, len(got) + 1))
        sent = sum(self.pushed[listener.tenant] for listener in self.listeners)
        print(f"\nsent={sent} {lost=} {doubled=} {disordered=}")
        assert (lost, doubled, disordered) == (0, 0, 0)
        assert {listener.closed for listener in self.listeners if not listener.asked} <= {None, 1000, 1005}
        assert min(self.pushed.values()) > 20

    def _check_sent_away(self, listener: Listener) -> None:
        """It had been sent more than the new primary has, as a kill in the wrong microsecond brings about."""
        name, last = KEYS.callbacks(listener.tenant), listener.got[-1][1]["metadata"]
        record = KEYS.session(name, self.session)
        ended = self._deployed.primary_of(name).ask("HGET", record, "p") or b""
        stands = dict(entry.split(":") for entry in ended.decode().split())
        print(f"\nsent away: {listener.asked}; it had {last}, of which stand {stands}")
        assert (listener.closed, listener.asked) == (1012, "Redis lost the end of the session's log")
        assert last["seq"] > int(stands[last["epoch"]])


def test_a_primary_is_killed_under_load(deployed: Deployed) -> None:
    """Messages go on within a second of the failover; no socket is lost, on that primary or another."""
    tenants = deployed.tenants()
    with Load(deployed, tenants) as load:
        began = time.monotonic()
        old = deployed.primary_of(KEYS.callbacks(tenants[0]))
        old.kill()
        deployed.replicas -= 1
        replaced = deployed.wait_failed_over(old)
        time.sleep(1.0)
    hit, *others = [max(listener.pause(began) for listener in load.of(tenant)) for tenant in tenants]
    print(
        f"\nreplaced after {replaced:.2f} s, delivery on after {hit:.2f} s; others paused {max(others):.2f} s"
    )
    load.check()
    assert hit < replaced + 1.0
    assert deployed.of_sentinel or max(others) < 1.0


@on_cluster_only
def test_a_primary_is_replaced_by_command_under_load(deployed: Deployed) -> None:
    """The coordinated failover of a cluster is hardly noticed."""
    tenants = deployed.tenants()
    cluster = deployed.servers
    assert isinstance(cluster, ValkeyCluster)
    with Load(deployed, tenants) as load:
        began = time.monotonic()
        replica = cluster.replica_of(cluster.node_of(KEYS.callbacks(tenants[0])))
        cluster.wait_failed_over(cluster.manual_failover(replica))
        time.sleep(1.0)
    hit = max(listener.pause(began) for listener in load.listeners)
    print(f"\nlongest pause {hit:.2f} s")
    load.check()
    assert hit < 1.0


@on_cluster_only
@pytest.mark.parametrize("atomic", [False, True], ids=["key by key", "atomic"])
def test_slots_move_under_load(deployed: Deployed, atomic: bool) -> None:
    """With lists and logs, there and back, key by key with pauses or at once: nothing is lost or twice."""
    tenants = deployed.tenants()
    cluster = deployed.servers
    assert isinstance(cluster, ValkeyCluster)
    slots = [cluster.slot_of(KEYS.callbacks(tenant)) for tenant in tenants]
    with Load(deployed, tenants) as load:
        began = time.monotonic()
        for _ in range(2):
            for slot in slots:
                source = next(
                    primary.node
                    for primary in cluster.primaries()
                    if any(slot in part for part in primary.slots)
                )
                target = next(primary.node for primary in cluster.primaries() if primary.node is not source)
                cluster.move_slots([slot], source, target, atomic=atomic, batch=1, pause_s=0.05)
        took = time.monotonic() - began
        time.sleep(1.5)
    pauses = [max(listener.pause(began) for listener in load.of(tenant)) for tenant in tenants]
    print(f"\n{atomic=}: six moves in {took:.2f} s; longest pauses {', '.join(f'{p:.2f}' for p in pauses)} s")
    load.check()
    assert max(pauses) < 3.0  # a moved slot is looked for every two seconds at the latest


# What a failover loses.


class Tail:
    """A session whose log is five messages long everywhere, and nine on a primary that dies.

    Attributes:
        live: a socket, open over all that; it has nine.
        at: cursors by their seq, all of the epoch of before.
        new: the primary since then.
    """

    def __init__(self, deployed: Deployed, how: str) -> None:
        self._deployed = deployed
        [self.tenant, *_] = deployed.tenants()
        self.session = f"s-{next(_serial)}"
        self.list = KEYS.callbacks(self.tenant)
        self.log = f"{KEYS.session(self.list, self.session)}:log"
        self.how = how
        self._open = ExitStack()
        self.pushed = 0
        self.new: Server | None = None

    def __enter__(self) -> Tail:
        try:
            self._lose()
        except BaseException:
            self._open.close()
            raise
        return self

    def __exit__(self, *_error: object) -> None:
        self._open.close()

    def _lose(self) -> None:
        primary, routers = self._deployed.primary_of(self.list), self._deployed.gateway.routers
        self.live = self._open.enter_context(self.socket(self._deployed.gateway.pods[0]))
        assert receive(self.live)["data"]["resume"]["status"] == "fresh"
        self.push(primary, 5)
        messages = receive_logged(self.live, 5)
        if self.how == "moved again":  # the callbacks are replicated, and only what is done with them is lost
            with stopped(*routers):
                self.push(primary, 4)
                replicas = self._deployed.cut_off(primary)
        else:
            replicas = self._deployed.cut_off(primary)
            self.push(primary, 4)
        messages += receive_logged(self.live, 4)
        assert told(messages) == [(n, self.task(n - 1)) for n in range(1, 10)]
        self.epoch = messages[0]["metadata"]["epoch"]
        primary.kill()
        for replica in replicas:
            replica.thaw()
        if self.how == "others follow":
            with stopped(*routers):
                self._deployed.wait_failed_over(primary)
                self.new = self._deployed.primary_of(self.list)
                assert self.new.ask("LLEN", self.log) == 5
                self.push(self.new, 6)
        else:
            self._deployed.wait_failed_over(primary)
            self.new = self._deployed.primary_of(self.list)

    def socket(self, pod: Pod, seq: int | None = None) -> ClientConnection:
        """A new one, with the cursor of before that has this seq; a pod that says 503 is asked again."""
        cursor = None if seq is None else f"{self.epoch}:{seq}"
        deadline = time.monotonic() + 5
        while True:
            try:
                return open_socket(pod, self.session, tenant_id=self.tenant, cursor=cursor)
            except InvalidStatus as refused:
                if refused.response.status_code != 503 or time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    def push(self, server: Server, number: int) -> None:
        """Push so many callbacks."""
        for _ in range(number):
            server.ask("LPUSH", self.list, callback(self.tenant, self.session, self.task(self.pushed)))
            self.pushed += 1

    def task(self, number: int) -> str:
        return f"{self.session}.{number}"

    def in_log(self) -> list[str]:
        """The tasks of the messages that the new primary has."""
        assert self.new is not None
        return [
            re.findall(rb'"task_id":"([^"]+)"', raw)[0].decode()
            for raw in self.new.ask("LRANGE", self.log, 0, -1)
        ]


@contextmanager
def stopped(*processes: Process) -> Iterator[None]:
    """Frozen while the body runs."""
    for process in processes:
        process.signal(signal.SIGSTOP)
    try:
        yield
    finally:
        for process in processes:
            process.signal(signal.SIGCONT)


def told(messages: list[Message]) -> list[tuple[int, str]]:
    """Seqs and tasks."""
    return [(message["metadata"]["seq"], message["task_id"]) for message in messages]


def resumed(socket: ClientConnection) -> dict[str, Any]:
    """How a connection was resumed."""
    greeting = receive(socket)
    assert greeting["type"] == "connection_ack"
    resume: dict[str, Any] = greeting["data"]["resume"]
    return resume


def test_a_failover_loses_the_end_of_a_log(deployed: Deployed) -> None:
    """Whoever was sent what is lost is told so, and nobody else notices; and no message is passed over.

    Other messages follow at once, so that the log is longer than what a client has, who was sent others: the
    trap is that its cursor looks like one of the past. Epochs tell them apart.
    """
    check_lost_tail(deployed, "others follow")


@on_cluster_only
@pytest.mark.parametrize("how", ["nothing follows", "moved again"])
def test_a_failover_loses_the_end_and_the_log_is_not_longer(deployed: Deployed, how: str) -> None:
    """It is shorter than what a client has, or just as long: the same callbacks are moved again."""
    check_lost_tail(deployed, how)


def check_lost_tail(deployed: Deployed, how: str) -> None:
    """See `Tail`: clients come back, on both pods, that have had all, what is left, or less than that."""
    pods = deployed.gateway.pods
    with Tail(deployed, how) as tail:
        failed_over = time.monotonic()
        closing = receive(tail.live)
        assert closing["type"] == "reconnect"
        assert close_code(tail.live) == 1012
        print(f"\n{how}: sent away {time.monotonic() - failed_over:.2f} s after the failover")
        kept = [tail.task(n) for n in range(5)]
        if how == "others follow":
            more = [tail.task(n) for n in range(9, 15)]
        else:
            more = [tail.task(n) for n in range(5, 9)] if how == "moved again" else []
        wait_for(lambda: tail.in_log() == kept + more, "moved")
        wanted = list(enumerate(kept + more, 1))
        for pod in pods:
            with tail.socket(pod, 9) as ahead, tail.socket(pod, 5) as level, tail.socket(pod, 3) as behind:
                resume = resumed(ahead)
                assert (resume["status"], resume["oldest"]) == ("reset", 1)
                assert told(receive_logged(ahead, len(wanted))) == wanted
                assert resumed(level)["status"] == resumed(behind)["status"] == "replayed"
                assert told(receive_logged(level, len(more))) == wanted[5:]
                assert told(receive_logged(behind, 2 + len(more))) == wanted[3:]
                assert tail.new is not None
                next_task, seq = tail.task(tail.pushed), len(wanted) + 1
                tail.push(tail.new, 1)
                for socket in (ahead, level, behind):
                    [message] = receive_logged(socket, 1)
                    assert told([message]) == [(seq, next_task)]
                    assert message["metadata"]["epoch"] != tail.epoch
                more.append(next_task)
                wanted.append((seq, next_task))


@on_cluster_only
def test_control_without_epochs_messages_are_passed_over(deployed: Deployed) -> None:
    """The same trap, with routers that keep a log's epoch: the stale cursor is taken for a good one."""
    routers = deployed.gateway.routers
    commands = [router.command for router in routers]
    try:
        for router in routers:
            router.stop()
            sabotaged(router, "epoch")
            router.start()
        deployed.gateway.wait_ready()
        with Tail(deployed, "others follow") as tail:
            wait_for(lambda: len(tail.in_log()) == 11, "moved")
            with tail.socket(deployed.gateway.pods[1], 9) as ahead:
                assert resumed(ahead)["status"] == "replayed"
                assert told(receive_logged(ahead, 2)) == [(10, tail.task(13)), (11, tail.task(14))]
    finally:
        for router, command in zip(routers, commands, strict=True):
            router.stop()
            router.command = command
            router.start()


# Commands, the agent, TLS.


def chat(pod: Pod, agent: Process, tenant: str) -> str:
    """One message from a person to the agent and its answer, end to end."""
    if agent.popen is None:
        agent.start()
    with open_socket(pod, f"s-{next(_serial)}", tenant_id=tenant) as socket:
        receive(socket)
        socket.send('{"type": "chat", "ref": 1, "message": "hello"}')
        while (message := receive(socket, 15))["type"] != "agent_response":
            assert message["type"] != "error", message
    response: str = message["data"]["response"]
    return response


@contextmanager
def demo_agent(folder: Path, url: str) -> Iterator[Process]:
    """A process in the place of the AES, to be started when it is needed."""
    environ = {"ORCHESTRATOR_REDIS_URL": url, "ORCHESTRATOR_LOG_FORMAT": "json"}
    agent = Process([sys.executable, "-m", "gateway", "demo-agent"], environ, folder / "agent.log")
    try:
        yield agent
        assert agent.stop() == 0, agent.output
    finally:
        agent.kill()


def bury_and_redrive(gateway: Gateway, list_server: Server, tenant: str) -> None:
    """Two callbacks that nobody can read become dead letters; one is put back in line, one is dropped."""
    for text in ("not JSON", "[]"):
        list_server.ask("LPUSH", KEYS.callbacks(tenant), text)
    words = ["dead-letters", "list", "--tenant", tenant]
    wait_for(lambda: "2 dead letters" in gateway.command(*words), "both buried")
    newest, oldest, _ = gateway.command(*words).splitlines()
    assert "not JSON" in gateway.command("dead-letters", "show", oldest.split()[0])
    assert "dropped" in gateway.command("dead-letters", "drop", newest.split()[0])
    assert "back on its callback list" in gateway.command("dead-letters", "redrive", oldest.split()[0])
    wait_for(lambda: "1 dead letters" in gateway.command(*words), "buried again")
    assert gateway.command(*words).split()[0] != oldest.split()[0]


def test_agent_and_commands_find_their_server(deployed: Deployed, tmp_path: Path) -> None:
    """The demo agent and the operator's commands take the same address, whichever server a tenant is on."""
    gateway, tenants = deployed.gateway, deployed.tenants()
    with demo_agent(tmp_path, deployed.servers.url) as agent:
        for tenant in tenants:
            assert "hello" in chat(gateway.pods[0], agent, tenant)
    bury_and_redrive(gateway, deployed.primary_of(KEYS.callbacks(tenants[0])), tenants[0])


def documented_rights() -> list[str]:
    """Of docs/redis.md: what a user with ACL needs."""
    text = (Path(__file__).parents[2] / "docs" / "redis.md").read_text()
    [needs] = re.findall(r"- A user with ACL needs: (.*?)\n- ", text, re.DOTALL)
    return " ".join(re.findall(r"`([^`]+)`", needs)).split()


def test_over_tls_with_the_documented_rights(tmp_path: Path) -> None:
    """A chat, dead letters and the statistics, through a user that has no more rights than the docs say."""
    rights = documented_rights()
    assert {"~ao:*", "&ao:*"} <= set(rights)
    with TlsValkey(tmp_path) as valkey:
        server = valkey.server
        server.ask("ACL", "SETUSER", "gate", "reset", "on", ">pa:ss", *rights)
        url = valkey.url.replace("app:secret@", "gate:pa%3Ass@")
        with (
            Gateway(tmp_path, url, pods=1, routers=1) as gateway,
            demo_agent(tmp_path, url) as agent,
        ):
            [pod] = gateway.pods
            assert "hello" in chat(pod, agent, "acme")
            bury_and_redrive(gateway, server, "acme")
            for path in ("/ws/stats", "/ws/stats?tenant_id=acme", "/api/chat/stats", "/health/detailed"):
                assert get(f"{pod.url}{path}")[0] == 200
            assert pod.stop() == gateway.routers[0].stop() == 0
            for process in (pod, *gateway.routers):
                assert "NOPERM" not in process.output
        assert server.ask("ACL", "LOG") == []


def test_a_certificate_that_nobody_trusts(tmp_path: Path) -> None:
    """Pod and router say so, stay alive, and serve as soon as the server shows another."""
    trusted = tls_files(tmp_path / "trusted")
    with TlsValkey(tmp_path) as valkey:
        url = valkey.url.replace(str(valkey.files.ca), str(trusted.ca))
        router_port = free_port()
        gateway = Gateway(tmp_path, url, pods=1, routers=1)
        [pod], [router] = gateway.pods, gateway.routers
        router.environ = {**router.environ, "ORCHESTRATOR_ROUTER_PORT": str(router_port)}
        urls = [pod.url, f"http://127.0.0.1:{router_port}"]
        try:
            for process in (pod, router):
                process.start()
            for at in urls:
                wait_for(lambda at=at: get(f"{at}/readyz")[0] == 503, "not ready")  # type: ignore[misc]
            time.sleep(1.0)
            for at in urls:
                status, answer = get(f"{at}/readyz")
                assert (status, get(f"{at}/livez")[0]) == (503, 200)
                assert "certificate verify failed" in answer["reason"]
            for process in (pod, router):
                told = [line for line in process.output.splitlines() if "certificate verify failed" in line]
                assert {json.loads(line)["event"] for line in told} == {"redis_unreachable"}
                assert len(told) <= 3  # once for each connection, not for each attempt
                assert "secret" not in process.output
            valkey.show(trusted)
            for at in urls:
                wait_for(lambda at=at: get(f"{at}/readyz")[0] == 200, "ready")  # type: ignore[misc]
        finally:
            gateway.__exit__()
