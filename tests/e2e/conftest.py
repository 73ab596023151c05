"""A running cluster for end-to-end tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from tests.support.processes import Cluster


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Valkey, two pods and a router as real processes, shared by a module's tests."""
    with Cluster(tmp_path_factory.mktemp("cluster")) as running:
        yield running


@pytest.fixture
def own_cluster(tmp_path: Path) -> Iterator[Cluster]:
    """A cluster that a test may break; Valkey writes every command to disk before it answers."""
    with Cluster(tmp_path, appendfsync="always", PRESENCE_INTERVAL_S="1") as running:
        yield running


@pytest.fixture
def aes(cluster: Cluster) -> Iterator[redis.Redis]:
    """Redis as the AES sees it."""
    with redis.Redis(port=cluster.redis_port, decode_responses=True) as client:
        yield client
