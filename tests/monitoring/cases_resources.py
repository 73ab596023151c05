"""What alerts on clients, resources and Redis fire at, and stay quiet at."""

from __future__ import annotations

from tests.monitoring.case import BOTH, HERE, PAGE, PODS, TICKET, Case, each
from tests.monitoring.worlds import Place, growing, steady


def _clients() -> list[Case]:
    opened, slow = "orchestrator_connections_opened_total", "orchestrator_slow_consumers"
    open_now, refusals = "orchestrator_connections", "orchestrator_refusals_total"
    storm = "0+5x240 1200+100x900"
    limited = {"error_code": "rate_limited"}
    return [
        Case("OrchestratorReconnectStorm", "twenty times as many", each(opened, PODS, storm), TICKET, at=66),
        Case("OrchestratorReconnectStorm", "twenty times as many, of a pod that drains",
             each(opened, PODS, storm) | each("orchestrator_draining", ("pod-0",), "0+0x230 1+0x12 stale _x900"), at=66),
        Case("OrchestratorReconnectStorm", "three times as many", each(opened, PODS, "0+5x240 1200+15x900"), at=66),
        Case("OrchestratorReconnectStorm", "twenty times as many as next to none",
             each(opened, PODS, "0+0.1x240 24+2x900"), at=66),
        Case("OrchestratorSlowConsumers", "one in five", each(slow, PODS, steady(200)), TICKET),
        Case("OrchestratorSlowConsumers", "one in fifty", each(slow, PODS, steady(20))),
        Case("OrchestratorSlowConsumers", "three of four",
             each(slow, PODS, steady(3)) | each(open_now, PODS, steady(4), kind="socket")
             | each(open_now, PODS, steady(0), kind="events")),
        Case("OrchestratorRefusalSurge", "more than are accepted", each(refusals, PODS, growing(40), **limited), TICKET),
        Case("OrchestratorRefusalSurge", "half as many", each(refusals, PODS, growing(15), **limited)),
        Case("OrchestratorConnectionsNearLimit", "all pods are full", each(open_now, PODS, steady(49_000), kind="socket"), BOTH),
        Case("OrchestratorConnectionsNearLimit", "one is nearly full",
             each(open_now, ("pod-0",), steady(43_000), kind="socket"), TICKET),
        Case("OrchestratorConnectionsNearLimit", "all hold four fifths", each(open_now, PODS, steady(40_000), kind="socket")),
    ]  # fmt: skip


def _resources() -> list[Case]:
    lag, trip = "orchestrator_event_loop_lag_seconds_bucket", "orchestrator_redis_round_trip_seconds_bucket"
    up, connects = "orchestrator_redis_up", "orchestrator_redis_connects_total"
    pod = {"process": "gateway"}
    feed = pod | {"connection": "subscriptions"}
    all_down = {
        HERE.series(up, target, process=process, connection=use): "1+0x40 0+0x900"
        for target, process, uses in (
            *((name, "gateway", ("subscriptions", "commands")) for name in PODS),
            ("router-0", "router", ("transfers", "commands")),
        )
        for use in uses
    }
    slow_redis = {
        HERE.series(trip, target, process=process, path="command", le="0.01"): growing(30)
        for target, process in (("pod-0", "gateway"), ("pod-1", "gateway"), ("router-0", "router"))
    }
    return [
        Case("OrchestratorFilesNearLimit", "nine of ten", each("process_open_fds", ("pod-0",), steady(60_000)), TICKET),
        Case("OrchestratorFilesNearLimit", "three of four", each("process_open_fds", ("pod-0",), steady(49_000))),
        Case("OrchestratorFilesNearLimit", "of another program",
             {f'{name}{{job="db",instance="db:1"}}': steady(9) for name in ("process_open_fds", "process_max_fds")}),
        Case("OrchestratorMemoryNearLimit", "nine of ten",
             each("process_resident_memory_bytes", ("pod-0",), steady(460e6)), TICKET),
        Case("OrchestratorMemoryNearLimit", "half", each("process_resident_memory_bytes", ("pod-0",), steady(256e6))),
        Case("OrchestratorMemoryNearLimit", "there is no limit",
             {Place("").series("process_resident_memory_bytes", "pod-0"): steady(9e9),
              Place("").series("orchestrator_memory_limit_bytes", "pod-0", process="gateway"): "_x900"},
             places=(Place(""),), broken=Place("")),
        Case("OrchestratorEventLoopLag", "one in ten is late", each(lag, ("pod-0",), growing(54), **pod, le="0.01"), TICKET),
        Case("OrchestratorEventLoopLag", "one in 200 is late", each(lag, ("pod-0",), growing(59.7), **pod, le="0.01")),
        Case("OrchestratorRedisAway", "from everywhere", all_down, PAGE, at=13),
        Case("OrchestratorRedisAway", "for half a minute",
             dict.fromkeys(all_down, "1+0x40 0+0x1 1+0x900"), at=11),
        Case("OrchestratorRedisAway", "from one pod", {name: values for name, values in all_down.items() if "pod-0" in name}),
        Case("OrchestratorRedisReconnecting", "twice a minute", each(connects, ("pod-0",), growing(0.5), **feed), TICKET),
        Case("OrchestratorRedisReconnecting", "once, to six servers", each(connects, ("pod-0",), "6+0x40 12+0x900", **feed)),
        Case("OrchestratorRedisReconnecting", "the pod was started again",
             each(connects, ("pod-0",), "100+0x40 6+0x900", **feed)),
        Case("OrchestratorRedisSlow", "half of all commands", slow_redis, TICKET),
        Case("OrchestratorRedisSlow", "one in 200",
             dict.fromkeys(slow_redis, growing(59.7))),
        Case("OrchestratorRedisSlow", "for five minutes",
             dict.fromkeys(slow_redis, "0+60x40 2400+30x20 3000+60x900"), at=14),
    ]  # fmt: skip


RESOURCES = [*_clients(), *_resources()]
