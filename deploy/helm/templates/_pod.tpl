{{/* The restricted Pod Security Standard, and a root file system that cannot be written. */}}
{{- define "orchestrator.podSecurityContext" -}}
runAsNonRoot: true
{{- with .Values.podSecurity }}
{{- if not (kindIs "invalid" .runAsUser) }}
runAsUser: {{ int64 .runAsUser }}
{{- end }}
{{- if not (kindIs "invalid" .runAsGroup) }}
runAsGroup: {{ int64 .runAsGroup }}
{{- end }}
{{- if not (kindIs "invalid" .fsGroup) }}
fsGroup: {{ int64 .fsGroup }}
fsGroupChangePolicy: OnRootMismatch
{{- end }}
{{- end }}
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "orchestrator.containerSecurityContext" -}}
allowPrivilegeEscalation: false
privileged: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities:
  drop:
    - ALL
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{/* No service links: a Service named "orchestrator" would put ORCHESTRATOR_PORT=tcp://… into every container,
and what is no setting stops the start. */}}
{{- define "orchestrator.podBasics" -}}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . | quote }}
  {{- end }}
{{- end }}
securityContext:
  {{- include "orchestrator.podSecurityContext" . | nindent 2 }}
{{- end -}}

{{- define "orchestrator.container" -}}
image: {{ include "orchestrator.image" . | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext:
  {{- include "orchestrator.containerSecurityContext" . | nindent 2 }}
{{- end -}}

{{- define "orchestrator.redisEnv" -}}
{{- $tls := .Values.redis.tls -}}
{{- $key := .Values.tryout.enabled | ternary "redis-url" .Values.redis.urlKey -}}
- name: {{ empty $tls.secret | ternary "ORCHESTRATOR_REDIS_URL" "REDIS_URL_WITHOUT_TLS_FILES" }}
  valueFrom:
    secretKeyRef:
      name: {{ include "orchestrator.redisSecret" . | quote }}
      key: {{ $key | quote }}
{{- if $tls.secret }}
{{- /* Kubernetes puts the first variable into the second: the password stays in the Secret. */}}
{{- $files := list (printf "ssl_ca_certs=/etc/orchestrator/redis-tls/%s" $tls.caKey) -}}
{{- if $tls.certKey -}}
{{- $files = append $files (printf "ssl_certfile=/etc/orchestrator/redis-tls/%s" $tls.certKey) -}}
{{- $files = append $files (printf "ssl_keyfile=/etc/orchestrator/redis-tls/%s" $tls.keyKey) -}}
{{- end }}
- name: ORCHESTRATOR_REDIS_URL
  value: "$(REDIS_URL_WITHOUT_TLS_FILES){{ $tls.urlHasQuery | ternary "&" "?" }}{{ join "&" $files }}"
{{- end }}
{{- end -}}

{{- define "orchestrator.jwtEnv" -}}
{{- with include "orchestrator.jwtSecretKey" . }}
- name: ORCHESTRATOR_JWT_SECRET
  valueFrom:
    secretKeyRef:
      name: {{ include "orchestrator.jwtSecret" $ | quote }}
      key: {{ . | quote }}
{{- end }}
{{- if and .Values.jwt.existingSecret .Values.jwt.jwksUrlKey }}
- name: ORCHESTRATOR_JWT_JWKS_URL
  valueFrom:
    secretKeyRef:
      name: {{ .Values.jwt.existingSecret | quote }}
      key: {{ .Values.jwt.jwksUrlKey | quote }}
{{- end }}
{{- if .Values.jwt.keysSecret }}
- name: ORCHESTRATOR_JWT_KEYS_DIR
  value: /etc/orchestrator/jwt-keys
{{- end }}
{{- end -}}

{{/* Takes a map of settings. */}}
{{- define "orchestrator.settingsEnv" -}}
{{- range $name, $value := . }}
{{- if not (kindIs "invalid" $value) }}
- name: ORCHESTRATOR_{{ $name }}
  value: {{ include "orchestrator.settingText" $value | quote }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "orchestrator.redisTlsMount" -}}
{{- if .Values.redis.tls.secret }}
- name: redis-tls
  mountPath: /etc/orchestrator/redis-tls
  readOnly: true
{{- end }}
{{- end -}}

{{- define "orchestrator.redisTlsVolume" -}}
{{- if .Values.redis.tls.secret }}
- name: redis-tls
  secret:
    secretName: {{ .Values.redis.tls.secret | quote }}
    defaultMode: 0440
{{- end }}
{{- end -}}

{{/* Takes (dict "root" $ "component" "gateway"). */}}
{{- define "orchestrator.scheduling" -}}
{{- $values := index .root.Values .component -}}
{{- with $values.priorityClassName }}
priorityClassName: {{ . | quote }}
{{- end }}
{{- with $values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- $spread := $values.topologySpread }}
{{- if or $spread.zones $spread.nodes }}
topologySpreadConstraints:
  {{- range list (list "topology.kubernetes.io/zone" $spread.zones) (list "kubernetes.io/hostname" $spread.nodes) }}
  {{- if last . }}
  - topologyKey: {{ first . }}
    whenUnsatisfiable: {{ last . }}
    maxSkew: 1
    {{- /* Counted per version: pods that an update is about to end take nobody's place. */}}
    matchLabelKeys:
      - pod-template-hash
    labelSelector:
      matchLabels:
        {{- include "orchestrator.selectorLabels" $ | nindent 8 }}
  {{- end }}
  {{- end }}
{{- end }}
{{- end -}}

{{/* Takes (dict "path" "/livez" "port" "http" "every" 5 "failures" 3). */}}
{{- define "orchestrator.probe" -}}
httpGet:
  path: {{ .path }}
  port: {{ .port }}
periodSeconds: {{ .every }}
timeoutSeconds: 3
failureThreshold: {{ .failures }}
{{- end -}}

{{/* Takes (dict "root" $ "component" "gateway" "fewest" 3). */}}
{{- define "orchestrator.pdb" -}}
{{- $pdb := (index .root.Values .component).pdb -}}
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: {{ include "orchestrator.fullname" .root }}-{{ .component }}
  namespace: {{ .root.Release.Namespace | quote }}
  labels:
    {{- include "orchestrator.labels" . | nindent 4 }}
spec:
  {{- if not (kindIs "invalid" $pdb.minAvailable) }}
  minAvailable: {{ $pdb.minAvailable }}
  {{- else }}
  maxUnavailable: {{ $pdb.maxUnavailable }}
  {{- end }}
  # A pod that is not ready protects nobody, and must not keep its node from being emptied.
  unhealthyPodEvictionPolicy: AlwaysAllow
  selector:
    matchLabels:
      {{- include "orchestrator.selectorLabels" . | nindent 6 }}
{{- end -}}
