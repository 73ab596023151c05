"""The servers that other tests are built on do what those tests take for granted."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from redis import Redis, RedisCluster
from redis.exceptions import AuthenticationError, RedisError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError

from backplane.redis_client import parse_redis_url
from tests.support.topology import (
    ClusterNode,
    SentinelSet,
    Server,
    TcpProxy,
    TlsValkey,
    ValkeyCluster,
    slot_migrations,
    tls_files,
)

KEYS = [f"key-{n}" for n in range(300)]


@pytest.fixture(scope="module")
def running_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyCluster]:
    """Started once for all tests of this file."""
    began = time.monotonic()
    with ValkeyCluster(tmp_path_factory.mktemp("cluster")) as cluster:
        print(f"cluster of {len(cluster.nodes)} started in {time.monotonic() - began:.1f} s")
        yield cluster


@pytest.fixture
def cluster(running_cluster: ValkeyCluster) -> ValkeyCluster:
    """The cluster, whole and empty, whatever the test before did to it."""
    for node in running_cluster.nodes:
        node.launch()
        node.thaw()
        node.wait_answers()
    running_cluster.wait_healthy()
    for node, _ in running_cluster.primaries():
        node.ask("FLUSHALL")
    return running_cluster


def fill(cluster: ValkeyCluster) -> None:
    """Set `KEYS`, and see that a replica of each has them."""
    for key in KEYS:
        cluster.node_of(key).ask("SET", key, key)
    for node, _ in cluster.primaries():
        assert node.ask("WAIT", 1, 5000) == 1


def kept(cluster: ValkeyCluster) -> bool:
    """Whether `KEYS` are what they were, each where its slot is."""
    owners = {key: cluster.node_of(key) for key in KEYS}
    return all(owner.ask("GET", key) == key.encode() for key, owner in owners.items())


@pytest.mark.parametrize(
    "key",
    [
        "x",
        "",
        "a{b}c",
        "{}x",
        "{a",
        "a}b{c}d",
        "{{a}}",
        "{a}{b}",
        "ao:{orchestrator:ñ:callbacks}:s:1",
        b"\0\xff",
    ],
)
def test_slot_of(cluster: ValkeyCluster, key: str | bytes) -> None:
    """Slots are those that the servers themselves find."""
    assert cluster.slot_of(key) == cluster.nodes[0].ask("CLUSTER", "KEYSLOT", key)


def test_cluster_serves_on_all_nodes(cluster: ValkeyCluster) -> None:
    """A client that knows one address finds every key, and every primary and replica has some."""
    client = RedisCluster.from_url(f"redis://{cluster.nodes[-1].address}")
    for key in KEYS:
        client.set(key, key)
    client.close()
    assert kept(cluster)
    primaries = [node for node, _ in cluster.primaries()]
    assert len(primaries) == 3
    for node in primaries:
        assert node.ask("WAIT", 1, 5000) == 1
        assert node.ask("DBSIZE") == cluster.replica_of(node).ask("DBSIZE") > 0


def test_url_names_all_nodes(cluster: ValkeyCluster) -> None:
    """Also the replicas, which are as good to ask for the slots."""
    assert cluster.url.startswith("redis+cluster://127.0.0.1:")
    assert cluster.url.count("127.0.0.1:") == len(cluster.nodes)


def test_killed_primary_is_replaced(cluster: ValkeyCluster) -> None:
    """Its replica has its keys; and it comes back as a replica."""
    fill(cluster)
    old = cluster.kill_primary(KEYS[0])
    print(f"killed primary replaced in {cluster.wait_failed_over(old):.1f} s")
    assert cluster.node_of(KEYS[0]) is not old
    assert kept(cluster)
    old.start()
    cluster.wait_healthy()
    assert cluster.replica_of(cluster.node_of(KEYS[0])) is old


def test_frozen_primary_is_replaced(cluster: ValkeyCluster) -> None:
    """Nobody's connection to it breaks, and it gives way when it wakes."""
    fill(cluster)
    old = cluster.node_of(KEYS[0])
    old.freeze()
    print(f"frozen primary replaced in {cluster.wait_failed_over(old):.1f} s")
    old.thaw()
    cluster.wait_healthy()
    assert kept(cluster)


def test_manual_failover(cluster: ValkeyCluster) -> None:
    """A replica takes over from a living primary."""
    fill(cluster)
    replica = cluster.replica_of(cluster.node_of(KEYS[0]))
    old = cluster.manual_failover(replica)
    print(f"manual failover in {cluster.wait_failed_over(old):.2f} s")
    assert cluster.node_of(KEYS[0]) is replica
    assert kept(cluster)


@pytest.mark.parametrize("atomic", [False, True])
def test_slots_moved_both_ways_keep_their_keys(cluster: ValkeyCluster, atomic: bool) -> None:
    """Key by key or at once, and back again."""
    fill(cluster)
    here = cluster.node_of(KEYS[0])
    there = next(node for node, _ in cluster.primaries() if node is not here)
    slots = {cluster.slot_of(key) for key in KEYS if cluster.node_of(key) is here}
    assert len(slots) > 50
    for source, target in ((here, there), (there, here)):
        began = time.monotonic()
        cluster.move_slots(slots, source, target, atomic=atomic)
        print(f"{len(slots)} slots moved in {time.monotonic() - began:.2f} s, {atomic=}")
        assert cluster.node_of(KEYS[0]) is target
        assert kept(cluster)
    if atomic:
        assert {job["state"] for job in slot_migrations(here)} == {"success"}


def test_slot_half_moved(cluster: ValkeyCluster) -> None:
    """In a classic move a key that has gone answers ASK, one that has not is still served."""
    keys = [f"{{tag}}:{n}" for n in range(6)]
    source = cluster.node_of("{tag}")
    target = next(node for node, _ in cluster.primaries() if node is not source)
    for key in keys:
        source.ask("SET", key, key)
    answers: list[list[str]] = []

    def look() -> None:
        answers.append([answer(source, key) for key in keys])

    began = time.monotonic()
    slot = cluster.slot_of("{tag}")
    cluster.move_slots([slot], source, target, atomic=False, batch=2, pause_s=0.1, between=look)
    assert time.monotonic() - began > 0.3
    ask = f"ASK {slot} {target.address}"
    assert [row.count(ask) for row in answers] == [2, 4, 6]
    assert all(told in (ask, key) for row in answers for told, key in zip(row, keys, strict=True))
    assert [answer(source, key) for key in keys] == [f"MOVED {slot} {target.address}"] * 6
    assert [answer(target, key) for key in keys] == keys


def answer(node: ClusterNode, key: str) -> str:
    """To GET: the value or the redirection."""
    try:
        value: bytes = node.ask("GET", key)
    except ResponseError as error:
        # redis-py takes the word off a redirection, and keeps the rest
        return f"{type(error).__name__.removesuffix('Error').upper()} {error}"
    return value.decode()


def test_sentinels_replace_the_primary(tmp_path: Path) -> None:
    """A killed primary's successor has its data; then a living one is replaced by command."""
    began = time.monotonic()
    with SentinelSet(tmp_path, user="gate", password="pa:ss w@rd") as sentinel_set:
        print(f"Sentinel set started in {time.monotonic() - began:.1f} s")
        assert sentinel_set.url.startswith("redis+sentinel://gate:pa%3Ass%20w%40rd@127.0.0.1:")
        assert sentinel_set.url.endswith(f"{sentinel_set.sentinels[-1].port}/orchestrator")
        sentinel_set.primary().ask("SET", "key", "value")
        assert sentinel_set.primary().ask("WAIT", 2, 5000) == 2
        old = sentinel_set.kill_primary()
        print(f"killed primary replaced in {sentinel_set.wait_failed_over(old):.1f} s")
        new = sentinel_set.primary()
        assert new is not old
        assert new.ask("GET", "key") == b"value"
        print(f"healthy after {sentinel_set.wait_healthy():.1f} s more")
        sentinel_set.failover()
        print(f"replaced by command in {sentinel_set.wait_failed_over(new):.1f} s")
        assert sentinel_set.primary().ask("GET", "key") == b"value"


@pytest.fixture
def echo() -> Iterator[int]:
    """The port of a server that sends back what it gets."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve_echo, args=[listener])
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def serve_echo(listener: socket.socket) -> None:
    """One connection after the other, until the listener is shut down."""
    with suppress(OSError):
        while True:
            with listener.accept()[0] as connection, suppress(OSError):
                while data := connection.recv(65_536):
                    connection.sendall(data)


def test_blackhole_holds_and_then_flows(echo: int) -> None:
    """What is sent into it comes out when it ends, and new connections are answered then."""
    with TcpProxy(echo) as proxy, socket.create_connection(("127.0.0.1", proxy.port)) as client:
        client.settimeout(5)
        client.sendall(b"before")
        assert client.recv(100) == b"before"
        assert proxy.connections == 1
        proxy.blackhole(True)
        client.sendall(b"during")
        with socket.create_connection(("127.0.0.1", proxy.port), 5) as late:
            client.settimeout(0.2)
            with pytest.raises(TimeoutError):
                client.recv(100)
            late.close()
        client.settimeout(5)
        proxy.blackhole(False)
        assert client.recv(100) == b"during"


def test_blackhole_in_mid_flow_loses_nothing(echo: int) -> None:
    """Tens of megabytes, stopped and let go again and again, come through whole."""
    sent = bytes(range(256)) * 4096 * 20
    with TcpProxy(echo) as proxy, socket.create_connection(("127.0.0.1", proxy.port)) as client:
        client.settimeout(10)
        sender = threading.Thread(target=client.sendall, args=[sent])
        sender.start()
        began, got, last = time.monotonic(), bytearray(), 0
        while len(got) < len(sent):
            got += client.recv(1 << 20)
            if len(got) - last > 4 << 20:
                last = len(got)
                proxy.blackhole(True)
                proxy.blackhole(False)
        print(f"{len(sent) >> 20} MiB there and back in {time.monotonic() - began:.2f} s")
        sender.join()
        assert got == sent


@pytest.mark.parametrize("held", [False, True])
def test_dropped_connections_are_reset(echo: int, held: bool) -> None:
    """Also those that are in a blackhole, or came during it."""
    with TcpProxy(echo) as proxy, socket.create_connection(("127.0.0.1", proxy.port)) as client:
        client.settimeout(5)
        client.sendall(b"x")
        assert client.recv(100) == b"x"
        proxy.blackhole(held)
        with socket.create_connection(("127.0.0.1", proxy.port)) as late:
            late.settimeout(5)
            proxy.drop_connections()
            for sock in (client, late):
                with pytest.raises(ConnectionResetError):
                    sock.recv(100)
        proxy.blackhole(False)
        assert proxy.connections == 0
        with socket.create_connection(("127.0.0.1", proxy.port)) as client_again:
            client_again.settimeout(5)
            client_again.sendall(b"y")
            assert client_again.recv(100) == b"y"


def test_proxy_before_a_dead_server_resets(tmp_path: Path) -> None:
    """A client sees that nobody is there, and gets through when the server is back."""
    server = Server(tmp_path, ['save ""'])
    server.start()
    try:
        with TcpProxy(server.port) as proxy:
            assert raw_ping(proxy.port) == b"+PONG\r\n"
            server.kill()
            with pytest.raises(ConnectionResetError):
                raw_ping(proxy.port)
            server.start()
            assert raw_ping(proxy.port) == b"+PONG\r\n"
    finally:
        server.kill()


def raw_ping(port: int) -> bytes:
    """PING on a connection of its own."""
    with socket.create_connection(("127.0.0.1", port), 5) as client:
        client.sendall(b"PING\r\n")
        return client.recv(100)


def test_tls_with_password(tmp_path: Path) -> None:
    """A client that trusts the authority and knows the password gets in; the others are refused."""
    with TlsValkey(tmp_path, password="pa/ss w@rd:é") as valkey:
        with Redis.from_url(valkey.url) as client:
            assert client.acl_whoami() == "app"
        with valkey.client() as client:
            value = b"x" * 5_000_000
            client.set("key", value)
            assert client.get("key") == value
        target = parse_redis_url(valkey.url)
        assert (target.username, target.password) == (valkey.user, valkey.password)
        other = tls_files(tmp_path / "other")
        with (
            valkey.client(ssl_ca_certs=str(other.ca)) as client,
            pytest.raises(RedisConnectionError, match="certificate verify failed"),
        ):
            client.ping()
        with valkey.client(password="wrong") as client, pytest.raises(AuthenticationError):
            client.ping()
        with socket.create_connection(("127.0.0.1", valkey.port), 5) as plain:
            plain.sendall(b"PING\r\n")
            with suppress(ConnectionResetError):
                assert plain.recv(100) == b""


def test_tls_server_comes_back(tmp_path: Path) -> None:
    """The server behind TLS can be killed and started, and has its data again."""
    with TlsValkey(tmp_path) as valkey, valkey.client() as client:
        client.set("key", "value")
        client.execute_command("WAITAOF", 1, 0, 5000)
        valkey.server.kill()
        with pytest.raises(RedisError):
            client.ping()
        valkey.server.start()
        assert client.get("key") == b"value"
