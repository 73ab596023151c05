"""Every Redis name of the project, in one place: [P] pure.

Queues shared with the AES follow templates (contract, section 1). The project's own keys begin with
``KEY_PREFIX`` and never with the literal start of the callbacks template, or the router's wake-up would
be told about each of its own writes.

The keys of a session carry its callback list as the hash tag (``{orchestrator:acme:callbacks}``), so that
on a Redis Cluster they live in the slot of that list and one script can move a callback into its log.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from zlib import crc32

from backplane.errors import ConfigurationError, InvalidId

TIERS = ("free", "advance", "professional", "enterprise")
ANY_USER = "*"
"""In place of a user: who may use all sessions of its tenant, whichever user began them."""

ID = re.compile(r"[A-Za-z0-9._~-]{1,128}", re.ASCII)
"""What an id may be, but a user's."""
USER_ID = re.compile(r"[A-Za-z0-9._~@+-]{1,128}", re.ASCII)
"""What a user's may be."""
_NAME = re.compile(r"[!-~]+", re.ASCII)


def check_id(value: str, what: str) -> str:
    """Return ``value`` if it may stand in a key, a channel and a log line.

    Raises:
        InvalidId: it is empty, over 128 characters, or has another character.
    """
    if ID.fullmatch(value) is None:
        raise InvalidId(what, value)
    return value


def check_user_id(value: str, what: str) -> str:
    """As `check_id`, with ``@`` and ``+`` allowed too.

    Raises:
        InvalidId: it is not a valid user id.
    """
    if USER_ID.fullmatch(value) is None:
        raise InvalidId(what, value)
    return value


def is_id(value: object) -> bool:
    """Whether ``value`` is text that `check_id` would return."""
    return isinstance(value, str) and ID.fullmatch(value) is not None


class Keys:
    """The names that one deployment uses.

    Args:
        prefix: start of the project's own keys.
        environment: ``dev``, ``staging``, …: stands in the name of the actions queues.
        actions_template: with ``{environment}`` and ``{tier}``.
        callbacks_template: with ``{tenant_id}``, and some text before it.
        spread: tenants with several callback lists, and how many.

    Raises:
        ConfigurationError: a template lacks its field, or the own keys would wake the router.
    """

    def __init__(
        self,
        prefix: str,
        environment: str,
        actions_template: str,
        callbacks_template: str,
        spread: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        self.prefix = prefix
        self._spread = dict(spread)
        for name, text in (
            ("KEY_PREFIX", prefix),
            ("ENVIRONMENT", environment),
            ("ACTIONS_QUEUE_TEMPLATE", actions_template),
            ("CALLBACKS_QUEUE_TEMPLATE", callbacks_template),
        ):
            if not _NAME.fullmatch(text):
                raise ConfigurationError(f"{name} must be printable ASCII without spaces")
        if "{" in prefix or "}" in prefix:
            raise ConfigurationError("KEY_PREFIX must not contain braces")
        if "{tier}" not in actions_template:
            raise ConfigurationError("ACTIONS_QUEUE_TEMPLATE must contain {tier}")
        if re.search(r"[{}]", actions_template.replace("{environment}", "").replace("{tier}", "")):
            raise ConfigurationError(
                "ACTIONS_QUEUE_TEMPLATE must have no braces but those of {environment} and {tier}"
            )
        before, field, after = callbacks_template.partition("{tenant_id}")
        if not field or not before or "{" in before + after or "}" in before + after:
            raise ConfigurationError(
                "CALLBACKS_QUEUE_TEMPLATE must be text, then {tenant_id} once, and no other braces"
            )
        if prefix.startswith(before) or before.startswith(prefix):
            raise ConfigurationError(
                f"KEY_PREFIX {prefix!r} and the callbacks queue's start {before!r} must not begin alike"
            )
        self._actions = {
            tier: actions_template.replace("{environment}", environment).replace("{tier}", tier)
            for tier in TIERS
        }
        self._before, self._after = before, after
        self._callbacks = re.compile(
            re.escape(before).encode()
            + rb"([A-Za-z0-9._~-]{1,128})"
            + re.escape(after).encode()
            + rb"(:[1-9][0-9]{0,2})?",
            re.ASCII,
        )

    # Queues shared with the AES.

    def actions(self, tier: str) -> str:
        """The list from which the AES takes actions of ``tier``."""
        return self._actions[tier]

    def callbacks(self, tenant_id: str, number: int = 0) -> str:
        """The list to which the AES pushes callbacks of ``tenant_id``; of a spread tenant, the n-th."""
        return f"{self._before}{tenant_id}{self._after}{f':{number}' if number else ''}"

    def callbacks_of(self, tenant_id: str, session_id: str) -> str:
        """The list of a session's callbacks: always the same one, of those that its tenant has."""
        lists = self._spread.get(tenant_id, 1)
        return self.callbacks(tenant_id, 0 if lists == 1 else crc32(session_id.encode()) % lists)

    def callbacks_all(self, tenant_id: str) -> list[str]:
        """All lists of a tenant's callbacks."""
        return [self.callbacks(tenant_id, number) for number in range(self._spread.get(tenant_id, 1))]

    def is_spread(self, tenant_id: str) -> bool:
        """Whether a tenant has several callback lists."""
        return tenant_id in self._spread

    def topic(self, callback_list: str, topic: str) -> str:
        """Channel of a topic, of the events that come by one callback list."""
        return f"{self.prefix}:{{{callback_list}}}:topic:{topic}"

    def topics(self, tenant_id: str, topic: str) -> list[str]:
        """All channels of a tenant's topic; the first is for events that come otherwise."""
        return [self.topic(callback_list, topic) for callback_list in self.callbacks_all(tenant_id)]

    def action_mark(self, queue: str, task_id: str, what: str) -> str:
        """That an action of a task was pushed to a queue, or must not be; in the queue's slot."""
        return f"{self.prefix}:{{{queue}}}:{what}:{task_id}"

    @property
    def callbacks_prefix(self) -> str:
        """What every callback list's name begins with: the prefix that wakes the router."""
        return self._before

    @property
    def callbacks_pattern(self) -> str:
        """The glob of all callback lists, for SCAN."""
        before, after = (re.sub(r"[*?\[\]\\]", r"\\\g<0>", text) for text in (self._before, self._after))
        return f"{before}*{after}*"

    def tenant_of(self, callback_list: bytes) -> str | None:
        """The tenant whose callback list this is; None if it is not the name of one."""
        match = self._callbacks.fullmatch(callback_list)
        return None if match is None else match[1].decode()

    def number_of(self, callback_list: bytes) -> int:
        """Which of its tenant's lists this is; 0 for the only or first one."""
        match = self._callbacks.fullmatch(callback_list)
        return 0 if match is None or match[2] is None else int(match[2][1:])

    # Of one callback list.

    def fence(self, callback_list: str) -> str:
        """Changes with every transfer from the list; a transfer that read an older value is refused."""
        return f"{self.prefix}:{{{callback_list}}}:fence"

    def dead_letters(self, callback_list: str) -> str:
        """Stream of the callbacks of the list that could not be understood."""
        return f"{self.prefix}:{{{callback_list}}}:dead"

    def session(self, callback_list: str, session_id: str) -> str:
        """A session's record (hash), the base of its other keys, and the name of its channel."""
        return f"{self.prefix}:{{{callback_list}}}:s:{session_id}"

    def task(self, callback_list: str, task_id: str) -> str:
        """A task's record (hash); with an empty id what all of them begin with."""
        return f"{self.prefix}:{{{callback_list}}}:t:{task_id}"

    def tasks_beside(self, session: str) -> str:
        """What the records of a session's tasks begin with, by the session's base key."""
        return f"{session.rpartition(':s:')[0]}:t:"

    def due(self, callback_list: str) -> str:
        """Sorted set of the tasks that run, by when (ms since 1970) a router has to look at them."""
        return f"{self.prefix}:{{{callback_list}}}:due"

    def send(self, callback_list: str, name: str) -> str:
        """Which task was sent under a name, and a fingerprint of what it said."""
        return f"{self.prefix}:{{{callback_list}}}:send:{name}"

    # Of one tenant; all in the slot of its first callback list, so that one script reaches them.

    def rate(self, tenant_id: str, name: str) -> str:
        """When a tenant's quota will be unused again (expires then)."""
        return f"{self.prefix}:{{{self.callbacks(tenant_id)}}}:rate:{name}"

    def session_rate(self, tenant_id: str, session_id: str) -> str:
        """When a session's own quota will be unused again (expires then)."""
        return f"{self.prefix}:{{{self.callbacks(tenant_id)}}}:rate:session:{session_id}"

    def tenant_limits(self, tenant_id: str) -> str:
        """Hash of the limits that a tenant has instead of its tier's."""
        return f"{self.prefix}:{{{self.callbacks(tenant_id)}}}:limits"

    def tenant_connections(self, tenant_id: str) -> str:
        """Hash of a tenant's connections: how many each pod has."""
        return f"{self.prefix}:{{{self.callbacks(tenant_id)}}}:connections"

    def session_connections(self, tenant_id: str, session_id: str) -> str:
        """Hash of a session's connections, likewise."""
        return f"{self.tenant_connections(tenant_id)}:session:{session_id}"

    def user_connections(self, tenant_id: str, user_id: str) -> str:
        """Hash of a user's connections, likewise."""
        return f"{self.tenant_connections(tenant_id)}:user:{user_id}"

    # Of the cluster.

    @property
    def callback_lists(self) -> str:
        """Sorted set of the callback lists seen, by the time of their last callback."""
        return f"{self.prefix}:callback-lists"

    @property
    def announcements(self) -> str:
        """Channel of what all of a tenant, or of a tier, are told."""
        return f"{self.prefix}:{{announcements}}"

    @property
    def due_lists(self) -> str:
        """Sorted set of the callback lists that have tasks, by when (ms since 1970) the first one is due."""
        return f"{self.prefix}:due-lists"

    @property
    def dead_letter_lists(self) -> str:
        """Set of the callback lists that have had dead letters."""
        return f"{self.prefix}:dead-letter-lists"

    def members(self, kind: str) -> str:
        """Set of the ids of the live processes of a kind (``pods``, ``routers``)."""
        return f"{self.prefix}:{kind}"

    def member(self, kind: str, member_id: str) -> str:
        """A live process's summary (JSON, expires without heartbeats); base of its other keys."""
        return f"{self.prefix}:{{{kind}:{member_id}}}"

    def pod_connections(self, pod_id: str) -> str:
        """Hash of the connections that a pod owns (expires without heartbeats)."""
        return f"{self.member('pods', pod_id)}:connections"

    @property
    def pod_leases(self) -> str:
        """Sorted set of the pods that count connections, by when their leases end."""
        return f"{self.prefix}:{{pods}}:leases"

    def pod_channel(self, pod_id: str, number: int) -> str:
        """A channel on which a pod hears its own probes; another number may be on another node."""
        return f"{self.prefix}:{{probe:{pod_id}:{number}}}"

    @property
    def revocations(self) -> str:
        """Hash of the revoked tokens, users and tenants."""
        return f"{self.prefix}:{{revocations}}"

    @property
    def revocation_ends(self) -> str:
        """Sorted set of the revocations, by when they may be forgotten."""
        return f"{self.revocations}:ends"

    @property
    def revocation_counts(self) -> str:
        """Hash of how many revocations each tenant has."""
        return f"{self.revocations}:counts"

    @property
    def revocation_news(self) -> str:
        """List of what changed last among the revocations."""
        return f"{self.revocations}:news"

    @property
    def revocation_version(self) -> str:
        """Hash of the revocations' lineage and number of changes."""
        return f"{self.revocations}:version"

    @property
    def revocation_channel(self) -> str:
        """Channel on which pods are told that the revocations have changed."""
        return f"{self.revocations}:changed"

    @property
    def control_channel(self) -> str:
        """Channel on which pods are told what to do (close connections)."""
        return f"{self.prefix}:{{control}}"

    # Of a client address.

    def address_rate(self, address: str) -> str:
        """When an address may open sockets again."""
        return f"{self.prefix}:{{address:{address}}}:handshakes"

    def address_limits(self, address: str) -> str:
        """Limits of an address in place of the usual (hash; field ``handshakes``)."""
        return f"{self.prefix}:{{address:{address}}}:limits"

    # Of the routers.

    @property
    def leases(self) -> str:
        """Sorted set of the routers, by when their leases end."""
        return f"{self.prefix}:{{routers}}:leases"

    @property
    def new_lists(self) -> str:
        """Channel on which routers are told of callback lists that nobody knew."""
        return f"{self.prefix}:{{routers}}:new-lists"

    def router_probe(self, router_id: str, number: int) -> str:
        """A key by which a router proves that it is woken; another number may be on another node."""
        return f"{self.prefix}:{{probe:{router_id}:{number}}}"
