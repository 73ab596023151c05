"""A tenant far over its limits gets what it may have and no more, and the others do not notice."""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import uvloop

from benchmarks.limits import (
    A_MINUTE,
    PATIENT,
    RATIOS,
    Crowd,
    Entry,
    Siege,
    TokenCluster,
    besiege,
    crowds,
    kill_and_refill,
    leave,
    rush,
    token,
)
from tests.support.limits_sabotage import sabotaged

LEASE_S = 6.0
TOO_MANY = 20

_STRING = r'"(?:[ !#-\[\]-~]|\\["\\])*"'
_ITEM = re.compile(rf"({_STRING})((?:; *[a-z*][a-z0-9_.*-]*=-?[0-9]{{1,15}})*)")
_PARAMETER = re.compile(r"; *([a-z*][a-z0-9_.*-]*)=(-?[0-9]{1,15})")


def structured(text: str) -> dict[str, dict[str, int]]:
    """A header that is a list of strings with whole numbers as parameters (RFC 9651, section 3.1)."""
    found = {}
    for member in re.split(r"[ \t]*,[ \t]*", text):
        item = _ITEM.fullmatch(member)
        assert item is not None, f"no structured field: {text!a}"
        found[item[1][1:-1]] = {name: int(value) for name, value in _PARAMETER.findall(item[2])}
    return found


def check_offender(siege: Siege) -> None:
    """The offender got what its limit allows, to within one part in a hundred."""
    attack = siege.attack
    assert attack.sent > 1.3 * attack.allowed, "the attack was none"
    assert siege.queued <= attack.allowed, "more than is allowed"
    assert abs(siege.over) < 0.01, (siege.queued, attack.allowed)


def check_quiet(siege: Siege) -> None:
    """The others were refused nothing and waited no longer than before, as far as a busy machine can tell."""
    assert not siege.quiet_odd
    assert siege.quiet_answered == siege.quiet_sent
    assert siege.ratio("ack_p50_ms") < 3, siege
    assert siege.ratio("answer_p50_ms") < 3, siege
    for name in ("ack_p99_ms", "answer_p99_ms"):
        assert siege.ratio(name) < 10 or getattr(siege.during, name) < 100, (name, siege)


def check_rush(crowd: Crowd, entries: list[Entry]) -> None:
    """Exactly as many as are allowed were let in, and the others told why they were not."""
    let_in = Counter(entry.port for entry in entries if entry.status == 101)
    counts = list(let_in.values()) if crowd.each_pod else [let_in.total()]
    assert counts == [crowd.most] * (2 if crowd.each_pod else 1), crowd.limit
    for entry in entries:
        if entry.status != 101:
            assert (entry.status, entry.limit) == (crowd.status, crowd.limit)
            assert entry.retry_after is not None
            assert int(entry.retry_after) > 0


@pytest.fixture(scope="module")
def patient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TokenCluster]:
    """Pods that keep the sockets of an attacker open."""
    with TokenCluster(tmp_path_factory.mktemp("patient"), **PATIENT) as cluster:
        yield cluster


def test_an_offender_gets_its_limit_and_the_others_do_not_notice(patient: TokenCluster) -> None:
    """Twenty times the limit from fifty sockets on two pods: exactly the limit is acked and queued."""
    siege = uvloop.run(besiege(patient, 8, 4))
    print(f"\n{siege.queued} queued, {siege.attack.allowed:.1f} allowed ({siege.over:+.2%})")
    print(f"during / without: {', '.join(f'{name} {siege.ratio(name):.2f}' for name in RATIOS)}")
    check_offender(siege)
    attack = siege.attack
    assert attack.accepted == siege.queued
    assert attack.accepted + attack.refused == attack.sent
    assert not attack.odd
    assert not attack.closed
    check_quiet(siege)
    for before, after in zip(siege.before.pods_kib, siege.after.pods_kib, strict=True):
        assert after - before < 8 * 1024
    assert siege.after.valkey_kib - siege.before.valkey_kib < 4 * 1024


def test_the_impatient_close_an_offender_after_telling_it(tmp_path: Path) -> None:
    """By default a socket is closed with 4029 after twenty refusals that said how long to wait."""
    with TokenCluster(tmp_path) as cluster:
        siege = uvloop.run(besiege(cluster, 12, 2))
    attack = siege.attack
    print(f"\nclosed: {dict(attack.closed)}, told at least {attack.told} times; {siege.over:+.2%}")
    check_offender(siege)
    check_quiet(siege)
    assert attack.closed[4029] >= 20
    assert set(attack.closed) == {4029}
    assert attack.untold == 0
    assert attack.told >= 20


def test_without_the_rate_limit_the_check_fails(tmp_path: Path) -> None:
    """Control: where the limiter allows everything, the offender is seen to get more than its limit."""
    cluster = TokenCluster(tmp_path, **PATIENT)
    for pod in cluster.pods:
        sabotaged(pod, "rate")
    with cluster:
        siege = uvloop.run(besiege(cluster, 5, 1))
    assert siege.attack.accepted == siege.queued == siege.attack.sent
    with pytest.raises(AssertionError, match="more than is allowed"):
        check_offender(siege)


def _headers(tenant_id: str, tier: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token(tenant_id, tier)}", "X-Session-ID": "s", "X-Agent-ID": "a"}


def _send(port: int, headers: dict[str, str]) -> httpx.Response:
    url = f"http://127.0.0.1:{port}/api/chat/send"
    return httpx.post(url, headers=headers, json={"message": "hello"})


def test_http_says_how_long_to_wait_and_that_is_enough(patient: TokenCluster) -> None:
    """Every answer has the RateLimit headers; a 429 has Retry-After, and who waits so long is let through."""
    headers = _headers("http", "advance")  # 20 a minute: one each 3 s
    for number in range(20):
        answer = _send(patient.ports[number % 2], headers)
        assert answer.status_code == 200, answer.text
        assert structured(answer.headers["RateLimit-Policy"]) == {"minute": {"q": 20, "w": 60}}
        left = structured(answer.headers["RateLimit"])["minute"]
        assert left["r"] == 19 - number
        assert 0 < left["t"] <= 60
    for port in patient.ports:
        refused = _send(port, headers)
        assert refused.status_code == 429
        assert refused.headers["Content-Type"] == "application/problem+json"
        assert refused.json()["error_code"] == "rate_limited"
        assert refused.json()["limit"] == "minute"
        assert structured(refused.headers["RateLimit-Policy"]) == {"minute": {"q": 20, "w": 60}}
        assert structured(refused.headers["RateLimit"])["minute"]["r"] == 0
    waited_s = int(refused.headers["Retry-After"])
    assert 1 <= waited_s <= 3
    time.sleep(waited_s)
    assert _send(patient.ports[0], headers).status_code == 200


def test_a_tenants_own_limit_counts_from_the_next_send_on(patient: TokenCluster) -> None:
    """What an operator puts on one pod is in force on both with the next send, and so is its end."""
    headers = _headers("own", "free")
    operator = {"Authorization": f"Bearer {token('*', scopes=['admin'])}"}
    url = f"http://127.0.0.1:{patient.ports[0]}/api/admin/tenants/own/limits"

    def quotas() -> list[int]:
        answers = [_send(port, headers) for port in patient.ports]
        return [structured(answer.headers["RateLimit-Policy"])["minute"]["q"] for answer in answers]

    assert quotas() == [A_MINUTE, A_MINUTE]
    for most in (7, 5_000):
        assert httpx.put(url, headers=operator, json={"sends_per_minute": most}).status_code == 200
        assert quotas() == [most, most]
    assert httpx.put(url, headers=operator, json={"sends_per_minute": 2}).status_code == 200
    answers = Counter(_send(patient.ports[n % 2], headers).status_code for n in range(8))
    assert answers[200] <= 2
    assert answers[429] >= 6
    assert httpx.put(url, headers=operator, json={}).status_code == 200
    assert quotas() == [A_MINUTE, A_MINUTE]
    own = {"Authorization": f"Bearer {token('own', scopes=['admin'])}"}
    assert httpx.put(url, headers=own, json={"sends_per_minute": 9_999}).status_code == 403


def test_exactly_as_many_sockets_as_are_allowed_get_in(patient: TokenCluster) -> None:
    """For a tenant, session, user, address and pod: more come at once over both pods than may."""

    async def all_crowds() -> None:
        for crowd in crowds():
            entries = await rush(patient.ports, crowd, TOO_MANY)
            try:
                check_rush(crowd, entries)
            finally:
                await leave(entries)
            await asyncio.sleep(0.5)  # until the pods know that they are gone

    uvloop.run(all_crowds())


def test_without_counts_too_many_get_in(tmp_path: Path) -> None:
    """Control: where nobody counts in Redis, the check sees it for a tenant, a session and a user."""

    async def all_shared(cluster: TokenCluster) -> None:
        for crowd in crowds():
            if not crowd.each_pod:
                entries = await rush(cluster.ports, crowd, TOO_MANY)
                await leave(entries)
                with pytest.raises(AssertionError):
                    check_rush(crowd, entries)

    cluster = TokenCluster(tmp_path, **PATIENT)
    for pod in cluster.pods:
        sabotaged(pod, "counts")
    with cluster:
        uvloop.run(all_shared(cluster))


def test_a_killed_pods_places_become_free(tmp_path: Path) -> None:
    """After ``kill -9`` the other pod lets in as many as the killed one held, when its lease has ended."""
    with TokenCluster(tmp_path, **PATIENT) as cluster:
        freed = uvloop.run(kill_and_refill(cluster, crowds()[0]))
    print(f"\n{freed.held} places: free after {freed.first_s:.2f} to {freed.last_s:.2f} s")
    assert freed.held > 0
    assert freed.taken == freed.held
    # The lease, and the time until the other pod has looked at the leases again.
    assert freed.last_s < LEASE_S * 4 / 3 + 1
