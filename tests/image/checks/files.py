"""What may be wrong with files, variables and labels: what goes into the image, and what it says."""

from __future__ import annotations

import re
from collections.abc import Iterator
from fnmatch import fnmatch

from backplane.errors import ConfigurationError
from backplane.settings import ENV_PREFIX, Settings
from backplane.settings import load as load_settings
from tests.image.lock import locked, project
from tests.image.source import Source

_SECRET = re.compile(r"SECRET|PASSWORD|PASSWD|TOKEN|CREDENTIAL|API_?KEY|PRIVATE", re.IGNORECASE)
_PASSWORD_IN_URL = re.compile(r"://[^/\s]*:[^/\s@]+@")
_OUTSIDE = re.compile(r"://|\bgit@")


def secrets(source: Source) -> Iterator[str]:
    """What must not be in a layer, nor in the image's history."""
    for stage in source.stages:
        for name in {**stage.pairs("ENV"), **stage.pairs("ARG")}:
            if _SECRET.search(name):
                yield f"{name} would be in the image's history"
        yield from (
            f"a password in {each.line}" for each in stage.instructions if _PASSWORD_IN_URL.search(each.line)
        )
    for path in sorted(source.context):
        if re.search(r"(^|/)\.(git|env|venv|netrc|ssh)|\.(pem|key)$|secret", path):
            yield f"{path} goes to the build"


def sources(source: Source) -> Iterator[str]:
    """Files that are fetched, or all that there are, or that the build does not see."""
    for stage in source.stages:
        for each in stage.all("ADD"):
            yield f"ADD {each.text}: " + ("it fetches" if _OUTSIDE.search(each.text) else "COPY is enough")
        for each in stage.all("RUN"):
            if re.search(r"\b(curl|wget|git clone)\b", each.line):
                yield f"it fetches what nobody pinned: {each.line}"
        for each in stage.all("COPY"):
            if "from" not in each.flags:
                yield from (
                    _missing(source, name) for name in each.text.split()[:-1] if _missing(source, name)
                )


def _missing(source: Source, name: str) -> str:
    if name in (".", "./", "/"):
        return "COPY . takes whatever is there"
    if any(fnmatch(path, name) or path.startswith(f"{name.rstrip('/')}/") for path in source.context):
        return ""
    exists = any(source.root.glob(name))
    return f"COPY {name}: " + ("it is in .dockerignore" if exists else "it does not exist")


def context(source: Source) -> Iterator[str]:
    """What setuptools and the installation need and is not copied, and what goes to the build for nothing."""
    told = project(source.root)
    wanted = {"pyproject.toml", told["project"]["readme"]}
    wanted |= {f"deploy/docker/{name}" for name in locked(source.root)}
    for package, patterns in told["tool"]["setuptools"]["package-data"].items():
        for path in (source.root / package).rglob("*"):
            inside = str(path.relative_to(source.root / package))
            if path.suffix == ".py" or any(fnmatch(inside, pattern) for pattern in patterns):
                wanted.add(f"{package}/{inside}")
    names = [name for each in source.stages[0].all("COPY") for name in each.text.split()[:-1]]
    copied = {
        path
        for path in source.context
        for name in names
        if fnmatch(path, name) or path.startswith(f"{name}/")
    }
    yield from (f"{path} is needed and not copied" for path in sorted(wanted - copied))
    yield from (f"{path} goes to the build for nothing" for path in sorted(source.context - wanted))


def settings(source: Source) -> Iterator[str]:
    """Variables with which nothing would start, and ports that nobody listens on."""
    environ = source.image.pairs("ENV")
    ours = {name: value for name, value in environ.items() if name.startswith(ENV_PREFIX)}
    try:
        loaded = load_settings(ours, {})
    except ConfigurationError as error:
        yield str(error)
        return
    if loaded.host == Settings().host:
        yield "only the container itself could reach the service"
    if loaded.auth == "none" or loaded.allow_insecure:
        yield "anyone may use the service"
    if not loaded.router_port:
        yield "a router's health cannot be asked"
    exposed = {word for each in source.image.all("EXPOSE") for word in each.text.split()}
    if exposed != {str(loaded.port), str(loaded.router_port)}:
        yield f"EXPOSE {sorted(exposed)} are not the ports"
    if environ.get("PYTHONDONTWRITEBYTECODE") != "1":
        yield "Python would try to write beside the sources"


def labels(source: Source) -> Iterator[str]:
    """Labels that are missing or say something else than pyproject.toml and the chart."""
    told, found = project(source.root)["project"], source.image.pairs("LABEL")
    prefix = "org.opencontainers.image."
    for name, value in {"title": told["name"], "version": told["version"]}.items():
        if found.get(prefix + name) != value:
            yield f"{name} is {found.get(prefix + name)}, and {value} in pyproject.toml"
    if source.chart_values["image"]["repository"] != told["name"]:
        yield "the chart names another image"
    for name, value in {"revision": "${REVISION}", "base.name": "${PYTHON_IMAGE}"}.items():
        if found.get(prefix + name) != value:
            yield f"{name} is not {value}"
    if not found.get(f"{prefix}description"):
        yield "description is missing"
