"""Makes `docs/metrics.md`: ``python -m gateway.metrics_reference > docs/metrics.md``."""

from __future__ import annotations

import asyncio

from backplane.metrics import Family, Histogram, Registry
from backplane.router.app import Router
from backplane.settings import Settings
from gateway.pod import Pod

_INTRODUCTION = """\
# Metrics

Generated from the code by `python -m gateway.metrics_reference`; do not edit.

Pods answer `GET /metrics` at `ADMIN_PORT`, to whoever can reach it, or, if that is 0, at `PORT` to tokens of
operators with the scope `stats`. Routers answer it at `ROUTER_PORT`. Prometheus gets its text format, or
OpenMetrics with exemplars (ids of sampled traces) if it asks for that. The `process_*` metrics (CPU, memory,
open files) are those of prometheus-client.

Clients cannot make time series: routes are templates, error and close codes come from closed lists, and
tenants and agents have a label of their own only if they are among `METRICS_TOP_TENANTS` and
`METRICS_TOP_AGENTS` by traffic, which changes once in ten minutes at most, or named in `METRICS_TENANTS` and
`METRICS_AGENTS`; all others are `other`.
So the number of time series does not grow with the number of tenants.

What happens while a connection to Redis breaks is counted once at most: a reply that is lost may have told of
something that was done.
"""


async def registries() -> dict[str, Registry]:
    """What each process tells, by its name; none of them runs."""
    settings = Settings(auth="none")
    pod, router = Pod(settings), Router(settings)
    return {"Pods": pod.metrics.registry, "Routers": router.consumer.metrics.registry}


def reference(told: dict[str, Registry]) -> str:
    """The reference page, in Markdown."""
    lines = [_INTRODUCTION]
    for process, registry in told.items():
        lines += [f"## {process}", "", "| metric | kind | labels | meaning |", "|---|---|---|---|"]
        for family in registry.families.values():
            about = family.about
            labels = ", ".join(f"`{label}`" for label in about.labels)
            lines.append(f"| `{about.name}` | {about.kind} | {labels} | {about.meaning}{_buckets(family)} |")
        lines.append("")
    return "\n".join(lines)


def _buckets(family: object) -> str:
    if not isinstance(family, Family) or family.about.kind != "histogram":
        return ""
    made = family.make()
    assert isinstance(made, Histogram)
    return " Buckets: " + ", ".join(f"{bound:g}" for bound in made.bounds) + " s."


if __name__ == "__main__":
    print(reference(asyncio.run(registries())), end="")
