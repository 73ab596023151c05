{{- define "orchestrator.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{/* Cut so that the longest suffix, "-gateway-admin", still fits into the 63 characters of a Service's name. */}}
{{- define "orchestrator.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 48 | trimSuffix "-" -}}
{{- else -}}
{{- $name := include "orchestrator.name" . -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 48 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 48 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Takes (dict "root" $ "component" "gateway"). */}}
{{- define "orchestrator.selectorLabels" -}}
app.kubernetes.io/name: {{ include "orchestrator.name" .root | quote }}
app.kubernetes.io/instance: {{ .root.Release.Name | quote }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{/* Takes also "extra", more labels. Each once: the same key may be among the common ones. */}}
{{- define "orchestrator.labels" -}}
{{- $own := include "orchestrator.selectorLabels" . | fromYaml -}}
{{- $chart := printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" -}}
{{- $own = merge $own (dict
      "app.kubernetes.io/version" .root.Chart.AppVersion
      "app.kubernetes.io/managed-by" .root.Release.Service
      "helm.sh/chart" $chart) -}}
{{- merge $own (.extra | default dict) .root.Values.commonLabels | toYaml -}}
{{- end -}}

{{- define "orchestrator.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ default .Chart.AppVersion .Values.image.tag }}
{{- end -}}
{{- end -}}

{{/* Takes (dict "root" $ "component" "gateway"). */}}
{{- define "orchestrator.serviceAccountName" -}}
{{- $account := (index .root.Values .component).serviceAccount -}}
{{- if $account.create -}}
{{- default (printf "%s-%s" (include "orchestrator.fullname" .root) .component) $account.name -}}
{{- else -}}
{{- default "default" $account.name -}}
{{- end -}}
{{- end -}}

{{/* A setting as the process reads it. Numbers come out of YAML as floats: 4194304 would be 4.194304e+06. */}}
{{- define "orchestrator.settingText" -}}
{{- if kindIs "slice" . -}}
{{- range $i, $number := . }}{{ if $i }},{{ end }}{{ int64 $number }}{{ end -}}
{{- else if and (kindIs "float64" .) (eq (floor .) .) -}}
{{- int64 . -}}
{{- else -}}
{{- toString . -}}
{{- end -}}
{{- end -}}

{{/* What the grace period and time limits are computed from is always told to the pods: an image of another
version may have other defaults. */}}
{{- define "orchestrator.gatewaySettings" -}}
{{- $pinned := dict "DRAIN_READINESS_S" 3 "DRAIN_TIMEOUT_S" 20 "HEARTBEAT_S" 25 -}}
{{- mergeOverwrite $pinned (deepCopy .Values.settings) (deepCopy .Values.gateway.settings) | toYaml -}}
{{- end -}}

{{- define "orchestrator.routerSettings" -}}
{{- $pinned := dict "REDIS_TIMEOUT_S" 5 -}}
{{- mergeOverwrite $pinned (deepCopy .Values.settings) (deepCopy .Values.router.settings) | toYaml -}}
{{- end -}}

{{/* Seconds from the begin of a pod's end to SIGKILL: docs/design.md, Drain. */}}
{{- define "orchestrator.gatewayGraceSeconds" -}}
{{- $settings := include "orchestrator.gatewaySettings" . | fromYaml -}}
{{- add .Values.gateway.preStopSeconds (ceil $settings.DRAIN_READINESS_S) (ceil $settings.DRAIN_TIMEOUT_S) 8 -}}
{{- end -}}

{{/* A router ends after the batch that it is moving, and that waits for Redis at most so long; then its goodbye. */}}
{{- define "orchestrator.routerGraceSeconds" -}}
{{- $settings := include "orchestrator.routerSettings" . | fromYaml -}}
{{- add (ceil $settings.REDIS_TIMEOUT_S) 10 -}}
{{- end -}}

{{/* Silence after which a proxy may cut a socket: a pod closes it with a reason after two heartbeats. */}}
{{- define "orchestrator.socketSeconds" -}}
{{- $settings := include "orchestrator.gatewaySettings" . | fromYaml -}}
{{- ceil (mulf 3 $settings.HEARTBEAT_S) | int64 -}}
{{- end -}}

{{- define "orchestrator.redisSecret" -}}
{{- if .Values.tryout.enabled }}{{ include "orchestrator.fullname" . }}-tryout{{ else }}{{ .Values.redis.existingSecret }}{{ end -}}
{{- end -}}

{{- define "orchestrator.jwtSecret" -}}
{{- if .Values.tryout.enabled }}{{ include "orchestrator.fullname" . }}-tryout{{ else }}{{ .Values.jwt.existingSecret }}{{ end -}}
{{- end -}}

{{/* The key of the secret that signs tokens, in jwtSecret; empty if there is none. */}}
{{- define "orchestrator.jwtSecretKey" -}}
{{- if .Values.tryout.enabled }}jwt-secret{{ else if .Values.jwt.existingSecret }}{{ .Values.jwt.secretKey }}{{ end -}}
{{- end -}}

{{/* Whether the pod of `helm test` can have a token. */}}
{{- define "orchestrator.testable" -}}
{{- if and .Values.tests.enabled (or .Values.tests.tokenSecret (include "orchestrator.jwtSecretKey" .)) }}yes{{ end -}}
{{- end -}}

{{/* Pods that there are at the fewest. Takes (dict "root" $ "component" "gateway"). */}}
{{- define "orchestrator.fewest" -}}
{{- $values := index .root.Values .component -}}
{{- $fewest := $values.replicas -}}
{{- range list "autoscaling" "hpa" "keda" -}}
{{- with index $values . -}}
{{- if .enabled }}{{ $fewest = .minReplicas }}{{ end -}}
{{- end -}}
{{- end -}}
{{- int $fewest -}}
{{- end -}}
