"""Nobody gets in who must not, nothing leaks, nothing breaks: thousands of attempts, counted by class.

The classes are in `tests/support/adversary`. The controls take one guard out of a pod, and show that the
class that is about it notices.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator

import pytest
import uvloop

from tests.support.adversary.camp import Camp
from tests.support.adversary.classes import CLASSES, lure_works, right_ways
from tests.support.adversary.guards import GUARDS
from tests.support.adversary.renewals import LIMIT_S
from tests.support.adversary.siege import Siege
from tests.support.adversary.tally import Tally
from tests.support.processes import Pod, get

SEED = 20260131
SAMPLE = 240
"""Attempts of a class that a control makes at most."""
CAUGHT_BY = {
    "signature": "forged",
    "algorithms": "alg_none",
    "key_family": "confusion",
    "expiry": "expired",
    "audience": "wrong_audience",
    "issuer": "wrong_issuer",
    "tenant_claim": "other_tenant",
    "session_claim": "other_session",
    "session_owner": "other_user",
    "scopes": "missing_scopes",
    "renewal": "swapped",
    "revocation": "revoked",
    "ids": "odd_ids",
    "origin": "origins",
    "given_twice": "smuggled",
    "admin_tenant": "admin_over_tenant",
    "proxy_trust": "addresses",
    "task_tenant": "others_tasks",
    "task_owner": "colleagues_tasks",
    "topic_task": "topics",
    "topic_tenant": "topics",
    "topic_claims": "topics",
    "announcement_tenant": "broadcasts",
    "broadcast_session": "broadcasts",
    "stream_owner": "event_streams",
    "stream_given_twice": "event_streams",
}
COUNTED = {
    "token_missing", "token_invalid", "token_expired", "token_revoked", "scope_missing", "forbidden",
    "session_taken", "origin_not_allowed", "invalid_id", "missing_id", "invalid_cursor",
    "too_many_connections", "rate_limited",
}  # fmt: skip
"""What every door counts as refused; of malformed requests the HTTP parser counts nothing."""


@pytest.fixture(scope="module")
def camp(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Camp]:
    """Two pods that trust every kind of key, a router, Valkey, and an identity provider."""
    with Camp(tmp_path_factory.mktemp("camp"), SEED) as running:
        yield running


def refused(camp: Camp) -> Counter[str]:
    """What the pods say that they refused, as an operator reads it."""
    command = [sys.executable, "-m", "gateway", "token", "--tenant", "*", "--scope", "stats"]
    environ = camp.cluster.pods[0].environ
    token = subprocess.run(command, env=environ, check=True, capture_output=True, text=True).stdout.strip()
    counts = Counter[str]()
    for pod in camp.cluster.pods:
        status, stats = get(
            f"{pod.url}/ws/stats", timeout_s=5.0, headers={"Authorization": f"Bearer {token}"}
        )
        assert status == 200
        # The others' are as of their last heartbeat, its own as of now.
        own = next(one for one in stats["pods"] if one["pod_id"] == stats["answered_by"])
        counts.update(own["refused"])
    return counts


def test_nobody_gets_in_nothing_leaks_nothing_breaks(camp: Camp) -> None:
    """Every class against both pods: all zeros, refusals counted, no token in a log, victims undisturbed."""

    async def campaign() -> tuple[Siege, dict[str, bool], list[str]]:
        async with Siege(camp, camp.cluster.pods, "everything") as siege:
            opened = await right_ways(siege)
            assert await lure_works(siege)
            for name, assault in CLASSES.items():
                print(await siege.assault(name, assault), flush=True)
                if siege.is_over:
                    break
            return siege, opened, siege.victims.faults()

    print()
    siege, opened, disturbed = uvloop.run(campaign())
    print(
        f"right_ways={sum(opened.values())}/{len(opened)} revoked_within_s={siege.slowest_revocation_s:.3f}"
    )
    offences = {name: tally.offences for name, tally in siege.tallies.items() if not tally.clean}
    assert not offences, json.dumps(offences, indent=1)
    assert all(opened.values()), [door for door, was in opened.items() if not was]
    assert not disturbed
    assert siege.slowest_revocation_s < LIMIT_S
    assert camp.tokens_in_logs() == []
    counted = refused(camp)
    told = {code: count for code, count in siege.refusals.items() if code in COUNTED}
    print(f"refused={sum(counted.values())}, told of the same codes={sum(told.values())}")
    assert {code: (counted[code], told[code]) for code in told if counted[code] < told[code]} == {}
    assert sum(told.values()) > 1000


@pytest.mark.parametrize("guard", CAUGHT_BY)
def test_control_without_a_guard_its_class_gets_in(camp: Camp, guard: str) -> None:
    """A pod without the guard: some of the same attempts get in, so the zeros above are the guard's doing."""
    name = CAUGHT_BY[guard]

    async def campaign(pod: Pod) -> Tally:
        async with Siege(camp, [pod], guard, SAMPLE) as siege:
            return await siege.assault(name, CLASSES[name])

    soon = list(CAUGHT_BY)[list(CAUGHT_BY).index(guard) + 1 :][:2]
    with camp.pod_without(guard, *soon) as pod:
        tally = uvloop.run(campaign(pod))
    print(f"\nwithout {guard}: {tally}", *sorted(tally.crashed)[:3])
    assert tally.got_in or tally.leaked


def test_each_guard_has_its_control() -> None:
    """No guard can be taken out of which nobody knows what notices it."""
    assert CAUGHT_BY.keys() == GUARDS.keys()
    assert set(CAUGHT_BY.values()) <= CLASSES.keys()


def test_control_a_token_in_a_log_is_found(camp: Camp) -> None:
    """The search sees a token in the middle of a line, also without its beginning."""
    token = camp.mint.token(camp.mint.claims())
    assert camp.mint.found_in(f'{{"event": "x", "path": "/ws/s?token={token}&a=b"}}')
    assert camp.mint.found_in(f"…{token[-20:]}")
    assert not camp.mint.found_in(f"{token.rpartition('.')[0]} connection_id={camp.mint.id()}")
