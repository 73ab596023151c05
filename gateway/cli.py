"""The ``orchestrator`` command."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import os
import sys
import time
from collections.abc import Coroutine, Sequence
from importlib.metadata import version
from typing import Any

from backplane import log, settings
from backplane.errors import ConfigurationError, InvalidId, OrchestratorError
from backplane.keys import TIERS

_EXIT_CONFIG = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run a console command; returns the exit status."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    try:
        status: int = arguments.run(arguments)
    except (ConfigurationError, InvalidId) as error:
        print(f"orchestrator: {error}", file=sys.stderr)
        return _EXIT_CONFIG
    except OrchestratorError as error:
        print(f"orchestrator: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="orchestrator",
        description="Gateway between people and AI agents.",
        epilog="Every setting is an environment variable ORCHESTRATOR_<NAME> and a flag --<name>; "
        "`orchestrator check-config --reference` lists them.",
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    dev = _command(commands, "dev", _dev, "everything on this machine: Valkey, two pods, router, demo agent")
    dev.add_argument("--pods", type=int, default=2, metavar="N", help="pods that share the port (default 2)")
    _command(commands, "gateway", _gateway, "a pod")
    _command(commands, "router", _router, "a callback-router")
    demo = _command(
        commands, "demo-agent", _demo_agent, "takes actions and answers them, in place of the AES"
    )
    demo.add_argument(
        "--think-s", type=float, default=0.3, metavar="S", help="time it thinks (default 0.3 s)"
    )

    token = _command(commands, "token", _token, "print a development token")
    token.add_argument("--tenant", required=True, help="* for an operator's")
    token.add_argument("--tier", choices=TIERS, default="free")
    token.add_argument("--session", action="append", help="that it allows; web-* for all that begin so")
    token.add_argument("--user")
    token.add_argument(
        "--agent", action="append", help="an agent that it allows (repeat for more; default any)"
    )
    token.add_argument("--scope", action="append", help="chat, listen, broadcast, admin, stats (repeat)")
    token.add_argument("--ttl-s", type=int, default=86_400, help="lifetime in seconds (default a day)")

    chat = _command(commands, "chat", _chat, "talk to an agent from the terminal")
    chat.add_argument("message", nargs="?", help="sent, and its answer awaited; without it: interactive")
    chat.add_argument("--url", help="of a pod or load balancer (default: HOST and PORT)")
    chat.add_argument("--token", help="default: that of `orchestrator dev`, or one signed with JWT_SECRET")
    chat.add_argument("--tenant", default="demo")
    chat.add_argument("--tier", choices=TIERS, default="free")
    chat.add_argument("--session", default="terminal")
    chat.add_argument("--agent", default="demo")
    chat.add_argument("--timeout-s", type=float, default=60.0)

    letters = _command(commands, "dead-letters", _dead_letters, "callbacks that could not be understood")
    letters.add_argument("action", choices=("list", "show", "redrive", "drop"))
    letters.add_argument("ids", nargs="*", help="of show, redrive and drop: as list prints them")
    letters.add_argument("--tenant", help="of list: only this tenant's")
    letters.add_argument("--limit", type=int, default=50, help="of list: how many at most (default 50)")

    probe = _command(commands, "probe", _probe, "ask a pod or router of this machine whether it lives")
    probe.add_argument(
        "process",
        nargs="?",
        choices=("gateway", "router"),
        help="at PORT or at ROUTER_PORT; without it: whichever listens",
    )
    probe.add_argument("--ready", action="store_true", help="whether it is ready (/readyz, not /livez)")
    probe.add_argument(
        "--timeout-s", type=float, default=3.0, metavar="S", help="for the answer (default 3 s)"
    )

    check = _command(commands, "check-config", _check_config, "read the settings and say what is wrong")
    check.add_argument("--reference", action="store_true", help="print the settings' reference page instead")
    _command(commands, "version", _version, "print the version")
    return parser


def _command(commands: Any, name: str, run: Any, summary: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=summary, description=summary)
    parser.set_defaults(run=run)
    group = parser.add_argument_group("settings")
    for row in dataclasses.fields(settings.Settings):
        group.add_argument(
            settings.flag_of(row.name), dest=f"setting_{row.name}", metavar="…", help=argparse.SUPPRESS
        )
    return parser


def _settings(arguments: argparse.Namespace, environ: dict[str, str] | None = None) -> settings.Settings:
    flags = {
        row.name: getattr(arguments, f"setting_{row.name}") for row in dataclasses.fields(settings.Settings)
    }
    loaded = settings.load(os.environ if environ is None else environ, flags)
    log.configure(loaded.log_level, loaded.log_format)
    return loaded


def _run(work: Coroutine[Any, Any, int]) -> int:
    import uvloop

    return uvloop.run(work)


# Processes.


def _dev(arguments: argparse.Namespace) -> int:
    from gateway.dev import run_dev

    flags = {
        row.name: getattr(arguments, f"setting_{row.name}") for row in dataclasses.fields(settings.Settings)
    }
    status: int = run_dev(dict(os.environ), flags, pods=arguments.pods)
    return status


def _gateway(arguments: argparse.Namespace) -> int:
    from gateway.server import run_gateway

    return _run(run_gateway(_settings(arguments)))


def _router(arguments: argparse.Namespace) -> int:
    from backplane.router.app import run_router
    from gateway.router_health import serve_health

    settings = _settings(arguments)
    return _run(run_router(settings, lambda router: serve_health(settings, router)))


def _demo_agent(arguments: argparse.Namespace) -> int:
    from backplane.demo_agent import run_demo_agent

    return _run(run_demo_agent(_settings(arguments), think_s=arguments.think_s))


# Tools.


def _token(arguments: argparse.Namespace) -> int:
    from gateway.tokens import issue_token

    print(
        issue_token(
            _settings(arguments),
            time.time(),
            tenant_id=arguments.tenant,
            tier=arguments.tier,
            sessions=arguments.session or (),
            user_id=arguments.user,
            agents=arguments.agent or (),
            scopes=arguments.scope or (),
            ttl_s=arguments.ttl_s,
        )
    )
    return 0


def _chat(arguments: argparse.Namespace) -> int:
    from gateway.chat_client import run_chat
    from gateway.dev import read_state

    loaded = _settings(arguments)
    url, token = arguments.url, arguments.token
    dev = read_state()
    if url is None and token is None and dev is not None:
        url, token = dev
    elif token is None and loaded.jwt_secret:
        token = _own_token(loaded, arguments)
    return asyncio.run(
        run_chat(
            url or f"ws://{loaded.host}:{loaded.port}",
            token=token,
            tenant_id=None if token else arguments.tenant,
            tenant_tier=None if token else arguments.tier,
            session_id=arguments.session,
            agent_id=arguments.agent,
            message=arguments.message,
            timeout_s=arguments.timeout_s,
            out=sys.stdout,
        )
    )


def _own_token(loaded: settings.Settings, arguments: argparse.Namespace) -> str:
    from gateway.tokens import issue_token

    return issue_token(
        loaded, time.time(), tenant_id=arguments.tenant, tier=arguments.tier, sessions=[arguments.session]
    )


def _dead_letters(arguments: argparse.Namespace) -> int:
    from gateway.dead_letters_command import run_dead_letters

    return asyncio.run(
        run_dead_letters(
            _settings(arguments),
            arguments.action,
            arguments.ids,
            tenant_id=arguments.tenant,
            limit=arguments.limit,
        )
    )


def _probe(arguments: argparse.Namespace) -> int:
    from gateway.probe import run_probe

    try:
        loaded = _settings(arguments)
        print(run_probe(loaded, arguments.process, ready=arguments.ready, timeout_s=arguments.timeout_s))
    except OrchestratorError as error:
        print(f"orchestrator: {error}", file=sys.stderr)
        return 1  # also for a bad setting: Docker keeps 2 of a health check for itself
    return 0


def _check_config(arguments: argparse.Namespace) -> int:
    if arguments.reference:
        print(settings.reference(), end="")
        return 0
    from backplane.redis_client import parse_redis_url
    from gateway.access import AgentAccess
    from gateway.addresses import Proxies
    from gateway.auth import Authenticator
    from gateway.origins import Origins
    from gateway.server import check_exposure

    loaded = _settings(arguments)
    parse_redis_url(loaded.redis_url)
    Authenticator(loaded)
    AgentAccess(loaded, log.get_logger())
    Origins(loaded.allowed_origins)
    Proxies(loaded.trusted_proxies)
    check_exposure(loaded)
    for row in dataclasses.fields(loaded):
        value = getattr(loaded, row.name)
        shown = "(set)" if row.metadata["secret"] and value else value
        print(f"{settings.ENV_PREFIX}{row.name.upper()}={shown}")
    return 0


def _version(_arguments: argparse.Namespace) -> int:
    print(version("agent-orchestrator"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
