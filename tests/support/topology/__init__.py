"""Real Valkey in the shapes that production has: a cluster, a Sentinel set, behind TLS, behind a bad network.

Built by commands from the one binary that there is: ``valkey-cli`` does not come with it. Every server keeps
its port, its folder and its configuration over all of its lives; its output is in ``<folder>/<port>/log``.
"""

from tests.support.topology.cluster import SLOTS, ClusterNode, Primary, Seen, ValkeyCluster, slot_migrations
from tests.support.topology.proxy import TcpProxy
from tests.support.topology.sentinel import SentinelSet
from tests.support.topology.server import HOST, Client, Server
from tests.support.topology.tls import TlsFiles, TlsProxy, TlsValkey, tls_files

__all__ = [
    "HOST",
    "SLOTS",
    "Client",
    "ClusterNode",
    "Primary",
    "Seen",
    "SentinelSet",
    "Server",
    "TcpProxy",
    "TlsFiles",
    "TlsProxy",
    "TlsValkey",
    "ValkeyCluster",
    "slot_migrations",
    "tls_files",
]
