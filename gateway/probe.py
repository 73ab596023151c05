"""``orchestrator probe``: asks a pod or a router of this machine whether it is well."""

from __future__ import annotations

import http.client
import json
from contextlib import closing, suppress

from backplane.errors import ConfigurationError, OrchestratorError
from backplane.settings import Settings

_MOST_S = 3_600


class Unwell(OrchestratorError):
    """Nobody says that all is well; the text says who was asked, and the answer."""


class NobodyThere(Unwell):
    """Nothing listens at the port."""


def run_probe(settings: Settings, process: str | None, *, ready: bool, timeout_s: float) -> str:
    """Ask /livez or /readyz.

    Args:
        settings: those of the process that is asked: its HOST, and its PORT or ROUTER_PORT.
        process: ``gateway`` or ``router``. None: whichever listens, a pod before a router: a
            container's health check does not know which of them it is.
        ready: ask /readyz.
        timeout_s: for connecting, and then for the answer.

    Returns:
        Who answered.

    Raises:
        Unwell: another answer than 200, or none.
        ConfigurationError: the router has no port at which it could be asked, or the time is none.
    """
    if not 0 < timeout_s <= _MOST_S:
        raise ConfigurationError(f"--timeout-s must be more than 0, and at most {_MOST_S}")
    path = "/readyz" if ready else "/livez"
    ports = {"gateway": settings.port, "router": settings.router_port}
    asked = [process] if process else [name for name, port in ports.items() if port]
    if process == "router" and not settings.router_port:
        raise ConfigurationError("ROUTER_PORT is 0: a router without a port cannot be asked")
    absent: list[str] = []
    for name in asked:
        try:
            return f"{name}: {_ask(settings.host, ports[name], path, timeout_s)}"
        except NobodyThere as error:
            absent.append(f"{name}: {error}")
        except Unwell as error:
            raise Unwell(f"{name}: {error}") from None
    without = "" if process or settings.router_port else "; a router with ROUTER_PORT=0 cannot be asked"
    raise NobodyThere(", ".join(absent) + without)


def _ask(host: str, port: int, path: str, timeout_s: float) -> str:
    # A HOST of 0.0.0.0 or :: will do: Linux takes it for this machine.
    where = f"{path} at {host} port {port}"
    try:
        with closing(http.client.HTTPConnection(host, port, timeout=timeout_s)) as connection:
            connection.request("GET", path)
            answer = connection.getresponse()
            content = answer.read(65_536)
    except ConnectionRefusedError:
        raise NobodyThere(f"nothing listens for {where}") from None
    except (OSError, http.client.HTTPException, UnicodeError) as error:
        raise Unwell(f"no answer to {where}: {error or type(error).__name__}") from None
    if answer.status != 200:
        raise Unwell(f"{where} says {answer.status}{_reason(content)}")
    return f"{where} says 200"


def _reason(content: bytes) -> str:
    with suppress(ValueError, AttributeError):
        reason = json.loads(content).get("reason")
        return f", {reason}" if isinstance(reason, str) else ""
    return ""
