"""What the image is built from: the Dockerfile's stages, and the files that a build sees."""

from __future__ import annotations

import io
import json
import re
import shlex
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from dockerfile_parse import DockerfileParser

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction.

    Attributes:
        name: in capitals.
        flags: `--name=value` before the rest; the value of one without is empty.
        text: the rest, as one line.
    """

    name: str
    flags: dict[str, str]
    text: str

    @property
    def words(self) -> list[str] | None:
        """The words of an exec form; None in the shell form."""
        try:
            read = json.loads(self.text)
        except ValueError:
            return None
        return read if isinstance(read, list) and all(isinstance(word, str) for word in read) else None

    @property
    def line(self) -> str:
        """What a shell would run, in either form."""
        return self.text if self.words is None else " ".join(self.words)


@dataclass(slots=True)
class Stage:
    """From one FROM to the next.

    Attributes:
        base: the image, or the stage, that it begins with.
        name: empty if it has none.
    """

    base: str
    name: str
    instructions: list[Instruction] = field(default_factory=list)

    def all(self, *names: str) -> list[Instruction]:
        """The instructions of these names."""
        return [each for each in self.instructions if each.name in names]

    def one(self, name: str) -> Instruction | None:
        """The last instruction of a name, which is the one that counts."""
        found = self.all(name)
        return found[-1] if found else None

    def pairs(self, name: str) -> dict[str, str]:
        """What ENV, ARG or LABEL set, with their quotes off; empty where an ARG has no default."""
        words = shlex.split(" ".join(each.text for each in self.all(name)))
        return {key: value for key, _, value in (word.partition("=") for word in words)}


class Source:
    """A folder with a Dockerfile, a .dockerignore and all that the image is built from."""

    def __init__(self, root: Path = ROOT) -> None:
        self.root = root
        self.dockerfile = root / "deploy" / "docker" / "Dockerfile"

    @cached_property
    def _instructions(self) -> list[Instruction]:
        parser = DockerfileParser(fileobj=io.BytesIO(self.dockerfile.read_bytes()), env_replace=False)
        found = [row for row in parser.structure if row["instruction"] != "COMMENT"]
        return [_instruction(row["instruction"], row["value"]) for row in found]

    @cached_property
    def arguments(self) -> dict[str, str]:
        """Build arguments before the first FROM, and their defaults."""
        before = Stage("", "")
        for each in self._instructions:
            if each.name == "FROM":
                break
            before.instructions.append(each)
        return before.pairs("ARG")

    @cached_property
    def stages(self) -> list[Stage]:
        """All of them; the last is the image."""
        found: list[Stage] = []
        for each in self._instructions:
            if each.name == "FROM":
                base, _, name = re.sub(r"\s+as\s+", " AS ", each.text, flags=re.I).partition(" AS ")
                known = {stage.name for stage in found}
                found.append(Stage(base if base in known else self._resolved(base), name))
            elif found:
                found[-1].instructions.append(each)
        return found

    @property
    def image(self) -> Stage:
        """The last stage."""
        return self.stages[-1]

    @cached_property
    def chart_values(self) -> dict[str, Any]:
        """The Helm chart's own values."""
        values: dict[str, Any] = yaml.safe_load((self.root / "deploy/helm/values.yaml").read_text("utf-8"))
        return values

    def _resolved(self, text: str) -> str:
        return re.sub(r"\$\{?(\w+)\}?", lambda found: self.arguments.get(found[1], ""), text)

    @cached_property
    def context(self) -> set[str]:
        """The files that a build sees, by their paths from the root."""
        rules = [line.strip() for line in (self.root / ".dockerignore").read_text("utf-8").splitlines()]
        rules = [line for line in rules if line and not line.startswith("#")]
        files = (path.relative_to(self.root) for path in self.root.rglob("*") if path.is_file())
        return {str(path) for path in files if _seen(path, rules)}


def _instruction(name: str, text: str) -> Instruction:
    flags = {}
    while found := re.match(r"--([\w-]+)(?:=(\S+))?\s+", text):
        flags[found[1]] = found[2] or ""
        text = text[found.end() :]
    return Instruction(name, flags, text)


def _seen(path: Path, rules: list[str]) -> bool:
    """The last rule that names a file or a folder above it decides, as Docker has it."""
    names = [str(path), *(str(parent) for parent in path.parents if parent.name)]
    seen = True
    for rule in rules:
        pattern = rule.removeprefix("!").strip("/")
        told = re.escape(pattern).replace(r"\*\*/", "(?:.*/)?").replace(r"\*", "[^/]*")
        if any(re.fullmatch(told, name) for name in names):
            seen = rule.startswith("!")
    return seen
