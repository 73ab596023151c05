"""``orchestrator probe``: whom it asks, and that only a plain yes is one."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from backplane.errors import ConfigurationError
from backplane.settings import Settings
from gateway import cli
from gateway.probe import NobodyThere, Unwell, run_probe


@contextmanager
def answering(status: int, content: Any = None, host: str = "127.0.0.1") -> Iterator[tuple[int, list[str]]]:
    """A server that answers everything so: its port, and the paths that it is asked for."""
    asked: list[str] = []

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(content).encode())

        def log_message(self, *_: Any) -> None:
            pass

    class Server(HTTPServer):
        address_family = socket.AF_INET6 if ":" in host else socket.AF_INET

    with Server((host, 0), Answers) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server.server_port, asked
        server.shutdown()
        thread.join()


@contextmanager
def silent() -> Iterator[int]:
    """The port of somebody who takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


@contextmanager
def unused() -> Iterator[int]:
    """A port that is taken, so that nobody else gets it, and at which nobody listens."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


def probe(
    settings: Settings, process: str | None = None, *, ready: bool = False, timeout_s: float = 5
) -> str:
    return run_probe(settings, process, ready=ready, timeout_s=timeout_s)


@pytest.mark.parametrize("process", [None, "gateway"])
def test_a_pod(process: str | None) -> None:
    """It is asked at PORT; /readyz only where that is wanted."""
    with answering(200) as (port, asked):
        assert probe(Settings(port=port), process) == f"gateway: /livez at 127.0.0.1 port {port} says 200"
        probe(Settings(port=port), process, ready=True)
    assert asked == ["/livez", "/readyz"]


@pytest.mark.parametrize("process", [None, "router"])
def test_a_router(process: str | None) -> None:
    """It is asked at ROUTER_PORT, where nobody listens at PORT."""
    with answering(200) as (router_port, asked), unused() as port:
        said = probe(Settings(port=port, router_port=router_port), process)
    assert said == f"router: /livez at 127.0.0.1 port {router_port} says 200"
    assert asked == ["/livez"]


@pytest.mark.parametrize(("host", "listens"), [("0.0.0.0", "127.0.0.1"), ("::", "::1"), ("::1", "::1")])
def test_hosts(host: str, listens: str) -> None:
    """A process that listens everywhere is asked at loopback, of the same family."""
    with answering(200, host=listens) as (port, asked):
        probe(Settings(host=host, port=port))
    assert asked == ["/livez"]


@pytest.mark.parametrize("status", [503, 500, 404, 204, 302])
def test_another_answer(status: int) -> None:
    """Only 200 is a yes; the reason is passed on."""
    with (
        answering(status, {"reason": "draining"}) as (port, _),
        pytest.raises(Unwell, match=f"says {status}"),
    ):
        probe(Settings(port=port), ready=True)
    with answering(503, {"reason": "draining"}) as (port, _), pytest.raises(Unwell, match=r"503, draining$"):
        probe(Settings(port=port), ready=True)
    with answering(503, ["reason"]) as (port, _), pytest.raises(Unwell, match=r"503$"):
        probe(Settings(port=port), ready=True)


def test_a_pod_that_hangs_is_not_well_because_a_router_is() -> None:
    """The second is asked only where nobody listens for the first."""
    with (
        silent() as port,
        answering(200) as (router_port, asked),
        pytest.raises(Unwell, match=r"gateway: no answer .* timed out"),
    ):
        probe(Settings(port=port, router_port=router_port), timeout_s=0.05)
    assert asked == []


def test_nobody() -> None:
    """Who was looked for is said."""
    with unused() as port, unused() as router_port:
        with pytest.raises(NobodyThere, match=rf"gateway: .* {port}, router: .* {router_port}$"):
            probe(Settings(port=port, router_port=router_port))
        with pytest.raises(NobodyThere, match="a router with ROUTER_PORT=0 cannot be asked"):
            probe(Settings(port=port, router_port=0))


def test_a_router_without_a_port() -> None:
    """It cannot be asked, and that is no yes, whoever listens at PORT."""
    with answering(200) as (port, _), pytest.raises(ConfigurationError, match="ROUTER_PORT is 0"):
        probe(Settings(port=port), "router")


def test_an_answer_that_is_no_http() -> None:
    """Something else listens there."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def babble() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(1_000)
                connection.sendall(b"-ERR unknown command\r\n\r\n")

        thread = threading.Thread(target=babble)
        thread.start()
        with pytest.raises(Unwell, match="no answer"):
            probe(Settings(port=listening.getsockname()[1]))
        thread.join()


@pytest.mark.parametrize("timeout_s", [0, -1, float("nan"), float("inf")])
def test_times_that_are_none(timeout_s: float) -> None:
    """They are refused, before anybody is asked."""
    with pytest.raises(ConfigurationError, match="--timeout-s"):
        probe(Settings(), timeout_s=timeout_s)


def test_the_command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """0 and who answered; 1 and why not, also where the settings are wrong: Docker reserves 2."""
    with answering(200) as (port, _):
        monkeypatch.setenv("ORCHESTRATOR_PORT", str(port))
        assert cli.main(["probe"]) == 0
        assert capsys.readouterr().out == f"gateway: /livez at 127.0.0.1 port {port} says 200\n"
        assert cli.main(["probe", "router", "--ready"]) == 1
        assert (
            capsys.readouterr().err
            == "orchestrator: ROUTER_PORT is 0: a router without a port cannot be asked\n"
        )
        assert cli.main(["probe", "--host", "a..b", "--timeout-s", "0.5"]) == 1
        assert "no answer" in capsys.readouterr().err
        monkeypatch.setenv("ORCHESTRATOR_PORT", "http")
        assert cli.main(["probe"]) == 1
        assert capsys.readouterr().err.startswith("orchestrator: ORCHESTRATOR_PORT")
