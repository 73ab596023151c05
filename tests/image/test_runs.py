"""The image, run: as the chart runs it, with a root that cannot be written, against a real Valkey."""

from __future__ import annotations

import ast
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.chart.rendering import Object, Rendered, Values, ci_files, environment, merged, render
from tests.image.boxed import Boxed, run
from tests.image.conftest import Built
from tests.support.processes import free_port, wait_for

PARTS = ("gateway", "router", "demo-agent")
SECRET = {"ORCHESTRATOR_JWT_SECRET": "x" * 48}


def _container(rendered: Rendered, part: str) -> Object:
    found: Object = rendered.one("Deployment", f"-{part}")["spec"]["template"]["spec"]["containers"][0]
    return found


class Installation:
    """What the chart's try-out runs, in the image, with Redis and loopback in place of the cluster's network.

    Attributes:
        processes: by their part.
    """

    def __init__(self, built: Built, rendered: Rendered, redis_url: str, folder: Path) -> None:
        self._built = built
        self._rendered = rendered
        self._redis_url = redis_url
        security = rendered.one("Deployment", "-gateway")["spec"]["template"]["spec"]["securityContext"]
        self._user = f"{security['runAsUser']}:{security['runAsGroup']}"
        self.processes = {part: self._process(part, folder) for part in PARTS}

    def _process(self, part: str, folder: Path) -> Boxed:
        container = _container(self._rendered, part)
        words = [*container["command"], *container.get("args", [])]
        return Boxed(self._built.root, words, self.environ(part), self._user, folder / f"{part}.log")

    def environ(self, part: str) -> dict[str, str]:
        """The image's variables, and over them the chart's."""
        secret = self._rendered.one("Secret", "-tryout")["stringData"] | {"redis-url": self._redis_url}
        environ = self._built.environ
        for name, variable in environment(_container(self._rendered, part)).items():
            taken = variable.get("valueFrom", {}).get("secretKeyRef")
            environ[name] = variable["value"] if taken is None else secret[taken["key"]]
        # A router alone in its container has nobody at PORT; here other processes are around.
        port = _container(self._rendered, "gateway")["ports"][0]["containerPort"]
        return {"ORCHESTRATOR_PORT": str(port if part == "gateway" else free_port())} | environ | {
            "ORCHESTRATOR_HOST": "127.0.0.1"
        }  # fmt: skip

    def ask(self, part: str, *words: str) -> tuple[int, str]:
        """Run a command in the part's container, with the part's variables."""
        return run(self._built.root, words, self.environ(part), self._user)

    def health(self, part: str, *more: str) -> int:
        """The exit status of the image's health check."""
        kind, *words = self._built.image.config["Healthcheck"]["Test"]
        assert kind == "CMD"
        return self.ask(part, *words, *more)[0]


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
def installation(built: Built, rendered: Rendered, redis_url: str, tmp_path: Path) -> Iterator[Installation]:
    """The try-out, started."""
    installation = Installation(built, rendered, redis_url, tmp_path)
    with ExitStack() as stack:
        for process in installation.processes.values():
            stack.callback(process.kill)
            process.start()
        yield installation


def test_the_commands(built: Built) -> None:
    """They run, and settings are read: without a key for tokens there is no start."""
    words = [*built.image.config["Entrypoint"], *built.image.config["Cmd"]]
    version = built.image.config["Labels"]["org.opencontainers.image.version"]
    user = built.image.config["User"]
    assert run(built.root, ["orchestrator", "version"], built.environ, user) == (0, f"{version}\n")
    status, shown = run(built.root, ["orchestrator", "check-config"], built.environ | SECRET, user)
    assert status == 0
    assert "ORCHESTRATOR_ROUTER_PORT=8081" in shown
    status, shown = run(built.root, words, built.environ, user)
    assert (status, "JWT_SECRET" in shown) == (2, True)
    status, shown = run(built.root, words, built.environ | {"ORCHESTRATOR_AUTH": "none"}, user)
    assert (status, "lets anyone in" in shown) == (2, True)


def test_where_it_can_write(built: Built) -> None:
    """In /tmp; and not even the rights let it write anywhere else."""
    look = "import os; print([path for path, *_ in os.walk('/') if os.access(path, os.W_OK)])"
    status, shown = run(built.root, ["python", "-c", look], built.environ, built.image.config["User"])
    assert status == 0
    assert {path for path in ast.literal_eval(shown) if not path.startswith(("/proc/", "/dev/"))} == {
        "/tmp",
        "/dev",
    }


def test_pod_and_router(installation: Installation) -> None:
    """A message is answered; health is told of each while it runs, hangs, and is gone; each ends cleanly."""
    for part in ("gateway", "router"):
        wait_for(lambda part=part: installation.health(part, "--ready") == 0, f"{part} ready")  # type: ignore[misc]
        assert installation.health(part) == 0
    status, answer = installation.ask("gateway", "orchestrator", "chat", "hello", "--timeout-s", "20")
    assert (status, "hello" in answer) == (0, True), answer

    for part in ("gateway", "router"):
        process = installation.processes[part]
        process.signal(signal.SIGSTOP)
        assert installation.health(part, "--timeout-s", "0.5") == 1
        process.signal(signal.SIGCONT)
        wait_for(lambda part=part: installation.health(part) == 0, f"{part} well again")  # type: ignore[misc]
        assert process.stop() == 0, process.output
        assert installation.health(part) == 1


def test_a_router_without_a_port_has_no_health(installation: Installation) -> None:
    """It cannot be asked, which is no yes."""
    status, said = installation.ask("router", "orchestrator", "probe", "--router-port", "0")
    assert (status, "cannot be asked" in said) == (1, True)
