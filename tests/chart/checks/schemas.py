"""Every object against the schemas of the oldest and the newest Kubernetes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache

import kubernetes_validate
import yaml

from tests.chart.rendering import CHART, Object, Rendered


@cache
def versions() -> tuple[str, str]:
    """The oldest Kubernetes that the chart allows, and the newest whose schemas there are."""
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text("utf-8"))
    oldest = chart["kubeVersion"].removeprefix(">=").removesuffix(".0-0")
    newest = kubernetes_validate.latest_version()
    return oldest, ".".join(newest.split(".")[:2])


FOREIGN = {
    ("gateway.networking.k8s.io/v1", "HTTPRoute"): {"parentRefs", "hostnames", "rules"},
    ("keda.sh/v1alpha1", "ScaledObject"): {
        *("scaleTargetRef", "minReplicaCount", "maxReplicaCount", "pollingInterval", "advanced", "triggers"),
    },
    ("monitoring.coreos.com/v1", "PodMonitor"): {
        *("jobLabel", "namespaceSelector", "selector", "podMetricsEndpoints"),
    },
    ("monitoring.coreos.com/v1", "PrometheusRule"): {"groups"},
    ("monitoring.coreos.com/v1", "ServiceMonitor"): {
        *("jobLabel", "namespaceSelector", "selector", "endpoints"),
    },
}
"""Objects of other projects that the chart may have, and what their ``spec`` may consist of."""


BUILT_IN = {"v1", "apps/v1", "autoscaling/v2", "networking.k8s.io/v1", "policy/v1"}
"""APIs that are used; the validator itself looks at a group's first word only."""


def kubernetes_schemas(rendered: Rendered) -> Iterator[str]:
    """An object that a Kubernetes would refuse, or that is of no known kind."""
    for found in rendered.objects:
        where = f"{found['kind']} {found['metadata']['name']}"
        allowed = FOREIGN.get((found["apiVersion"], found["kind"]))
        if allowed is not None:
            yield from (f"{where} has spec.{key}" for key in sorted(found["spec"].keys() - allowed))
            continue
        if found["apiVersion"] not in BUILT_IN:
            yield f"{where}: {found['apiVersion']} is no API that the chart uses"
            continue
        text = json.dumps(_comparable(found), sort_keys=True)
        for version in versions():
            problem = _problem(text, version)
            if problem:
                yield f"{where}: {problem}"


def _comparable(found: Object) -> Object:
    """The same in each rendering, also where secrets are made up."""
    if found["kind"] != "Secret":
        return found
    return {**found, "stringData": dict.fromkeys(found["stringData"], "made up")}


@cache
def _problem(text: str, version: str) -> str | None:
    """Most objects are the same in most renderings, and a validation takes a while."""
    found: Object = json.loads(text)
    try:
        kubernetes_validate.validate(found, version, strict=True)
    except kubernetes_validate.SchemaNotFoundError as error:
        return str(error.message)
    except kubernetes_validate.ValidationError as error:
        return f"{version} at {'.'.join(map(str, error.path))}: {error.message}"
    return None
