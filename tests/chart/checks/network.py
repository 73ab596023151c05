"""Who reaches whom."""

from __future__ import annotations

import re
from collections.abc import Iterator
from fnmatch import fnmatch

from backplane.settings import load
from tests.chart.checks.objects import container_ports, matches, name_of, selected
from tests.chart.checks.processes import variables
from tests.chart.rendering import Object, Rendered

PUBLIC = ("/ws", "/api/chat", "/api/chat/sessions", "/api/broadcast", "/health", "/openapi.json")
"""What is for the world, as deploy/loadbalancer has it."""

OPEN_TO_ALL = {"-gateway": {"http"}}
"""Ports to which a policy may let everybody."""


def network_policies(rendered: Rendered) -> Iterator[str]:
    """A pod without a policy where there are some, or a port that is open to more than it is for."""
    policies = rendered.of("NetworkPolicy")
    if not policies:
        return
    for found, pod in rendered.pods():
        labels = pod["metadata"]["labels"]
        covered = any(matches(policy["spec"]["podSelector"]["matchLabels"], labels) for policy in policies)
        if found["kind"] == "Deployment" and not covered:
            yield f"{name_of(found)} has no policy"
    for policy in policies:
        if "Ingress" not in policy["spec"]["policyTypes"]:
            yield f"{name_of(policy)} lets everything in"
        for rule in policy["spec"].get("ingress", []):
            yield from _judged(policy, rule)
        if "Egress" in policy["spec"]["policyTypes"] and policy["spec"].get("egress"):
            asked = {port["port"] for rule in policy["spec"]["egress"] for port in rule["ports"]}
            if 53 not in asked:
                yield f"{name_of(policy)}: no DNS"
    for router in (each for each in policies if each["metadata"]["name"].endswith("-router")):
        for pod in selected(rendered, router["spec"]["podSelector"]["matchLabels"]):
            if set(container_ports(pod)) != {"metrics"}:
                yield f"{name_of(router)}: a router has no port but metrics"


def _judged(policy: Object, rule: Object) -> Iterator[str]:
    name = policy["metadata"]["name"]
    named = {port["port"] for port in rule.get("ports", [])}
    if not named:
        yield f"{name_of(policy)}: a rule for all ports"
    free = set().union(*(ports for suffix, ports in OPEN_TO_ALL.items() if fnmatch(name, f"*{suffix}")))
    if not rule.get("from") and not named <= free:
        yield f"{name_of(policy)}: {', '.join(map(str, sorted(named - free)))} is open to everybody"
    if name.endswith("-router") and named != {"metrics"}:
        yield f"{name_of(policy)}: a router takes nothing but questions for metrics"


def routes(rendered: Rendered) -> Iterator[str]:
    """A path that is not public, or a time limit that cuts sockets."""
    heartbeat_s = _heartbeat_s(rendered)
    for found in rendered.of("Ingress"):
        paths = {path["path"] for rule in found["spec"]["rules"] for path in rule["http"]["paths"]}
        yield from (f"{name_of(found)}: {path} is not public" for path in sorted(paths - set(PUBLIC)))
        yield from (f"{name_of(found)}: no {path}" for path in ("/ws", "/api/chat") if path not in paths)
        for key, value in found["metadata"].get("annotations", {}).items():
            number = re.fullmatch(r"([0-9]+)s?", value)
            if re.search(r"timeout", key) and (number is None or int(number[1]) < 3 * heartbeat_s):
                yield f"{name_of(found)}: {key} {value} is less than three heartbeats of {heartbeat_s:g} s"
    for found in rendered.of("HTTPRoute"):
        for rule in found["spec"]["rules"]:
            paths = {match["path"]["value"] for match in rule["matches"]}
            yield from (f"{name_of(found)}: {path} is not public" for path in sorted(paths - set(PUBLIC)))
            if "/ws" in paths and not _hours(rule.get("timeouts", {}).get("request", "")):
                yield f"{name_of(found)}: sockets live for {rule.get('timeouts', {}).get('request')}"


def _hours(duration: str) -> bool:
    return duration == "0s" or re.fullmatch(r"[0-9]+h.*", duration) is not None


def _heartbeat_s(rendered: Rendered) -> float:
    template = rendered.one("Deployment", "-gateway")["spec"]["template"]
    return load(variables(template["spec"]["containers"][0]), {}).heartbeat_s
