"""The chart, rendered without a cluster: objects out of values."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import helm_python
import yaml

CHART = Path(__file__).parents[2] / "deploy" / "helm"
RELEASE, NAMESPACE = "ao", "prod"

Object = dict[str, Any]
Values = dict[str, Any]

SECRETS: Values = {"redis": {"existingSecret": "redis"}, "jwt": {"existingSecret": "jwt"}}
"""The least that an installation needs."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """What an installation would consist of.

    Attributes:
        objects: all of them, those of `helm test` too.
        notes: what the user is told.
    """

    objects: tuple[Object, ...]
    notes: str = ""

    def of(self, *kinds: str) -> list[Object]:
        """The objects of these kinds."""
        return [found for found in self.objects if found["kind"] in kinds]

    def one(self, kind: str, suffix: str = "") -> Object:
        """The only object of a kind whose name ends so.

        Raises:
            LookupError: there is none, or there are several.
        """
        found = [each for each in self.of(kind) if each["metadata"]["name"].endswith(suffix)]
        if len(found) != 1:
            raise LookupError(f"{len(found)} objects {kind} …{suffix}")
        return found[0]

    def pods(self) -> Iterator[tuple[Object, Object]]:
        """Each object that has pods, and its pods' template (or itself, if it is a pod)."""
        for found in self.objects:
            if found["kind"] == "Pod":
                yield found, found
            elif "template" in found.get("spec", {}):
                yield found, found["spec"]["template"]


class _Loader(yaml.CSafeLoader):
    """YAML that refuses a key given twice, which the API server would as well."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = {str(key) for key in keys if keys.count(key) > 1}
        if twice:
            raise yaml.constructor.ConstructorError(None, None, f"key twice: {twice}", node.start_mark)
        built: dict[Any, Any] = super().construct_mapping(node, deep)
        return built


def render(
    values: Values, chart: Path = CHART, *, release: str = RELEASE, namespace: str = NAMESPACE
) -> Rendered:
    """Render with these values over the chart's own.

    Raises:
        helm_python.HelmError: the schema or a template refuses them.
        yaml.YAMLError: what came out is no YAML.
    """
    texts = _loaded(chart).render(values, name=release, namespace=namespace)
    objects: list[Object] = []
    notes = ""
    for path in sorted(texts):
        if path.endswith("NOTES.txt"):
            notes = texts[path]
        elif path.endswith(".yaml"):
            objects += filter(None, yaml.load_all(texts[path], _Loader))
    return Rendered(tuple(objects), notes)


@cache
def _loaded(chart: Path) -> helm_python.Chart:
    return helm_python.Chart.load(chart)


def merged(*layers: Values) -> Values:
    """Values over values, as Helm merges several files."""
    whole: Values = {}
    for layer in layers:
        for key, value in layer.items():
            if isinstance(value, dict) and isinstance(whole.get(key), dict):
                whole[key] = merged(whole[key], value)
            else:
                whole[key] = deepcopy(value)
    return whole


def ci_files() -> dict[str, Values]:
    """The value files under ci/, by name."""
    files = sorted((CHART / "ci").glob("*-values.yaml"))
    return {path.name.removesuffix("-values.yaml"): yaml.safe_load(path.read_text("utf-8")) for path in files}


def containers(pod: Object) -> Iterable[Object]:
    """All containers of a pod or a pod's template."""
    spec = pod["spec"]
    return [*spec.get("initContainers", []), *spec["containers"]]


def environment(container: Object) -> dict[str, Object]:
    """A container's variables by name."""
    return {variable["name"]: variable for variable in container.get("env", [])}
