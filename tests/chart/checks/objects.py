"""How the objects fit together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from tests.chart.rendering import Object, Rendered, containers

LONGEST_NAME = 63
SLOW_S = 300


def name_of(found: Object) -> str:
    """How an object is called in what the checks say."""
    return f"{found['kind']} {found['metadata']['name']}"


def matches(selector: Object, labels: Object) -> bool:
    """Whether a selector of labels takes these."""
    return all(labels.get(key) == value for key, value in selector.items())


def selected(rendered: Rendered, selector: Object) -> list[Object]:
    """The pods' templates that a selector takes; an empty one takes none here."""
    if not selector:
        return []
    return [pod for _, pod in rendered.pods() if matches(selector, pod["metadata"]["labels"])]


def container_ports(pod: Object) -> dict[str, int]:
    """A pod's ports by name."""
    return {
        port["name"]: port["containerPort"]
        for container in containers(pod)
        for port in container.get("ports", [])
    }


def _selector(found: Object) -> Object | None:
    spec = found.get("spec", {})
    if found["kind"] == "Service":
        selector: Object = spec.get("selector", {})
        return selector
    if found["kind"] == "NetworkPolicy":
        return dict(spec["podSelector"].get("matchLabels", {}))
    if found["kind"] in ("Deployment", "PodDisruptionBudget", "PodMonitor"):
        return dict(spec["selector"].get("matchLabels", {}))
    return None


def names(rendered: Rendered) -> Iterator[str]:
    """Two objects of one name, a name that is too long, or an object without the usual labels."""
    told = Counter((found["kind"], found["metadata"]["name"]) for found in rendered.objects)
    yield from (f"{kind} {name} is there {count} times" for (kind, name), count in told.items() if count > 1)
    for found in rendered.objects:
        metadata = found["metadata"]
        if len(metadata["name"]) > LONGEST_NAME:
            yield f"{name_of(found)}: longer than {LONGEST_NAME} characters"
        if not metadata.get("namespace"):
            yield f"{name_of(found)}: no namespace"
        wanted = {"name", "instance", "component", "version", "managed-by"}
        for label in sorted(wanted):
            if not metadata.get("labels", {}).get(f"app.kubernetes.io/{label}"):
                yield f"{name_of(found)}: no label {label}"


def selectors(rendered: Rendered) -> Iterator[str]:
    """A selector that takes no pods, or those of another component; an autoscaler or account of nothing."""
    for found in rendered.objects:
        selector = _selector(found)
        if selector is None:
            continue
        taken = selected(rendered, selector)
        if len(taken) != 1:
            yield f"{name_of(found)} selects the pods of {len(taken)} objects"
        elif found["kind"] == "Deployment" and taken[0] is not found["spec"]["template"]:
            yield f"{name_of(found)} selects another's pods"
        elif taken[0]["metadata"]["labels"].get(_COMPONENT) != found["metadata"]["labels"].get(_COMPONENT):
            yield f"{name_of(found)} selects another component's pods"
    yield from _missing_accounts(rendered)
    for found in rendered.of("ServiceMonitor"):
        wanted = found["spec"]["selector"]["matchLabels"]
        if not any(matches(wanted, service["metadata"]["labels"]) for service in rendered.of("Service")):
            yield f"{name_of(found)} selects no Service"


def _missing_accounts(rendered: Rendered) -> Iterator[str]:
    """Where the chart makes a component's account, the component's pods must run under it."""
    made = {found["metadata"]["labels"][_COMPONENT]: found for found in rendered.of("ServiceAccount")}
    for found, pod in rendered.pods():
        account = made.get(found["metadata"]["labels"][_COMPONENT])
        if account and pod["spec"].get("serviceAccountName") != account["metadata"]["name"]:
            yield f"{name_of(found)} does not run under {name_of(account)}"


_COMPONENT = "app.kubernetes.io/component"


def ports(rendered: Rendered) -> Iterator[str]:
    """A port that is named and not there."""
    services = {found["metadata"]["name"]: found for found in rendered.of("Service")}
    for found in services.values():
        for pod in selected(rendered, found["spec"]["selector"]):
            offered = container_ports(pod)
            for port in found["spec"]["ports"]:
                if port["targetPort"] not in (*offered, *offered.values()):
                    yield f"{name_of(found)}: its pods have no port {port['targetPort']}"
    for found, service, port in _backends(rendered):
        known = services.get(service, {"spec": {"ports": []}})["spec"]["ports"]
        if port not in [value for each in known for value in (each["name"], each["port"])]:
            yield f"{name_of(found)}: there is no Service {service} with a port {port}"
    for found in rendered.of("NetworkPolicy"):
        for pod in selected(rendered, found["spec"]["podSelector"]["matchLabels"]):
            for rule in found["spec"].get("ingress", []):
                for each in rule["ports"]:
                    if each["port"] not in container_ports(pod):
                        yield f"{name_of(found)}: its pods have no port {each['port']}"
    yield from _scraped_ports(rendered)


def _backends(rendered: Rendered) -> Iterator[tuple[Object, str, Any]]:
    for found in rendered.of("Ingress"):
        for rule in found["spec"]["rules"]:
            for path in rule["http"]["paths"]:
                service = path["backend"]["service"]
                yield found, service["name"], service["port"].get("name", service["port"].get("number"))
    for found in rendered.of("HTTPRoute"):
        for rule in found["spec"]["rules"]:
            for backend in rule["backendRefs"]:
                yield found, backend["name"], backend["port"]


def _scraped_ports(rendered: Rendered) -> Iterator[str]:
    for found in rendered.of("ServiceMonitor", "PodMonitor"):
        spec = found["spec"]
        wanted = {each["port"] for each in spec.get("endpoints", spec.get("podMetricsEndpoints", []))}
        if found["kind"] == "PodMonitor":
            offered = {
                name for pod in selected(rendered, _selector(found) or {}) for name in container_ports(pod)
            }
        else:
            chosen = spec["selector"]["matchLabels"]
            services = [
                each for each in rendered.of("Service") if matches(chosen, each["metadata"]["labels"])
            ]
            offered = {port["name"] for service in services for port in service["spec"]["ports"]}
        yield from (f"{name_of(found)}: nothing has a port {port}" for port in sorted(wanted - offered))
        if spec.get("jobLabel") != "app.kubernetes.io/instance":
            yield f"{name_of(found)}: rules take one job for pods and routers together"


def budgets(rendered: Rendered) -> Iterator[str]:
    """A PodDisruptionBudget with both or none of its bounds, or one that lets no node be emptied."""
    for found in rendered.of("PodDisruptionBudget"):
        spec = found["spec"]
        bounds = [key for key in ("minAvailable", "maxUnavailable") if spec.get(key) is not None]
        if len(bounds) != 1:
            yield f"{name_of(found)} has {len(bounds)} bounds"
        elif str(spec[bounds[0]]) in ("0", "0%") and bounds[0] == "maxUnavailable":
            yield f"{name_of(found)} lets no pod go"
        elif bounds[0] == "minAvailable" and isinstance(spec["minAvailable"], int):
            fewest = _fewest(rendered, found["metadata"]["name"])
            if spec["minAvailable"] >= fewest:
                yield f"{name_of(found)} wants {spec['minAvailable']} of {fewest}"


def _autoscalers_of(rendered: Rendered, deployment: str) -> list[Object]:
    found = rendered.of("HorizontalPodAutoscaler", "ScaledObject")
    return [each for each in found if each["spec"]["scaleTargetRef"]["name"] == deployment]


def _fewest(rendered: Rendered, deployment: str) -> int:
    for scaler in _autoscalers_of(rendered, deployment):
        return int(scaler["spec"].get("minReplicas", scaler["spec"].get("minReplicaCount", 1)))
    return int(rendered.one("Deployment", deployment)["spec"]["replicas"])


def autoscalers(rendered: Rendered) -> Iterator[str]:
    """Two for one Deployment, one of nothing, one that quarrels over replicas, or that is in a hurry."""
    deployments = {found["metadata"]["name"]: found for found in rendered.of("Deployment")}
    for name, deployment in deployments.items():
        scalers = _autoscalers_of(rendered, name)
        if len(scalers) > 1:
            yield f"Deployment {name} has {len(scalers)} autoscalers"
        if bool(scalers) == ("replicas" in deployment["spec"]):
            yield f"Deployment {name}: replicas must be set exactly where nothing scales it"
    for found in rendered.of("HorizontalPodAutoscaler", "ScaledObject"):
        target = deployments.get(found["spec"]["scaleTargetRef"]["name"])
        if target is None:
            yield f"{name_of(found)} scales nothing"
            continue
        for container in target["spec"]["template"]["spec"]["containers"]:
            if "cpu" not in container["resources"].get("requests", {}):
                yield f"{name_of(found)}: {container['name']} requests no CPU, so it has no share of it"
        if _stabilization_s(found) < SLOW_S:
            yield f"{name_of(found)} scales down after {_stabilization_s(found)} s"
        yield from _one_after_the_other(found, target)


def _stabilization_s(scaler: Object) -> int:
    spec = scaler["spec"]
    behavior = spec.get("behavior")
    if behavior is None:
        behavior = spec.get("advanced", {}).get("horizontalPodAutoscalerConfig", {}).get("behavior", {})
    return int(behavior.get("scaleDown", {}).get("stabilizationWindowSeconds", 0))


def _one_after_the_other(scaler: Object, target: Object) -> Iterator[str]:
    """Of the pods that have sockets: the next goes when the one before has drained."""
    if not target["metadata"]["name"].endswith("-gateway"):
        return
    grace_s = target["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    policies = scaler["spec"].get("behavior", {}).get("scaleDown", {}).get("policies", [])
    if not policies or any(policy["periodSeconds"] < grace_s for policy in policies):
        yield f"{name_of(scaler)}: pods go faster than they drain ({grace_s} s)"


def spread(rendered: Rendered) -> Iterator[str]:
    """A topology spread that counts others' pods."""
    for found, pod in rendered.pods():
        for constraint in pod["spec"].get("topologySpreadConstraints", []):
            chosen = constraint["labelSelector"].get("matchLabels", {})
            if not any(each is pod for each in selected(rendered, chosen)):
                yield f"{name_of(found)}: {constraint['topologyKey']} counts other pods"
            if "pod-template-hash" not in constraint.get("matchLabelKeys", []):
                yield f"{name_of(found)}: {constraint['topologyKey']} counts pods that are about to go"
