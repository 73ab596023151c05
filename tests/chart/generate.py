"""What of the chart is made from elsewhere: settings in the schema, the README's table of values, dashboards.

``python -m tests.chart.generate`` writes them; tests compare.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import yaml

from backplane.settings import Settings
from tests.chart.dashboards import DASHBOARDS
from tests.chart.rendering import CHART

OWN = {
    "HOST": "`listenAddress`",
    "PORT": "`gateway.ports.http`",
    "ADMIN_PORT": "`gateway.ports.admin`",
    "ROUTER_PORT": "`router.ports.metrics`",
    "REDIS_URL": "`redis.existingSecret`",
    "JWT_SECRET": "`jwt.existingSecret`, `jwt.secretKey`",
    "JWT_JWKS_URL": "`jwt.existingSecret`, `jwt.jwksUrlKey`",
    "JWT_KEYS_DIR": "`jwt.keysSecret`",
    "ACCESS_CHECK_URL": "`accessCheck.existingSecret`",
    "AUTH": "nothing: a pod of the chart always wants tokens",
    "ALLOW_INSECURE": "nothing, likewise",
}
"""Settings that are no plain values of the chart, and what stands in their place."""

SHARED_GROUPS = ("Redis", "Queues", "Traces", "Session log", "Tasks", "Tiers")
"""Groups of settings in which pods and routers must agree."""

SHARED_NOT = ("REDIS_TIMEOUT_S", "ACTIONS_QUEUE_MAX")

BEGIN, END = "<!-- begin of the generated part -->", "<!-- end of the generated part -->"
_DESCRIPTION = re.compile(r"^\s*# -- (.+)$")
_KEY = re.compile(r"^(\s*)([A-Za-z_][A-Za-z0-9_-]*):")


def setting_names(*, shared: bool = True) -> Iterator[str]:
    """Settings that the chart takes as plain values.

    Args:
        shared: also those in which pods and routers must agree.
    """
    for row in dataclasses.fields(Settings):
        name = row.name.upper()
        together = row.metadata["group"] in SHARED_GROUPS and name not in SHARED_NOT
        if name not in OWN and (shared or not together):
            yield name


def setting_schema(name: str) -> dict[str, Any]:
    """JSON Schema of one setting's value."""
    row = next(row for row in dataclasses.fields(Settings) if row.name == name.lower())
    metadata = row.metadata
    if metadata["choices"]:
        return {"enum": list(metadata["choices"])}
    kind = str(row.type)
    bounds = {"minimum": metadata["least"], "maximum": metadata["most"]}
    number = {key: bound for key, bound in bounds.items() if bound is not None}
    if kind.startswith("tuple"):
        items = {"type": "integer", **number}
        several = {"type": "array", "items": items, "minItems": 4, "maxItems": 4}
        return {"anyOf": [{"type": "string", "pattern": r"^[0-9]+(,[0-9]+){3}$"}, several]}
    types = {"int": "integer", "float": "number", "bool": "boolean", "str": "string"}
    return {"type": types[kind], **number}


def schema() -> str:
    """The text of values.schema.json, with the settings as they are now."""
    whole: dict[str, Any] = json.loads((CHART / "values.schema.json").read_text("utf-8"))
    for part, shared in (("sharedSettings", True), ("processSettings", False)):
        whole["$defs"][part] = {
            "type": "object",
            "additionalProperties": False,
            "properties": {name: setting_schema(name) for name in setting_names(shared=shared)},
        }
    return json.dumps(whole, indent=2, ensure_ascii=False) + "\n"


class Value(NamedTuple):
    """One row of the README's table."""

    path: str
    default: Any
    meaning: str


def values() -> list[Value]:
    """The values with their descriptions, as values.yaml has them."""
    text = (CHART / "values.yaml").read_text("utf-8")
    defaults = yaml.safe_load(text)
    rows: list[Value] = []
    stack: list[tuple[int, str]] = []
    meaning = ""
    for line in text.splitlines():
        if described := _DESCRIPTION.match(line):
            meaning = described[1]
        elif key := _KEY.match(line):
            indent = len(key[1])
            stack = [entry for entry in stack if entry[0] < indent] + [(indent, key[2])]
            path = [name for _, name in stack]
            if meaning:
                rows.append(Value(".".join(path), _at(defaults, path), meaning))
            meaning = ""
    return rows


def _at(tree: Any, path: list[str]) -> Any:
    for name in path:
        tree = tree[name]
    return tree


def readme() -> str:
    """The text of the chart's README, with the tables as they are now."""
    text = (CHART / "README.md").read_text("utf-8")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    lines = ["| value | default | meaning |", "|---|---|---|"]
    lines += [f"| `{row.path}` | `{_shown(row.default)}` | {row.meaning} |" for row in values()]
    lines += ["", "Settings that are not in `settings`, and what stands in their place:", ""]
    lines += [
        "| setting | value |",
        "|---|---|",
        *(f"| `{name}` | {instead} |" for name, instead in OWN.items()),
    ]
    return before + "\n".join([BEGIN, *lines, END]) + after


def dashboards() -> dict[str, str]:
    """The text of each dashboard, by the name of its file."""
    drawn = {f"{each.name}.json": each.drawn() for each in DASHBOARDS}
    return {name: json.dumps(told, indent=1, ensure_ascii=False) + "\n" for name, told in drawn.items()}


def _shown(default: Any) -> str:
    return json.dumps(default, ensure_ascii=False)


def main() -> None:
    """Write the files."""
    (CHART / "values.schema.json").write_text(schema(), "utf-8")
    (CHART / "README.md").write_text(readme(), "utf-8")
    for name, text in dashboards().items():
        (CHART / "files" / "dashboards" / name).write_text(text, "utf-8")


if __name__ == "__main__":
    main()
