"""The chart's dashboards: what is drawn, in PromQL.

``python -m tests.chart.generate`` writes them to files/dashboards. ``@`` in a query stands for the labels that the
variables choose (see `tests.chart.panels`).
"""

from __future__ import annotations

from tests.chart.panels import Dashboard, Panel, Row

_RATE = "[$__rate_interval]"


def _rate(metric: str, where: str = "", by: str = "") -> str:
    chosen = f"@,{where}" if where else "@"
    return f"sum{f' by ({by})' if by else ''} (rate({metric}{{{chosen}}}{_RATE}))"


def _sum(metric: str, where: str = "", by: str = "") -> str:
    chosen = f"@,{where}" if where else "@"
    return f"sum{f' by ({by})' if by else ''} ({metric}{{{chosen}}})"


def _share(metric: str, where: str, by: str = "") -> str:
    """The part of a counter's growth that has these labels; none is 0."""
    part, whole = _rate(metric, where, by), _rate(metric, by=by)
    return f"({part} or 0 * {whole}) / {whole}"


def _quantile(q: float, metric: str, where: str = "", by: str = "") -> str:
    return f"histogram_quantile({q}, {_rate(f'{metric}_bucket', where, f'{by}, le' if by else 'le')})"


def _quantiles(metric: str, where: str = "") -> dict[str, str]:
    return {f"p{q * 100:g}": _quantile(q, metric, where) for q in (0.5, 0.95, 0.99)}


def _worst(metric: str, where: str = "", by: str = "instance, pod") -> str:
    chosen = f"@,{where}" if where else "@"
    return f"max by ({by}) ({metric}{{{chosen}}})"


_STAGES = {
    "accepted to queued": "orchestrator_accept_seconds",
    "accepted to first word": "orchestrator_task_first_word_seconds",
    "callback pushed to appended": "orchestrator_callback_wait_seconds",
    "appended to written": "orchestrator_delivery_seconds",
    "written to acknowledged": "orchestrator_acknowledgement_seconds",
}
_BUDGETS = (
    "OrchestratorAcceptingBudget",
    "OrchestratorDeliveryBudget",
    "OrchestratorResumeBudget",
    "OrchestratorTaskEndBudget",
)
_FAILED = 'outcome=~"failed|timeout"'


def _glance() -> Row:
    width, height = 3, 4

    def number(title: str, query: str, alert: str, unit: str = "short",
               limits: tuple[float, float] | None = None, *, low: bool = False) -> Panel:  # fmt: skip
        return Panel(title, {"": query}, unit, kind="stat", width=width, height=height,
                     alerts=(alert,), limits=limits, low=low)  # fmt: skip

    pods, routers = 'process="gateway"', 'process="router"'
    return Row("At a glance", (
        number("Pods ready", _sum("orchestrator_ready", pods), "OrchestratorPodsNotReady", limits=(1, 2), low=True),
        number("Routers ready", _sum("orchestrator_ready", routers), "OrchestratorNoRouter", limits=(1, 2), low=True),
        number("Connections", _sum("orchestrator_connections"), "OrchestratorConnectionsNearLimit"),
        number("Sends", _rate("orchestrator_sends_total"), "OrchestratorAcceptingBudget", "reqps"),
        number("Sends that fail", _share("orchestrator_sends_total", 'outcome="failed"'),
               "OrchestratorAcceptingBudget", "percentunit", (0.001, 0.0144)),
        number("Delivery, p99", _quantile(0.99, "orchestrator_delivery_seconds"),
               "OrchestratorDeliveryBudget", "s", (0.25, 0.5)),
        number("Oldest callback", "max (orchestrator_callbacks_oldest_age_seconds{@})",
               "OrchestratorCallbacksWaiting", "s", (1, 10)),
        number("Alerts", 'count (ALERTS{alertstate="firing",alertname=~"Orchestrator.*",@}) or vector(0)',
               "OrchestratorNoRouter", limits=(1, 3)),
    ))  # fmt: skip


OVERVIEW = Dashboard("overview", "Agent Orchestrator: overview", "What users have of it.", (
    _glance(),
    Row("Service levels", (
        Panel("Errors, in the last hour", {"{{slo}}": "max by (slo) (orchestrator:slo_errors:ratio_rate1h{@})"}, "percentunit",
              "accepting: sends answered by 5xx; delivery: over 500 ms; resume: reset; task-end: over 10 s late.", alerts=_BUDGETS),
        Panel("Errors, in the last three days", {"{{slo}}": "max by (slo) (orchestrator:slo_errors:ratio_rate3d{@})"}, "percentunit",
              "0.1 % may be; of delivery 1 %.", alerts=_BUDGETS),
        Panel("Firing alerts", {"": 'ALERTS{alertstate="firing",alertname=~"Orchestrator.*",@}'}, kind="table"),
    )),
    Row("Requests, errors, durations", (
        Panel("Sends", {"{{outcome}}": _rate("orchestrator_sends_total", by="outcome")}, "reqps", stacked=True),
        Panel("Sends that fail, by tier", {"{{tenant_tier}}": _share("orchestrator_sends_total", 'outcome="failed"', "tenant_tier")},
              "percentunit", alerts=("OrchestratorAcceptingBudget",), limits=(0.001, 0.0144)),
        Panel("Sends that are refused, by tier", {"{{tenant_tier}}": _share("orchestrator_sends_total", 'outcome="refused"', "tenant_tier")},
              "percentunit", "Limits, rights, what cannot be understood: 4xx."),
        Panel("HTTP answers", {"{{status}}": _rate("orchestrator_http_requests_total", by="status")}, "reqps", stacked=True),
        Panel("HTTP, p99 by route", {"{{route}}": _quantile(0.99, "orchestrator_http_request_seconds", by="route")}, "s"),
        Panel("Refusals", {"{{error_code}}": _rate("orchestrator_refusals_total", by="error_code")}, "reqps",
              alerts=("OrchestratorRefusalSurge",), stacked=True),
    )),
    Row("Stages of a message", (
        Panel("p50", {legend: _quantile(0.5, metric) for legend, metric in _STAGES.items()}, "s"),
        Panel("p99", {legend: _quantile(0.99, metric) for legend, metric in _STAGES.items()}, "s", alerts=("OrchestratorDeliveryBudget",)),
        Panel("Tasks, from acceptance to their end, p95", {"{{tenant_tier}} {{outcome}}": _quantile(
            0.95, "orchestrator_task_duration_seconds", by="tenant_tier, outcome")}, "s"),
        Panel("Delivery", _quantiles("orchestrator_delivery_seconds"), "s", "From the session log to the sockets.",
              alerts=("OrchestratorDeliveryBudget",), limits=(0.25, 0.5)),
        Panel("Messages delivered", {"{{path}}": _rate("orchestrator_messages_delivered_total", by="path"),
                                     "events": _rate("orchestrator_events_told_total")}, "cps", stacked=True),
        Panel("Tasks ended", {"{{outcome}}": _rate("orchestrator_tasks_ended_total", by="outcome")}, "cps",
              alerts=("OrchestratorAgentsFailing",), stacked=True),
    )),
    Row("Connections", (
        Panel("Open", {"{{kind}}": _sum("orchestrator_connections", by="kind"), "may be": _sum("orchestrator_connections_limit")},
              alerts=("OrchestratorConnectionsNearLimit",)),
        Panel("Opened and closed", {"opened": _rate("orchestrator_connections_opened_total"),
                                    "closed": _rate("orchestrator_connections_closed_total")}, "cps", alerts=("OrchestratorReconnectStorm",)),
        Panel("Closed, by code", {"{{code}}": _rate("orchestrator_connections_closed_total", by="code")}, "cps",
              "1012: asked to come back; 1006: cut off; 4001: did not read; 4002: no heartbeat.", stacked=True),
        Panel("Resumes", {"{{status}}": _rate("orchestrator_resumes_total", by="status")}, "cps", alerts=("OrchestratorResumeBudget",)),
        Panel("Opening, p99", {"{{kind}}": _quantile(0.99, "orchestrator_opening_seconds", by="kind")}, "s"),
        Panel("Sessions", {"sessions": _sum("orchestrator_sessions")}),
        Panel("Slow consumers", {"now": _sum("orchestrator_slow_consumers"), "became slow, in 5 min":
                                 "sum (increase(orchestrator_slowed_total{@}[5m]))"}, alerts=("OrchestratorSlowConsumers",)),
        Panel("Not taken yet by clients", {"{{instance}}": _worst("orchestrator_send_buffer_bytes")}, "bytes",
              alerts=("OrchestratorSlowConsumers",)),
        Panel("Missed and found again", {"gaps": _rate("orchestrator_gaps_total"), "streams": _rate("orchestrator_streams_healed_total"),
                                         "restarts": _rate("orchestrator_restarts_total")}, "cps",
              "What was published and did not come is read from the log."),
    )),
))  # fmt: skip

_TOP = "topk(10, {})"

TENANTS = Dashboard("tenants", "Agent Orchestrator: tenants and agents", "Who brings the load, and whose tasks fail.", (
    Row("Tenants", (
        Panel("Sends", {"{{tenant_id}}": _TOP.format(_rate("orchestrator_tenant_sends_total", by="tenant_id"))}, "reqps", width=12,
              about="METRICS_TOP_TENANTS of them have a name of their own; the rest is other."),
        Panel("Sends that are refused or fail", {"{{tenant_id}} {{outcome}}": _TOP.format(
            _rate("orchestrator_tenant_sends_total", 'outcome=~"refused|failed"', "tenant_id, outcome"))}, "reqps", width=12,
              alerts=("OrchestratorRefusalSurge",)),
        Panel("Callbacks", {"{{tenant_id}}": _TOP.format(_rate("orchestrator_tenant_callbacks_total", by="tenant_id"))}, "cps", width=12),
        Panel("Tasks that fail", {"{{tenant_id}} {{outcome}}": _TOP.format(
            _rate("orchestrator_tenant_tasks_ended_total", _FAILED, "tenant_id, outcome"))}, "cps", width=12,
              alerts=("OrchestratorAgentsFailing",)),
    )),
    Row("Agents", (
        Panel("Tasks ended", {"{{agent_id}}": _TOP.format(_rate("orchestrator_agent_tasks_ended_total", by="agent_id"))}, "cps"),
        Panel("Part of them that fails", {"{{agent_id}}": _TOP.format(
            _share("orchestrator_agent_tasks_ended_total", _FAILED, "agent_id"))}, "percentunit", alerts=("OrchestratorAgentsFailing",)),
        Panel("Counted as other", {"{{label}}": _rate("orchestrator_metrics_folded_total", by="label")}, "cps"),
    )),
    Row("Tiers", (
        Panel("Sends", {"{{tenant_tier}}": _rate("orchestrator_sends_total", by="tenant_tier")}, "reqps", stacked=True),
        Panel("Accepted to queued, p99", {"{{tenant_tier}}": _quantile(0.99, "orchestrator_accept_seconds", by="tenant_tier")}, "s"),
        Panel("Accepted to first word, p95", {"{{tenant_tier}}": _quantile(0.95, "orchestrator_task_first_word_seconds", by="tenant_tier")}, "s"),
        Panel("Part of the tasks that fails", {"{{tenant_tier}}": _share("orchestrator_tasks_ended_total", _FAILED, "tenant_tier")},
              "percentunit", alerts=("OrchestratorAgentsFailing",), limits=(0.1, 0.5)),
        Panel("Actions that wait for agents", {"{{tenant_tier}}": _worst("orchestrator_actions_waiting", by="tenant_tier")},
              alerts=("OrchestratorActionsBacklog",)),
        Panel("The next one waits since", {"{{tenant_tier}}": _worst("orchestrator_actions_oldest_age_seconds", by="tenant_tier")}, "s",
              alerts=("OrchestratorActionsWaiting",), limits=(5, 30)),
    )),
))  # fmt: skip

_COMMAND, _PUSH = 'path="command"', 'path="push"'

ROUTER_REDIS = Dashboard("router-redis", "Agent Orchestrator: routers, Redis, processes", "What it stands on.", (
    Row("Routers", (
        Panel("Callbacks", {"{{result}}": _rate("orchestrator_callbacks_total", by="result")}, "cps", stacked=True),
        Panel("Oldest callback", {"{{instance}}": _worst("orchestrator_callbacks_oldest_age_seconds")}, "s",
              alerts=("OrchestratorCallbacksWaiting",), limits=(1, 10)),
        Panel("Pushed to appended", _quantiles("orchestrator_callback_wait_seconds"), "s"),
        Panel("Time of a batch", _quantiles("orchestrator_transfer_seconds"), "s"),
        Panel("Batches", {"moved": _rate("orchestrator_transfers_total"), "moved by another": _rate("orchestrator_transfer_conflicts_total"),
                          "not published": _rate("orchestrator_publishes_refused_total")}, "cps"),
        Panel("Lists", {"{{instance}} serves": _worst("orchestrator_callback_lists"),
                        "{{instance}} waiting": _worst("orchestrator_callback_lists_waiting")}),
        Panel("Leases", {"{{instance}} sees": _worst("orchestrator_routers"), "lookouts": _sum("orchestrator_lookout")},
              about="Each router should see all of them; one is the lookout.", alerts=("OrchestratorNoRouter",)),
        Panel("Dead letters", {"{{reason}}": _rate("orchestrator_dead_letters_total", by="reason")}, "cps",
              alerts=("OrchestratorDeadLetterSurge",), stacked=True),
        Panel("Dead letters kept", {"kept": "max (orchestrator_dead_letters_kept{@})", "dropped, in an hour":
                                    "sum (increase(orchestrator_dead_letters_dropped_total{@}[1h]))"},
              alerts=("OrchestratorDeadLetters", "OrchestratorDeadLettersLost")),
    )),
    Row("Tasks", (
        Panel("Timeouts, after the deadline", _quantiles("orchestrator_task_end_lateness_seconds"), "s",
              alerts=("OrchestratorTaskEndBudget",), limits=(5, 10)),
        Panel("Ends that failed, in 5 min", {"failures": "sum (increase(orchestrator_task_end_failures_total{@}[5m]))"},
              alerts=("OrchestratorTaskNotEnded",)),
        Panel("Seen to by routers", {"released": _rate("orchestrator_tasks_released_total"),
                                     "forgotten": _rate("orchestrator_sends_forgotten_total")}, "cps"),
    )),
    Row("Redis", (
        Panel("Connections up", {"{{instance}} {{connection}}": _worst("orchestrator_redis_up", by="instance, pod, connection")},
              alerts=("OrchestratorRedisAway",)),
        Panel("Connections made, in 5 min", {"{{instance}} {{connection}}":
              "sum by (instance, pod, connection) (increase(orchestrator_redis_connects_total{@}[5m]))"}, alerts=("OrchestratorRedisReconnecting",)),
        Panel("Silence of probes", {"{{instance}}": _worst("orchestrator_probe_silence_seconds")}, "s",
              alerts=("OrchestratorPodDeaf",), limits=(3, 10)),
        Panel("Commands", _quantiles("orchestrator_redis_round_trip_seconds", _COMMAND), "s",
              alerts=("OrchestratorRedisSlow",), limits=(0.025, 0.1)),
        Panel("From a command to its push", _quantiles("orchestrator_redis_round_trip_seconds", _PUSH), "s",
              alerts=("OrchestratorRedisSlow",)),
        Panel("p99, by process", {"{{process}} {{path}}": _quantile(0.99, "orchestrator_redis_round_trip_seconds", by="process, path")}, "s"),
    )),
    Row("Processes", (
        Panel("Event loop lag, p99", {"{{process}} {{instance}}": _quantile(
            0.99, "orchestrator_event_loop_lag_seconds", by="process, instance, pod")}, "s",
              alerts=("OrchestratorEventLoopLag",), limits=(0.1, 0.25)),
        Panel("CPU", {"{{instance}}": _rate("process_cpu_seconds_total", by="instance, pod")}, "percentunit", "100 % is one core."),
        Panel("Memory", {"{{instance}}": _worst("process_resident_memory_bytes")}, "bytes", alerts=("OrchestratorMemoryNearLimit",)),
        Panel("Open files", {"{{instance}}": _worst("process_open_fds"), "may be": "min (process_max_fds{@})"},
              alerts=("OrchestratorFilesNearLimit",)),
        Panel("Ready", {"{{process}} {{instance}}": _worst("orchestrator_ready", by="process, instance, pod"),
                        "{{instance}} draining": _worst("orchestrator_draining")},
              alerts=("OrchestratorPodNotReady", "OrchestratorRouterNotReady")),
        Panel("Answers scrapes", {"{{job}} {{instance}}": _worst("up", by="job, instance, pod")}, alerts=("OrchestratorTargetDown",)),
        Panel("Versions", {"{{process}} {{version}}": "count by (process, version, python) (orchestrator_build_info{@})"}, kind="table",
              width=12),
        Panel("Up for", {"{{instance}}": "time() - max by (instance, pod) (process_start_time_seconds{@})"}, "s", width=12),
    )),
))  # fmt: skip

DASHBOARDS = (OVERVIEW, TENANTS, ROUTER_REDIS)
