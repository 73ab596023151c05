"""What may be wrong with instructions: how the image is built, and what it runs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from gateway.cli import _parser
from tests.image.source import Instruction, Source

_INSTALLS = re.compile(r"\bpip\b.* (install|wheel|download)\b")
_TOOLS = re.compile(r"\b(apt|apt-get|apk|dpkg|gcc|g\+\+|make|git|curl|wget|ssh|pip3? \w+)\b")
_PIPED = re.compile(r"&&|;")


def linter(source: Source) -> Iterator[str]:
    """Whatever hadolint finds, and ShellCheck in the commands."""
    program = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert program, "hadolint is not installed: make setup"
    command = [program, "--no-color", "--disable-ignore-pragma", "--failure-threshold", "style"]
    run = subprocess.run([*command, source.dockerfile], capture_output=True, text=True, check=False)
    yield from run.stdout.splitlines()
    if run.returncode and not run.stdout:
        yield f"hadolint: {run.stderr}"


def base(source: Source) -> Iterator[str]:
    """A base whose bytes may change, or that is not the one that was built and tested with."""
    names = {stage.name for stage in source.stages}
    bases = {stage.base for stage in source.stages if stage.base not in names}
    for name in bases:
        if not re.fullmatch(r"[\w./-]+:[\w.-]+@sha256:[0-9a-f]{64}", name):
            yield f"{name} is not pinned by tag and digest"
        if ":latest" in name:
            yield f"{name} is whatever is the latest"
    if len(bases) != 1:
        yield f"the stages begin with {len(bases)} images: what is built in one must run in the other"
    version = re.search(r"python:(\d+\.\d+)\.\d+-slim", " ".join(bases))
    if version is None or version[1] not in ("3.11", "3.12", "3.13"):
        yield "the base has no Python that the project runs on"


def user(source: Source) -> Iterator[str]:
    """A process that is root, or whose user Kubernetes cannot tell from root, or is not the chart's."""
    told = source.image.one("USER")
    if told is None or not re.fullmatch(r"[1-9]\d*:[1-9]\d*", told.text):
        yield f"USER {told.text if told else 'root'} is not a user and group by number, above 0"
        return
    security = source.chart_values["podSecurity"]
    if told.text != f"{security['runAsUser']}:{security['runAsGroup']}":
        yield f"USER {told.text} is not whom the chart runs"
    if f":{told.text}:" not in " ".join(each.line for each in source.image.all("RUN")):
        yield f"USER {told.text} has no name"


def process(source: Source) -> Iterator[str]:
    """A process behind a shell, or that gets another signal, or that is no command of the project."""
    for name in ("ENTRYPOINT", "CMD", "HEALTHCHECK"):
        told = source.image.one(name)
        words = _health_command(told).words if told and name == "HEALTHCHECK" else told and told.words
        if not words:
            yield f"{name} is not in exec form"
        elif name == "ENTRYPOINT" and words != ["orchestrator"]:
            yield f"ENTRYPOINT {words} is not what the chart calls"
        elif name != "ENTRYPOINT" and not _is_command(words[words[0] == "orchestrator" :]):
            yield f"{name} {words} is no command"
    stop = source.image.one("STOPSIGNAL")
    if stop is None or stop.text != "SIGTERM":
        yield "STOPSIGNAL is not SIGTERM, which drains"


def _health_command(told: Instruction) -> Instruction:
    return Instruction("CMD", told.flags, told.text.removeprefix("CMD").strip())


def _is_command(words: list[str]) -> bool:
    try:
        _parser().parse_args(words)
    except SystemExit:
        return False
    return True


def hashes(source: Source) -> Iterator[str]:
    """An installation of something else than what the lock files name, or of something that is built."""
    for stage in source.stages:
        for line in (part for each in stage.all("RUN") for part in _PIPED.split(each.line)):
            if not _INSTALLS.search(line):
                continue
            if "--no-deps" not in line:
                yield f"it may bring what is not locked: {line.strip()}"
            if "--no-index" not in line and "--require-hashes" not in line:
                yield f"it takes any bytes: {line.strip()}"
            if "--no-index" not in line and "--only-binary=:all:" not in line:
                yield f"it may compile: {line.strip()}"


def reproducible(source: Source) -> Iterator[str]:
    """Bytes that differ from build to build."""
    lines = [line for stage in source.stages for each in stage.all("RUN") for line in _PIPED.split(each.line)]
    last = [line for each in source.image.all("RUN") for line in _PIPED.split(each.line)]
    for line in lines:
        if "compileall" in line and "--invalidation-mode unchecked-hash" not in line:
            yield f"the time of the sources is in what it writes: {line.strip()}"
        if (
            re.search(r"\bpip\b.* install\b", line)
            and "/opt/orchestrator" in line
            and "--no-compile" not in line
        ):
            yield f"it compiles with the time in it: {line.strip()}"
        if re.search(r"\bpython (?!-B)", line) and "/opt/orchestrator" not in line and line in last:
            yield f"Python writes .pyc files with times in them: {line.strip()}"
        if re.search(r"\buseradd\b|\badduser\b", line):
            yield f"it writes the day down: {line.strip()}"
    if not any("SOURCE_DATE_EPOCH" in stage.pairs("ARG") for stage in source.stages):
        yield "SOURCE_DATE_EPOCH has no influence"
    if not any("compileall" in line for line in lines):
        yield "nothing is compiled: each start would do it again"


def last_stage(source: Source) -> Iterator[str]:
    """Tools in the image that only a build needs, or that bring others."""
    for each in source.image.all("RUN"):
        yield from (f"the last stage runs {found[0]}" for found in _TOOLS.finditer(each.line))
    removed = [each.line for each in source.image.all("RUN") if re.search(r"\brm -r .*/pip-\*", each.line)]
    if not removed:
        yield "pip stays in the image"
    for each in source.image.all("COPY"):
        if "from" not in each.flags:
            yield f"the last stage copies from the sources: {each.text}"
