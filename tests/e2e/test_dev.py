"""`orchestrator dev` and `orchestrator chat`, as a newcomer uses them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from backplane.settings import Settings
from gateway.tokens import issue_token
from tests.support.processes import free_port, get, wait_for

ORCHESTRATOR = str(Path(sys.executable).parent / "orchestrator")


class Dev:
    """A running ``orchestrator dev`` with a temporary directory of its own."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        settings = Settings(jwt_secret="the-same-secret-for-this-test-and-for-dev")
        self.environ = {
            "PATH": os.environ["PATH"],
            "TMPDIR": str(folder),
            "ORCHESTRATOR_JWT_SECRET": settings.jwt_secret,
        }
        token = issue_token(settings, time.time(), tenant_id="*", tier="free", scopes=["stats"])
        self.operator = {"Authorization": f"Bearer {token}"}
        self._log = folder / "dev.log"
        with self._log.open("wb") as output:
            self.process = subprocess.Popen(
                [ORCHESTRATOR, "dev", "--port", str(self.port)],
                env=self.environ,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    @property
    def output(self) -> str:
        """All that it printed."""
        return self._log.read_text()

    def chat(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run ``orchestrator chat``."""
        return subprocess.run(
            [ORCHESTRATOR, "chat", *words],
            env=self.environ,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )


@pytest.fixture(scope="module")
def dev() -> Iterator[Dev]:
    """`orchestrator dev`, up."""
    with tempfile.TemporaryDirectory() as folder:
        running = Dev(Path(folder))
        try:
            wait_for(lambda: "Ctrl-C stops" in running.output or running.process.poll() is not None, "up", 40)
            assert running.process.poll() is None, running.output
            yield running
        finally:
            running.process.send_signal(signal.SIGINT)
            running.process.wait(30)


def test_first_message_is_answered(dev: Dev) -> None:
    """`orchestrator chat "hello"` needs nothing else, and ends when the answer is there."""
    done = dev.chat("hello")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "hello" in done.stdout


def test_failed_task_is_told(dev: Dev) -> None:
    """A task that the agent fails is shown as an error, with an exit status that says so."""
    done = dev.chat("fail")
    assert done.returncode == 1, done.stdout + done.stderr


def test_greeting_names_what_works(dev: Dev) -> None:
    """URL and token of the greeting are real: the token opens the send endpoint, none does not."""
    token = re.search(r"token +(\S+)", dev.output)
    assert token is not None
    command = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", f"{dev.url}/api/chat/send"]
    command += ["-H", "X-Session-ID: s", "-H", "X-Agent-ID: demo", "-d", '{"message": "hi"}']
    with_token = [*command, "-H", f"Authorization: Bearer {token[1]}"]
    assert subprocess.run(with_token, capture_output=True, text=True, check=True).stdout == "200"
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "401"


def test_a_killed_pod_comes_back(dev: Dev) -> None:
    """`kill -9` on a pod, as the greeting suggests: dev starts it again, chat works throughout."""
    pid = re.search(r"kill -9 (\d+)", dev.output)
    assert pid is not None
    os.kill(int(pid[1]), signal.SIGKILL)
    assert dev.chat("hello").returncode == 0

    def both_ready() -> bool:
        status, stats = get(f"{dev.url}/ws/stats", headers=dev.operator)
        return status == 200 and sum(pod["ready"] for pod in stats["pods"]) == 2

    wait_for(lambda: "starting it again" in dev.output and both_ready(), "two pods again")


def test_second_dev_on_the_port_is_refused(dev: Dev) -> None:
    """Pods share ports, so a second dev has to be refused by name, in one line."""
    done = subprocess.run(
        [ORCHESTRATOR, "dev", "--port", str(dev.port)],
        env=dev.environ, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "choose another with --port" in done.stderr


def test_ctrl_c_stops_everything(tmp_path: Path) -> None:
    """After Ctrl-C dev ends with 0, and no process of it is left; impatience changes nothing."""
    running = Dev(tmp_path)
    wait_for(lambda: "Ctrl-C stops" in running.output or running.process.poll() is not None, "up", 40)
    for number in (signal.SIGINT, signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        running.process.send_signal(number)
    assert running.process.wait(30) == 0
    marker = f"TMPDIR={tmp_path}".encode()

    def left() -> list[str]:
        found = []
        for environ in Path("/proc").glob("[0-9]*/environ"):
            try:
                if marker in environ.read_bytes():
                    found.append((environ.parent / "cmdline").read_text().replace("\0", " "))
            except OSError:
                continue
        return found

    assert not left()
