"""A client that stops reading in the middle of a long answer costs the pod and the others next to nothing."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.support.processes import Cluster
from tests.support.stalled import quantile, stall

TOKENS = 20_000
TOKEN_CHARS = 600
KERNEL_CHARS = 4 * 1024 * 1024  # the most that the kernel takes for the socket (net.ipv4.tcp_wmem)
GREW_MOST_KIB = 3 * 1024
"""A quarter of what is said meanwhile (11.4 MiB). The socket may hold SEND_BUFFER_BYTES (128 KiB) and the
piece that filled it, the answer 64 KiB that the socket lacks; the rest is what an allocator does with many
frames."""


def test_a_client_that_stops_reading(tmp_path: Path) -> None:
    """The pod stays as it is, another client goes on at its pace, this one gets the rest in few pieces."""
    with Cluster(
        tmp_path,
        pods=1,
        unlimited=True,
        SLOW_CONSUMER_TIMEOUT_S="600",
        STREAM_MAX_BYTES=str(32 * 1024 * 1024),
    ) as cluster:
        told = asyncio.run(stall(cluster, TOKENS, rate=3_000, token_chars=TOKEN_CHARS, before=5_000))
    before_ms, during_ms = (quantile(gaps, 0.99) * 1_000 for gaps in (told.before_s, told.during_s))
    print(f"grew {told.grew_kib} KiB; the other's p99 gap {before_ms:.0f} ms, then {during_ms:.0f} ms;")
    print(f"{told.pieces} pieces, {told.piece_bytes} bytes afterwards, in {told.caught_up_s:.2f} s")
    assert told.grew_kib < GREW_MOST_KIB
    assert during_ms < 3 * before_ms + 100
    assert len(told.during_s) > 50
    assert told.pieces < len(told.during_s) * 2 / 3  # what stood in the buffers, and the rest in one
    assert told.last_chars > TOKENS * TOKEN_CHARS - KERNEL_CHARS - 1024 * 1024
