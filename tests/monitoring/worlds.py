"""Time series of an installation in which all is well, as `promtool test rules` takes them."""

from __future__ import annotations

from dataclasses import dataclass

FOREVER = 1_000
"""Samples, unless something else is said: over four hours at the usual distance."""

Series = dict[str, str]


def steady(value: float, samples: int = FOREVER) -> str:
    """Stays as it is."""
    return f"{value}+0x{samples - 1}"


def growing(step: float, start: float = 0, samples: int = FOREVER) -> str:
    """A counter that grows by as much from sample to sample."""
    return f"{start}+{step}x{samples - 1}"


def gone(samples: int = FOREVER) -> str:
    """Not told any more."""
    return f"stale _x{samples - 1}"


@dataclass(frozen=True, slots=True)
class Place:
    """Where an installation is scraped.

    Attributes:
        namespace: empty outside Kubernetes, where there is no such label, nor one of the pod.
    """

    namespace: str = "prod"
    job: str = "ao"

    def series(self, name: str, target: str, **labels: str) -> str:
        """What Prometheus calls a time series of one of its processes."""
        own = {"job": self.job, "instance": f"{target}:8081"}
        if self.namespace:
            own |= {"namespace": self.namespace, "pod": target}
        own |= labels
        return name + "{" + ",".join(f'{key}="{value}"' for key, value in sorted(own.items())) + "}"

    def well(self) -> Series:
        """Two pods and a router that do their work."""
        told: Series = {}
        for pod in ("pod-0", "pod-1"):
            told |= self._process(pod, "gateway", "subscriptions") | self._pod(pod)
        return told | self._process("router-0", "router", "transfers") | self._router("router-0")

    def _process(self, target: str, process: str, connection: str) -> Series:
        named = {
            "orchestrator_build_info": {"version": "1", "python": "3"},
            "orchestrator_ready": {},
        }
        told = {
            self.series(name, target, process=process, **labels): steady(1) for name, labels in named.items()
        }
        told[self.series("orchestrator_probe_silence_seconds", target, process=process)] = steady(0.5)
        for use in (connection, "commands"):
            for name in ("orchestrator_redis_up", "orchestrator_redis_connects_total"):
                told[self.series(name, target, process=process, connection=use)] = steady(1)
        for name, labels in (
            ("orchestrator_event_loop_lag_seconds_bucket", {}),
            ("orchestrator_redis_round_trip_seconds_bucket", {"path": "command"}),
        ):
            for bound in ("0.01", "0.5", "+Inf"):
                told[self.series(name, target, process=process, le=bound, **labels)] = growing(60)
        told[self.series("up", target)] = steady(1)
        told[self.series("process_open_fds", target)] = steady(1_100)
        told[self.series("process_max_fds", target)] = steady(65_536)
        told[self.series("process_resident_memory_bytes", target)] = steady(100e6)
        told[self.series("orchestrator_memory_limit_bytes", target, process=process)] = steady(512e6)
        return told

    def _pod(self, pod: str) -> Series:
        free = {"tenant_tier": "free"}
        return {
            self.series("orchestrator_sends_total", pod, outcome="accepted", **free): growing(30),
            self.series("orchestrator_sends_total", pod, outcome="refused", **free): growing(2),
            self.series("orchestrator_sends_total", pod, outcome="failed", **free): steady(0),
            self.series("orchestrator_delivery_seconds_count", pod): growing(60),
            self.series("orchestrator_delivery_seconds_bucket", pod, le="0.5"): growing(60),
            self.series("orchestrator_resumes_total", pod, status="replayed"): growing(3),
            self.series("orchestrator_resumes_total", pod, status="fresh"): growing(3),
            self.series("orchestrator_resumes_total", pod, status="reset"): steady(0),
            self.series("orchestrator_draining", pod): steady(0),
            self.series("orchestrator_connections", pod, kind="socket"): steady(900),
            self.series("orchestrator_connections", pod, kind="events"): steady(100),
            self.series("orchestrator_connections_limit", pod): steady(50_000),
            self.series("orchestrator_connections_opened_total", pod): growing(5),
            self.series("orchestrator_slow_consumers", pod): steady(1),
            self.series("orchestrator_refusals_total", pod, error_code="rate_limited"): growing(2),
        }

    def _router(self, router: str) -> Series:
        tier = {"tenant_tier": "free"}
        return {
            self.series("orchestrator_tasks_ended_total", router, outcome="completed", **tier): growing(59),
            self.series("orchestrator_tasks_ended_total", router, outcome="timeout", **tier): growing(1),
            self.series("orchestrator_task_end_lateness_seconds_count", router): growing(1),
            self.series("orchestrator_task_end_lateness_seconds_bucket", router, le="10.0"): growing(1),
            self.series("orchestrator_task_end_failures_total", router): steady(0),
            self.series("orchestrator_callbacks_oldest_age_seconds", router): steady(0),
            self.series("orchestrator_callbacks_total", router, result="appended"): growing(60),
            self.series("orchestrator_callbacks_total", router, result="dead_letters"): steady(0),
            self.series("orchestrator_dead_letters_kept", router): steady(0),
            self.series("orchestrator_dead_letters_dropped_total", router): steady(0),
            self.series("orchestrator_actions_waiting", router, **tier): steady(3),
            self.series("orchestrator_actions_limit", router): steady(100_000),
            self.series("orchestrator_actions_oldest_age_seconds", router, **tier): steady(0.2),
        }
