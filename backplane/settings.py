"""Every setting, once: name, type, unit, default, meaning: [P] (the environment comes in as a mapping).

``ORCHESTRATOR_<NAME>`` in the environment, ``--<name>`` on the command line (which wins). `docs/settings.md`
is generated from this table.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from backplane.errors import ConfigurationError
from backplane.keys import TIERS, Keys, is_id

ENV_PREFIX = "ORCHESTRATOR_"


def _setting(
    default: Any,
    meaning: str,
    *,
    unit: str = "",
    least: float | None = None,
    most: float | None = None,
    choices: tuple[str, ...] = (),
    secret: bool = False,
    group: str = "",
) -> Any:
    """One row of the table; the type is the field's annotation."""
    return field(
        default=default,
        metadata={
            "meaning": meaning,
            "unit": unit,
            "least": least,
            "most": most,
            "choices": choices,
            "secret": secret,
            "group": group,
        },
    )


BUSY_POLICIES = ("concurrent", "reject", "enqueue", "interrupt")
"""What becomes of a message to a session whose task still runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All settings of all processes; each process reads those that concern it."""

    # What every process needs.
    redis_url: str = _setting(
        "redis://127.0.0.1:6379/0",
        "Where Redis (7.0 or newer) or Valkey is: redis://, rediss:// (TLS) or unix://, with user and password.",
        secret=True,
        group="Redis",
    )
    redis_timeout_s: float = _setting(
        5.0, "A connection on which Redis says nothing for so long, although asked, is dropped and made anew.",
        unit="s", least=0.1, most=120, group="Redis",
    )  # fmt: skip
    key_prefix: str = _setting(
        "ao", "Start of the project's own keys; must not begin like the callback lists.", group="Redis"
    )
    environment: str = _setting("dev", "Stands in the names of the actions queues.", group="Queues")
    actions_queue_template: str = _setting(
        "nooble4:{environment}:agent_execution_service:actions:{tier}",
        "Name of the list from which the AES takes the actions of a tier.",
        group="Queues",
    )
    callbacks_queue_template: str = _setting(
        "orchestrator:{tenant_id}:callbacks",
        "Name of the list to which the AES pushes the callbacks of a tenant.",
        group="Queues",
    )
    callback_lists: str = _setting(
        "", "Tenants too busy for one callback list, and over how many theirs are spread: acme=4,other=8.",
        group="Queues",
    )  # fmt: skip
    actions_queue_max: int = _setting(
        100_000, "Actions that may wait in one tier's queue; a send beyond is answered 503.",
        unit="actions", least=1, group="Queues",
    )  # fmt: skip
    log_level: str = _setting(
        "info", "Least severe log events that are printed.",
        choices=("debug", "info", "warning", "error"), group="Logs",
    )  # fmt: skip
    log_format: str = _setting(
        "auto", "json: one JSON object a line; console: for people; auto: console on a terminal.",
        choices=("auto", "json", "console"), group="Logs",
    )  # fmt: skip

    access_log: bool = _setting(
        False,
        "Whether each HTTP request is logged: method, route, status, time, and the ids that it names.",
        group="Logs",
    )

    # Traces.
    otlp_endpoint: str = _setting(
        "", "Base address of an OpenTelemetry collector that takes OTLP over HTTP; empty: as OTEL_EXPORTER_OTLP_ENDPOINT says.",
        group="Traces",
    )  # fmt: skip
    trace_sample_ratio: float = _setting(
        0.01, "Share of the tasks that are sampled (0 to 1); all processes need the same value.",
        least=0, most=1, group="Traces",
    )  # fmt: skip
    trace_clients: str = _setting(
        "resample", "Of a client's own trace: resample: the id is kept, the ratio decides whether it is sampled; trust: its flag does.",
        choices=("resample", "trust"), group="Traces",
    )  # fmt: skip

    # The session log.
    session_log_max_entries: int = _setting(
        1_000, "Messages that a session log keeps; the oldest go first.",
        unit="messages", least=1, most=100_000, group="Session log",
    )  # fmt: skip
    session_log_max_bytes: int = _setting(
        4 * 1024 * 1024, "Bytes that a session log keeps; the oldest messages go first.",
        unit="bytes", least=1_024, group="Session log",
    )  # fmt: skip
    session_log_max_age_s: int = _setting(
        86_400, "Age at which messages leave a session log, and after which a silent session is forgotten.",
        unit="s", least=60, most=90 * 86_400, group="Session log",
    )  # fmt: skip
    session_remembered_callbacks: int = _setting(
        2_000, "Callbacks that a session remembers, to know one that the AES sends again.",
        unit="callbacks", least=1, most=1_000_000, group="Session log",
    )  # fmt: skip

    # Tasks.
    deadline_grace_s: float = _setting(
        2.0, "How long after its deadline a task is still waited for; then it ends with status timeout.",
        unit="s", least=0, most=3_600, group="Tasks",
    )  # fmt: skip
    late_answers: str = _setting(
        "keep", "An answer that comes after the timeout: keep it with the task only, or show it as well.",
        choices=("keep", "show"), group="Tasks",
    )  # fmt: skip
    task_kept_s: int = _setting(
        86_400, "How long a task can be asked for after its end, and an answer to it is known to be late.",
        unit="s", least=3_600, most=90 * 86_400, group="Tasks",
    )  # fmt: skip
    idempotency_kept_s: int = _setting(
        86_400, "How long a repeated Idempotency-Key or client_message_id is known.",
        unit="s", least=60, most=90 * 86_400, group="Tasks",
    )  # fmt: skip
    session_tasks_max: int = _setting(
        50, "Tasks that may run in one session at the same time.",
        unit="tasks", least=1, most=1_000, group="Tasks",
    )  # fmt: skip
    echo_messages: bool = _setting(
        True, "Put what users say into their sessions' logs, as user_message, so that all of their devices have it.",
        group="Tasks",
    )  # fmt: skip
    busy_policy: str = _setting(
        "concurrent", "A message to a session whose task still runs: runs beside it, is refused, waits, or ends that one.",
        choices=BUSY_POLICIES, group="Tasks",
    )  # fmt: skip
    progress_interval_ms: int = _setting(
        250, "A step of a task that is reported more often is logged and sent so often, as it is then; 0: each time.",
        unit="ms", least=0, most=60_000, group="Tasks",
    )  # fmt: skip
    stream_max_bytes: int = _setting(
        1024 * 1024, "What is kept of an answer while it is streamed; what is beyond comes with its end.",
        unit="bytes", least=1_024, most=64 * 1024 * 1024, group="Tasks",
    )  # fmt: skip
    stream_merge_ms: int = _setting(
        40, "Time for which pieces of a streamed answer are merged, after the first.",
        unit="ms", least=0, most=5_000, group="Tasks",
    )  # fmt: skip

    # The router.
    callback_max_bytes: int = _setting(
        1024 * 1024, "A larger callback becomes a dead letter.",
        unit="bytes", least=1_024, most=64 * 1024 * 1024, group="Router",
    )  # fmt: skip
    transfer_batch: int = _setting(
        8, "Callbacks that one script moves from one list at most.",
        unit="callbacks", least=1, most=1_000, group="Router",
    )  # fmt: skip
    transfer_batch_bytes: int = _setting(
        1024 * 1024, "Bytes of callbacks at which a batch is full.",
        unit="bytes", least=1_024, group="Router",
    )  # fmt: skip
    transfer_concurrency: int = _setting(
        16, "Callback lists from which a router moves at the same time.",
        unit="lists", least=1, most=1_000, group="Router",
    )  # fmt: skip
    router_port: int = _setting(
        0, "Port on which a router answers /livez, /readyz and /health/detailed, at HOST; 0: none.",
        unit="port", least=0, most=65_535, group="Router",
    )  # fmt: skip
    stuck_after_s: float = _setting(
        10.0, "A callback that waits longer in its list makes its router not ready, and /health/detailed degraded.",
        unit="s", least=0.5, group="Router",
    )  # fmt: skip
    router_lease_s: float = _setting(
        2.0, "A router that says nothing for so long has lost its callback lists to the others.",
        unit="s", least=0.2, most=60, group="Router",
    )  # fmt: skip
    sweep_interval_s: float = _setting(
        30.0, "How often a router looks for callback lists that no wake-up told it of.",
        unit="s", least=0.1, group="Router",
    )  # fmt: skip
    dead_letters_max: int = _setting(
        1_000, "Dead letters kept per callback list; the oldest go first.",
        unit="callbacks", least=1, group="Router",
    )  # fmt: skip
    dead_letters_max_bytes: int = _setting(
        16 * 1024 * 1024, "Bytes of dead letters kept per callback list; a single one over it is kept cut.",
        unit="bytes", least=4_096, group="Router",
    )  # fmt: skip

    # The pod.
    host: str = _setting("127.0.0.1", "Address that a pod listens on.", group="Pod")
    port: int = _setting(8080, "Port that a pod listens on; pods of one machine may share it.",
        unit="port", least=1, most=65_535, group="Pod")  # fmt: skip
    auth: str = _setting(
        "jwt", "jwt: every client needs a token; none: no tokens, for development on loopback only.",
        choices=("jwt", "none"), group="Authentication",
    )  # fmt: skip
    allow_insecure: bool = _setting(
        False, "Lets AUTH=none listen on addresses other than loopback.", group="Authentication"
    )
    jwt_algorithms: str = _setting(
        "HS256", "Algorithms that tokens may be signed with, with commas between them; a key is used for those of its own kind only.",
        group="Authentication",
    )  # fmt: skip
    jwt_secret: str = _setting(
        "", "Secret of HS256 (at least 32 bytes), HS384 (48) and HS512 (64), for tokens that name no key (kid).",
        secret=True, group="Authentication",
    )  # fmt: skip
    jwt_keys_dir: str = _setting(
        "", "Directory of keys: <kid>.pem public keys, <kid>.secret HMAC secrets. Read again every 2 s: keys rotate without a restart.",
        group="Authentication",
    )  # fmt: skip
    jwt_jwks_url: str = _setting(
        "", "Address of the identity provider's JSON Web Key Set; fetched again for an unknown kid, kept while the provider is down.",
        secret=True, group="Authentication",
    )  # fmt: skip
    jwt_jwks_refresh_s: float = _setting(
        300.0, "How often the key set is fetched.", unit="s", least=2, most=86_400, group="Authentication"
    )
    jwt_audience: str = _setting("", "If set, a token's aud must contain it.", group="Authentication")
    jwt_issuer: str = _setting("", "If set, a token's iss must be it.", group="Authentication")
    jwt_leeway_s: float = _setting(
        2.0, "How far the clocks of who signs tokens and of the pods may differ.",
        unit="s", least=0, most=300, group="Authentication",
    )  # fmt: skip
    jwt_claim_tenant: str = _setting("tenant_id", "Claim with the tenant; like all of these a name, or a path (a.b.c).", group="Authentication")  # fmt: skip
    jwt_claim_tier: str = _setting("tenant_tier", "Claim with the tier.", group="Authentication")
    jwt_claim_user: str = _setting(
        "sub", "Claim with the user, to whom the sessions belong that the token begins; empty: none.",
        group="Authentication",
    )  # fmt: skip
    jwt_claim_sessions: str = _setting(
        "session_id", "Claim with the sessions that the token allows: one or a list, web-* for all that begin so; without it any.",
        group="Authentication",
    )  # fmt: skip
    jwt_claim_topics: str = _setting(
        "topics", "Claim with the free topics to which the token may subscribe, likewise.",
        group="Authentication",
    )  # fmt: skip
    jwt_claim_agents: str = _setting(
        "agents", "Claim with the agents that the token allows, likewise.", group="Authentication"
    )
    jwt_claim_scopes: str = _setting(
        "scope", "Claim with the scopes (chat, listen, broadcast, admin, stats): text with spaces, or a list.",
        group="Authentication",
    )  # fmt: skip
    jwt_default_scopes: str = _setting(
        "chat listen", "Scopes of a token that says nothing of them.", group="Authentication"
    )
    auth_grace_s: float = _setting(
        10.0, "Time after its token's expiry that an open socket has to show a new one (auth); then it is closed with 4501.",
        unit="s", least=0, most=3600, group="Authentication",
    )  # fmt: skip
    revocations_kept_s: int = _setting(
        365 * 86_400, "How long a revocation is kept: longer than any token lives, or that token would count again.",
        unit="s", least=60, most=10 * 365 * 86_400, group="Authentication",
    )  # fmt: skip
    access_check_url: str = _setting(
        "", "If set, asked (POST, JSON) whether a tenant and user may speak to an agent; see docs/security.md.",
        secret=True, group="Authentication",
    )  # fmt: skip
    access_check_timeout_s: float = _setting(
        2.0,
        "Time that the access check has to answer.",
        unit="s",
        least=0.05,
        most=30,
        group="Authentication",
    )
    access_check_ttl_s: float = _setting(
        60.0, "How long its answer is believed.", unit="s", least=0, most=86_400, group="Authentication"
    )
    access_check_failure: str = _setting(
        "closed", "When it does not answer. closed: nobody is let through; open: everybody.",
        choices=("closed", "open"), group="Authentication",
    )  # fmt: skip
    allowed_origins: str = _setting(
        "", "Web origins whose pages may use the service (sockets and CORS), with commas between them: https://app.example.com, https://*.example.com, or *. Pages of the same host always may.",
        group="Authentication",
    )  # fmt: skip
    trusted_proxies: str = _setting(
        "", "Addresses and networks of the load balancers, with commas between them: who comes from there is known by the last entry of X-Forwarded-For that is none of them.",
        group="Pod",
    )  # fmt: skip
    admin_port: int = _setting(
        0, "Port for stats, administration and detailed health, at HOST, and not on PORT then; 0: all on PORT.",
        unit="port", least=0, most=65_535, group="Pod",
    )  # fmt: skip
    session_policy: str = _setting(
        "shared", "shared: a session's sockets all get every message; replace: a newer one closes the older.",
        choices=("shared", "replace"), group="Connections",
    )  # fmt: skip
    heartbeat_s: float = _setting(
        25.0, "How often a socket is pinged; one that is silent for twice as long is closed with 4002.",
        unit="s", least=0.2, most=600, group="Connections",
    )  # fmt: skip
    handshake_timeout_s: float = _setting(
        5.0, "A connection whose request has not come by then is closed; a socket not accepted by then answered 503.",
        unit="s", least=0.1, most=120, group="Connections",
    )  # fmt: skip
    request_timeout_s: float = _setting(
        10.0, "Time in which the body of an HTTP request has to come.",
        unit="s", least=0.1, most=120, group="Connections",
    )  # fmt: skip
    keep_alive_s: int = _setting(
        75, "An HTTP connection on which nothing is asked for so long is closed; should be more than of the load balancer before it.",
        unit="s", least=1, most=3_600, group="Connections",
    )  # fmt: skip
    connections_max: int = _setting(
        50_000, "Sockets of one pod; one more is answered 503.",
        unit="sockets", least=1, most=1_000_000, group="Connections",
    )  # fmt: skip
    half_open_max: int = _setting(
        4_096, "Connections of one pod whose request is not complete; with one more the oldest of them is dropped.",
        unit="connections", least=16, most=100_000, group="Connections",
    )  # fmt: skip
    connections_per_session: int = _setting(
        50, "Sockets of one session, on all pods; 0: unlimited.", unit="sockets", least=0, group="Connections"
    )
    connections_per_user: int = _setting(
        100, "Sockets of one user (as tokens say), on all pods; 0: unlimited.",
        unit="sockets", least=0, group="Connections",
    )  # fmt: skip
    connections_per_address: int = _setting(
        1_000, "Sockets from one client address on one pod; 0: unlimited. See TRUSTED_PROXIES.",
        unit="sockets", least=0, group="Connections",
    )  # fmt: skip
    handshakes_per_address: int = _setting(
        600, "Sockets that one client address may open in a minute, on all pods; 0: unlimited. See TRUSTED_PROXIES.",
        unit="sockets/min", least=0, group="Connections",
    )  # fmt: skip
    messages_per_s: int = _setting(
        20, "Messages that a client may send on one socket, in a second; 0: unlimited.",
        unit="messages/s", least=0, group="Connections",
    )  # fmt: skip
    messages_burst: int = _setting(
        100, "Messages that a client may send on one socket at once, after a pause.",
        unit="messages", least=1, group="Connections",
    )  # fmt: skip
    rate_limit_patience: int = _setting(
        20, "Messages over a rate limit, one after the other, after which a socket is closed with 4029.",
        unit="messages", least=1, group="Connections",
    )  # fmt: skip
    rate_limit_failure: str = _setting(
        "closed", "When Redis cannot say whether a rate limit is reached. closed: answer 503; open: let it through.",
        choices=("closed", "open"), group="Connections",
    )  # fmt: skip
    json_depth_max: int = _setting(
        32, "Levels of nesting in what a client sends.", least=2, most=500, group="Connections"
    )
    message_max_bytes: int = _setting(
        64 * 1024, "Largest message of a client; a larger one is skipped and answered by an error.",
        unit="bytes", least=1_024, most=16 * 1024 * 1024, group="Connections",
    )  # fmt: skip
    skip_max_bytes: int = _setting(
        16 * 1024 * 1024, "A message even larger than this ends its connection with 4505.",
        unit="bytes", least=1_024, group="Connections",
    )  # fmt: skip
    bad_frames_max: int = _setting(
        10, "Binary and too large messages after which a connection is ended with 4505.",
        unit="messages", least=1, group="Connections",
    )  # fmt: skip
    sends_in_flight_max: int = _setting(
        16, "Sends of one socket that may wait for Redis at the same time.",
        unit="messages", least=1, most=1_000, group="Connections",
    )  # fmt: skip
    topics_per_connection: int = _setting(
        50, "Topics to which a socket may subscribe.",
        unit="topics", least=0, most=1_000, group="Connections",
    )  # fmt: skip
    send_buffer_bytes: int = _setting(
        128 * 1024, "Unsent bytes at which a socket gets no more until it has read; it then catches up from the log.",
        unit="bytes", least=1_024, group="Connections",
    )  # fmt: skip
    slow_consumer_timeout_s: float = _setting(
        15.0, "A socket that reads nothing for so long, although there is something, is closed with 4001.",
        unit="s", least=0.1, group="Connections",
    )  # fmt: skip
    replay_page_bytes: int = _setting(
        256 * 1024, "Bytes of history that are read from Redis and sent at a time.",
        unit="bytes", least=1_024, group="Connections",
    )  # fmt: skip
    position_check_s: float = _setting(
        4.0, "How often a pod compares its sessions' positions with their logs, for losses that nothing reports.",
        unit="s", least=0.1, most=30, group="Connections",
    )  # fmt: skip
    mark_sent_interval_s: float = _setting(
        0.2, "How often a pod notes in Redis what its sockets have been sent (for clients without a cursor).",
        unit="s", least=0.01, most=10, group="Connections",
    )  # fmt: skip
    connection_max_age_s: float = _setting(
        3600.0, "A socket is asked to reconnect at this age ±20 %, so that added pods get their share; 0: never.",
        unit="s", least=0, group="Connections",
    )  # fmt: skip
    reconnect_jitter_s: float = _setting(
        1.0, "Clients that are asked to reconnect are told to wait a random time of up to this before.",
        unit="s", least=0, most=600, group="Connections",
    )  # fmt: skip
    drain_readiness_s: float = _setting(
        3.0, "After SIGTERM a pod is not ready for so long before it closes sockets, for load balancers to notice.",
        unit="s", least=0, most=600, group="Pod",
    )  # fmt: skip
    drain_timeout_s: float = _setting(
        20.0, "Time after that over which the sockets are closed evenly, and that sends in flight have.",
        unit="s", least=0.1, most=3600, group="Pod",
    )  # fmt: skip
    presence_interval_s: float = _setting(
        2.0, "How often a process says that it lives; three missed, and it and its connections are gone.",
        unit="s", least=0.1, most=4, group="Pod",
    )  # fmt: skip
    probe_interval_s: float = _setting(
        1.0, "How often a pod sends itself a message through Redis; two missed, and it is not ready.",
        unit="s", least=0.05, most=60, group="Pod",
    )  # fmt: skip
    deaf_limit_s: float = _setting(
        30.0, "A pod through which no messages get for so long asks its clients to connect to another one.",
        unit="s", least=0.2, group="Pod",
    )  # fmt: skip

    metrics_top_tenants: int = _setting(
        20, "Tenants that have a label of their own in metrics, by traffic; all others are `other`.",
        unit="tenants", least=0, most=1_000, group="Metrics",
    )  # fmt: skip
    metrics_top_agents: int = _setting(
        20, "Agents that have one, likewise.", unit="agents", least=0, most=1_000, group="Metrics"
    )
    metrics_tenants: str = _setting(
        "", "Tenants that have a label whatever their traffic, with commas between them.", group="Metrics"
    )
    metrics_agents: str = _setting("", "Agents that have one, likewise.", group="Metrics")

    # Tiers.
    estimated_time_s: tuple[int, ...] = _setting(
        (30, 20, 10, 5), "Answer time told to clients, per tier: free, advance, professional, enterprise.",
        unit="s", least=0, group="Tiers",
    )  # fmt: skip
    task_timeout_s: tuple[int, ...] = _setting(
        (30, 60, 120, 300), "Time an agent has for a task, per tier; also the most that a request may ask for.",
        unit="s", least=1, group="Tiers",
    )  # fmt: skip
    task_extended_max_s: tuple[int, ...] = _setting(
        (300, 600, 1_200, 3_600), "Most time that an agent's reports of progress can extend a task to, per tier.",
        unit="s", least=1, group="Tiers",
    )  # fmt: skip
    sends_per_minute: tuple[int, ...] = _setting(
        (10, 50, 200, 0), "Sends of a tenant in a minute, per tier; 0: unlimited.",
        unit="sends", least=0, most=1_000_000, group="Tiers",
    )  # fmt: skip
    sends_per_day: tuple[int, ...] = _setting(
        (100, 1_000, 10_000, 0), "Sends of a tenant in a day, per tier; 0: unlimited.",
        unit="sends", least=0, most=100_000_000, group="Tiers",
    )  # fmt: skip
    sends_per_session_hour: tuple[int, ...] = _setting(
        (50, 100, 300, 500), "Sends of a session in an hour, per tier; 0: unlimited.",
        unit="sends", least=0, most=1_000_000, group="Tiers",
    )  # fmt: skip
    connections_per_tenant: tuple[int, ...] = _setting(
        (5_000, 20_000, 100_000, 0), "Sockets of a tenant, on all pods, per tier; 0: unlimited.",
        unit="sockets", least=0, group="Tiers",
    )  # fmt: skip
    queue_priority: tuple[int, ...] = _setting(
        (4, 3, 2, 1), "tier_priority told to the AES, per tier.", least=0, group="Tiers"
    )

    def keys(self) -> Keys:
        """The Redis names that follow from the settings.

        Raises:
            ConfigurationError: a template is not usable.
        """
        return Keys(
            self.key_prefix,
            self.environment,
            self.actions_queue_template,
            self.callbacks_queue_template,
            _spread(self.callback_lists),
        )

    def for_tier(self, name: str, tier: str) -> int:
        """A per-tier setting's value."""
        values: tuple[int, ...] = getattr(self, name)
        return values[TIERS.index(tier)]


def load(environ: Mapping[str, str], flags: Mapping[str, str | None]) -> Settings:
    """Read the settings; flags win over the environment.

    Args:
        environ: names with the ``ORCHESTRATOR_`` prefix; others are ignored.
        flags: setting names (``redis_url``); None means not given.

    Raises:
        ConfigurationError: an unknown ``ORCHESTRATOR_*`` name or a bad value, said in one line.
    """
    known = {row.name: row for row in dataclasses.fields(Settings)}
    values: dict[str, Any] = {}
    for variable, text in environ.items():
        if variable.startswith(ENV_PREFIX):
            name = variable.removeprefix(ENV_PREFIX).lower()
            if name not in known or variable != variable.upper():
                raise ConfigurationError(_unknown(variable, known))
            values[name] = _read(known[name], text, variable)
    for name, flag in flags.items():
        if flag is not None:
            values[name] = _read(known[name], flag, flag_of(name))
    settings = Settings(**values)
    settings.keys()
    if settings.admin_port == settings.port:
        raise ConfigurationError(f"ADMIN_PORT and PORT are both {settings.port}; they must differ")
    return settings


def _spread(text: str) -> dict[str, int]:
    """Read ``tenant=lists,tenant=lists``.

    Raises:
        ConfigurationError: it is not like that.
    """
    spread: dict[str, int] = {}
    for part in filter(None, text.split(",")):
        tenant_id, _, lists = part.partition("=")
        if not is_id(tenant_id) or not re.fullmatch(r"[0-9]{1,3}", lists) or not 2 <= int(lists) <= 256:
            raise ConfigurationError(
                f"CALLBACK_LISTS={text!r} must be like acme=4,other=8, with 2 to 256 lists for each tenant"
            )
        spread[tenant_id] = int(lists)
    return spread


def flag_of(name: str) -> str:
    """The command line flag of a setting."""
    return "--" + name.replace("_", "-")


def _unknown(variable: str, known: Mapping[str, Any]) -> str:
    near = get_close_matches(variable.removeprefix(ENV_PREFIX).lower(), known, n=1)
    hint = f"; did you mean {ENV_PREFIX}{near[0].upper()}?" if near else ""
    return f"{variable} is not a setting{hint}"


def _read(row: dataclasses.Field[Any], text: str, shown: str) -> Any:
    metadata = row.metadata
    value = _parse(str(row.type), text, shown)
    numbers = value if isinstance(value, tuple) else (value,)
    least, most = metadata["least"], metadata["most"]
    for number in numbers:
        if (least is not None and number < least) or (most is not None and number > most):
            bounds = f"at least {least}" if most is None else f"from {least} to {most}"
            raise ConfigurationError(f"{shown}={text} must be {bounds} {metadata['unit']}".rstrip())
    if metadata["choices"] and value not in metadata["choices"]:
        raise ConfigurationError(f"{shown}={text} must be one of {', '.join(metadata['choices'])}")
    return value


def _parse(kind: str, text: str, shown: str) -> Any:
    wanted = {"int": "a whole number", "float": "a number", "bool": "true or false (1 or 0)"}
    try:
        if kind.startswith("tuple"):
            numbers = tuple(int(part) for part in text.split(","))
            if len(numbers) != len(TIERS):
                raise ValueError
            return numbers
        if kind == "bool":
            return {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}[
                text.lower()
            ]
        if kind == "int" and re.fullmatch(r"-?[0-9]+", text):
            return int(text)
        if kind == "float" and re.fullmatch(r"[0-9]*\.?[0-9]+", text):
            return float(text)
        if kind == "str":
            return text
    except (ValueError, KeyError):
        pass
    what = wanted.get(kind, "four whole numbers with commas between them, one for each tier")
    raise ConfigurationError(f"{shown}={text!r} must be {what}")


def reference() -> str:
    """The settings' reference page, in Markdown."""
    lines = [
        "# Settings",
        "",
        "Generated from `backplane/settings.py` by `orchestrator check-config --reference`; do not edit.",
        "",
        "Each is an environment variable; a flag of the same name (`--redis-url`) overrides it. An unknown",
        "`ORCHESTRATOR_*` name or a bad value stops the start with one line that says what is wrong.",
    ]
    groups = dict.fromkeys(row.metadata["group"] for row in dataclasses.fields(Settings))
    for group in groups:
        lines += [
            "",
            f"## {group}",
            "",
            "| variable | type | unit | default | meaning |",
            "|---|---|---|---|---|",
        ]
        lines += [_row(row) for row in dataclasses.fields(Settings) if row.metadata["group"] == group]
    return "\n".join(lines) + "\n"


def _row(row: dataclasses.Field[Any]) -> str:
    kind = " \\| ".join(row.metadata["choices"]) or str(row.type).replace("tuple[int, ...]", "4 int")
    shown = ",".join(map(str, row.default)) if isinstance(row.default, tuple) else str(row.default)
    shown = f"`{shown}`" if shown else "(none)"
    return (
        f"| `{ENV_PREFIX}{row.name.upper()}` | {kind} | {row.metadata['unit']} | {shown} "
        f"| {row.metadata['meaning']} |"
    )
