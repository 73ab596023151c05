"""What the chart renders, run: the same commands, arguments and variables, as processes of this machine."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from tests.chart.rendering import Object, Rendered, Values, ci_files, environment, merged, render
from tests.support.processes import Process, free_port, get, wait_for

PARTS = ("gateway", "router", "demo-agent")


def _container(rendered: Rendered, part: str) -> Object:
    holder = (
        rendered.one("Pod") if part == "test" else rendered.one("Deployment", f"-{part}")["spec"]["template"]
    )
    found: Object = holder["spec"]["containers"][0]
    return found


def _environ(rendered: Rendered, container: Object, redis_url: str) -> dict[str, str]:
    """The variables with what the Secret has; Redis is the test's own, and nothing listens to the network."""
    secret = rendered.one("Secret", "-tryout")["stringData"] | {"redis-url": redis_url}
    environ: dict[str, str] = {}
    for name, variable in environment(container).items():
        taken = variable.get("valueFrom", {}).get("secretKeyRef")
        environ[name] = variable["value"] if taken is None else secret[taken["key"]]
    if "ORCHESTRATOR_HOST" in environ:
        environ["ORCHESTRATOR_HOST"] = "127.0.0.1"
    return environ


def _process(rendered: Rendered, part: str, redis_url: str, folder: Path) -> Process:
    container = _container(rendered, part)
    service = rendered.one("Service", "-gateway")["metadata"]["name"]
    port = _container(rendered, "gateway")["ports"][0]["containerPort"]
    arguments = [
        argument.replace(f"http://{service}:80", f"http://127.0.0.1:{port}")
        for argument in (*container["command"][1:], *container.get("args", []))
    ]
    command = [sys.executable, "-m", "gateway", *arguments]
    return Process(command, _environ(rendered, container, redis_url), folder / f"{part}.log")


def _answers(container: Object, probe: str) -> bool:
    asked = container[probe]["httpGet"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    return get(f"http://127.0.0.1:{ports[asked['port']]}{asked['path']}")[0] == 200


@pytest.fixture
def rendered() -> Rendered:
    """The try-out on free ports, with a short drain."""
    http, admin, metrics = (free_port() for _ in range(3))
    values: Values = {
        "gateway": {
            "ports": {"http": http, "admin": admin},
            "settings": {"DRAIN_READINESS_S": 0.2, "DRAIN_TIMEOUT_S": 0.5},
        },
        "router": {"ports": {"metrics": metrics}},
    }
    return render(merged(ci_files()["tryout"], values))


@pytest.fixture
def processes(rendered: Rendered, redis_url: str, tmp_path: Path) -> Iterator[dict[str, Process]]:
    """The try-out's processes, started."""
    with ExitStack() as stack:
        started = {part: _process(rendered, part, redis_url, tmp_path) for part in PARTS}
        for process in started.values():
            stack.callback(process.kill)
            process.start()
        yield started


def test_the_rendered_processes(
    rendered: Rendered, processes: dict[str, Process], redis_url: str, tmp_path: Path
) -> None:
    """Their probes are answered, `helm test` passes, and each ends within its grace period."""
    for part in ("gateway", "router"):
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            wait_for(partial(_answers, _container(rendered, part), probe), f"{probe} of {part}")

    test = _process(rendered, "test", redis_url, tmp_path)
    test.start()
    assert test.popen is not None
    assert test.popen.wait(30) == 0, test.output
    assert test.output.strip()

    for part, process in processes.items():
        spec = rendered.one("Deployment", f"-{part}")["spec"]["template"]["spec"]
        began = time.monotonic()
        assert process.stop(spec["terminationGracePeriodSeconds"]) == 0, process.output
        assert time.monotonic() - began < spec["terminationGracePeriodSeconds"]


def test_helm_test_fails_without_an_answer(
    rendered: Rendered, processes: dict[str, Process], redis_url: str, tmp_path: Path
) -> None:
    """With no agent there is none, and the pod says so by its exit status."""
    processes["demo-agent"].kill()
    wait_for(lambda: _answers(_container(rendered, "gateway"), "readinessProbe"), "readiness")
    test = _process(rendered, "test", redis_url, tmp_path)
    test.command[test.command.index("--timeout-s") + 1] = "1"
    test.start()
    assert test.popen is not None
    assert test.popen.wait(30) == 2, test.output
