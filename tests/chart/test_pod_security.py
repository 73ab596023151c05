"""The restricted Pod Security Standard, point by point: kept by every pod, and each point is looked at."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest

from tests.chart.checks.pod_security import POINTS, restricted
from tests.chart.rendering import SECRETS, Object, ci_files, render

PODS = {
    (name, found["kind"], found["metadata"]["name"]): pod
    for name, values in ci_files().items()
    for found, pod in render(values).pods()
}

OFFENCES: dict[str, tuple[str, dict[str, Any]]] = {
    "HostProcess": ("pod context", {"windowsOptions": {"hostProcess": True}}),
    "Host Namespaces": ("pod", {"hostNetwork": True}),
    "Privileged Containers": ("context", {"privileged": True}),
    "Capabilities": ("context", {"capabilities": {"drop": ["ALL"], "add": ["SYS_ADMIN"]}}),
    "HostPath Volumes": ("pod", {"volumes": [{"name": "tmp", "hostPath": {"path": "/"}}]}),
    "Host Ports": ("container", {"ports": [{"name": "http", "containerPort": 80, "hostPort": 80}]}),
    "Host Probes / Lifecycle Hooks": (
        "container",
        {"readinessProbe": {"httpGet": {"host": "10.0.0.1", "path": "/", "port": 80}}},
    ),
    "AppArmor": ("context", {"appArmorProfile": {"type": "Unconfined"}}),
    "SELinux": ("context", {"seLinuxOptions": {"user": "root"}}),
    "/proc Mount Type": ("context", {"procMount": "Unmasked"}),
    "Sysctls": ("pod context", {"sysctls": [{"name": "kernel.msgmax", "value": "1"}]}),
    "Volume Types": ("pod", {"volumes": [{"name": "tmp", "nfs": {"server": "nfs", "path": "/"}}]}),
    "Privilege Escalation": ("context", {"allowPrivilegeEscalation": True}),
    "Running as Non-root": ("context", {"runAsNonRoot": False}),
    "Running as Non-root user": ("pod context", {"runAsUser": 0}),
    "Seccomp": ("context", {"seccompProfile": {"type": "Unconfined"}}),
}


def _offending(pod: Object, where: str, change: dict[str, Any]) -> Object:
    changed = deepcopy(pod)
    spec = changed["spec"]
    container = spec["containers"][0]
    places: dict[str, Object] = {
        "pod": spec,
        "pod context": spec["securityContext"],
        "container": container,
        "context": container["securityContext"],
    }
    places[where].update(change)
    return changed


@pytest.mark.parametrize("point", POINTS)
def test_every_pod_keeps_to(point: str) -> None:
    """The point of that name, with every file of values."""
    assert [where for where, pod in PODS.items() if not POINTS[point](pod)] == []


@pytest.mark.parametrize("point", POINTS)
def test_an_offence_is_seen(point: str) -> None:
    """A pod that does not keep to the point is told from one that does."""
    pod = render(SECRETS).one("Deployment", "-gateway")["spec"]["template"]
    assert POINTS[point](pod)
    assert not POINTS[point](_offending(pod, *OFFENCES[point]))


def test_users_that_the_cluster_assigns() -> None:
    """Without a user of the chart's own, the pods still refuse to run as root."""
    rendered = render(ci_files()["placement"])
    for _, pod in rendered.pods():
        assert "runAsUser" not in pod["spec"]["securityContext"]
    assert list(restricted(rendered)) == []
