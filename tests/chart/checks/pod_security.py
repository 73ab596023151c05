"""The restricted Pod Security Standard, point by point.

In the order of https://kubernetes.io/docs/concepts/security/pod-security-standards/, its baseline first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from tests.chart.rendering import Object, Rendered, containers

_VOLUMES = {
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
}
_SECCOMP = ("RuntimeDefault", "Localhost")


def _context(holder: Object) -> Object:
    found: Object = holder.get("securityContext", {})
    return found


def _contexts(pod: Object) -> list[Object]:
    return [_context(pod["spec"]), *map(_context, containers(pod))]


def _in_force(pod: Object, *path: str) -> list[Any]:
    """For each container what is in force: its own word, else the pod's."""

    def at(context: Object) -> Any:
        value: Any = context
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        return value

    of_pod = at(_context(pod["spec"]))
    own = [at(_context(container)) for container in containers(pod)]
    return [of_pod if value is None else value for value in own]


def _no_host_process(pod: Object) -> bool:
    return not any(context.get("windowsOptions", {}).get("hostProcess") for context in _contexts(pod))


def _no_host_namespaces(pod: Object) -> bool:
    return not any(pod["spec"].get(name) for name in ("hostNetwork", "hostPID", "hostIPC"))


def _not_privileged(pod: Object) -> bool:
    return not any(context.get("privileged") for context in _contexts(pod))


def _no_capabilities(pod: Object) -> bool:
    return all(
        context.get("capabilities", {}).get("drop") == ["ALL"]
        and not context.get("capabilities", {}).get("add")
        for context in map(_context, containers(pod))
    )


def _no_host_paths(pod: Object) -> bool:
    return not any("hostPath" in volume for volume in pod["spec"].get("volumes", []))


def _no_host_ports(pod: Object) -> bool:
    return not any(
        port.get("hostPort") for container in containers(pod) for port in container.get("ports", [])
    )


def _no_host_of_probes(pod: Object) -> bool:
    def handlers(container: Object) -> Iterator[Object]:
        for name in ("startupProbe", "readinessProbe", "livenessProbe"):
            yield container.get(name, {})
        yield from container.get("lifecycle", {}).values()

    return not any(
        handler.get(way, {}).get("host")
        for container in containers(pod)
        for handler in handlers(container)
        for way in ("httpGet", "tcpSocket")
    )


def _default_app_armor(pod: Object) -> bool:
    return not any("appArmorProfile" in context for context in _contexts(pod))


def _default_selinux(pod: Object) -> bool:
    return not any("seLinuxOptions" in context for context in _contexts(pod))


def _default_proc_mount(pod: Object) -> bool:
    return all(context.get("procMount", "Default") == "Default" for context in _contexts(pod))


def _no_sysctls(pod: Object) -> bool:
    return not _context(pod["spec"]).get("sysctls")


def _volume_types(pod: Object) -> bool:
    return all(set(volume) - {"name"} <= _VOLUMES for volume in pod["spec"].get("volumes", []))


def _no_escalation(pod: Object) -> bool:
    return all(_context(container).get("allowPrivilegeEscalation") is False for container in containers(pod))


def _non_root(pod: Object) -> bool:
    return all(value is True for value in _in_force(pod, "runAsNonRoot"))


def _non_root_user(pod: Object) -> bool:
    return 0 not in _in_force(pod, "runAsUser")


def _seccomp(pod: Object) -> bool:
    return all(value in _SECCOMP for value in _in_force(pod, "seccompProfile", "type"))


POINTS: dict[str, Callable[[Object], bool]] = {
    "HostProcess": _no_host_process,
    "Host Namespaces": _no_host_namespaces,
    "Privileged Containers": _not_privileged,
    "Capabilities": _no_capabilities,
    "HostPath Volumes": _no_host_paths,
    "Host Ports": _no_host_ports,
    "Host Probes / Lifecycle Hooks": _no_host_of_probes,
    "AppArmor": _default_app_armor,
    "SELinux": _default_selinux,
    "/proc Mount Type": _default_proc_mount,
    "Sysctls": _no_sysctls,
    "Volume Types": _volume_types,
    "Privilege Escalation": _no_escalation,
    "Running as Non-root": _non_root,
    "Running as Non-root user": _non_root_user,
    "Seccomp": _seccomp,
}
"""Each point of the standard by its name there, and whether a pod keeps to it."""


def restricted(rendered: Rendered) -> Iterator[str]:
    """A pod that the restricted standard would not let in."""
    for found, pod in rendered.pods():
        for point, kept in POINTS.items():
            if not kept(pod):
                yield f"{found['kind']} {found['metadata']['name']}: {point}"
