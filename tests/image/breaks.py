"""What may go wrong with the image's source, and which check notices it."""

from __future__ import annotations

from typing import NamedTuple


class Break(NamedTuple):
    """One mistake.

    Attributes:
        name: of the mistake.
        caught_by: the name of the check.
        says: a part of what it says.
        before: text in the file; empty: the file is new.
        after: what stands there by mistake.
        file: the Dockerfile unless given.
    """

    name: str
    caught_by: str
    says: str
    before: str
    after: str
    file: str = "deploy/docker/Dockerfile"


_DIGEST = "@sha256:7c61056e61ac89e852de05f3dc6fa51a6dd2181797bceed46aa725dd7cb2cd3b"
_IGNORED, _PROJECT, _CHART = ".dockerignore", "pyproject.toml", "deploy/helm/values.yaml"

BREAKS = (
    Break("a base that changes", "base", "not pinned", _DIGEST, ""),
    Break("the latest base", "base", "latest", "python:3.13.15-slim-trixie", "python:latest"),
    Break("an image of two bases", "base", "2 images", "FROM ${PYTHON_IMAGE}\n", "FROM debian:13\n"),
    Break("a Python that is not supported", "base", "no Python", "python:3.13.15", "python:3.14.2"),
    Break("a base of a variable", "linter", "DL3006", "FROM ${PYTHON_IMAGE}\n", "FROM debian\n"),
    Break(
        "a command that ShellCheck knows", "linter", "SC2086", '"${stdlib}/ensurepip"', "${stdlib}/ensurepip"
    ),
    Break("a relative folder", "linter", "DL3000", "WORKDIR /src", "WORKDIR src"),
    Break("root", "user", "USER root is not", "USER 10001:10001\n", ""),
    Break("root by number", "user", "USER 0:0", "USER 10001:10001", "USER 0:0"),
    Break("a user by name", "user", "by number", "USER 10001:10001", "USER orchestrator"),
    Break("another user than the chart's", "user", "chart", "runAsUser: 10001", "runAsUser: 10002", _CHART),
    Break(
        "a user without a name", "user", "no name", "orchestrator:x:10001:10001:", "orchestrator:x:1001:1001:"
    ),
    Break("a shell before the process", "process", "ENTRYPOINT", '["orchestrator"]', "orchestrator"),
    Break(
        "an init that the chart leaves out",
        "process",
        "chart",
        '["orchestrator"]',
        '["tini", "orchestrator"]',
    ),
    Break("a command that is none", "process", "is no command", 'CMD ["gateway"]', 'CMD ["serve"]'),
    Break(
        "a health check that is none", "process", "HEALTHCHECK", '["orchestrator", "probe"]', '["curl", "/"]'
    ),
    Break(
        "a health check in a shell", "process", "HEALTHCHECK", 'CMD ["orchestrator", "probe"]', "CMD exit 0"
    ),
    Break("a kill without a drain", "process", "STOPSIGNAL", "STOPSIGNAL SIGTERM", "STOPSIGNAL SIGKILL"),
    Break(
        "bytes that nobody looks at",
        "hashes",
        "any bytes",
        "--require-hashes --no-deps --only",
        "--no-deps --only",
    ),
    Break("bytes of the build alike", "hashes", "any bytes", '"--require-hashes", ', ""),
    Break("what nobody locked", "hashes", "not locked", "--require-hashes --no-deps", "--require-hashes"),
    Break("what would be compiled", "hashes", "compile", "--only-binary=:all: --no-compile", "--no-compile"),
    Break("a wheel with its dependencies", "hashes", "not locked", "isolation --no-deps", "isolation"),
    Break(
        "times in .pyc files", "reproducible", "time of the sources", "--invalidation-mode unchecked-hash", ""
    ),
    Break(
        "times of pip's .pyc files",
        "reproducible",
        "with the time in it",
        "--no-index --no-compile",
        "--no-index",
    ),
    Break("no date for the wheel", "reproducible", "SOURCE_DATE_EPOCH", "ARG SOURCE_DATE_EPOCH=0\n", ""),
    Break(
        "a user with a date",
        "reproducible",
        "the day",
        "echo 'orchestrator:x:10001:'",
        "useradd -u 10001 ao; echo",
    ),
    Break(
        "times of Python's own .pyc files",
        "reproducible",
        "Python writes",
        "python -B -m compileall",
        "python -m compileall",
    ),
    Break("nothing compiled", "reproducible", "each start", "-m compileall", "-m ast"),
    Break(
        "a compiler",
        "last_stage",
        "runs gcc",
        "RUN stdlib=",
        "RUN apt-get install -y gcc; stdlib=",
    ),
    Break("pip in the image", "last_stage", "pip stays", ' "${packages}"/pip-*.dist-info', ""),
    Break(
        "an installation in the image", "last_stage", "pip install", " && rm -r", " && pip install x && rm -r"
    ),
    Break("sources in the image", "last_stage", "from the sources", "EXPOSE", "COPY gateway gateway\nEXPOSE"),
    Break("a secret in the history", "secrets", "JWT_SECRET", 'ARG EXTRAS=""', "ARG JWT_SECRET"),
    Break("a secret among the variables", "secrets", "API_KEY", "PYTHONUNBUFFERED=1", "API_KEY=x"),
    Break("a password in an address", "secrets", "a password", 'ARG REVISION=""', "ENV URL=redis://:x@r:1"),
    Break("a key that is sent to the build", "secrets", "gateway/dev.key", "", "key", "gateway/dev.key"),
    Break("git in the build", "secrets", ".git/config", "*\n", "*\n!.git\n", _IGNORED),
    Break(
        "what is fetched",
        "sources",
        "it fetches",
        "COPY pyproject.toml",
        "ADD https://x.org/a.tgz /\nCOPY pyproject.toml",
    ),
    Break("ADD for COPY", "sources", "COPY is enough", "COPY pyproject.toml", "ADD pyproject.toml"),
    Break("fetched in a shell", "sources", "nobody pinned", "&& set -- --req", "&& wget x && set -- --req"),
    Break("whatever is there", "sources", "COPY .", "COPY backplane backplane", "COPY . ."),
    Break("what is not there", "sources", "does not exist", "COPY backplane backplane", "COPY core core"),
    Break("what is ignored", "sources", ".dockerignore", "!gateway\n", "", _IGNORED),
    Break("a package that is not copied", "context", "backplane/keys.py", "COPY backplane backplane\n", ""),
    Break("scripts that are not copied", "context", "accept.lua", "**/*.pyc", "**/*.lua", _IGNORED),
    Break("a README that is not copied", "context", "README.md is needed", "README.md ./", "./"),
    Break("tests in the build", "context", "for nothing", "!gateway\n", "!gateway\n!tests\n", _IGNORED),
    Break("rubbish in a package", "context", "for nothing", "", "x", "gateway/notes.txt"),
    Break(
        "a lock that is not copied",
        "context",
        "requirements-dev.txt",
        "requirements*.txt ./",
        "requirements.txt ./",
    ),
    Break(
        "a variable that is no setting",
        "settings",
        "ORCHESTRATOR_BIND",
        "ORCHESTRATOR_HOST",
        "ORCHESTRATOR_BIND",
    ),
    Break("a service for itself", "settings", "only the container", "ORCHESTRATOR_HOST=0.0.0.0 \\\n    ", ""),
    Break("a service for all", "settings", "anyone", "=8081\n", "=8081 ORCHESTRATOR_AUTH=none\n"),
    Break("a router that is not asked", "settings", "router's health", "ROUTER_PORT=8081", "ROUTER_PORT=0"),
    Break("another port", "settings", "EXPOSE", "EXPOSE 8080", "EXPOSE 80"),
    Break(
        "a Python that writes",
        "settings",
        "try to write",
        "    PYTHONDONTWRITEBYTECODE=1 \\\n    PYTHONUN",
        "    PYTHONUN",
    ),
    Break("an old version", "labels", "version is 0.1.0", 'version = "0.1.0"', 'version = "0.2.0"', _PROJECT),
    Break("another title", "labels", "title is ao", 'title="agent-orchestrator"', 'title="ao"'),
    Break(
        "another image in the chart",
        "labels",
        "the chart names",
        "repository: agent-orchestrator",
        "repository: ao",
        _CHART,
    ),
    Break("no revision", "labels", "revision", '"${REVISION}"', '""'),
    Break("no base", "labels", "base.name", '"${PYTHON_IMAGE}"', '""'),
    Break("no description", "labels", "description", 'image.description="A', 'image.summary="A'),
)
