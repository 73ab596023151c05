"""What a client costs that stops reading in the middle of a long answer.

    python -m benchmarks.stalled_stream [--tokens N] [--rate N] [--chars N]

Two clients of one session on one pod; one of them stops reading when the answer begins and goes on when all
of it has been said. Told is by how much the pod has grown meanwhile, how long the other client waits for its
pieces before and during that, and what the first one is sent when it reads again.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import uvloop

from tests.support.processes import Cluster
from tests.support.stalled import quantile, stall


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=100_000)
    parser.add_argument("--rate", type=float, default=4_000.0, help="tokens a second")
    parser.add_argument(
        "--chars", type=int, default=100, help="of a token: less in all than 4 MiB stays in the kernel"
    )
    options = parser.parse_args()
    room = max(1024 * 1024, 4 * options.tokens * options.chars)
    with (
        tempfile.TemporaryDirectory() as folder,
        Cluster(
            Path(folder), pods=1, unlimited=True, SLOW_CONSUMER_TIMEOUT_S="600", STREAM_MAX_BYTES=str(room)
        ) as cluster,
    ):
        told = uvloop.run(
            stall(cluster, options.tokens, options.rate, options.chars, before=options.tokens // 10)
        )
    figures = [f"pod_grew_mib={told.grew_kib / 1024:.1f}"]
    for name, gaps_s in (("before", told.before_s), ("during", told.during_s)):
        figures += [f"{name}_p{p}_ms={quantile(gaps_s, p / 100) * 1_000:.0f}" for p in (50, 99)]
    figures += [f"pieces={told.pieces}", f"bytes={told.piece_bytes}", f"last_chars={told.last_chars}"]
    print(*figures, f"caught_up_s={told.caught_up_s:.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
