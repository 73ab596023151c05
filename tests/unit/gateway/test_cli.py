"""The console command: what it prints, how it ends, and that nothing wrong ends in a traceback."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import pytest
import structlog

from backplane.settings import Settings
from gateway import cli, server
from gateway.auth import Authenticator
from gateway.identity import OPERATOR, Identity, Stated

SECRET = "a-secret-of-at-least-thirty-two-bytes"
NAMES = ("X-Tenant-ID", "X-Tenant-Tier", "X-Session-ID", "X-User-ID", "X-Agent-ID")
COMMANDS = ["gateway", "router", "demo-agent", "token", "dead-letters", "check-config"]
NOTHING_STATED = Stated(None, None, None, None, None, NAMES)


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No setting of whoever runs the tests, and none of their logging afterwards."""
    for name in [name for name in os.environ if name.startswith("ORCHESTRATOR_")]:
        monkeypatch.delenv(name)
    before = list(logging.root.handlers), logging.root.level
    yield
    structlog.reset_defaults()
    logging.root.handlers[:], logging.root.level = before


class Console:
    """Runs commands."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def run(self, *arguments: str) -> tuple[int, str, str]:
        """Exit status and what was printed on either stream."""
        try:
            status = cli.main(arguments)
        except SystemExit as stop:
            status = int(str(stop.code))
        out, err = self._capsys.readouterr()
        assert "Traceback" not in out + err
        return status, out, err

    def refused(self, *arguments: str) -> str:
        """The one line with which a command refuses to run."""
        status, out, err = self.run(*arguments)
        assert (status, out) == (2, "")
        assert err.startswith("orchestrator: ")
        assert err.count("\n") == 1
        return err


@pytest.fixture
def console(capsys: pytest.CaptureFixture[str]) -> Console:
    return Console(capsys)


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Settings]:
    """The settings with which a gateway would have been started."""
    started: list[Settings] = []

    async def run_gateway(settings: Settings) -> int:
        started.append(settings)
        return 7

    monkeypatch.setattr(server, "run_gateway", run_gateway)
    return started


# Settings.


@pytest.mark.parametrize("command", COMMANDS)
def test_unknown_setting(console: Console, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    """A misspelt variable stops every command with one line that says what was meant."""
    monkeypatch.setenv("ORCHESTRATOR_REDIS_ULR", "redis://x")
    arguments = {"token": ["--tenant", "acme"], "dead-letters": ["list"]}.get(command, [])

    assert "ORCHESTRATOR_REDIS_ULR is not a setting; did you mean ORCHESTRATOR_REDIS_URL?" in console.refused(
        command, *arguments
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "http"),
        ("PORT", "0"),
        ("HEARTBEAT_S", "nan"),
        ("AUTH", "maybe"),
        ("KEY_PREFIX", "orchestrator"),
    ],
)
def test_bad_setting(console: Console, monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    """A value that cannot be is refused at the start, under its name."""
    monkeypatch.setenv(f"ORCHESTRATOR_{name}", value)

    assert name in console.refused("check-config")


def test_bad_flag(console: Console) -> None:
    """A flag's value is checked as a variable's is, and named as it was typed."""
    assert "--port='http' must be a whole number" in console.refused("gateway", "--port", "http")


@pytest.mark.parametrize(
    "arguments", [[], ["dance"], ["gateway", "--dance"], ["gateway", "extra"], ["token"]]
)
def test_unknown_words(console: Console, arguments: list[str]) -> None:
    """A word that the command does not know ends it with its usage and status 2."""
    status, out, err = console.run(*arguments)

    assert (status, out) == (2, "")
    assert err.startswith("usage: orchestrator")


def test_flags_override_the_environment(
    console: Console, monkeypatch: pytest.MonkeyPatch, served: list[Settings]
) -> None:
    """What is typed wins; what is not typed comes from the environment; the rest is the default."""
    monkeypatch.setenv("ORCHESTRATOR_PORT", "9001")
    monkeypatch.setenv("ORCHESTRATOR_HEARTBEAT_S", "5")
    monkeypatch.setenv("ORCHESTRATOR_AUTH", "none")
    status, _out, _err = console.run("gateway", "--port", "9002", "--redis-url", "redis://r.test/1")

    assert status == 7  # what the process ended with
    assert served == [Settings(port=9002, heartbeat_s=5.0, auth="none", redis_url="redis://r.test/1")]


def test_every_setting_is_a_flag(console: Console, served: list[Settings]) -> None:
    """A setting can be given on the command line under its own name."""
    default = Settings()
    arguments: list[str] = []
    for name in Settings.__dataclass_fields__:
        value: Any = getattr(default, name)
        text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
        arguments += [f"--{name.replace('_', '-')}={text}"]
    console.run("gateway", *arguments)

    assert served == [default]


@pytest.mark.parametrize("error", [KeyboardInterrupt()])
def test_interrupted(console: Console, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Ctrl-C ends a command as shells expect it."""

    def interrupt(_arguments: object) -> int:
        raise error

    monkeypatch.setattr(cli, "_version", interrupt)

    assert console.run("version") == (130, "", "")


# Tools.


def test_version(console: Console) -> None:
    """The version is that of the installed package."""
    assert console.run("version") == (0, version("agent-orchestrator") + "\n", "")


def test_token(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    """A printed token lets its bearer into the pods of the same settings, as what was asked for."""
    monkeypatch.setenv("ORCHESTRATOR_JWT_SECRET", SECRET)
    monkeypatch.setenv("ORCHESTRATOR_JWT_AUDIENCE", "gateway")
    monkeypatch.setenv("ORCHESTRATOR_JWT_ISSUER", "us")
    words = "--tenant acme --tier professional --session s-1 --user a@b --agent sales --agent support"
    status, out, err = console.run("token", *words.split())
    pods = Authenticator(Settings(jwt_secret=SECRET, jwt_audience="gateway", jwt_issuer="us"))

    assert (status, err) == (0, "")
    identity = asyncio.run(pods.identify(out.strip(), NOTHING_STATED))
    assert identity == Identity("acme", "professional", "s-1", "a@b", None, identity.grant)
    assert identity.grant.agents == ("sales", "support")
    assert identity.grant.scopes == {"chat", "listen"}


def test_token_for_any_session(console: Console) -> None:
    """What is left out of a token is for its bearer to say; the secret may be a flag too."""
    _status, out, _err = console.run("token", "--tenant", "acme", "--jwt-secret", SECRET)
    stated = NOTHING_STATED._replace(session_id="s-9", agent_id="anyone")

    identity = asyncio.run(Authenticator(Settings(jwt_secret=SECRET)).identify(out.strip(), stated))
    assert identity == Identity("acme", "free", "s-9", None, "anyone", identity.grant)
    assert (identity.grant.sessions, identity.grant.agents) == (None, None)


def test_token_for_several_sessions_and_scopes(console: Console) -> None:
    """Sessions by their beginning, and scopes, one flag for each."""
    words = "--tenant acme --session web-* --session s-1 --scope admin --scope stats"
    _status, out, _err = console.run("token", "--jwt-secret", SECRET, *words.split())
    grant = asyncio.run(Authenticator(Settings(jwt_secret=SECRET)).grant(out.strip()))

    assert grant.sessions == ("web-*", "s-1")
    assert grant.scopes == {"admin", "stats"}


def test_token_of_an_operator(console: Console) -> None:
    """A star in place of the tenant is for those who run the service."""
    _status, out, _err = console.run("token", "--jwt-secret", SECRET, "--tenant", "*", "--scope", "admin")

    assert asyncio.run(Authenticator(Settings(jwt_secret=SECRET)).grant(out.strip())).tenant_id == OPERATOR


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--tenant", "a:b"], "tenant"),
        (["--tenant", "acme", "--session", "a/b"], "session"),
        (["--tenant", "acme", "--user", "a b"], "user"),
        (["--tenant", "acme", "--agent", "a b"], "agent"),
        (["--tenant", "acme", "--scope", "everything"], "no scope"),
        (["--tenant", "acme", "--jwt-algorithms", "RS256"], "JWT_ALGORITHMS"),
        (["--tenant", "acme", "--jwt-secret", "short"], "JWT_SECRET"),
        (["--tenant", "acme", "--jwt-secret", ""], "JWT_SECRET"),
    ],
    ids=str,
)
def test_token_that_no_pod_would_take(console: Console, words: list[str], says: str) -> None:
    """Such a token is refused where it is made, and not first where it is used."""
    assert says in console.refused("token", "--jwt-secret", SECRET, *words)


def test_check_config_hides_secrets(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is shown can be pasted into a ticket: no key, no password."""
    monkeypatch.setenv("ORCHESTRATOR_JWT_SECRET", SECRET)
    monkeypatch.setenv("ORCHESTRATOR_REDIS_URL", "redis://ann:hunter2@redis.test:6379/0")
    status, out, err = console.run("check-config", "--port", "9000")

    assert (status, err) == (0, "")
    assert SECRET not in out
    assert "hunter2" not in out
    assert "ORCHESTRATOR_JWT_SECRET=(set)" in out
    assert "ORCHESTRATOR_REDIS_URL=(set)" in out
    assert "ORCHESTRATOR_PORT=9000" in out
    assert len(out.splitlines()) == len(Settings.__dataclass_fields__)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "JWT_SECRET"),
        (["--auth", "none", "--host", "0.0.0.0"], "AUTH=none"),
        (["--auth", "none", "--redis-url", "http://redis"], "REDIS_URL"),
        (["--auth", "none", "--callbacks-queue-template", "x"], "CALLBACKS_QUEUE_TEMPLATE"),
    ],
)
def test_check_config_finds_what_would_stop_a_pod(console: Console, words: list[str], says: str) -> None:
    """A configuration that passes the check starts; one that does not says why."""
    assert says in console.refused("check-config", *words)


def test_reference(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    """The settings' page can be printed under any settings, also wrong ones."""
    monkeypatch.setenv("ORCHESTRATOR_NONSENSE", "1")
    status, out, _err = console.run("check-config", "--reference")

    assert status == 0
    assert out.startswith("# Settings")
    assert "ORCHESTRATOR_REDIS_URL" in out


@pytest.mark.parametrize("words", [["show"], ["redrive"], ["drop"], ["list", "some-id"]])
def test_dead_letters_words_that_do_not_fit(console: Console, words: list[str]) -> None:
    """A command that cannot be carried out says so before it looks for Redis."""
    status, out, err = console.run("dead-letters", *words)

    assert (status, out) == (1, "")
    assert err.startswith("orchestrator: ")
    assert err.count("\n") == 1


def test_help(console: Console) -> None:
    """The help names every command that the contract names."""
    status, out, _err = console.run("--help")

    assert status == 0
    for name in (*COMMANDS, "dev", "chat", "version"):
        assert f"\n    {name}" in out


EARLY = """
import os, signal
for number in (signal.SIGUSR1, signal.SIGUSR2): signal.signal(number, signal.SIG_DFL)
from gateway import cli
def settings(_arguments):
    os.kill(os.getpid(), signal.{signal})
    os._exit(7)
cli._settings = settings
cli.main(["{process}"])
"""


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2])
@pytest.mark.parametrize("process", ["gateway", "router", "demo-agent"])
def test_a_signal_before_the_process_listens(process: str, number: signal.Signals) -> None:
    """Whoever changes all processes' level does not end the one that is just starting."""
    program = EARLY.format(process=process, signal=number.name)
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 7
