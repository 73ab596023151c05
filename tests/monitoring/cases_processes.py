"""What alerts on pods and routers as processes fire at, and stay quiet at."""

from __future__ import annotations

from tests.monitoring.case import HERE, PAGE, PODS, ROUTERS, TICKET, Case, each
from tests.monitoring.worlds import Place, Series, gone, growing, steady


def _processes() -> list[Case]:
    ready, silence = "orchestrator_ready", "orchestrator_probe_silence_seconds"
    build = "orchestrator_build_info"
    info = {"version": "1", "python": "3"}
    pod, router = {"process": "gateway"}, {"process": "router"}
    feed = pod | {"connection": "subscriptions"}
    unready, drains = steady(0), "0+0x40 1+0x900"
    no_router = (("OrchestratorNoRouter", "page"),)
    router_is_gone = each(ready, ROUTERS, "1+0x40 " + gone(), **router)
    pods_are_gone = {
        HERE.series(name, target, **labels): "1+0x40 " + gone()
        for target in PODS
        for name, labels in ((build, pod | info), (ready, pod), ("orchestrator_draining", {}))
    }
    return [
        Case("OrchestratorNoRouter", "there is none that tells anything", router_is_gone, PAGE),
        Case("OrchestratorNoRouter", "there is one, and it is not ready",
             each(ready, ROUTERS, "1+0x40 0+0x900", **router), PAGE, at=12),
        Case("OrchestratorNoRouter", "it was away for a minute",
             each(ready, ROUTERS, "1+0x40 stale _x3 1+0x900", **router), at=11),
        Case("OrchestratorNoRouter", "another one is ready",
             router_is_gone | {HERE.series(ready, "router-1", **router): steady(1)}),
        Case("OrchestratorNoRouter", "elsewhere there is one", router_is_gone, PAGE,
             places=(HERE, Place("test"), Place(job="other"))),
        Case("OrchestratorNoRouter", "outside Kubernetes",
             {Place("").series(ready, "router-0", **router): "1+0x40 " + gone()}, PAGE,
             places=(Place(""),), broken=Place("")),
        Case("OrchestratorRouterNotReady", "one is not", each(ready, ROUTERS, unready, **router), TICKET, no_router),
        Case("OrchestratorRouterNotReady", "it takes two minutes",
             each(ready, ROUTERS, "0+0x8 1+0x900", **router), at=10),
        Case("OrchestratorPodsGone", "all of them", pods_are_gone, PAGE, at=17),
        Case("OrchestratorPodsGone", "one of them",
             {series: values for series, values in pods_are_gone.items() if "pod-0" in series}, at=17),
        Case("OrchestratorPodsGone", "long ago: it was taken away", pods_are_gone, at=75),
        Case("OrchestratorPodsNotReady", "none is", each(ready, PODS, unready, **pod), PAGE,
             (("OrchestratorPodNotReady", "ticket"),)),
        Case("OrchestratorPodsNotReady", "one of two is", each(ready, ("pod-0",), unready, **pod),
             beside=(("OrchestratorPodNotReady", "ticket"),)),
        Case("OrchestratorPodsNotReady", "the others are about to stop",
             each(ready, PODS, unready, **pod) | each("orchestrator_draining", PODS, steady(1))
             | {HERE.series(ready, "pod-2", **pod): steady(1)}),
        Case("OrchestratorPodNotReady", "one is not", each(ready, ("pod-0",), unready, **pod), TICKET),
        Case("OrchestratorPodNotReady", "it drains",
             each(ready, ("pod-0",), unready, **pod) | each("orchestrator_draining", ("pod-0",), drains)),
        Case("OrchestratorPodNotReady", "it takes four minutes", each(ready, ("pod-0",), "0+0x16 1+0x900", **pod), at=5),
        Case("OrchestratorPodDeaf", "one hears nothing", each(silence, ("pod-0",), growing(15), **pod), TICKET, at=4),
        Case("OrchestratorPodDeaf", "it missed three probes", each(silence, ("pod-0",), steady(4), **pod)),
        Case("OrchestratorPodDeaf", "it mends its connection again and again",
             each(silence, ("pod-0",), growing(15), **pod)
             | each("orchestrator_redis_up", ("pod-0",), "1+0x3 0 1+0x3 0 1+0x3 0 1+0x900", **feed), TICKET, at=4),
        Case("OrchestratorPodDeaf", "Redis is away",
             each(silence, ("pod-0",), growing(15), **pod)
             | each("orchestrator_redis_up", ("pod-0",), steady(0), **feed), at=4),
        Case("OrchestratorPodDeaf", "it drains",
             each(silence, ("pod-0",), growing(15), **pod) | each("orchestrator_draining", ("pod-0",), steady(1)), at=4),
        Case("OrchestratorTargetDown", "one does not answer", each("up", ("pod-0",), steady(0)), TICKET),
        Case("OrchestratorTargetDown", "for three minutes", each("up", ("pod-0",), "0+0x12 1+0x900"), at=4),
        Case("OrchestratorTargetDown", "it is none of ours", {'up{job="db",instance="db:1",namespace="prod"}': steady(0)}),
    ]  # fmt: skip


def _rolling_update() -> list[Case]:
    """Each pod is replaced: the new one comes first, the old one drains and goes, its clients come to the others."""
    pod, here = {"process": "gateway"}, HERE
    changed: Series = {}
    for number, old in enumerate(PODS):
        new, begin = f"pod-{number + 2}", 20 + 12 * number
        drains, ends = begin + 3, begin + 8
        for name, values in here.well().items():
            if f'"{old}"' in name and "kube_" not in name:
                changed[name.replace(old, new)] = f"_x{begin - 1} " + values
                changed[name] = f"{values.split('x')[0]}x{ends - 1} {gone()}"
        changed[here.series("orchestrator_ready", old, **pod)] = f"1x{drains - 1} 0x4 {gone()}"
        changed[here.series("orchestrator_draining", old)] = f"0x{drains - 1} 1x4 {gone()}"
        changed[here.series("orchestrator_ready", new, **pod)] = f"_x{begin - 1} 0 " + steady(1)
        opened = here.series("orchestrator_connections_opened_total", new)
        changed[opened] = f"_x{begin - 1} 0+5x3 0+300x5 1500+5x900"
    return [Case("rolling update", f"minute {minute}", changed, at=minute) for minute in range(5, 16)]


PROCESSES = [*_processes(), *_rolling_update()]
