"""The chart as it is: every file of values, and what the switches make together."""

from __future__ import annotations

import json
import re
import shutil
import tomllib
from collections.abc import Iterator
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any

import helm_python
import pytest
import trustme
import yaml

from backplane.redis_client import parse_redis_url
from backplane.settings import Settings
from tests.chart import generate
from tests.chart.checks import problems
from tests.chart.checks.processes import variables
from tests.chart.checks.schemas import FOREIGN, versions
from tests.chart.rendering import (
    CHART,
    SECRETS,
    Rendered,
    Values,
    ci_files,
    containers,
    environment,
    merged,
    render,
)

FILES = ci_files()
PAIRS = [(one, other) for one, other in combinations(FILES, 2) if "tryout" not in (one, other)]

SWITCHES: dict[str, Values] = {
    "hpa": {"gateway": {"autoscaling": {"enabled": True}}},
    "router": {"router": {"hpa": {"enabled": True}}},
    "policies": {"networkPolicy": {"enabled": False}},
    "egress": {"networkPolicy": {"egress": {"enabled": True}}},
    "budgets": {"gateway": {"pdb": {"enabled": False}}},
    "demo": {"demoAgent": {"enabled": True}},
    "tests": {"tests": {"enabled": False}},
    "accounts": {"router": {"serviceAccount": {"create": False}}},
}


@cache
def _file(name: str) -> Rendered:
    return render(FILES[name])


def _gateway(rendered: Rendered) -> dict[str, Any]:
    container: dict[str, Any] = rendered.one("Deployment", "-gateway")["spec"]["template"]["spec"][
        "containers"
    ][0]
    return container


@pytest.mark.parametrize("name", FILES)
def test_value_files(name: str) -> None:
    """Each renders into objects that both Kubernetes versions take and no check objects to."""
    rendered = _file(name)
    assert len(rendered.objects) >= 7
    assert problems(rendered) == []


@pytest.mark.parametrize("name", FILES)
def test_lint(name: str) -> None:
    """Helm's own linter, strict, has nothing to say of the chart with each file of values."""
    report = helm_python.lint(CHART, FILES[name], strict=True)
    severe = [message for message in report["messages"] if message["severity"] > 1]
    assert (severe, report["errors"]) == ([], [])


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_files_together(one: str, other: str) -> None:
    """Any two features go together; those that cannot are refused."""
    values = merged(FILES[one], FILES[other])
    if {one, other} == {"autoscaling", "keda"}:
        with pytest.raises(helm_python.HelmError, match="exclude each other"):
            render(values)
    else:
        assert problems(render(values)) == []


@pytest.mark.parametrize("base", ["minimal", "tryout"])
def test_switches_together(base: str) -> None:
    """All 256 settings of eight switches, with secrets and as a try-out."""
    for count in range(len(SWITCHES) + 1):
        for chosen in combinations(SWITCHES, count):
            values = merged(FILES[base], *(SWITCHES[name] for name in chosen))
            assert problems(render(values)) == [], chosen


def test_long_names() -> None:
    """With the longest release name that Helm takes, names still fit and differ."""
    assert problems(render(FILES["tryout"], release="r" * 53)) == []
    assert problems(render(merged(SECRETS, {"fullnameOverride": "n" * 63}))) == []


def test_names_that_look_like_numbers() -> None:
    """YAML would read 1e3 as a number, which no Kubernetes takes for a name."""
    names: Values = {
        "fullnameOverride": "chat",
        "nameOverride": "0x10",
        "image": {"pullSecrets": ["12"]},
        "redis": {"existingSecret": "123", "urlKey": "1", "tls": {"secret": "456", "caKey": "2"}},
        "jwt": {"existingSecret": "789", "secretKey": "3", "keysSecret": "1e3"},
        "accessCheck": {"existingSecret": "10", "urlKey": "4"},
        "gateway": {"serviceAccount": {"create": False, "name": "11"}, "priorityClassName": "12"},
        "router": {"serviceAccount": {"name": "13"}},
        "tests": {"tokenSecret": "14", "tokenKey": "5"},
    }
    for values in (names, merged(FILES["tryout"], {"fullnameOverride": "chat"})):
        assert problems(render(values, release="1", namespace="1e3")) == []


def test_the_same_label_twice() -> None:
    """A pod's own label wins over a common one of the same name."""
    values = merged(SECRETS, {"commonLabels": {"team": "all"}, "gateway": {"podLabels": {"team": "chat"}}})
    deployment = render(values).one("Deployment", "-gateway")
    assert deployment["metadata"]["labels"]["team"] == "all"
    assert deployment["spec"]["template"]["metadata"]["labels"]["team"] == "chat"


def test_a_service_called_orchestrator() -> None:
    """The name of which Kubernetes would make ORCHESTRATOR_PORT=tcp://…, which is no port."""
    rendered = render(merged(SECRETS, {"fullnameOverride": "orchestrator"}))
    assert all(pod["spec"]["enableServiceLinks"] is False for _, pod in rendered.pods())


@pytest.mark.parametrize(
    ("readiness", "timeout", "hook", "grace_s"),
    [(3, 20, 5, 36), (0, 0.1, 0, 9), (7.5, 120, 0, 136), (600, 3600, 600, 4808), (2.1, 2.9, 1, 15)],
)
def test_the_grace_period_follows_the_drain(
    readiness: float, timeout: float, hook: int, grace_s: int
) -> None:
    """Readiness + timeout + 8 s, whole seconds, and the time before SIGTERM."""
    drain = {"DRAIN_READINESS_S": readiness, "DRAIN_TIMEOUT_S": timeout}
    for values in ({"settings": drain}, {"gateway": {"settings": drain}}):
        rendered = render(merged(SECRETS, values, {"gateway": {"preStopSeconds": hook}}))
        spec = rendered.one("Deployment", "-gateway")["spec"]["template"]["spec"]
        assert spec["terminationGracePeriodSeconds"] == grace_s
        told = variables(spec["containers"][0])
        assert float(told["ORCHESTRATOR_DRAIN_READINESS_S"]) == readiness
        assert float(told["ORCHESTRATOR_DRAIN_TIMEOUT_S"]) == timeout


def test_what_the_chart_computes_with_are_the_defaults() -> None:
    """The settings that it always tells the processes have their own default values."""
    rendered = render(SECRETS)
    defaults = Settings()
    told = variables(_gateway(rendered))
    for name in ("DRAIN_READINESS_S", "DRAIN_TIMEOUT_S", "HEARTBEAT_S"):
        assert float(told[f"ORCHESTRATOR_{name}"]) == getattr(defaults, name.lower())
    router = rendered.one("Deployment", "-router")["spec"]["template"]["spec"]["containers"][0]
    assert float(variables(router)["ORCHESTRATOR_REDIS_TIMEOUT_S"]) == defaults.redis_timeout_s


def test_every_setting_can_be_set() -> None:
    """Each at its default, large numbers as numbers; what may not be there has a value of its own."""
    defaults = Settings()
    chosen: dict[str, Any] = {}
    for name in generate.setting_names():
        value = getattr(defaults, name.lower())
        chosen[name] = list(value) if isinstance(value, tuple) else value
    rendered = render(merged(SECRETS, {"settings": chosen}))
    assert problems(rendered) == []
    told = variables(_gateway(rendered))
    assert told["ORCHESTRATOR_SESSION_LOG_MAX_BYTES"] == "4194304"
    assert told["ORCHESTRATOR_SENDS_PER_DAY"] == "100,1000,10000,0"
    assert told["ORCHESTRATOR_ECHO_MESSAGES"] == "true"
    every = {name.upper() for name in Settings.__dataclass_fields__}
    assert every == set(chosen) | set(generate.OWN)


def test_settings_of_one_process_win() -> None:
    """Over those of both; and null leaves one out."""
    values = {
        "settings": {"LOG_LEVEL": "debug", "LOG_FORMAT": None},
        "gateway": {"settings": {"LOG_LEVEL": "error"}},
    }
    rendered = render(merged(SECRETS, values))
    told = variables(_gateway(rendered))
    assert told["ORCHESTRATOR_LOG_LEVEL"] == "error"
    assert "ORCHESTRATOR_LOG_FORMAT" not in told


def test_tls_to_redis() -> None:
    """The URL stays in its Secret, and gets the mounted files as options."""
    values = merged(SECRETS, {"redis": {"tls": {"secret": "ca"}}})
    for suffix in ("-gateway", "-router"):
        container = render(values).one("Deployment", suffix)["spec"]["template"]["spec"]["containers"][0]
        url = next(each for each in container["env"] if each["name"] == "ORCHESTRATOR_REDIS_URL")
        assert (
            url["value"] == "$(REDIS_URL_WITHOUT_TLS_FILES)?ssl_ca_certs=/etc/orchestrator/redis-tls/ca.crt"
        )
        earlier = [each["name"] for each in container["env"]]
        assert earlier.index("REDIS_URL_WITHOUT_TLS_FILES") < earlier.index("ORCHESTRATOR_REDIS_URL")
    both = _file("redis-tls").one("Deployment", "-demo-agent")
    value = both["spec"]["template"]["spec"]["containers"][0]["env"][1]["value"]
    assert value.startswith("$(REDIS_URL_WITHOUT_TLS_FILES)&ssl_ca_certs=")


@pytest.mark.parametrize("name", ["redis-tls", "minimal"])
def test_the_address_of_a_redis_with_tls(name: str, tmp_path: Path) -> None:
    """What the processes are told is an address that they can read, with the files that are mounted."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.crt")
    client = authority.issue_cert("client.example.com")
    client.cert_chain_pems[0].write_to_path(tmp_path / "tls.crt")
    client.private_key_pem.write_to_path(tmp_path / "tls.key")
    values = merged(FILES[name], {"redis": {"tls": {"secret": "redis-tls"}}})
    rendered = render(values)
    written = environment(_gateway(rendered))["ORCHESTRATOR_REDIS_URL"]["value"]
    in_secret = "rediss://user:word@redis:6379/0" + (
        "?ssl_check_hostname=false" if name == "redis-tls" else ""
    )
    url = written.replace("$(REDIS_URL_WITHOUT_TLS_FILES)", in_secret)
    target = parse_redis_url(url.replace("/etc/orchestrator/redis-tls", str(tmp_path)))
    assert target.tls is not None
    assert len(target.tls.get_ca_certs()) == 1


def test_rules_and_dashboards_come_from_files(tmp_path: Path) -> None:
    """As they are: their braces are Prometheus's and Grafana's."""
    copy = Path(shutil.copytree(CHART, tmp_path / "helm"))
    alert = {"alert": "Deaf", "expr": "up == 0", "annotations": {"summary": "{{ $labels.pod }} is deaf"}}
    rules = {"groups": [{"name": "orchestrator", "rules": [alert]}]}
    (copy / "files" / "rules.yaml").write_text("# Rules.\n" + yaml.safe_dump(rules), "utf-8")
    dashboard = {"title": "Overview {{ tenant }}", "panels": [{"legendFormat": "{{pod}}"}]}
    folder = copy / "files" / "dashboards"
    for file in folder.glob("*.json"):
        file.unlink()
    (folder / "overview.json").write_text(json.dumps(dashboard, indent=2), "utf-8")
    rendered = render(FILES["monitoring"], copy)
    assert rendered.one("PrometheusRule")["spec"] == rules
    found = rendered.one("ConfigMap")
    assert found["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert json.loads(found["data"]["overview.json"]) == dashboard
    assert problems(rendered) == []


def test_rules_are_wired() -> None:
    """The PrometheusRule has what the file has, and every dashboard is a ConfigMap."""
    rendered = _file("monitoring")
    rules = yaml.safe_load((CHART / "files" / "rules.yaml").read_text("utf-8"))
    assert rendered.one("PrometheusRule")["spec"] == rules
    boards = [path.name for path in sorted((CHART / "files" / "dashboards").glob("*.json"))]
    assert sorted(name for found in rendered.of("ConfigMap") for name in found["data"]) == boards


def test_the_schema_is_closed() -> None:
    """A typo fails everywhere: no object takes names that it does not know."""
    schema = json.loads((CHART / "values.schema.json").read_text("utf-8"))
    open_ones = sorted(_open_objects(schema, ""))
    assert open_ones == ["/$defs/kubernetes", "/properties/global"]


def _open_objects(schema: Any, path: str) -> list[str]:
    found: list[str] = []
    if isinstance(schema, dict):
        if schema.get("type") == "object" and schema.get("additionalProperties") not in (
            False,
            {"type": "string"},
        ):
            found.append(path)
        for key, value in schema.items():
            found += _open_objects(value, f"{path}/{key}")
    return found


def test_the_schema_knows_every_value() -> None:
    """values.yaml and the schema have the same names, at every depth."""
    schema = json.loads((CHART / "values.schema.json").read_text("utf-8"))
    defaults = yaml.safe_load((CHART / "values.yaml").read_text("utf-8"))
    assert list(_differences(schema, schema, defaults, "")) == ["global"]


OPTIONAL = {"#/$defs/sharedSettings", "#/$defs/processSettings", "#/$defs/resources", "#/$defs/affinity"}
"""Parts whose names need not have defaults."""


def _differences(whole: Any, schema: Any, default: Any, path: str) -> Iterator[str]:
    reference = schema.get("$ref", "")
    if reference in OPTIONAL or not isinstance(default, dict):
        return
    schema = whole["$defs"][reference.rpartition("/")[2]] if reference else schema
    properties = schema.get("properties", {})
    if "properties" in schema:
        yield from (f"{path}{name}" for name in sorted(properties.keys() ^ default.keys()))
    for name in properties.keys() & default.keys():
        yield from _differences(whole, properties[name], default[name], f"{path}{name}.")


def test_the_package(tmp_path: Path) -> None:
    """What `helm package` makes renders the same, and has no files of ours for tests."""
    archive = helm_python.package(CHART, destination=tmp_path)
    with helm_python.Chart.load(archive) as chart:
        assert not any(file["name"].startswith("ci/") for file in chart.files)
        assert {"README.md", "files/rules.yaml"} <= {file["name"] for file in chart.files}
    assert render(SECRETS, Path(archive)) == render(SECRETS)


def test_generated_parts_are_up_to_date() -> None:
    """Else: ``python -m tests.chart.generate``."""
    assert (CHART / "values.schema.json").read_text("utf-8") == generate.schema()
    assert (CHART / "README.md").read_text("utf-8") == generate.readme()


def test_every_value_is_described() -> None:
    """Each leaf of values.yaml has its line in the README's table, or belongs to one that has."""
    defaults = yaml.safe_load((CHART / "values.yaml").read_text("utf-8"))
    described = {value.path for value in generate.values()}

    def missing(tree: Values, path: str) -> list[str]:
        found = []
        for key, value in tree.items():
            here = f"{path}{key}"
            if here in described:
                continue
            found += missing(value, f"{here}.") if isinstance(value, dict) and value else [here]
        return found

    assert missing(defaults, "") == []


def test_versions() -> None:
    """The chart is the project's version, and its image too, unless values say otherwise."""
    project = tomllib.loads((CHART.parents[1] / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text("utf-8"))
    assert (chart["name"], chart["version"], chart["appVersion"]) == ("agent-orchestrator", project, project)
    assert _gateway(render(SECRETS))["image"] == f"agent-orchestrator:{project}"
    digest = FILES["placement"]["image"]["digest"]
    assert _gateway(_file("placement"))["image"].endswith(f"@{digest}")
    oldest, newest = versions()
    assert [int(part) for part in oldest.split(".")] < [int(part) for part in newest.split(".")]


def test_every_foreign_kind_is_tried() -> None:
    """No kind is allowed that no file of values makes; and none is made that values do not ask for."""
    made = {(found["apiVersion"], found["kind"]) for name in FILES for found in _file(name).objects}
    assert set(FOREIGN) <= made
    assert not {found["kind"] for found in render(SECRETS).objects} & {kind for _, kind in FOREIGN}


def test_helm_test_needs_a_token() -> None:
    """Without one there is no pod, and the notes say so."""
    rendered = _file("jwks")
    assert rendered.of("Pod") == []
    assert "needs a token" in rendered.notes
    spec = _file("jwt-keys").one("Pod")["spec"]
    assert "$(TOKEN)" in spec["containers"][0]["args"]
    assert "ORCHESTRATOR_JWT_SECRET" not in variables(spec["containers"][0])


def test_notes() -> None:
    """They name the release's own commands and addresses, and warn of a try-out."""
    assert re.search(r"helm -n prod test ao\b", render(SECRETS).notes)
    assert "has 36 s" in render(SECRETS).notes
    assert "THIS IS A TRY-OUT" in _file("tryout").notes
    assert "wss://chat.example.org/ws/" in _file("ingress-nginx").notes


def test_the_try_out_is_off() -> None:
    """By default there is no Valkey, no demo agent and no Secret, and every image is the project's."""
    rendered = render(SECRETS)
    assert {found["metadata"]["name"].rpartition("-")[2] for found in rendered.of("Deployment")} == {
        "gateway",
        "router",
    }
    assert rendered.of("Secret") == []
    images = {container["image"] for _, pod in rendered.pods() for container in containers(pod)}
    assert len(images) == 1
