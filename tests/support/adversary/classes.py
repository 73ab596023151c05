"""All classes of attempts, by name; and the right ways in, without which their counts would mean nothing."""

from __future__ import annotations

import asyncio

from tests.support.adversary import (
    borders,
    broadcasts,
    claims,
    errands,
    forgeries,
    names,
    outside,
    positions,
    renewals,
    smuggling,
    streams,
    topics,
)
from tests.support.adversary.doors import DOORS
from tests.support.adversary.siege import Assault, Siege
from tests.support.adversary.wire import Answer, ask
from tests.support.adversary.work import touched

CLASSES: dict[str, Assault] = {
    "forged": forgeries.forged,
    "alg_none": forgeries.alg_none,
    "confusion": forgeries.confusion,
    "key_names": forgeries.key_names,
    "bad_ecdsa": forgeries.bad_ecdsa,
    "published_secret": forgeries.published_secret,
    "expired": claims.expired,
    "not_yet_valid": claims.not_yet_valid,
    "wrong_audience": claims.wrong_audience,
    "wrong_issuer": claims.wrong_issuer,
    "missing_expiry": claims.missing_expiry,
    "wrong_types": claims.wrong_types,
    "missing_scopes": claims.missing_scopes,
    "other_tenant": borders.other_tenant,
    "other_session": borders.other_session,
    "other_user": borders.other_user,
    "other_agent": borders.other_agent,
    "cross_tenant": borders.cross_tenant,
    "swapped": renewals.swapped,
    "revoked": renewals.revoked,
    "odd_ids": names.odd_ids,
    "smuggled": smuggling.smuggled,
    "origins": outside.origins,
    "addresses": outside.addresses,
    "others_tasks": errands.others_tasks,
    "colleagues_tasks": errands.colleagues_tasks,
    "topics": topics.topics,
    "broadcasts": broadcasts.broadcasts,
    "event_streams": streams.event_streams,
    "event_positions": positions.event_positions,
    "admin_over_tenant": borders.admin_over_tenant,  # the last: it revokes users of red's
}


async def right_ways(siege: Siege) -> dict[str, bool]:
    """Each door with a right token of each kind of key, on each pod: whether it opened."""
    ways = [
        (f"{door.name}, {way}, {pod.port}", door.knock(siege, pod, sign(door.whose(siege))))
        for pod in siege.pods
        for door in DOORS
        for way, sign in siege.mint.ways.items()
    ]
    answers = await asyncio.gather(*[knocking for _, knocking in ways])
    said = [action for action in siege.take_actions() if action["action_type"] == "execution.agent_run"]
    assert {action["session_id"] for action in said} == {siege.session}
    log = siege.victims.logs[siege.session]
    log.expected += [("user_message", action["message"]) for action in said]
    await log.arrive()
    assert touched(siege, siege.victims.desk)
    return {name: answer.accepted for (name, _), answer in zip(ways, answers, strict=True)}


async def lure_works(siege: Siege) -> bool:
    """Whether the attacker's server would notice being asked."""
    before = len(siege.camp.lure.requests)
    answer: Answer = await ask(int(siege.camp.lure.url.split(":")[2].split("/")[0]), "GET", "/")
    return answer.accepted and len(siege.camp.lure.requests) == before + 1
