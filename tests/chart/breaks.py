"""What may go wrong with values and templates, and what notices it."""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.chart.rendering import SECRETS, Values, ci_files, merged

SCHEMA, GUARD = "schema", "guard"


@dataclass(frozen=True, slots=True)
class Break:
    """One mistake.

    Attributes:
        name: of the mistake.
        caught_by: `SCHEMA` or `GUARD`, which refuse to render, or the name of one of the checks.
        says: a part of what it says.
        values: with which the chart is rendered.
        edit: file of the chart, text in it, and what stands there by mistake.
    """

    name: str
    caught_by: str
    says: str
    values: Values = field(default_factory=lambda: SECRETS)
    edit: tuple[str, str, str] | None = None


def _with(**values: object) -> Values:
    return merged(SECRETS, values)


VALUES = (
    Break("a value with a typo", SCHEMA, "replicaCount", _with(gateway={"replicaCount": 2})),
    Break("a value at the wrong place", SCHEMA, "minReplicas", _with(gateway={"minReplicas": 2})),
    Break("a setting with a typo", SCHEMA, "HEARTBEATS_S", _with(settings={"HEARTBEATS_S": 20})),
    Break(
        "a setting of the wrong type", SCHEMA, "CONNECTIONS_MAX", _with(settings={"CONNECTIONS_MAX": "many"})
    ),
    Break("a setting out of its bounds", SCHEMA, "HEARTBEAT_S", _with(settings={"HEARTBEAT_S": 6000})),
    Break("a choice that is none", SCHEMA, "LOG_LEVEL", _with(settings={"LOG_LEVEL": "loud"})),
    Break("a secret among the values", SCHEMA, "JWT_SECRET", _with(settings={"JWT_SECRET": "x" * 32})),
    Break(
        "Redis's password among the values",
        SCHEMA,
        "REDIS_URL",
        _with(settings={"REDIS_URL": "redis://:x@r"}),
    ),
    Break("no tokens wanted", SCHEMA, "AUTH", _with(settings={"AUTH": "none"})),
    Break(
        "pods and routers of two prefixes",
        SCHEMA,
        "KEY_PREFIX",
        _with(router={"settings": {"KEY_PREFIX": "b"}}),
    ),
    Break(
        "a setting beside the settings",
        SCHEMA,
        "extraEnv",
        _with(gateway={"extraEnv": [{"name": "ORCHESTRATOR_AUTH", "value": "none"}]}),
    ),
    Break("a number of pods that is none", SCHEMA, "replicas", _with(gateway={"replicas": 0})),
    Break(
        "a label that selectors go by",
        SCHEMA,
        "app.kubernetes.io/component",
        _with(gateway={"podLabels": {"app.kubernetes.io/component": "router"}}),
    ),
    Break("a name that begins with a digit", GUARD, "begin with a letter", _with(fullnameOverride="4chat")),
    Break("no secrets", GUARD, "redis.existingSecret is needed", {}),
    Break("no keys for tokens", GUARD, "jwt.keysSecret is needed", {"redis": {"existingSecret": "redis"}}),
    Break(
        "a Secret with nothing in it",
        GUARD,
        "neither jwt.secretKey nor jwt.jwksUrlKey",
        _with(jwt={"secretKey": ""}),
    ),
    Break("a try-out with real secrets", GUARD, "brings its own", _with(tryout={"enabled": True})),
    Break(
        "two autoscalers for the routers",
        GUARD,
        "exclude each other",
        _with(router={"hpa": {"enabled": True}, "keda": {"enabled": True}}),
    ),
    Break(
        "a ScaledObject that looks at nothing",
        GUARD,
        "router.keda needs",
        _with(router={"keda": {"enabled": True, "cpuUtilization": 0}}),
    ),
    Break("both bounds of a budget", GUARD, "exactly one of", _with(gateway={"pdb": {"minAvailable": 1}})),
    Break("no bound of a budget", GUARD, "exactly one of", _with(router={"pdb": {"maxUnavailable": None}})),
    Break(
        "a budget of all pods",
        GUARD,
        "must be less than its fewest pods (2)",
        _with(router={"pdb": {"minAvailable": 2, "maxUnavailable": None}}),
    ),
    Break("a budget of none to go", GUARD, "lets no pod go", _with(gateway={"pdb": {"maxUnavailable": 0}})),
    Break(
        "fewer pods at the most than at the least",
        GUARD,
        "more than its maxReplicas",
        _with(gateway={"autoscaling": {"enabled": True, "minReplicas": 9, "maxReplicas": 3}}),
    ),
    Break(
        "one port for clients and operators", GUARD, "must differ", _with(gateway={"ports": {"admin": 8080}})
    ),
    Break(
        "an Ingress for everybody's hosts", GUARD, "ingress.hosts is needed", _with(ingress={"enabled": True})
    ),
    Break("a route of no Gateway", GUARD, "parentRefs is needed", _with(httpRoute={"enabled": True})),
    Break(
        "a client certificate without its key",
        GUARD,
        "go together",
        _with(redis={"tls": {"secret": "tls", "certKey": "tls.crt"}}),
    ),
    Break(
        "a drain that is not computed",
        SCHEMA,
        "DRAIN_TIMEOUT_S",
        _with(settings={"DRAIN_TIMEOUT_S": None}),
    ),
)
"""Values that are refused before anything reaches a cluster."""

_GATEWAY, _ROUTER = "templates/gateway-deployment.yaml", "templates/router-deployment.yaml"
_POD, _POLICIES = "templates/_pod.tpl", "templates/networkpolicies.yaml"
_FILES = ci_files()

TEMPLATES = (
    Break(
        "an account that nobody runs under",
        "selectors",
        "does not run under",
        edit=(_GATEWAY, "serviceAccountName: ", "#"),
    ),
    Break(
        "a Service of nobody",
        "selectors",
        "selects the pods of 0",
        edit=(
            "templates/services.yaml",
            'include "orchestrator.selectorLabels" $gateway',
            'print "app: gateway"',
        ),
    ),
    Break(
        "a Service of a port that is not there",
        "ports",
        "no port web",
        edit=("templates/services.yaml", "targetPort: http", "targetPort: web"),
    ),
    Break(
        "a job for each kind of process",
        "ports",
        "rules take one job",
        _FILES["monitoring"],
        edit=("templates/monitors.yaml", "  jobLabel: app.kubernetes.io/instance\n", ""),
    ),
    Break(
        "a policy for a port that is not there",
        "ports",
        "no port health",
        edit=(_POLICIES, '"admin" "metrics"', '"admin" "health"'),
    ),
    Break(
        "a grace period that is shorter than the drain",
        "drain",
        "its end may take 36 s, and it has 30 s",
        edit=(_GATEWAY, '{{ include "orchestrator.gatewayGraceSeconds" . }}', "30"),
    ),
    Break(
        "a grace period without the preStop",
        "drain",
        "its end may take 136",
        _FILES["long-drain"]
        | {
            "gateway": {
                **_FILES["long-drain"]["gateway"],
                "preStopSeconds": 120,
                "settings": {"DRAIN_TIMEOUT_S": 5},
            }
        },
        edit=("templates/_helpers.tpl", "add .Values.gateway.preStopSeconds ", "add "),
    ),
    Break(
        "an update that takes a pod away first",
        "drain",
        "must add a pod before",
        edit=(_GATEWAY, "maxUnavailable: 0", "maxUnavailable: 1"),
    ),
    Break(
        "ready because it lives",
        "probes",
        "readinessProbe asks /livez",
        edit=(_GATEWAY, '"path" "/readyz"', '"path" "/livez"'),
    ),
    Break(
        "a restart because Redis is away",
        "probes",
        "livenessProbe asks /readyz",
        edit=(
            _ROUTER,
            '"path" "/livez" "port" "metrics" "every" 10',
            '"path" "/readyz" "port" "metrics" "every" 10',
        ),
    ),
    Break(
        "a router that answers no probe",
        "probes",
        "listens at [0]",
        edit=(_ROUTER, "- name: ORCHESTRATOR_ROUTER_PORT", "- name: ROUTER_PORT"),
    ),
    Break(
        "a variable that is no setting",
        "settings",
        "ORCHESTRATOR_BIND is not a setting",
        edit=(_GATEWAY, "- name: ORCHESTRATOR_HOST", "- name: ORCHESTRATOR_BIND"),
    ),
    Break(
        "a number as YAML has it",
        "settings",
        "must be a whole number",
        _FILES["settings"],
        edit=("templates/_helpers.tpl", "{{- int64 . -}}", '{{- printf "%v" . -}}'),
    ),
    Break(
        "a pod that only itself can reach",
        "settings",
        "loopback only",
        edit=(_GATEWAY, ".Values.listenAddress | quote", '"127.0.0.1" | quote'),
    ),
    Break(
        "a secret in plain text",
        "secrets",
        "ORCHESTRATOR_JWT_SECRET is in plain text",
        edit=(
            _GATEWAY,
            "          env:\n",
            f"          env:\n            - name: ORCHESTRATOR_JWT_SECRET\n              value: {'x' * 48}\n",
        ),
    ),
    Break(
        "a password in an argument",
        "secrets",
        "a password in",
        edit=(
            _ROUTER,
            '["orchestrator", "router"]',
            '["orchestrator", "router", "--redis-url", "redis://:word@redis:6379"]',
        ),
    ),
    Break(
        "keys for tokens in a router",
        "secrets",
        "needs no keys for tokens",
        edit=(
            _ROUTER,
            '{{- include "orchestrator.redisEnv" . | nindent 12 }}',
            '{{- include "orchestrator.redisEnv" . | nindent 12 }}\n'
            '            {{- include "orchestrator.jwtEnv" . | trim | nindent 12 }}',
        ),
    ),
    Break(
        "a CA that is not mounted",
        "mounts",
        "nothing is mounted at /etc/orchestrator/redis-tls/ca.crt",
        _FILES["redis-tls"],
        edit=(_POD, "mountPath: /etc/orchestrator/redis-tls", "mountPath: /etc/redis"),
    ),
    Break(
        "a mount of nothing",
        "mounts",
        "there is no volume redis-tls",
        _FILES["redis-tls"],
        edit=(_POD, "- name: redis-tls\n  secret:", "- name: redis-ca\n  secret:"),
    ),
    Break(
        "a pod that may become root",
        "restricted",
        "Privilege Escalation",
        edit=(_POD, "allowPrivilegeEscalation: false", "allowPrivilegeEscalation: true"),
    ),
    Break(
        "capabilities that stay",
        "restricted",
        "Capabilities",
        edit=(_POD, "- ALL", "- NET_RAW"),
    ),
    Break(
        "system calls without a filter",
        "restricted",
        "Seccomp",
        edit=(_POD, "type: RuntimeDefault", "type: Unconfined"),
    ),
    Break(
        "a directory of the node",
        "restricted",
        "HostPath Volumes",
        edit=(
            _GATEWAY,
            "emptyDir:\n            sizeLimit: {{ .Values.gateway.tmpSize }}",
            "hostPath:\n            path: /tmp",
        ),
    ),
    Break(
        "a root file system that can be written",
        "hardening",
        "can be written",
        edit=(_POD, "readOnlyRootFilesystem: true", "readOnlyRootFilesystem: false"),
    ),
    Break(
        "variables of other Services",
        "hardening",
        "variables of Services",
        edit=(_POD, "enableServiceLinks: false", "enableServiceLinks: true"),
    ),
    Break(
        "a token of the cluster in the pods",
        "hardening",
        "service account token",
        edit=(_POD, "automountServiceAccountToken: false", "automountServiceAccountToken: true"),
    ),
    Break(
        "routers that anybody may ask",
        "network_policies",
        "open to everybody",
        edit=(
            _POLICIES,
            'if eq $component "gateway" }}\n    - ports:\n        - port: http',
            "if true }}\n"
            '    - ports:\n        - port: {{ eq $component "gateway" | ternary "http" "metrics" }}',
        ),
    ),
    Break(
        "a Valkey without a policy",
        "network_policies",
        "Deployment ao-agent-orchestrator-valkey has no policy",
        _FILES["tryout"],
        edit=(_POLICIES, "{{- if .Values.tryout.enabled }}\n---", "{{- if false }}\n---"),
    ),
    Break(
        "administration on the Ingress",
        "routes",
        "/api/admin is not public",
        _FILES["ingress-nginx"],
        edit=(
            "templates/ingress.yaml",
            '"/api/broadcast" "/health" "/openapi.json" }}\n          - path',
            '"/api/broadcast" "/api/admin" "/openapi.json" }}\n          - path',
        ),
    ),
    Break(
        "sockets that an Ingress cuts",
        "routes",
        "less than three heartbeats",
        _FILES["ingress-haproxy"],
        edit=("templates/_helpers.tpl", "mulf 3 ", "mulf 1 "),
    ),
    Break(
        "sockets that a Gateway cuts",
        "routes",
        "sockets live for 30s",
        _FILES["http-route"],
        edit=(
            "templates/httproute.yaml",
            "request: {{ .Values.httpRoute.timeouts.sockets }}",
            "request: {{ .Values.httpRoute.timeouts.requests }}",
        ),
    ),
    Break(
        "replicas that an autoscaler does not set alone",
        "autoscalers",
        "replicas must be set exactly",
        _FILES["autoscaling"],
        edit=(_GATEWAY, "if not .Values.gateway.autoscaling.enabled", "if true"),
    ),
    Break(
        "pods that go faster than they drain",
        "autoscalers",
        "faster than they drain",
        _FILES["autoscaling"],
        edit=("templates/gateway-hpa.yaml", "{{ $scaling.scaleDown.periodSeconds }}", "15"),
    ),
    Break(
        "both bounds of a budget, made by the template",
        "budgets",
        "has 2 bounds",
        edit=(_POD, "maxUnavailable: {{ $pdb.maxUnavailable }}", "maxUnavailable: 1\n  minAvailable: 1"),
    ),
    Break(
        "a field that no Kubernetes has",
        "kubernetes_schemas",
        "restartpolicy",
        edit=(_GATEWAY, "      containers:\n", "      restartpolicy: Always\n      containers:\n"),
    ),
    Break(
        "an API that is gone",
        "kubernetes_schemas",
        "policy/v1beta1",
        edit=(_POD, "apiVersion: policy/v1\n", "apiVersion: policy/v1beta1\n"),
    ),
    Break(
        "an API of a like name",
        "kubernetes_schemas",
        "apps.example.com/v1 is no API",
        edit=(_ROUTER, "apiVersion: apps/v1", "apiVersion: apps.example.com/v1"),
    ),
    Break(
        "an object of an unknown kind",
        "kubernetes_schemas",
        "VirtualService",
        edit=(
            "templates/serviceaccounts.yaml",
            "apiVersion: v1\nkind: ServiceAccount",
            "apiVersion: networking.istio.io/v1\nkind: VirtualService",
        ),
    ),
    Break(
        "a spread that counts others",
        "spread",
        "counts other pods",
        edit=(_POD, '{{- include "orchestrator.selectorLabels" $ | nindent 8 }}', "app: other"),
    ),
    Break(
        "a test of another Service",
        "helm_test",
        "asks http://gateway:80",
        edit=(
            "templates/tests/chat.yaml",
            'http://{{ include "orchestrator.fullname" . }}-gateway',
            "http://gateway",
        ),
    ),
    Break(
        "two objects of one name",
        "names",
        "is there 2 times",
        edit=(
            "templates/pdbs.yaml",
            '{{- range $component := list "gateway" "router" }}',
            '{{- range $component := list "gateway" "gateway" }}',
        ),
    ),
)
"""Mistakes in templates, which render, and are found by a check."""
