"""What runs in the pods: settings, secrets, probes, drain."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields
from functools import cache
from typing import Any

from backplane.errors import ConfigurationError
from backplane.redis_client import parse_redis_url
from backplane.settings import ENV_PREFIX, Settings, load
from gateway.cli import _parser
from tests.chart.checks.objects import container_ports, name_of
from tests.chart.rendering import Object, Rendered, containers, environment

SECRET_SETTINGS = {ENV_PREFIX + row.name.upper() for row in fields(Settings) if row.metadata["secret"]}
KEYS = {f"{ENV_PREFIX}{name}" for name in ("JWT_SECRET", "JWT_JWKS_URL", "JWT_KEYS_DIR")}
GRACE_BEYOND_S = 8
"""What a pod's end may take beside readiness and timeout: docs/design.md, Drain."""

_STAND_INS = {
    f"{ENV_PREFIX}REDIS_URL": "rediss://user:word@redis:6379/0",
    f"{ENV_PREFIX}JWT_SECRET": "x" * 48,
    f"{ENV_PREFIX}JWT_JWKS_URL": "https://idp.example.com/keys",
    f"{ENV_PREFIX}ACCESS_CHECK_URL": "https://access.example.com",
}
_REFERENCE = re.compile(r"\$\(([A-Za-z0-9_]+)\)")


def _processes(rendered: Rendered) -> Iterator[tuple[str, Object, Object]]:
    """Containers that run this project's command: a name for it, the pod, the container."""
    for found, pod in rendered.pods():
        for container in containers(pod):
            if container.get("command", [""])[0] == "orchestrator":
                yield name_of(found), pod, container


def variables(container: Object) -> dict[str, str]:
    """The ``ORCHESTRATOR_*`` variables as the process sees them, with stand-ins for what Secrets hold."""
    seen: dict[str, str] = {}
    for name, variable in environment(container).items():
        if "value" in variable:
            seen[name] = _REFERENCE.sub(lambda found: seen[found[1]], variable["value"])
        else:
            seen[name] = _STAND_INS.get(name, _STAND_INS[f"{ENV_PREFIX}REDIS_URL"])
    return {name: value for name, value in seen.items() if name.startswith(ENV_PREFIX)}


def settings(rendered: Rendered) -> Iterator[str]:
    """A variable or argument with which the process would not start, or that it would not see."""
    for where, _, container in _processes(rendered):
        named = [variable["name"] for variable in container.get("env", [])]
        yield from (f"{where}: {name} twice" for name in sorted(set(named)) if named.count(name) > 1)
        try:
            loaded = load(variables(container), {})
            yield from (f"{where}: {problem}" for problem in _redis_problems(loaded.redis_url))
        except (ConfigurationError, KeyError) as error:
            yield f"{where}: {error}"
            continue
        arguments = (*container["command"][1:], *container.get("args", []))
        if not _is_command(arguments):
            yield f"{where}: orchestrator {' '.join(arguments)} is no command"
        if loaded.auth != "jwt":
            yield f"{where}: AUTH is {loaded.auth}"
        if container["command"][1] in ("gateway", "router") and loaded.host in ("127.0.0.1", "localhost"):
            yield f"{where}: it listens on loopback only"


@cache
def _is_command(arguments: tuple[str, ...]) -> bool:
    try:
        _parser().parse_args(arguments)
    except SystemExit:
        return False
    return True


@cache
def _redis_problems(url: str) -> tuple[str, ...]:
    """What is wrong with the address, whether the Secret's had options before or not."""
    address, _, options = (url if "?" in url else url.replace("&", "?", 1)).partition("?")
    parse_redis_url(address)
    known = re.compile(r"ssl_(ca_certs|certfile|keyfile)=/[^?&=]+")
    given = filter(None, options.split("&"))
    return tuple(f"{option} is no option of REDIS_URL" for option in given if not known.fullmatch(option))


def secrets(rendered: Rendered) -> Iterator[str]:
    """A secret in plain text: in a variable, an argument, an annotation, a ConfigMap."""
    for found, pod in rendered.pods():
        for container in containers(pod):
            for variable in container.get("env", []):
                name, value = variable["name"], variable.get("value", "")
                secret = name in SECRET_SETTINGS or re.search(r"PASSWORD|SECRET|TOKEN", name)
                if secret and value and not value.startswith("$("):
                    yield f"{name_of(found)}: {name} is in plain text"
    for found in rendered.objects:
        if found["kind"] != "Secret":
            yield from (f"{name_of(found)}: a password in {text!r}" for text in _texts(found) if _tells(text))
        elif not found["metadata"]["name"].endswith("-tryout"):
            yield f"{name_of(found)}: the chart makes no Secrets but the try-out's"
    for where, _, container in _processes(rendered):
        if container["command"][1] == "router" and KEYS & environment(container).keys():
            yield f"{where}: a router needs no keys for tokens"


def _tells(text: str) -> bool:
    return re.search(r"://[^/@\s]*:(?!\$\()[^/@\s]+@", text) is not None


def _texts(tree: Any) -> Iterator[str]:
    if isinstance(tree, dict):
        for value in tree.values():
            yield from _texts(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from _texts(value)
    elif isinstance(tree, str):
        yield tree


def drain(rendered: Rendered) -> Iterator[str]:
    """A pod that is killed before it has drained, or an update that takes pods away before new ones serve."""
    for suffix in ("-gateway", "-router"):
        deployment = rendered.one("Deployment", suffix)
        where, spec = name_of(deployment), deployment["spec"]
        rolling = spec["strategy"].get("rollingUpdate", {})
        if rolling.get("maxUnavailable") != 0 or rolling.get("maxSurge") in (None, 0, "0%"):
            yield f"{where}: an update must add a pod before it takes one away"
        if spec.get("minReadySeconds", 0) < 1 and suffix == "-gateway":
            yield f"{where}: no minReadySeconds"
        container = spec["template"]["spec"]["containers"][0]
        loaded = load(variables(container), {})
        grace_s = spec["template"]["spec"].get("terminationGracePeriodSeconds", 30)
        if suffix == "-gateway":
            hook = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
            needed_s = hook + loaded.drain_readiness_s + loaded.drain_timeout_s + GRACE_BEYOND_S
        else:
            needed_s = loaded.redis_timeout_s + GRACE_BEYOND_S
        if grace_s < needed_s:
            yield f"{where}: its end may take {needed_s:g} s, and it has {grace_s} s"
        if grace_s > needed_s + 3:
            yield f"{where}: its end takes {needed_s:g} s at most, and a node waits {grace_s} s"


_PATHS = {"startupProbe": "/livez", "readinessProbe": "/readyz", "livenessProbe": "/livez"}


def probes(rendered: Rendered) -> Iterator[str]:
    """A process without its three probes, or probes that ask the wrong thing at the wrong port."""
    for where, pod, container in _processes(rendered):
        if container["command"][1] not in ("gateway", "router"):
            continue
        listens = load(variables(container), {})
        served = (
            {listens.port, listens.admin_port} if "gateway" in container["command"] else {listens.router_port}
        )
        offered = container_ports(pod)
        if served != set(offered.values()):
            yield f"{where}: listens at {sorted(served)}, and offers {sorted(offered.values())}"
        for probe, path in _PATHS.items():
            asked = container.get(probe, {}).get("httpGet", {})
            if asked.get("path") != path:
                yield f"{where}: {probe} asks {asked.get('path')}, not {path}"
            elif asked["port"] not in offered:
                yield f"{where}: {probe} asks at {asked['port']}, which is no port"
        startup = container.get("startupProbe", {})
        if startup and startup["periodSeconds"] * startup["failureThreshold"] < 30:
            yield f"{where}: half a minute for the start is the least"


def mounts(rendered: Rendered) -> Iterator[str]:
    """A mount without its volume, or a file that a setting names and nothing mounts."""
    for found, pod in rendered.pods():
        volumes = {volume["name"] for volume in pod["spec"].get("volumes", [])}
        for container in containers(pod):
            mounted = {mount["mountPath"]: mount["name"] for mount in container.get("volumeMounts", [])}
            for name in sorted(set(mounted.values()) - volumes):
                yield f"{name_of(found)}: there is no volume {name}"
            for value in (variable.get("value", "") for variable in container.get("env", [])):
                for path in re.findall(r"/etc/orchestrator/[^&\s]*", value):
                    if not any(path == at or path.startswith(at + "/") for at in mounted):
                        yield f"{name_of(found)}: nothing is mounted at {path}"


def hardening(rendered: Rendered) -> Iterator[str]:
    """What the restricted standard does not ask for, and the chart promises."""
    for found, pod in rendered.pods():
        where, spec = name_of(found), pod["spec"]
        if spec.get("automountServiceAccountToken") is not False:
            yield f"{where}: a service account token is mounted"
        if spec.get("enableServiceLinks") is not False:
            yield f"{where}: variables of Services, which may look like settings"
        for container in containers(pod):
            if container.get("securityContext", {}).get("readOnlyRootFilesystem") is not True:
                yield f"{where}: the root file system can be written"
            limits = container.get("resources", {})
            if (
                "memory" not in limits.get("limits", {})
                or not {"cpu", "memory"} <= limits.get("requests", {}).keys()
            ):
                yield f"{where}: {container['name']} lacks requests or a limit of memory"
            image = container["image"]
            if "@sha256:" not in image and image.rpartition(":")[2] in ("", "latest", image):
                yield f"{where}: {image} may be another image tomorrow"
    for found in rendered.of("ServiceAccount"):
        if found.get("automountServiceAccountToken") is not False:
            yield f"{name_of(found)}: gives its token away"


def helm_test(rendered: Rendered) -> Iterator[str]:
    """A pod of ``helm test`` that is none, or that talks to nothing."""
    for found in rendered.of("Pod"):
        if found["metadata"]["annotations"].get("helm.sh/hook") != "test":
            yield f"{name_of(found)} is no test"
        arguments = found["spec"]["containers"][0]["args"]
        url = arguments[arguments.index("--url") + 1]
        service = rendered.one("Service", "-gateway")
        if url != f"http://{service['metadata']['name']}:{service['spec']['ports'][0]['port']}":
            yield f"{name_of(found)} asks {url}"
        if found["spec"]["restartPolicy"] != "Never":
            yield f"{name_of(found)} would be tried for ever"
        if not {"TOKEN", f"{ENV_PREFIX}JWT_SECRET"} & environment(found["spec"]["containers"][0]).keys():
            yield f"{name_of(found)} has no token"
